"""What the metrics hold, added up: the question behind every report.

Responsible for: asking all databases of a cache that this account can read, adding up attempts that are kept and the
days that older ones have become, and leaving out what cannot be right. SQLite does the adding: a million rows cost
seconds, and memory only for what is different in them.
Leaves to others: what the sums mean, and how they look (`reporting`).
"""

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelcache.errors import StoreError
from modelcache.state import histogram
from modelcache.state.database import reading, version_of
from modelcache.state.place import Place

if TYPE_CHECKING:
    from sqlite3 import Connection, Row

DAY_MS = 86_400_000
CLOCK_MS = 3_600_000  # what is later than now by more than that, a clock that was wrong has written
WORTH_A_SPEED = 1 << 20  # bytes: the speed of less is that of its beginning
MOST_OF_A_DAY = 1_000_000  # attempts of one kind
_MOST = 1 << 50  # no attempt takes that many ms or brings that many bytes: a petabyte, 35 thousand years

_SUMS = ("bytes", "resumed_bytes", "duration_ms")
_TEXTS = ("model", "layer", "gateway", "error_type")
_KEY = "model, layer, gateway, status, error_type"


def _sound(time: str, numbers: tuple[str, ...]) -> str:
    """What a row has to be: SQLite keeps anything in any column. Nothing but a number is between numbers."""
    checks = [f"{name} BETWEEN 0 AND {_MOST}" for name in numbers]
    checks += [f"typeof({name}) = 'text'" for name in _TEXTS]
    return " AND ".join([time, *checks, "status IN ('hit', 'success', 'error')"])


_SOUND_ATTEMPT = _sound("typeof(timestamp) = 'integer'", ("latency_ms", *_SUMS))
_SOUND_DAY = _sound("typeof(day) = 'text'", ("total", *_SUMS))
_GOOD = "status = 'success'"
_ATTEMPTS = f"""
SELECT timestamp - timestamp % :step, {_KEY}, COUNT(*), TOTAL(bytes), TOTAL(resumed_bytes), TOTAL(duration_ms),
    GROUP_CONCAT(CASE WHEN {_GOOD} THEN CAST(latency_ms AS INT) END),
    GROUP_CONCAT(CASE WHEN {_GOOD} THEN CAST(duration_ms AS INT) END),
    GROUP_CONCAT(CASE WHEN {_GOOD} AND bytes >= {WORTH_A_SPEED} AND duration_ms >= 1
        THEN CAST(bytes * 1000 / duration_ms AS INT) END),
    MAX(timestamp), error_message
FROM attempts WHERE timestamp >= :start AND timestamp < :stop AND {_SOUND_ATTEMPT} GROUP BY 1, {_KEY}
"""  # noqa: S608 - TOTAL never overflows; beside MAX, SQLite gives the message of that row
_DAYS = f"""
SELECT day, {_KEY}, total, bytes, resumed_bytes, duration_ms, latencies, {{durations}}
FROM days WHERE day >= :first AND day <= :last AND {_SOUND_DAY}
"""  # noqa: S608
_THERE = """
SELECT (SELECT COUNT(*) FROM attempts WHERE timestamp >= :start AND timestamp < :stop)
        + (SELECT COUNT(*) FROM days WHERE day >= :first AND day <= :last),
    (SELECT COUNT(*) FROM attempts WHERE timestamp > :late AND typeof(timestamp) <> 'integer')
        + (SELECT COUNT(*) FROM attempts WHERE timestamp < 0 OR timestamp IS NULL),
    (SELECT COUNT(*) FROM attempts WHERE timestamp > :late AND typeof(timestamp) = 'integer')
"""  # by the index on time alone
_ROWS = f"""
SELECT timestamp, host, model, file, layer, gateway, status, latency_ms, bytes, resumed_bytes, attempt, error_type,
    error_message, http_status
FROM attempts WHERE timestamp >= :start AND timestamp < :stop AND {_SOUND_ATTEMPT} ORDER BY timestamp, rowid
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Haul:
    """What attempts of one kind brought in the step of time that begins then (ms since 1970, UTC).

    Of those that succeeded `latencies` and `durations` are in ms, one each, and `speeds`, of those that are kept and
    brought a MiB at least, in bytes/s. `message` is that of the latest.
    """

    begins_ms: int
    model: str
    layer: str
    gateway: str
    status: str
    error_type: str
    total: int
    bytes: int
    resumed_bytes: int
    duration_ms: int
    latencies: Sequence[float]
    durations: Sequence[float]
    speeds: Sequence[float]
    last_ms: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a store was on a day, as `2026-05-04`."""

    day: str
    bytes: int
    files: int


