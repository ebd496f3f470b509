"""Runs the job `mirror` once: `python jobs/mirror.py`, with the options of `modelcache jobs run`."""

import sys

from modelcache.cli import main

if __name__ == "__main__":
    sys.exit(main(["jobs", "run", "mirror", *sys.argv[1:]]))
