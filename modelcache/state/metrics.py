"""Attempts, uses and health as rows; old attempts become days.

Responsible for: one row an attempt for `metrics_age`, then one a day, model and gateway, with a histogram of
latencies, so that percentiles exist over millions; what each attempt means for the health of its gateway.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelcache.health import Gateway, Health, Interval, body_of
from modelcache.history import Attempt
from modelcache.state import histogram
from modelcache.state.hauls import Size

if TYPE_CHECKING:
    from sqlite3 import Connection

MOST_BESIDE = 256  # attempts at one gateway at a time that are looked at: so that many cost no square
MOST_AT_ONCE = 2000  # rows that become days in one transaction: some ten milliseconds

_KEY = ("day", "host", "model", "layer", "gateway", "status", "error_type")


def add_attempts(connection: "Connection", host: str, attempts: Iterable[Attempt]) -> None:
    for attempt in attempts:
        if attempt.status != "hit" and attempt.gateway and attempt.layer != "cache":  # which is always asked first
            _judge(connection, attempt)
        row = {**attempt.to_row(host), "duration_ms": attempt.duration_ms}
        marks = ", ".join(f":{name}" for name in row)
        connection.execute(f"INSERT INTO attempts VALUES ({marks})", row)  # noqa: S608


def _judge(connection: "Connection", attempt: Attempt) -> None:
    gateway = (attempt.layer, attempt.gateway)
    found = connection.execute("SELECT * FROM health WHERE layer = ? AND gateway = ?", gateway).fetchone()
    health = (_health_of(tuple(found)[2:]) if found else Health()).after(attempt, _beside(connection, attempt))
    marks = ", ".join("?" * (2 + len(fields(Health))))
    connection.execute(f"INSERT OR REPLACE INTO health VALUES ({marks})", (*gateway, *astuple(health)))  # noqa: S608


def _beside(connection: "Connection", attempt: Attempt) -> Iterator[Interval]:
    """When bytes came from the same gateway in attempts that ended since this one's began to."""
    rows = connection.execute(
        "SELECT timestamp - duration_ms + latency_ms, timestamp FROM attempts"
        " WHERE timestamp > ? AND layer = ? AND gateway = ? AND status = 'success' AND bytes > 0"
        " ORDER BY timestamp DESC LIMIT ?",
        (body_of(attempt)[0], attempt.layer, attempt.gateway, MOST_BESIDE),
    )
    return ((start, stop) for start, stop in rows if isinstance(start, int) and isinstance(stop, int))


def _health_of(values: tuple[Any, ...]) -> Health:
    """As if nothing were known where a value is not what it should be."""
    if len(values) != len(fields(Health)):
        return Health()  # of an older version
    health = Health(*values)
    numbers = values[:9]
    is_right = all(isinstance(one, (int, float)) and 0 <= one < 2**62 for one in numbers)
    return (
        health if is_right and isinstance(health.last_success, int) and isinstance(health.last_error, str) else Health()
    )


def scores(connection: "Connection | None") -> dict[Gateway, Health]:
    rows = connection.execute("SELECT * FROM health") if connection else ()
    return {(str(row[0]), str(row[1])): _health_of(tuple(row)[2:]) for row in rows}


def add_uses(connection: "Connection", uses: Iterable[tuple[str, int, int]]) -> None:
    """(model, requests, when last in ms)."""
    for model, requests, last_used in uses:
        connection.execute(
            "INSERT INTO usage VALUES (?, ?, ?) ON CONFLICT (model) DO UPDATE SET"
            " requests = requests + excluded.requests, last_used = max(last_used, excluded.last_used)",
            (model, requests, last_used),
        )


def put_size(connection: "Connection", size: Size) -> None:
    connection.execute("INSERT OR REPLACE INTO sizes VALUES (?, ?, ?)", (size.day, size.bytes, size.files))


def ranking(connection: "Connection | None") -> Iterator[dict[str, Any]]:
    """Most requested first (product H). SQLite keeps anything anywhere: what is no count is left out."""
    query = (
        "SELECT * FROM usage WHERE typeof(model) = 'text' AND typeof(requests) = 'integer'"
        " AND typeof(last_used) = 'integer' ORDER BY requests DESC, last_used DESC, model"
    )
    rows = connection.execute(query) if connection else ()
    for rank, row in enumerate(rows, 1):
        yield {"model_id": row[0], "request_count": row[1], "rank": rank, "last_used": row[2]}


def roll_up(connection: "Connection", before_ms: int) -> bool:
    """Turns attempts from before that into days, the oldest first; True if some are left."""
    rows = connection.execute(
        "SELECT rowid, timestamp, host, model, layer, gateway, status, error_type, bytes, resumed_bytes, duration_ms,"
        " latency_ms FROM attempts WHERE timestamp < ? ORDER BY timestamp LIMIT ?",
        (before_ms, MOST_AT_ONCE),
    ).fetchall()
    days: dict[tuple[str, ...], _Day] = {}
    for row in rows:
        days.setdefault((_day_of(row[1]), *map(str, row[2:8])), _Day()).add(*row[8:])
    for key, day in days.items():
        day.write(connection, key)
    connection.executemany("DELETE FROM attempts WHERE rowid = ?", [(row[0],) for row in rows])
    return len(rows) == MOST_AT_ONCE


class _Day:
    """What one day brought of one kind."""

    def __init__(self) -> None:
        self.sums = Counter[str]()
        self.latencies = Counter[int]()
        self.durations = Counter[int]()

    def add(self, size: object, resumed: object, duration: object, latency: object) -> None:
        values = [one if isinstance(one, int) else 0 for one in (size, resumed, duration, latency)]
        self.sums.update(total=1, bytes=values[0], resumed_bytes=values[1], duration_ms=values[2])
        self.latencies[histogram.bucket_of(values[3])] += 1
        self.durations[histogram.bucket_of(values[2])] += 1

    def write(self, connection: "Connection", key: tuple[str, ...]) -> None:
        where = " AND ".join(f"{name} = ?" for name in _KEY)
        names = "total, bytes, resumed_bytes, duration_ms"
        columns = f"{names}, latencies, durations"
        found = connection.execute(f"SELECT {columns} FROM days WHERE {where}", key).fetchone()  # noqa: S608
        if found:
            self.latencies.update(histogram.parsed(found[4]))
            self.durations.update(histogram.parsed(found[5]))
            self.sums.update(dict(zip(names.split(", "), found[:4], strict=True)))
        sums = [min(self.sums[name], 2**63 - 1) for name in names.split(", ")]
        marks = ", ".join("?" * (len(_KEY) + 6))
        values = (*key, *sums, histogram.to_text(self.latencies), histogram.to_text(self.durations))
        connection.execute(f"INSERT OR REPLACE INTO days VALUES ({marks})", values)  # noqa: S608


def _day_of(timestamp_ms: object) -> str:
    """In UTC; the first day of all where it is no time."""
    try:
        return datetime.fromtimestamp(int(str(timestamp_ms)) / 1000, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01"