class Hauls:
    """Reads only. `faults` says, once each, what had to be left out; what is kept nowhere yet is nothing.

    `is_partial`: there is more, of other accounts, whose databases are theirs alone. That is no fault.
    """

    def __init__(self, place: Place, now_ms: int) -> None:
        self._place = place
        self._now_ms = now_ms
        self.is_partial = False
        self._faults: dict[str, None] = {}
        self._damaged: dict[str, int] = {}  # rows of a database; likewise those from the future
        self._late: dict[str, int] = {}

    @property
    def faults(self) -> tuple[str, ...]:
        odd = {"damaged": sum(self._damaged.values()), "from the future: a clock was wrong": sum(self._late.values())}
        told = (f"left out of the metrics: {_those(count)} {what}" for what, count in odd.items() if count)
        return (*told, *self._faults)

    def between(self, start_ms: int, stop_ms: int, step_ms: int = DAY_MS) -> Iterator[Haul]:
        """Attempts from `start_ms` up to, not including, `stop_ms`. Of what became days, all days that it touches."""
        span: dict[str, int | str] = {"start": start_ms, "stop": stop_ms, "step": step_ms}
        span |= {"first": _as_day(start_ms), "last": _as_day(stop_ms - 1), "late": self._now_ms + CLOCK_MS}
        for path in self._databases():
            with self._reading(path) as connection:
                if connection:
                    yield from self._hauls(path, connection, span)

    def _hauls(self, path: str, connection: "Connection", span: dict[str, int | str]) -> Iterator[Haul]:
        """What is there and does not come out is damaged."""
        there, timeless, self._late[path] = connection.execute(_THERE, span).fetchone()
        for haul in map(_of_attempts, connection.execute(_ATTEMPTS, span)):
            there -= haul.total
            yield haul
        days = _DAYS.format(durations="durations" if version_of(connection) >= 3 else "NULL")
        for day in filter(None, map(_of_day, connection.execute(days, span))):
            there -= 1
            yield day
        self._damaged[path] = max(self._damaged.get(path, 0), there + timeless)

    def attempts(self, start_ms: int, stop_ms: int) -> Iterator[dict[str, Any]]:
        """One by one, oldest first, with the names of the CSV's columns; the time in ms since 1970."""
        span = {"start": start_ms, "stop": stop_ms}
        asked = [self._rows(path, _ROWS, span) for path in self._databases()]
        return map(_cleaned, heapq.merge(*asked, key=lambda row: row[0]))

    def days(self, start_ms: int, stop_ms: int) -> list[str]:
        """Those of which attempts are kept."""
        query = "SELECT DISTINCT timestamp / ? FROM attempts WHERE timestamp >= ? AND timestamp < ?"
        found = [row[0] for path in self._databases() for row in self._rows(path, query, (DAY_MS, start_ms, stop_ms))]
        return sorted({_as_day(number * DAY_MS) for number in found if isinstance(number, int)})

    def sizes(self) -> list[Size]:
        """How large the store was, day by day: the largest of what its hosts have noted."""
        query = (
            "SELECT day, bytes, files FROM sizes WHERE typeof(day) = 'text' AND typeof(bytes) = 'integer'"
            " AND typeof(files) = 'integer' AND bytes >= 0 AND files >= 0 ORDER BY day, bytes"
        )
        rows = [row for path in self._databases() for row in self._rows(path, query, (), since_version=3)]
        latest = {row[0]: Size(*row) for row in sorted(map(tuple, rows)) if _ms_of(row[0]) is not None}
        return [latest[day] for day in sorted(latest)]

    def _rows(self, path: str, query: str, values: Any, since_version: int = 0) -> "Iterator[Row]":
        with self._reading(path) as connection:
            if connection and version_of(connection) >= since_version:
                yield from connection.execute(query, values)

    def _databases(self) -> list[str]:
        """Of all hosts and accounts that use the cache, as far as they are where this one is."""
        folder = os.path.dirname(self._place.database)
        try:
            found = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".db")]
        except OSError:
            return []
        mine = [path for path in found if os.access(path, os.R_OK) or path == self._place.database]
        self.is_partial = len(mine) < len(found)
        return mine

    @contextmanager
    def _reading(self, path: str) -> "Iterator[Connection | None]":
        """As of one moment. None where there is nothing; a fault is noted, and ends the block."""
        is_open = False
        try:
            with reading(path) as connection:
                if connection:
                    connection.text_factory = _decoded
                    connection.execute("BEGIN")
                is_open = True
                yield connection
        except StoreError as error:
            self._fault(error.line())
            if not is_open:
                yield None

    def _fault(self, text: str) -> None:
        self._faults[text] = None


def _those(count: int) -> str:
    return f"{count:,} that {'is' if count == 1 else 'are'}"


def _cleaned(row: "Row") -> dict[str, Any]:
    """What nobody sums may be of any type."""
    return {name: row[name] if isinstance(row[name], int | str) else "" for name in row.keys()}  # noqa: SIM118


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace")


def _of_attempts(row: "Row") -> Haul:
    at, model, layer, gateway, status, error_type, total, size, resumed, duration = row[:10]
    latencies, durations, speeds = map(_numbers, row[10:13])
    return Haul(
        at, model, layer, gateway, status, error_type, total, int(size), int(resumed), int(duration),
        latencies, durations, speeds, row[13], row[14] if isinstance(row[14], str) else "",
    )  # fmt: skip


def _of_day(row: "Row") -> Haul | None:
    """None where it is no day. What it does not say of durations counts as if all had taken as long."""
    day, model, layer, gateway, status, error_type, total, size, resumed, duration, *counts = row
    if (at := _ms_of(day)) is None:
        return None
    is_good = status == "success"
    latencies, durations = (_values(text, total) if is_good else [] for text in counts)
    if is_good and (unknown := total - len(durations)) > 0:
        durations += [duration / total] * unknown
    return Haul(
        at, model, layer, gateway, status, error_type, total, size, resumed, duration, latencies, durations, (), at
    )


def _numbers(text: str | None) -> Sequence[float]:
    return list(map(int, text.split(","))) if text else ()


def _values(counts: str, most: int) -> list[float]:
    """Those that a histogram stands for: it may say anything."""
    values = Counter(histogram.middles(histogram.parsed(counts))).elements()
    return list(islice(values, min(most, MOST_OF_A_DAY)))


def _ms_of(day: str) -> int | None:
    try:
        began = date.fromisoformat(day)
        return int(datetime(began.year, began.month, began.day, tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        return None


def _as_day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")
