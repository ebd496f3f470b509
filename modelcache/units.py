"""Numbers and names as people read them: bytes in units, moments in local time, what is too long with an ellipsis.

Responsible for: these texts, which no program should have to read back, and reading what people type: sizes, times.
Leaves to others: where they stand.
"""

import re
import time
from collections.abc import Mapping

from modelcache.errors import UsageError

DAY_S = 86_400.0
DIGEST_SHOWN = 12
_HEX = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def in_bytes(size: int) -> str:
    """All of them: `1 byte`, `2,457,600 bytes`."""
    return "1 byte" if size == 1 else f"{size:,} bytes"


def in_units(size: float) -> str:
    """Bytes: `712 B`, `28.8 MiB`, `4.2 GiB`."""
    unit, factor = _unit(size)
    return f"{size / factor:.1f} {unit}" if factor > 1 else f"{size:.0f} B"


def part_of(here: int, total: int) -> str:
    """`28.8/48.0 MiB`; without the total where it is not known."""
    unit, factor = _unit(total)
    decimals = 1 if factor > 1 else 0
    return f"{here / factor:.{decimals}f}/{total / factor:.{decimals}f} {unit}" if total else in_units(here)


def as_percent(share: float) -> str:
    """`98.7 %`; all is 100 % only where it is all."""
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{min(99.9, max(0.1, 100 * share)):.1f} %"


def as_clock(seconds: float) -> str:
    """`0:05`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def as_age(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`, `9 days`; a clock that went back shows none below `0 s`."""
    for unit, length in (("days", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def moment(at_ms: int) -> str:
    """Local time, from ms since 1970; `never` for what has none, or none that a calendar knows."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000)) if at_ms > 0 else "never"
    except (OverflowError, ValueError, OSError):
        return "never"


def short_version(version: str) -> str:
    """As people compare it: the beginning of a commit or a digest, any other as it is."""
    return version[:DIGEST_SHOWN] if _HEX.fullmatch(version) else version


def short(name: str, most: int) -> str:
    """The end of a name that is longer than so many characters: there it differs from others."""
    return name if len(name) <= most else "…" + name[len(name) - most + 1 :]


def _unit(size: float) -> tuple[str, int]:
    unit, factor = "B", 1
    for larger in _UNITS:
        if size < 1023.95 * factor:
            break
        unit, factor = larger, factor * 1024
    return unit, factor


_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": DAY_S, "w": 7 * DAY_S}


def bytes_of(text: str) -> int:
    """`500000`, `500K`, `2.5M`, `1G` (of 1024). UsageError."""
    return int(_typed(text, _FACTORS, "500K, 2.5M or 1G (bytes)"))


def seconds_of(text: str) -> float:
    """`90`, `90s`, `15m`, `1.5h`, `10d`, `2w`. UsageError."""
    return _typed(text, _SECONDS, "90s, 15m, 1.5h or 10d")


def _typed(text: str, factors: Mapping[str, float], expected: str) -> float:
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z]?)", text.strip())
    factor = factors.get(found[2]) if found else None
    if not found or factor is None:
        raise UsageError(f"{text!r}: {expected} is expected")
    return float(found[1]) * factor
