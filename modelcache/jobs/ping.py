"""Tells a watchman that a job was well: a GET of a URL, as healthchecks.io, Uptime Kuma and cronitor take it.

The watchman sounds the alarm when nobody comes. The URL is a secret: no message holds it.
"""

import logging
import threading

from modelcache.remotes.unheard import unheard

log = logging.getLogger(__name__)

WITHIN_S = 10.0


def ping(job: str, url: str) -> None:
    """Returns within 10 s, and never raises; what went wrong is logged."""
    thread = threading.Thread(target=_asked, args=(job, url), name="modelcache-ping", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        log.warning("%s: no thread for its ping", job)
    else:
        thread.join(WITHIN_S)


def _asked(job: str, url: str) -> None:
    import requests

    try:
        with unheard(), requests.get(url, timeout=WITHIN_S / 2, allow_redirects=False, stream=True) as reply:
            if not reply.ok:
                log.warning("%s: its ping was answered with %d", job, reply.status_code)
    except Exception as error:  # noqa: BLE001 - the text of foreign errors holds the URL
        log.warning("%s: its ping failed: %s", job, type(error).__name__)
