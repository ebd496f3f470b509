"""Rows that a person reads and a program counts.

Responsible for: a plain table of what was found or done, which fits a terminal as far as that can be; `df` gives the
rows to pandas when asked, not before. What people read is shortened, the rows themselves are whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from modelcache.units import in_units, moment, short

if TYPE_CHECKING:
    import pandas as pd

DIGEST_SHOWN = 12
LEAST_NAME = 16  # of a file or path that is shortened to make a table fit
GAP = "  "


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` are dicts with the same keys; `title` says what they are about.

    `hidden` are the keys that only programs need: people have them in the title, or know. `findings` is how many rows
    somebody has to act upon.
    """

    title: str
    rows: tuple[dict[str, Any], ...]
    hidden: tuple[str, ...] = ()
    findings: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def df(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}: nothing"
        return f"{self.title}\n{_table(self.rows, [key for key in self.rows[0] if key not in self.hidden])}"


def joined(reports: Sequence[Report]) -> Report:
    """One of several, with the title of the first."""
    rows = tuple(row for report in reports for row in report)
    return replace(reports[0], rows=rows, findings=sum(report.findings for report in reports))


def _table(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """What does not fit into a line of the terminal goes below it, indented: nothing is left out."""
    columns = [_Column(key, [row.get(key) for row in rows]) for key in keys]
    columns = [column for column in columns if any(column.cells)]
    room = _terminal_columns()
    if room:
        _shorten(columns, room)
    fitting = _how_many_fit(columns, room)
    lines = [GAP.join(column.head for column in columns[:fitting]).rstrip()]
    for index in range(len(rows)):
        lines.append(GAP.join(column.cell(index) for column in columns[:fitting]).rstrip())
        rest = GAP.join(column.cells[index] for column in columns[fitting:] if column.cells[index])
        lines += [GAP + rest] if rest else []
    return "\n".join(lines)


class _Column:
    def __init__(self, key: str, values: Sequence[Any]) -> None:
        self.key = key
        self.cells = [_shown(key, value) for value in values]
        self.is_number = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        self.is_number = self.is_number and not key.endswith("_at")

    @property
    def width(self) -> int:
        return max(len(self.title), *map(len, self.cells))

    @property
    def title(self) -> str:
        return self.key.replace("_", " ")

    @property
    def head(self) -> str:
        return self._aligned(self.title)

    def cell(self, index: int) -> str:
        return self._aligned(self.cells[index])

    def _aligned(self, text: str) -> str:
        return text.rjust(self.width) if self.is_number else text.ljust(self.width)


def _shown(key: str, value: Any) -> str:
    """A value as people read it, told from its key."""
    by_key: dict[str, Callable[[Any], str]] = {"size": _size, "sha256": lambda digest: str(digest)[:DIGEST_SHOWN]}
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, int) and (key.startswith("bytes_") or key.endswith("_bytes")):
        return _size(value)
    if isinstance(value, int) and key.endswith("_at"):
        return moment(value)
    return by_key.get(key, str)(value)


def _size(size: int) -> str:
    return in_units(size) if size >= 0 else "?"


def _shorten(columns: Sequence[_Column], room: int) -> None:
    """Takes from the names of files what the table is too wide; an id is never cut, for people type it."""
    over = sum(column.width + len(GAP) for column in columns) - len(GAP) - room
    for column in columns:
        if column.key in ("file", "path") and over > 0:
            most = max(LEAST_NAME, column.width - over)
            over -= max(0, column.width - most)
            column.cells = [short(cell, most) for cell in column.cells]


def _how_many_fit(columns: Sequence[_Column], room: int) -> int:
    """At least one; all where nobody knows how wide the paper is."""
    wide = -len(GAP)
    for count, column in enumerate(columns):
        wide += len(GAP) + column.width
        if room and wide > room and count:
            return count
    return len(columns)


def _terminal_columns() -> int:
    """0 where the output is no terminal."""
    import shutil

    return shutil.get_terminal_size((0, 0)).columns
