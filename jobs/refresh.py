"""Runs the job `refresh` once: `python jobs/refresh.py`, with the options of `modelcache jobs run`."""

import sys

from modelcache.cli import main

if __name__ == "__main__":
    sys.exit(main(["jobs", "run", "refresh", *sys.argv[1:]]))
