"""The public test origin: real HTTP servers on this machine that fail the way you ask them to.

Responsible for: the names you import; docs/testing.md is the guide.
Leaves to: `wire` (exact bytes).
Standard library only; imports nothing else of modelcache, so that any downloader can be tested with it.
"""

from modelcache.testing.listener import Certificate, certificate
from modelcache.testing.wire import RESET, Reply, Wire

__all__ = ["RESET", "Certificate", "Reply", "Wire", "certificate"]
