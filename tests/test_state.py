"""What is remembered of downloads: never needed, never in the way, whatever happens to the file."""

import contextlib
import fcntl
import json
import logging
import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.caching import Cache
from modelcache.errors import StoreError
from modelcache.events import now_ms
from modelcache.health import Health
from modelcache.history import Attempt, DownloadRecord, Standing, Use
from modelcache.state import histogram
from modelcache.state.database import VERSION, WAIT_S
from modelcache.state.place import Place, is_on_network
from modelcache.state.state import MOST_KEPT, MOST_KEPT_BYTES, State
from modelcache.state.uses import MOST, Uses
from modelcache.store.owner import Owner

DAY_MS = 86_400_000
RECORD = DownloadRecord("d1", "m", "1", "https://host/m", "/there", "in_progress", started_at=1, last_attempt=1)
TRY = Attempt("http", "host", "success", "f", "m", latency_ms=10, duration_ms=110, bytes=1000)


def new_state(root: Path, age_s: float = 90 * 86400.0) -> State:
    return State(str(root), Uses(), age_s)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = new_state(tmp_path)
    yield state
    state.close()


def rows(state: State, table: str) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(state.place.database)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_kept_listed_by_status_and_found_by_id(state: State) -> None:
    failed = replace(RECORD, id="d2", status="failed", last_attempt=now_ms())
    state([Standing(RECORD, begins=True), Standing(failed, begins=True)])
    assert [record.id for record in state.downloads("in_progress")] == ["d1"]
    assert {record.id for record in state.downloads()} == {"d1", "d2"}
    found = state.download("d1")
    assert found is not None and found.attempts == 1 and found.source == "https://host/m"
    assert state.download("nobody") is None


def test_each_beginning_is_an_attempt_and_success_ends_the_count(state: State) -> None:
    def attempts() -> int:
        record = state.download("d1")
        assert record is not None
        return record.attempts

    state([Standing(RECORD, begins=True)])
    state([Standing(replace(RECORD, status="paused"))])
    state([Standing(RECORD, begins=True)])
    assert attempts() == 2
    state([Standing(replace(RECORD, status="success"), is_over=True)])
    assert attempts() == 2
    state([Standing(RECORD, begins=True)])
    assert attempts() == 1


