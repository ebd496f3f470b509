"""The functions of the package root: those of `Cache`, on the one default cache.

The default cache is the only state a module holds. It belongs to MODELCACHE_HOME as it is at the first call.
"""

from modelcache.cache import Cache

_cache = Cache()

fetch = _cache.fetch
path = _cache.path
verify = _cache.verify
repair = _cache.repair
on_event = _cache.on_event
