"""Runs the job `verify` once: `python jobs/verify.py`, with the options of `modelcache jobs run`."""

import sys

from modelcache.cli import main

if __name__ == "__main__":
    sys.exit(main(["jobs", "run", "verify", *sys.argv[1:]]))
