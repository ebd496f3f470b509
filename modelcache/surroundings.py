"""What is wrong around a cache: the caches of other tools, the network, tokens (product G9).

Responsible for: looking at these; the hub is asked one question, the only one that anything here asks.
Leaves to others: the cache itself (`doctor`), mending.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime

from modelcache.cleaning import FOREIGN_AGE_S
from modelcache.errors import ModelCacheError, StoreError, UsageError
from modelcache.findings import Finding, quoted, some
from modelcache.foreign.tier import Left, Tier
from modelcache.othertools import garbled_logins, is_offline, secret_files
from modelcache.settings import Settings
from modelcache.state.database import reading
from modelcache.state.looks import Looks
from modelcache.store.leftovers import shown, size_of
from modelcache.wiring import ask_hub

PATIENCE_S = 5.0
SKEW_S = 300.0  # signed links are good for minutes
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def other_caches(tiers: tuple[Tier, ...], looks_at: str) -> Iterator[Finding]:
    """What is known without reading a file: what cannot be used, what nobody goes on with, and what sweeps found."""
    for tier in tiers:
        left = [one for found in tier.models() for one in ([found] if isinstance(found, Left) else found.left)]
        if left:
            text = f"{tier.name}: {len(left):,} cannot be used, as {shown(left[0].name)}: {left[0].reason}"
            yield Finding("note", "other caches", text, "fetch them again, with the tool whose cache it is")
        old = [path for one in tier.abandoned() for path in one.paths if _age_s(path) > FOREIGN_AGE_S]
        if old:
            text = f"{tier.name}: {sum(map(size_of, old)):,} bytes of downloads that nobody goes on with"
            yield Finding("note", "other caches", text, "modelcache clean --foreign")
    with suppress(StoreError):  # garbage: the next sweep begins it anew
        yield from _rotten(tiers, looks_at)


def _rotten(tiers: tuple[Tier, ...], looks_at: str) -> Iterator[Finding]:
    with reading(looks_at) as connection:
        if connection is None:
            return
        for tier in tiers:
            known = Looks(connection).of(os.path.realpath(tier.name))
            rotten = [
                place for place, look in known.items()
                if look.finding == "corrupt" and look.stamp.judge(place) == "right"
            ]  # fmt: skip
            if rotten:
                fix = f"rm {quoted(rotten[0])}, then fetch it again with the tool whose cache it is"
                yield Finding("wrong", "other caches", f"{some(rotten)}: not what their names say", fix)


def network(settings: Settings) -> Iterator[Finding]:
    """Whether the hub answers, believes the token, and has the same time. Nothing where it must not be asked."""
    for name in CERTIFICATES:
        path = os.environ.get(name, "")
        if path and not os.path.exists(path):
            yield Finding("wrong", "network", f"{name}: {path} is not there: no https works", f"unset {name}")
    if is_offline("hf"):
        yield Finding("note", "network", "HF_HUB_OFFLINE is set: Hugging Face is not asked", "unset HF_HUB_OFFLINE")
        return
    try:
        yield from _hub(settings)
    except UsageError as error:
        yield Finding("wrong", "network", error.message, error.next_step or "correct the variable")
    except ModelCacheError as error:
        text = f"Hugging Face cannot be asked: {error.message}"
        yield Finding("note", "network", text, error.next_step or "look at the network, HTTPS_PROXY and HF_ENDPOINT")


def _hub(settings: Settings) -> Iterator[Finding]:
    hub, head = ask_hub(settings, PATIENCE_S)
    if head.status == 401 and "Authorization" in hub.secrets:
        fix = "hf auth login, or set HF_TOKEN to one that is good"
        yield Finding("wrong", "tokens", f"{hub.host} does not know the token of Hugging Face", fix)
    with suppress(ValueError, TypeError, OverflowError):
        skew_s = time.time() - parsedate_to_datetime(head.text("date")).timestamp()
        if abs(skew_s) > SKEW_S:
            text = f"the clock differs by {skew_s:+.0f} s from that of {hub.host}: signed links fail"
            yield Finding("wrong", "clock", text, "set the clock: timedatectl")


def tokens() -> Iterator[Finding]:
    """Files with tokens that others may read, or nobody."""
    if garbled := garbled_logins():
        text = f"{garbled} cannot be read as JSON with auths: there are no logins for registries"
        yield Finding("note", "tokens", text, "mend it, or docker login")
    for path in secret_files():
        with suppress(OSError):
            if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                text = f"others may read {path}, which holds a secret"
                yield Finding("note", "tokens", text, f"chmod 600 {quoted(path)}")


def _age_s(path: str) -> float:
    with suppress(OSError):
        return time.time() - os.lstat(path).st_mtime
    return 0.0
