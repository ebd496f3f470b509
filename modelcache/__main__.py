"""`python -m modelcache` is the command `modelcache`."""

import sys

from modelcache.cli import main

sys.exit(main())
