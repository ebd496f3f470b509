"""What an examination finds: one line each.

Responsible for: the value, and how names stand in it. Leaves to others: finding it (`doctor`, `surroundings`).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modelcache.store.leftovers import shown

MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` wrong: something does not work, or will not; note: worth knowing. `fix` is a command, or what to do."""

    level: Literal["wrong", "note"]
    check: str
    finding: str
    fix: str


def command(name: str, subject: str) -> str:
    return f"modelcache {name} {quoted(shown(subject))}"


def quoted(path: str) -> str:
    return shlex.quote(path)


def some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MOST_NAMED:,} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(shown(path) for path in paths[:MOST_NAMED]) + more


def quoted_some(paths: Sequence[str]) -> str:
    return " ".join(quoted(path) for path in paths[:MOST_NAMED])
