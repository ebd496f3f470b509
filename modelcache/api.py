"""The functions of the package root: those of `Cache`, on the one default cache.

The default cache is the only state a module holds. It belongs to MODELCACHE_HOME as it is at the first call.
"""

from modelcache.caching import Cache

cache = Cache()

fetch = cache.fetch
afetch = cache.afetch
path = cache.path
verify = cache.verify
repair = cache.repair
report = cache.report
on_event = cache.on_event
