"""Numbers and names as people read them: bytes in units, moments in local time, what is too long with an ellipsis.

Responsible for: these texts, which no program should have to read back. Leaves to others: where they stand.
"""

import time

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def in_units(size: float) -> str:
    """Bytes: `712 B`, `28.8 MiB`, `4.2 GiB`."""
    unit, factor = _unit(size)
    return f"{size / factor:.1f} {unit}" if factor > 1 else f"{size:.0f} B"


def part_of(here: int, total: int) -> str:
    """`28.8/48.0 MiB`; without the total where it is not known."""
    unit, factor = _unit(total)
    decimals = 1 if factor > 1 else 0
    return f"{here / factor:.{decimals}f}/{total / factor:.{decimals}f} {unit}" if total else in_units(here)


def as_clock(seconds: float) -> str:
    """`0:05`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(at_ms: int) -> str:
    """Local time, from ms since 1970; `never` for what has none, or none that a calendar knows."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000)) if at_ms > 0 else "never"
    except (OverflowError, ValueError, OSError):
        return "never"


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
