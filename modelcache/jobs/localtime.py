"""The local time of this machine, as cron, `date` and the C library have it.

Responsible for: every form that TZ may have (a name, a file, a rule of POSIX as `CET-1CEST,M3.5.0,M10.5.0/3`), else
/etc/localtime; and saying that a TZ means nothing, of which the C library silently makes UTC.
"""

import os
import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from modelcache.errors import UsageError

MOST_CHARACTERS = 200
_RULE = re.compile(r"(<[A-Za-z0-9+-]{3,}>|[A-Za-z]{3,})[+-]?[0-9]{1,3}(:[0-9]{2}){0,2}([A-Za-z<].*)?")  # POSIX


class LocalTime(tzinfo):
    """Asks the C library, whose zone may change its rules: nothing is kept here."""

    def utcoffset(self, wall: datetime | None) -> timedelta | None:
        if wall is None:
            return None
        naive = wall.replace(tzinfo=None)  # its `fold` stays
        return naive - datetime.fromtimestamp(naive.timestamp(), UTC).replace(tzinfo=None)

    def dst(self, _wall: datetime | None) -> timedelta | None:
        return None

    def tzname(self, wall: datetime | None) -> str | None:
        return None if wall is None else wall.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, instant: datetime) -> datetime:
        return datetime.fromtimestamp(instant.replace(tzinfo=UTC).timestamp()).replace(tzinfo=self)


def local_time() -> tzinfo:
    """UsageError where TZ is set and means nothing."""
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name or _RULE.fullmatch(name):
        return LocalTime()
    try:
        if os.path.isabs(name):
            with open(name, "rb") as stream:
                return ZoneInfo.from_file(stream)
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        shown, advice = name[:MOST_CHARACTERS], "name one, as Europe/Berlin, or unset it"
        raise UsageError(f"TZ={shown!r} names no time zone", next_step=advice) from error
