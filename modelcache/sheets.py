"""Tables as files: CSV (product H: RFC 4180, UTF-8, and nothing that a spreadsheet would carry out) and Parquet.

Responsible for: cells and lines. Leaves to others: which rows, and where they go.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from modelcache.errors import UsageError

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(stream: BinaryIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A header and one line each; a cell that is None is empty. The stream stays open."""
    text = io.TextIOWrapper(stream, "utf-8", errors="replace", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    text.detach()  # writes what is left


def write_parquet(stream: BinaryIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """The stream stays open. UsageError where the extra `parquet` is missing."""
    import pandas as pd

    try:
        pd.DataFrame(list(rows), columns=list(columns)).to_parquet(stream, engine="pyarrow", index=False)
    except ImportError:
        raise UsageError("Parquet needs `pip install 'modelcache[parquet]'`") from None


def _cell(value: object) -> object:
    """What begins like a formula is text: names of files and answers of servers come from anywhere."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
