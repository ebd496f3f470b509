"""A machine that has no handle or thread for one more connection: those that work go on (I25)."""

import multiprocessing
import os
import resource
import threading
from pathlib import Path

import pytest
from transfers import Outcome, run, wanted

from modelcache.errors import StoreError
from modelcache.testing import Content, Origin, Slow

MIB = 1 << 20
BIG = Content.generated(64 * MIB, 3)
SMALL = Content.generated(MIB, 4)
CREW = {"connections": 8, "grow_every": 0.05}
PACE = Slow(24 * MIB)


def _run_with_handles(
    folder: str, urls: list[str], left: int, piece: int, tell: "multiprocessing.Queue[object]"
) -> None:
    """One run in a process that can open so many more files."""
    warm, limited = Path(folder, "warm"), Path(folder, "limited")
    warm.mkdir()
    limited.mkdir()
    run(warm, wanted(SMALL), urls[:1])  # all that is imported late is here now
    free = [os.dup(0) for _ in range(left + 1)]
    for number in free:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], free[-1]))
    try:
        done = run(limited, wanted(BIG, piece=piece), urls[1:], **CREW)
        right = done.digests is not None and done.digests["sha256"].hex == BIG.sha256
        tell.put((right, str(done.error or ""), done.facts("source_failed")))
    except StoreError as error:
        tell.put((False, str(error), []))


def outcome_with_handles(folder: Path, left: int, piece: int = 0) -> tuple[bool, str, list[object], int]:
    """Whether the bytes are right, the error, the faults told, and how many connections there were."""
    with Origin({"small": SMALL, "a": BIG, "b": BIG}) as origin:
        origin.faults(PACE, path="a")
        origin.faults(PACE, path="b")
        context = multiprocessing.get_context("spawn")
        tell = context.Queue()
        urls = [origin.url(name) for name in ("small", "a", "b")]
        child = context.Process(target=_run_with_handles, args=(str(folder), urls, left, piece, tell))
        child.start()
        right, error, faults = tell.get(timeout=60)
        child.join(30)
        return right, error, faults, origin.connections - 1


@pytest.mark.parametrize("left", [6, 8])
@pytest.mark.parametrize("piece", [0, MIB])
def test_too_few_handles_for_all_connections_cost_only_those_connections(tmp_path, left, piece) -> None:
    right, error, faults, connections = outcome_with_handles(tmp_path, left, piece)
    assert (right, error, faults) == (True, "", [])
    assert 1 <= connections < 8


def test_without_a_handle_for_any_connection_it_fails_at_once(tmp_path) -> None:
    right, error, faults, connections = outcome_with_handles(tmp_path, 3)
    assert (right, faults, connections) == (False, [], 0)
    assert "too many open files" in error


def with_workers(monkeypatch: pytest.MonkeyPatch, most: int) -> list[str]:
    """Only so many connections get a thread in all; the names of those that were refused one."""
    start, started, refused = threading.Thread.start, [], []

    def maybe(thread: threading.Thread) -> None:
        if thread.name == "modelcache-worker" and sum(one.is_alive() for one in started) >= most:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)
        if thread.name == "modelcache-worker":
            started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", maybe)
    return refused


def fetched(folder: Path) -> Outcome:
    with Origin({"a": BIG}, faults=[PACE]) as origin:
        return run(folder, wanted(BIG), [origin.url("a")], **CREW)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_too_few_threads_for_all_connections_are_tried_once_and_no_more(tmp_path, monkeypatch, most) -> None:
    refused = with_workers(monkeypatch, most)
    done = fetched(tmp_path)
    assert (done.error, done.content == BIG.read(), done.facts("source_failed")) == (None, True, [])
    assert 1 <= len(refused) < 8  # each connection once: not asked for again and again


def test_without_a_thread_for_any_connection_it_fails_at_once(tmp_path, monkeypatch) -> None:
    with_workers(monkeypatch, 0)
    done = fetched(tmp_path)
    assert isinstance(done.error, StoreError)
    assert "can't start new thread" in str(done.error)
