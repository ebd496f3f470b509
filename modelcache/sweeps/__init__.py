"""Sweeps: what is on the disks is verified bit by bit, a share a run, so that rot is found before it is needed."""