def test_a_record_whose_process_has_ended_reads_as_paused(tmp_path: Path) -> None:
    script = (
        "import os; from modelcache.history import *; from modelcache.state.state import State;"
        "from modelcache.state.uses import Uses; state = State(os.environ['ROOT'], Uses(), 1e9);"
        "state([Standing(DownloadRecord('d1', 'm', '1', 's', 'p', 'resuming'), begins=True)]); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"ROOT": str(tmp_path)}, check=False)
    (record,) = new_state(tmp_path).downloads()
    assert record.status == "paused"
    assert [record.id for record in new_state(tmp_path).downloads("resuming")] == []


def test_a_record_of_a_container_that_is_gone_reads_as_paused(state: State, tmp_path: Path) -> None:
    """Nobody here can tell whether a process of another pid namespace lives; the lock of its model tells."""
    state._owner = json.dumps(replace(Owner.mine(), space=1).to_json())
    state([Standing(replace(RECORD, last_attempt=now_ms()), begins=True)])
    lock = tmp_path / "locks" / "model-m.lock"
    lock.parent.mkdir()
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert [record.status for record in state.downloads()] == ["in_progress"]
    assert [record.status for record in state.downloads()] == ["paused"]


def test_old_failures_are_forgotten_with_what_was_asked(tmp_path: Path) -> None:
    state = new_state(tmp_path, 3600.0)
    asked = {"begins": True, "request": "https://host/m?token=secret"}
    state([Standing(replace(RECORD, last_attempt=now_ms()), **asked)])
    old = replace(RECORD, status="failed", last_attempt=now_ms() - 2 * 3_600_000)
    for each in ("d2", "../d1"):
        state([Standing(replace(old, id=each), **asked)])
    state.close()
    later = new_state(tmp_path, 3600.0)
    later([Standing(replace(RECORD, id="d3", last_attempt=now_ms()))])
    assert {record.id for record in later.downloads()} == {"d1", "d3"}
    assert os.listdir(later.place.requests) == ["d1.json"]
    later.close()


def test_a_record_of_a_live_process_is_changed_by_no_other_unless_it_takes_over(state: State, tmp_path: Path) -> None:
    state([Standing(RECORD, begins=True)])
    other = new_state(tmp_path)
    other._owner = json.dumps(replace(Owner.mine(), pid=os.getppid(), start=0).to_json())
    other([Standing(replace(RECORD, status="paused"))])
    assert [record.status for record in state.downloads()] == ["in_progress"]
    other([Standing(RECORD, begins=True), Standing(replace(RECORD, status="failed"))])
    assert [record.status for record in state.downloads()] == ["failed"]
    other.close()


def test_a_record_is_small(state: State) -> None:
    state([Standing(RECORD, begins=True)])
    (row,) = rows(state, "downloads")
    assert len(json.dumps(row)) < 1024


def test_what_was_asked_is_for_its_owner_alone_and_gone_when_it_is_over(state: State) -> None:
    state([Standing(RECORD, begins=True, request="https://host/m?token=secret")])
    path = Path(state.place.request("d1"))
    assert state.request_of("d1") == "https://host/m?token=secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"secret" not in Path(state.place.database).read_bytes()
    state([Standing(replace(RECORD, status="paused"))])
    assert path.exists()
    state([Standing(replace(RECORD, status="success"), is_over=True)])
    assert not path.exists() and state.request_of("d1") == ""


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_attempts_become_rows_and_old_ones_days(tmp_path: Path) -> None:
    state = new_state(tmp_path, age_s=10 * 86400)
    old = now_ms() - 11 * DAY_MS
    state([replace(TRY, timestamp=old, latency_ms=2**n) for n in range(8)] + [TRY])
    state([replace(TRY, timestamp=old, status="error", error_type="network")])
    state.close()
    state = new_state(tmp_path, age_s=10 * 86400)  # rolled up at the start, then once an hour
    state([TRY])
    assert len(rows(state, "attempts")) == 2
    days = rows(state, "days")
    assert sum(day["total"] for day in days) == 9
    (good,) = [day for day in days if day["status"] == "success"]
    assert good["bytes"] == 8000
    assert percentile_is_near(histogram.parsed(good["latencies"]), 0.5, 8)


def percentile_is_near(counts: Any, share: float, value: float) -> bool:
    return bool(
        value / 1.2 <= (histogram.percentile(histogram.middles(counts), round(100 * share)) or 0) <= 1.2 * value
    )


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=200), st.integers(1, 100))
def test_a_percentile_of_a_histogram_is_near_the_true_one(values: list[float], percent: int) -> None:
    counts: dict[int, int] = {}
    for value in values:
        counts[histogram.bucket_of(value)] = counts.get(histogram.bucket_of(value), 0) + 1
    true = histogram.percentile(Counter(values), percent)
    found = histogram.percentile(histogram.middles(histogram.parsed(histogram.to_text(counts))), percent)
    assert true is not None and found is not None
    assert true == sorted(values)[max(0, math.ceil(percent * len(values) / 100 - 1e-9) - 1)]
    neighbours = [value for value in values if value / 1.1 <= found <= 1.1 * value]
    assert neighbours and min(values) / 1.2 <= found <= 1.2 * max(values)
    assert true / 1.2 <= found <= 1.2 * true


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"1": "x"}', None, 7, b"{}", "[" * 100_000])
def test_a_histogram_that_is_garbage_is_empty(text: object) -> None:
    assert not histogram.parsed(text)


def test_uses_are_ranked(state: State) -> None:
    state([Use("seldom"), Use("often"), Use("often", saved_bytes=5, is_hit=True)])
    ranking = [(row["model_id"], row["request_count"], row["rank"]) for row in state.usage()]
    assert ranking == [("often", 2, 1), ("seldom", 1, 2)]
    (hit,) = rows(state, "attempts")
    assert (hit["status"], hit["layer"], hit["bytes"]) == ("hit", "cache", 5)


def test_closing_a_cache_writes_what_was_asked_for_though_all_of_it_was_here(home: Path, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"weights")
    with contextlib.closing(Cache(home)) as first:
        first.add(tmp_path / "m.bin", "m")
    with contextlib.closing(Cache(home)) as second:
        second.fetch("m")
    assert [row["request_count"] for row in State(str(home), Uses(), 1e9).usage()] == [1]


def test_hits_never_grow_without_bound(state: State) -> None:
    for _ in range(3 * MOST):
        state.uses.count(Use("m", is_hit=True))
    assert len(state.uses._uses) == MOST
    state.close()
    assert state.usage()[0]["request_count"] == 3 * MOST
    assert len(rows(state, "attempts")) == MOST


