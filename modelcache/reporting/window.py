"""Which time a report is about, from what people type.

Responsible for: `24h`, `7d` and ISO dates. All days are those of UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from modelcache.errors import UsageError

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
_UNITS = {"m": 60_000, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}
_FINE_UP_TO = 2 * DAY_MS  # so long a time is shown by hours, a longer one by days


@dataclass(frozen=True, slots=True)
class Window:
    """From `start_ms` up to, not including, `stop_ms`, in ms since 1970."""

    start_ms: int
    stop_ms: int

    @classmethod
    def since(cls, text: str, now_ms: int) -> Self:
        """`90m`, `24h`, `7d`, `4w`, or an ISO date or time, of UTC where it names no offset. UsageError for others."""
        if not isinstance(text, str):
            raise UsageError(f"since {text!r}: a text like 24h, 7d or 2026-05-04 is expected")
        if found := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
            if not int(found[1]):
                raise UsageError(f"since {text!r}: that is no time at all")
            return cls(max(0, now_ms - int(found[1]) * _UNITS[found[2]]), now_ms)
        try:
            at = datetime.fromisoformat(text)
            start_ms = int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000)
        except (ValueError, OverflowError):
            raise UsageError(f"since {text!r}: 24h, 7d or a date like 2026-05-04 is expected") from None
        if start_ms > now_ms:
            raise UsageError(f"since {text!r}: that is yet to come")
        return cls(max(0, start_ms), now_ms)

    @classmethod
    def day(cls, day: str) -> Self:
        start_ms = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
        return cls(start_ms, start_ms + DAY_MS)

    @property
    def step_ms(self) -> int:
        """Of what is shown over time."""
        return HOUR_MS if self.stop_ms - self.start_ms <= _FINE_UP_TO else DAY_MS


def day_of(at_ms: int) -> str:
    return iso(at_ms)[:10]


def iso(at_ms: int) -> str:
    """`2026-05-04T08:15:30.123Z`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
