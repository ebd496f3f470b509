"""Tables as files: CSV (product H: RFC 4180, UTF-8, and nothing that a spreadsheet would carry out) and Parquet.

Responsible for: cells and lines. Leaves to others: which rows, and where they go.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from modelcache.errors import UsageError

_DTYPES = (({bool}, "boolean"), ({int}, "Int64"), ({int, float}, "Float64"), ({str}, "string"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(stream: BinaryIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A header and one line each; a cell that is None is empty. The stream stays open."""
    text = io.TextIOWrapper(stream, "utf-8", errors="replace", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    text.detach()  # writes what is left


def write_parquet(
    stream: BinaryIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], sample: Mapping[str, Any] | None = None
) -> None:
    """A cell that is None is null, in a column of whole numbers, too. The stream stays open.

    `sample` is a row that has a value of the right type in each column: sheets of one kind have one schema, whatever
    was measured that day. UsageError where the extra `parquet` is missing.
    """
    import pandas as pd

    listed = list(rows)
    frame = pd.DataFrame(
        {
            name: pd.Series(
                [_text(row.get(name)) for row in listed], dtype=_dtype([*listed, sample] if sample else listed, name)
            )
            for name in columns
        }
    )
    try:
        frame.to_parquet(stream, engine="pyarrow", index=False)
    except ImportError:
        raise UsageError("Parquet needs `pip install 'modelcache[parquet]'`") from None


def _dtype(rows: Iterable[Mapping[str, Any]], name: str) -> str:
    """Of pandas: of those that know a null, for whole numbers are no floats because one was not measured."""
    kinds = {type(row.get(name)) for row in rows} - {type(None)}
    fitting = (dtype for types, dtype in _DTYPES if kinds and kinds <= types)
    return next(fitting, "object")


def _text(value: object) -> object:
    """Names of files may be no UTF-8."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _cell(value: object) -> object:
    """What begins like a formula is text: names of files and answers of servers come from anywhere."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
