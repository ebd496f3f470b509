"""Runs the job `publish-metrics` once: `python jobs/publish_metrics.py`, with the options of `modelcache jobs run`."""

import sys

from modelcache.cli import main

if __name__ == "__main__":
    sys.exit(main(["jobs", "run", "publish-metrics", *sys.argv[1:]]))
