"""Rows that a person reads and a program counts.

Responsible for: a plain table of what was found or done, which fits a terminal as far as that can be, and the same in
a notebook; `df` gives the rows to pandas when asked, not before. What people read is shortened, the rows themselves are
whole. Leaves to others: CSV (`sheets`), HTML (`markup`), and what is on a page of its own (`reporting`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from modelcache.printing import printable
from modelcache.units import DIGEST_SHOWN, as_percent, in_units, moment, short, short_version

if TYPE_CHECKING:
    import pandas as pd

LEAST_NAME = 16  # of a file or path that is shortened to make a table fit
MOST_TITLE = 300  # characters of a title there
MOST_ROWS = 100  # in a notebook, which keeps what it shows
GAP = "  "
MOST = 1 << 63  # beyond it a number is no size and no rate


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` are dicts with the same keys; `title` says what they are about.

    `hidden` are the keys that only programs need: people have them in the title, or know. `findings` is how many rows
    somebody has to act upon. `columns` are the keys where there may be no row, and `none` is what people read there.
    `notes` are what a reader has to know of the rows, and `page` makes the page that `to_html` writes, where that is
    more than a table.
    """

    title: str
    rows: tuple[dict[str, Any], ...]
    hidden: tuple[str, ...] = ()
    findings: int = 0
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    none: str = "nothing"
    page: Callable[[], str] | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    @property
    def df(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(self._keys))

    def to_csv(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Replaces a file by the rows as CSV, as a whole, or writes them to a stream. StoreError."""
        from modelcache.sheets import write_csv
        from modelcache.store.disk import output_mode, replacing

        if not isinstance(path, str | os.PathLike):
            write_csv(path, self._keys, self.rows)
            return
        with replacing(os.path.abspath(path), output_mode()) as stream:
            write_csv(stream, self._keys, self.rows)

    def to_html(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Replaces a file by a page of its own, which needs nothing else, or writes it to a stream. StoreError."""
        from modelcache.markup import page, text
        from modelcache.store.disk import output_mode, write_atomic

        whole = self.page() if self.page else page(self.title, f"<h3>{text(self._headline)}</h3>{self.to_markup()}")
        content = whole.encode(errors="replace")
        if isinstance(path, str | os.PathLike):
            write_atomic(os.path.abspath(path), content, output_mode())
        else:
            path.write(content)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Replaces a file by the rows in Parquet. UsageError where the extra `parquet` is missing, StoreError."""
        from modelcache.sheets import write_parquet
        from modelcache.store.disk import output_mode, replacing

        with replacing(os.path.abspath(path), output_mode()) as stream:
            write_parquet(stream, self._keys, self.rows)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from modelcache.markup import framed, name

        return framed(f"<h3>{name(self._headline, MOST_TITLE)}</h3>{self.to_markup(MOST_ROWS)}")

    def to_markup(self, most: int | None = None) -> str:
        """The notes, and a table of all rows, or of the first so many, to stand under a headline."""
        from modelcache.markup import table, text

        notes = "".join(f"<p>{text(note)}</p>" for note in self.notes)
        if not self.rows:
            return notes
        rows, left = self.rows[:most], _left(len(self.rows), most)
        keys = [key for key in self._shown_keys if any(shown(key, row.get(key)) for row in rows)]
        more = f'<p class="soft">{left}</p>' if left else ""
        return f"{notes}{table(keys, ([row.get(key) for key in keys] for row in rows), shown)}{more}"

    def _repr_pretty_(self, printer: Any, _is_cycle: bool) -> None:
        """What IPython shows in a terminal, and a notebook that cannot show HTML."""
        printer.text(f"{replace(self, rows=self.rows[:MOST_ROWS])}\n{_left(len(self.rows), MOST_ROWS)}".rstrip("\n"))

    def __str__(self) -> str:
        table = [_table(self.rows, self._shown_keys)] if self.rows else []
        return "\n".join([*map(printable, (self._headline, *self.notes)), *table])

    @property
    def _headline(self) -> str:
        return self.title if self.rows else f"{self.title}: {self.none}"

    @property
    def _keys(self) -> tuple[str, ...]:
        return self.columns or (tuple(self.rows[0]) if self.rows else ())

    @property
    def _shown_keys(self) -> list[str]:
        return [key for key in self._keys if key not in self.hidden]


def joined(reports: Sequence[Report]) -> Report:
    """One of several, with the title of the first."""
    rows = tuple(row for report in reports for row in report)
    notes = tuple(note for report in reports for note in report.notes)
    return replace(reports[0], rows=rows, findings=sum(report.findings for report in reports), notes=notes)


def _left(count: int, most: int | None) -> str:
    """Words for the rows that are not shown."""
    return f"and {count - most:,} more rows: df has them all" if most and count > most else ""


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
        rest = GAP.join(column.alone(index) for column in columns[fitting:] if column.cells[index])
        lines += [GAP + rest] if rest else []
    return "\n".join(lines)


class _Column:
    def __init__(self, key: str, values: Sequence[Any]) -> None:
        self.key = key
        self._set([printable(shown(key, value)) for value in values])
        known = [value for value in values if value is not None]
        self.is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
        self.is_number = self.is_number and bool(known) and not _is_moment(key)
        self._speaks = not self.is_number and not any(isinstance(value, bool) for value in known)

    def _set(self, cells: list[str]) -> None:
        self.cells = cells
        self.width = max(len(self.title), *map(len, cells))

    def shorten(self, most: int) -> None:
        self._set([short(cell, most) for cell in self.cells])

    @property
    def title(self) -> str:
        return printable(self.key.replace("_", " "))

    @property
    def head(self) -> str:
        return self._aligned(self.title)

    def cell(self, index: int) -> str:
        return self._aligned(self.cells[index])

    def alone(self, index: int) -> str:
        """Without its head above it: a text speaks for itself, a number and a yes do not."""
        return self.cells[index] if self._speaks else f"{self.title} {self.cells[index]}"

    def _aligned(self, text: str) -> str:
        return text.rjust(self.width) if self.is_number else text.ljust(self.width)


def shown(key: str, value: Any) -> str:
    """A value as people read it, told from its key; what is no number stays as it is, for a key may mean anything."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if key == "sha256":
        return str(value)[:DIGEST_SHOWN]
    if key == "version":
        return short_version(str(value))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if not isinstance(value, int | float) or not abs(value) < MOST:
        return str(value)
    if isinstance(value, int) and (key.startswith("bytes_") or key.endswith("_bytes")):
        return _size(value)
    if isinstance(value, int) and _is_moment(key):
        return moment(value)
    by_key: dict[str, Callable[[float], str]] = {
        "size": _size, "bytes": _size, "success_rate": as_percent,
        "throughput_bps": lambda speed: f"{in_units(speed)}/s",
    }  # fmt: skip
    return by_key.get(key, str)(value)


def _is_moment(key: str) -> bool:
    return key.endswith("_at") or key in ("last_used", "last_success", "last_error")


def _size(size: float) -> str:
    return in_units(size) if size >= 0 else "?"


def _shorten(columns: Sequence[_Column], room: int) -> None:
    """Takes from the names of files what the table is too wide; an id is never cut, for people type it."""
    over = sum(column.width + len(GAP) for column in columns) - len(GAP) - room
    for column in columns:
        if column.key in ("file", "path") and over > 0:
            most = max(LEAST_NAME, column.width - over)
            over -= max(0, column.width - most)
            column.shorten(most)


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
