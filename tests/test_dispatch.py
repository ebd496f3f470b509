"""Who is told what: subscribers, and the sinks of ours that are told everything that is to be kept, in one thread."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from modelcache.dispatch import Dispatcher, Kept, Prompt
from modelcache.events import Fact, Progress
from modelcache.history import Use


def test_a_sink_gets_facts_and_notes_in_order_as_values_and_no_progress() -> None:
    dispatcher, got = Dispatcher(), list[Kept]()
    dispatcher.attach(got.extend)
    wanted = [Fact("started", "m", "one"), Use("m"), Fact("completed", "m", "two")]
    dispatcher.publish(wanted[0])
    dispatcher.note(wanted[1])
    dispatcher.publish(Progress("m", "downloading"))
    dispatcher.publish(wanted[2])
    dispatcher.drain(60)
    assert got == wanted


def test_what_gathered_while_a_sink_was_busy_comes_at_once() -> None:
    dispatcher, sizes = Dispatcher(), list[int]()
    entered, may_go = threading.Event(), threading.Event()

    def sink(kept: Sequence[Kept]) -> None:
        sizes.append(len(kept))
        entered.set()
        assert may_go.wait(60)

    dispatcher.attach(sink)
    dispatcher.note(Use("first"))
    assert entered.wait(60)
    for _ in range(5):
        dispatcher.note(Use("more"))
    may_go.set()
    dispatcher.drain(60)
    assert sizes == [1, 5]


def test_notes_are_not_for_subscribers_and_wake_nobody_without_a_sink() -> None:
    dispatcher, told = Dispatcher(), list[object]()
    dispatcher.subscribe(told.append)
    dispatcher.note(Use("m"))
    dispatcher.attach(lambda kept: None)
    dispatcher.note(Use("m"))
    dispatcher.drain(60)
    assert told == []


def test_a_sink_that_fails_harms_nobody() -> None:
    dispatcher, got = Dispatcher(), list[Kept]()

    def broken(kept: Sequence[Kept]) -> None:
        raise OSError

    dispatcher.attach(broken)
    dispatcher.attach(got.extend)
    dispatcher.note(Use("m"))
    dispatcher.note(Use("n"))
    dispatcher.drain(60)
    assert len(got) == 2


def test_progress_that_nobody_has_looked_at_is_overwritten_and_facts_are_not() -> None:
    dispatcher = Dispatcher()
    begun, goes_on = threading.Event(), threading.Event()
    seen: list[tuple[str, int]] = []

    def slow(event: dict[str, Any]) -> None:
        seen.append((event["type"], event.get("bytesDownloaded", 0)))
        begun.set()
        assert goes_on.wait(60)

    dispatcher.subscribe(slow)
    dispatcher.publish(Fact("started", "m", ""))
    assert begun.wait(60)
    for here in range(5):
        dispatcher.publish(Progress("m", "downloading", "a.bin", here))
    dispatcher.publish(Progress("m", "downloading", "b.bin", 7))
    dispatcher.publish(Fact("file_ready", "m", "", "a.bin"))
    dispatcher.publish(Progress("m", "completed", bytes_downloaded=9, done=True))
    dispatcher.publish(Progress("m", "downloading", "a.bin", 8))
    goes_on.set()
    dispatcher.drain(10)
    kind = "model_download_progress"
    assert seen == [("started", 0), (kind, 4), (kind, 7), ("file_ready", 0), (kind, 9), (kind, 8)]


def test_its_thread_ends_when_there_is_nothing_to_tell_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.dispatch.IDLE_S", 0.01)
    dispatcher, tellers = Dispatcher(), list[threading.Thread]()
    dispatcher.subscribe(lambda event: tellers.append(threading.current_thread()))
    for count in (1, 2):
        dispatcher.publish(Fact("started", "m", "one"))
        dispatcher.drain(60)
        assert len(tellers) == count
        tellers[-1].join(60)
        assert not tellers[-1].is_alive()
    assert tellers[0] is not tellers[1]


def test_what_is_prompt_has_been_told_while_another_subscriber_is_stuck() -> None:
    dispatcher, told = Dispatcher(), list[str]()
    entered, may_go = threading.Event(), threading.Event()

    def stuck(event: dict[str, Any]) -> None:
        entered.set()
        assert may_go.wait(60)

    dispatcher.subscribe(stuck)
    dispatcher.subscribe(Prompt(lambda event: told.append(event["message"])))
    dispatcher.publish(Fact("started", "m", "one"))
    assert entered.wait(60)
    dispatcher.publish(Fact("completed", "m", "two"), Prompt(lambda event: told.append("also")))
    assert told == ["one", "two", "also"]
    may_go.set()
    dispatcher.drain(60)
    assert told == ["one", "two", "also"]  # and not again
