"""Caches of other tools, and further roots of this one, on the same disk: read, never written."""