def test_a_child_after_a_fork_writes_nothing_of_its_parent(state: State) -> None:
    state.uses.count(Use("m"))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: sys.exit(len(state.uses.take()[0])))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert len(state.uses.take()[0]) == 1


def test_nothing_is_imported_and_no_file_made_until_something_is_written(tmp_path: Path) -> None:
    script = (
        "import sys; from modelcache.state.state import State; from modelcache.state.uses import Uses;"
        "from modelcache.history import Use; uses = Uses(); state = State(sys.argv[1], uses, 1.0);"
        "uses.count(Use('m')); state.scores(); print('sqlite3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.iterdir())


# -- what can happen to the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_file_that_is_no_database_is_set_aside_with_one_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    Path(state.place.database).parent.mkdir()
    Path(state.place.database).write_bytes(content)
    state([TRY])
    state([TRY])
    assert len(rows(state, "attempts")) == 2
    assert len(warnings_of(caplog)) == (1 if content else 0)
    aside = list(Path(state.place.database).parent.glob("*.damaged-*"))
    assert [path.read_bytes() for path in aside] == ([content] if content else [])


def test_while_another_process_sets_it_aside_nothing_is_kept_and_one_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    path = Path(state.place.database)
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        state([TRY])
        state([TRY])
    finally:
        os.close(folder)
    assert len(warnings_of(caplog)) == 1
    assert path.read_bytes() == b"garbage" * 1000


def test_a_database_damaged_in_the_middle_is_set_aside_and_later_rows_are_kept(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    state([replace(TRY, file=f"file-{number}") for number in range(3000)])
    state.close()
    path = Path(state.place.database)
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(4096 * page)
            file.write(b"\xa5" * 4096)
    state = new_state(tmp_path)
    state([TRY])
    assert [row["file"] for row in rows(state, "attempts")] == ["f"]


def test_a_database_of_a_newer_version_is_left_alone_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    state([TRY])
    state.close()
    with contextlib.closing(sqlite3.connect(state.place.database)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = Path(state.place.database).read_bytes()
    state = new_state(tmp_path)
    state([TRY])
    state([TRY])
    assert Path(state.place.database).read_bytes() == before
    assert len(warnings_of(caplog)) == 1 and "version" in warnings_of(caplog)[0]
    with pytest.raises(StoreError, match=f"version {VERSION + 1}"):
        state.downloads()
    assert state.scores() == {}


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/null"), Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_its_place_switches_it_off_with_one_warning(
    tmp_path: Path, make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    path = Path(state.place.database)
    path.parent.mkdir()
    make(path)
    state([TRY])
    state([TRY])
    assert len(warnings_of(caplog)) == 1
    assert state.scores() == {}


def test_a_lock_that_another_process_holds_for_long_slows_nobody_and_costs_no_row(state: State) -> None:
    state([TRY])
    with contextlib.closing(sqlite3.connect(state.place.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for _ in range(50):
            state([TRY])
        state.scores()
        assert time.monotonic() - began < 25 * WAIT_S  # and not that for each
        other.execute("ROLLBACK")
    state.close()
    assert len(rows(state, "attempts")) == 51


@contextlib.contextmanager
def locked(state: State) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(state.place.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_what_waits_for_a_lock_has_a_bound_and_records_stay_longest(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    state([TRY])
    with locked(state):
        state([Standing(RECORD, begins=True), replace(TRY, file="oldest")])
        for _ in range(3):
            state([TRY] * (MOST_KEPT - 1))
    state.close()
    kept = rows(state, "attempts")
    assert (len(kept), {row["file"] for row in kept}) == (1 + MOST_KEPT - 1, {"f"})
    assert [record.id for record in state.downloads()] == ["d1"]
    assert len(warnings_of(caplog)) == 1


def test_what_was_asked_waits_for_a_lock_only_up_to_a_bound_of_bytes(state: State) -> None:
    """The latest wait; what is small has room beside them."""
    state([TRY])
    tracemalloc.start()
    with locked(state):
        state([TRY])
        for i in range(12):
            state([Standing(replace(RECORD, id=f"large{i}"), begins=True, request=f"{i % 10}" * (5 << 20))])
        assert tracemalloc.get_traced_memory()[0] < MOST_KEPT_BYTES + (10 << 20)
    tracemalloc.stop()
    state.close()
    assert {record.id for record in state.downloads()} == {"large9", "large10", "large11"}
    assert len(rows(state, "attempts")) == 2


def test_a_full_disk_switches_it_off_with_one_warning(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = new_state(small_disk)
    state([TRY])
    with (small_disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for _ in range(50):
        state([replace(TRY, error_message="x" * 500)] * 100)
    state.close()
    assert len(warnings_of(caplog)) == 1


def write_many(root: str, count: int) -> None:
    state = State(root, Uses(), 1e10)
    for number in range(count):
        record = replace(RECORD, id=f"{os.getpid()}-{number % 5}")
        state([replace(TRY, file=str(number)), Use("m"), Standing(record, begins=True)])
    deadline = time.monotonic() + 30
    while state._kept and time.monotonic() < deadline:
        with state._writing:
            state._flush(at_once=True)
    state.close()


def test_eight_processes_write_at_once_and_no_row_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(str(tmp_path), 40)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    state = new_state(tmp_path)
    assert len(rows(state, "attempts")) == 320
    assert state.usage()[0]["request_count"] == 320
    assert len(state.downloads()) == 40
    (health,) = state.health().values()
    assert health.successes == pytest.approx(320, rel=0.01)


def test_connections_side_by_side_are_one_fast_gateway(state: State) -> None:
    at_once = replace(TRY, timestamp=now_ms())
    state([at_once])
    state([at_once] * 7)
    (health,) = state.health().values()
    assert health.throughput == pytest.approx(8 * TRY.bytes / 0.1, rel=0.01)


def test_a_database_of_the_first_version_keeps_all_but_the_health(state: State) -> None:
    state([TRY, Standing(RECORD, begins=True)])
    with contextlib.closing(sqlite3.connect(state.place.database, isolation_level=None)) as connection:
        connection.executescript(
            "DROP TABLE health; DROP TABLE sizes; ALTER TABLE days DROP COLUMN durations; PRAGMA user_version = 1"
        )
        connection.execute(f"CREATE TABLE health ({', '.join(f'c{i}' for i in range(11))})")
        connection.execute(f"INSERT INTO health VALUES ('http', 'old', {', '.join('1' * 8)}, '')")
    assert state.health()[("http", "old")] == Health()
    state([TRY])
    assert [gateway for _, gateway in state.health()] == ["host"]
    with contextlib.closing(sqlite3.connect(state.place.database)) as connection:
        assert "durations" in {column[1] for column in connection.execute("PRAGMA table_info(days)")}
    assert (len(rows(state, "attempts")), len(state.downloads())) == (2, 1)


def test_values_of_the_wrong_kind_are_read_as_nothing(state: State) -> None:
    state([Standing(RECORD, begins=True), TRY, Use("m")])
    with contextlib.closing(sqlite3.connect(state.place.database)) as connection:
        connection.execute("UPDATE downloads SET owner = '[1', started_at = 'x', path = x'00ff', attempts = 1.5")
        connection.execute("UPDATE health SET successes = 'many', last_error = 3")
        connection.execute("UPDATE attempts SET timestamp = 'never', latency_ms = 'x', model = x'00'")
        connection.commit()
    (record,) = state.downloads()
    assert (record.status, record.path, record.started_at) == ("paused", "", 0)
    assert state.health()[("http", "host")].attempts == 0
    state([TRY])
    assert len(rows(state, "attempts")) == 2


def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    state([Standing(RECORD, begins=True)])
    state.close()
    folder = Path(state.place.database).parent
    folder.chmod(0o500)
    try:
        assert [record.id for record in new_state(tmp_path).downloads()] == ["d1"]
    finally:
        folder.chmod(0o700)


# -- where it lies ----------------------------------------------------------------------------------------------------


def test_the_database_of_a_host_lies_in_the_root_but_not_on_a_network_file_system(tmp_path: Path) -> None:
    assert Path(Place.of(str(tmp_path)).database).parent == tmp_path / "state"
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
        f"23 22 0:40 / {str(tmp_path).replace(' ', chr(92) + '040')}/far rw,relatime shared:5 - nfs4 server:/x rw\n"
        "broken\n"
    )
    assert is_on_network(str(tmp_path / "far" / "not" / "yet"), str(mounts))
    assert not is_on_network(str(tmp_path / "near"), str(mounts))
    assert not is_on_network(str(tmp_path), str(tmp_path / "nothing"))
