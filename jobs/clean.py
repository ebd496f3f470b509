"""Runs the job `clean` once: `python jobs/clean.py`, with the options of `modelcache jobs run`."""

import sys

from modelcache.cli import main

if __name__ == "__main__":
    sys.exit(main(["jobs", "run", "clean", *sys.argv[1:]]))
