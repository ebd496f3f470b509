"""What a job is: a function that works on a cache until it is done or told to stop.

Responsible for: what a job is given and gives, reading its options, and the names of those that come with modelcache.
Leaves to others: when it runs (`schedule`), and everything around one run (`runner`).
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Protocol, TypeVar, get_args

from modelcache.caching import Cache
from modelcache.errors import UsageError
from modelcache.rows import Report

BUILT_IN = {  # by name, as in `run = "package.module:function"`
    "verify": "modelcache.jobs.verify:run",
    "clean": "modelcache.jobs.clean:run",
    "publish-metrics": "modelcache.jobs.publish_metrics:run",
    "refresh": "modelcache.jobs.refresh:run",
    "mirror": "modelcache.jobs.mirror:run",
}
Clock = Callable[[], float]  # seconds since 1970, as `time.time`
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Config:
    """What a job works on. `options` are those of its table [jobs.NAME] that are not about when it runs."""

    cache: Cache
    options: Mapping[str, object]


class Job(Protocol):
    """Looks at `stop` at every file at least, and inside a large one at every buffer; then it returns what it has.

    What it needs to go on the next time is on the disk. It may raise anything: the run has failed then.
    """

    def __call__(self, config: Config, *, stop: threading.Event, clock: Clock) -> Report | None: ...


def options_of(kind: type[T], options: Mapping[str, object]) -> T:
    """The options of a job as its own dataclass, of fields with the types bool, int, float, str or tuple[str, ...]; a
    text or a number is `str | float`.

    UsageError names the one that is unknown, or of another type.
    """
    known: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise UsageError(f"unknown option {name!r}", next_step=f"there are {', '.join(known) or 'none'}")
    return kind(**{name: _checked(name, value, known[name]) for name, value in options.items()})


def _checked(name: str, value: object, kind: Any) -> object:
    if kind in (float, str | float) and type(value) is int:
        return float(value)
    if kind == tuple[str, ...] and isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if type(value) in (get_args(kind) if isinstance(kind, UnionType) else (kind,)):
        return value
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
        kind, "a text or a number" if isinstance(kind, UnionType) else "a list of texts"
    )
    raise UsageError(f"{name} = {value!r}: {expected} is expected")
