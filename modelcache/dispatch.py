"""Who is told what: one thread that runs subscribers and sinks, so that a slow one never slows a download.

Responsible for: order, overwriting progress that nobody has looked at yet, never dropping a fact, and outliving a
subscriber that fails. Subscribers are the user's and get events (what is Prompt is ours, and waits for none of them);
sinks are ours (state, logs) and get facts and notes as values, many at a time. Leaves to `events` and `history`: what
is told.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modelcache.events import DownloadComplete, Event, Fact, Progress
from modelcache.history import Note

Subscriber = Callable[[dict[str, Any]], None]
Show = bool | Subscriber | None  # `progress` as users give it: see `progress.show.subscriber_for`
Kept = Fact | DownloadComplete | Note
Sink = Callable[[Sequence[Kept]], None]
_Letter = tuple[Event | Note, Subscriber | None]
IDLE_S = 5.0
log = logging.getLogger(__name__)
logging.getLogger("modelcache").addHandler(logging.NullHandler())  # else Python prints warnings on stderr, unasked


@dataclass(frozen=True, slots=True)
class Prompt:
    """A subscriber of ours that only takes note: it is told at once, in the thread where it happens."""

    show: Subscriber

    def __call__(self, event: dict[str, Any]) -> None:
        self.show(event)


class Dispatcher:
    """Subscribers get each event in its wire form (product H). All methods may be called from any thread.

    Its thread ends when there has been nothing to tell for a while, and begins again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._subscribers: dict[object, Subscriber] = {}
        self._sinks: tuple[Sink, ...] = ()
        self._facts: list[_Letter] = []
        self._progress: dict[tuple[int, str, str], _Letter] = {}
        self._busy = False
        self._stuck = False  # somebody waited in vain, and no subscriber has come back since
        self._thread: threading.Thread | None = None

    @property
    def has_subscribers(self) -> bool:
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Returns a function that ends the subscription."""
        key = object()
        with self._changed:
            self._subscribers = {**self._subscribers, key: subscriber}

        def unsubscribe() -> None:
            with self._changed:
                self._subscribers = {each: fn for each, fn in self._subscribers.items() if each is not key}

        return unsubscribe

    def attach(self, sink: Sink) -> None:
        """Gives a sink all facts and notes from now on, after the subscribers, as many at once as have gathered.

        A sink runs in the dispatcher's thread and is waited for by `drain`: it has to be quick.
        """
        with self._changed:
            self._sinks = (*self._sinks, sink)

    def note(self, note: Note) -> None:
        """Tells the sinks alone. Returns at once."""
        with self._changed:
            if not self._sinks:
                return
            self._facts.append((note, None))
            self._wake()

    def publish(self, event: Event, also: Subscriber | None = None) -> None:
        """Tells all subscribers, and `also` this one; the sinks, too, unless it is progress. Returns at once.

        What is Prompt has been told by then.

        Progress that nobody has looked at yet is overwritten; facts and the last event of a model never are.
        """
        told = [*self._subscribers.values(), *([also] if also else [])]
        for subscriber in told:
            if isinstance(subscriber, Prompt):
                _call(subscriber, event)
        with self._changed:
            is_for_sinks = self._sinks and not isinstance(event, Progress)
            if not is_for_sinks and all(isinstance(subscriber, Prompt) for subscriber in told):
                return
            if isinstance(event, Progress) and not event.done:
                self._progress[id(also), event.model, event.file] = (event, also)
            else:
                self._facts += [*self._progress.values(), (event, also)]
                self._progress.clear()
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._start()
        self._changed.notify_all()

    def _start(self) -> None:
        """Where no thread can be had, it is tried again with the next event: a download does not fail for that."""
        thread = threading.Thread(target=self._run, name="modelcache-dispatcher", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("subscribers are not told for now: %s", error)
        else:
            self._thread = thread

    def drain(self, timeout: float) -> None:
        """Waits until subscribers have seen everything published so far, or the time is over.

        A subscriber that does not come back costs that time once, not every time.
        """
        end = time.monotonic() + timeout
        with self._changed:
            if self._thread in (None, threading.current_thread()):
                return  # nobody tells; or a subscriber waits for a download: it cannot wait for itself
            while (self._facts or self._progress or self._busy) and not self._stuck:
                if time.monotonic() >= end:
                    self._stuck = True
                self._changed.wait(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = self._stuck = False
                self._changed.notify_all()
                while not (self._facts or self._progress):
                    if not self._changed.wait(IDLE_S) and not (self._facts or self._progress):
                        self._thread = None  # the next event begins one: a cache that nobody holds any more can go
                        return
                letters = [*self._facts, *self._progress.values()]
                self._facts, self._progress, self._busy = [], {}, True
                subscribers, sinks = list(self._subscribers.values()), self._sinks
            for event, also in letters:
                if isinstance(event, Event):
                    for subscriber in [*subscribers, also] if also else subscribers:
                        if not isinstance(subscriber, Prompt):
                            _call(subscriber, event)
                            self._stuck = False
            kept = [event for event, _ in letters if not isinstance(event, Progress)]
            for sink in sinks if kept else ():
                _fill(sink, kept)


def _call(subscriber: Subscriber, event: Event) -> None:
    try:
        subscriber(event.to_wire())
    except BaseException:  # also SystemExit: it is not this thread that a subscriber may end
        log.exception("a subscriber failed on %s", type(event).__name__)


def _fill(sink: Sink, kept: Sequence[Kept]) -> None:
    try:
        sink(kept)
    except Exception:
        log.exception("a sink failed")
