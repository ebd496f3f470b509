"""Rows that a person reads and a program counts.

Responsible for: a plain table of what was found or done; `df` gives it to pandas when asked, not before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` are dicts with the same keys; `title` says what they are about."""

    title: str
    rows: tuple[dict[str, Any], ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def df(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        return f"{self.title}\n{self.df.to_string(index=False)}" if self.rows else f"{self.title}: nothing"
