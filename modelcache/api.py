"""The functions of the package root: those of `Cache`, on the one default cache.

The default cache is the only state a module holds. It belongs to MODELCACHE_HOME as it is at the first call.
"""

from modelcache.cache import Cache

default = Cache()

fetch = default.fetch
path = default.path
verify = default.verify
repair = default.repair
report = default.report
on_event = default.on_event
