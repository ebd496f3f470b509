"""One request for a model under way: the handle a user holds, and the thread that carries it out.

Responsible for: the states, and pause, resume and cancel in every one of them. Whatever is killed when, what is visible
was proven, and the next request does only what is left. Leaves to others: one try at it (`errand`), how far it is
(`tally`), what is told of it (`announcing`), hits (`fetching`).
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from modelcache.announcing import Announcer
from modelcache.dispatch import Subscriber
from modelcache.errand import Errand, Renew, Result
from modelcache.errors import CancelledError, PausedError, StoreError, UsageError, line_of
from modelcache.events import Progress
from modelcache.modelfetch import discard_rest, explained, started
from modelcache.order import Order, Workshop
from modelcache.states import REST_STATUS, State, stage_text
from modelcache.tally import Tally
from modelcache.transfer.control import Control
from modelcache.units import part_of

log = logging.getLogger(__name__)
WAIT_S = 0.2
STOP_WITHIN_S = 1.5
MOST_LINE = 400  # characters of an error, in a notebook


@dataclass(frozen=True, slots=True)
class End:
    """How a download ended, for now or for good: with a result, or with an error."""

    state: State
    result: Result | None
    error: BaseException | None

    @property
    def is_pause(self) -> bool:
        return isinstance(self.error, PausedError) and not isinstance(self.error, CancelledError)

    def outcome(self) -> Result:
        """Raises the error, if it is one."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class Download:
    """A request under way. Every method may be called from any thread; only `result` and `wait_stopped` block.

    `renew` tells what is wanted, and what is here by now, when nobody else has the model any more, or its hub has said
    what it consists of. `request` is what was asked, for the record. The `id` is the same each time the same is fetched
    to the same place.
    """

    def __init__(
        self,
        order: Order,
        workshop: Workshop,
        renew: Renew,
        subscriber: Subscriber | None = None,
        request: str = "",
    ) -> None:
        self._tally = Tally(order)
        self._announcer = Announcer(self._tally, workshop, subscriber, request)
        self.id = self._announcer.id
        self._shop = workshop
        self._renew = renew
        self._pid = os.getpid()
        self._changed = threading.Condition()  # guards what follows
        self._ended: State | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._control = Control()
        self._goes_on = False  # `resume` was called while a pause was still taking effect
        self._cancelled = False
        self._is_held = False
        self._waiting = 0  # tasks that await it
        self._thread: threading.Thread | None = None
        self._end_told: End | None = None  # from when it is told, a moment before it counts
        self._tell: tuple[Callable[[End], None], ...] = ()  # at each end

    def __repr__(self) -> str:
        stands = "cancelled" if self._is_cancelled else self._ended or self._tally.stage
        return f"<Download {self.order.ref} {stands}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: how it stands now."""
        from modelcache.markup import framed, name

        now, label = self._tally.sample(self.state), name(self.order.ref)
        here = f"{now.completed_files} of {now.total_files} files"
        bar = ""
        if not self._is_cancelled:  # nothing of what was under way is kept
            here = f"{part_of(now.bytes_downloaded, now.total_bytes)}, {here}"
            bar = f'<progress max="100" value="{now.percent}" aria-label="{self.id}"></progress> '
        tone = "bad" if self.state is State.FAILED else "soft"
        error = f'<p class="{tone}">{name(line_of(self._error), MOST_LINE)}</p>' if self._error else ""
        state = "cancelled" if self._is_cancelled else self.state
        stands = f'<p>{name(self.state_text)}</p><p data-state="{state}">{bar}{here}</p>'
        return framed(f"<h3>{label}</h3>{stands}{error}")

    # -- for users ----------------------------------------------------------------------------------------------------

    @property
    def order(self) -> Order:
        """What is wanted, as well as that is known by now."""
        return self._tally.order

    @property
    def state(self) -> State:
        return self._ended or self._tally.state

    @property
    def _is_cancelled(self) -> bool:
        """Whether it has ended so, and nobody has begun it anew since."""
        return isinstance(self._error, CancelledError)

    @property
    def has_ended(self) -> bool:
        return self._ended is not None

    @property
    def is_over(self) -> bool:
        """Whether its end was told, a moment before it has ended, and nobody goes on with it since."""
        return self._end_told is not None

    @property
    def state_text(self) -> str:
        """The stage in words for people (product D3)."""
        is_image = self.order.ref.startswith(("ollama:", "oci:"))
        if self._is_cancelled:
            return "Cancelled"
        return stage_text(self.state, self._tally.where, "model layers" if is_image else "files")

    @property
    def progress(self) -> Progress:
        """Of the whole model: bytes of all its files."""
        self._check_process()
        return self._tally.sample(self.state)

    @property
    def files(self) -> tuple[Progress, ...]:
        """Of each file, in the order of the model."""
        tasks, completed = self._tally.tasks, self._tally.completed
        return tuple(task.sample(self.order.id, completed, len(tasks)) for task in tasks)

    @property
    def error(self) -> BaseException | None:
        """What ended it; None while it runs and when it is ready."""
        return self._error

    @property
    def kept_bytes(self) -> int:
        """What of the unfinished files a later run need not fetch again."""
        return self._tally.kept_bytes

    def to_json(self) -> dict[str, Any]:
        """The state of the model (product D3)."""
        now = self.progress
        return {
            "status": REST_STATUS[self.state], "total_bytes": now.total_bytes, "downloaded_bytes": now.bytes_downloaded,
            "progress_percent": now.percent, "manifest_pulled": self.state not in (State.PENDING, State.RESOLVING),
            "resume_supported": True,
        }  # fmt: skip

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end. Raises what went wrong, or TimeoutError after `timeout` seconds."""
        self._check_process()
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._ended is None:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"{self.order.ref} is still {self.state} after {timeout:g} s")
                if self._thread is not None and not self._thread.is_alive():
                    self._end(State.FAILED, RuntimeError("the thread of this download died"))
                self._changed.wait(WAIT_S)  # short, so that Ctrl-C is seen at once
        return End(self._ended, self._result, self._error).outcome()

    def __await__(self) -> Generator[Any, None, Result]:
        """As `result`, in an event loop; but a pause is waited through, until somebody goes on or cancels.

        When the last task that waits is cancelled, that pauses the download: what was written is kept, and who awaits
        it again goes on with it. What `pause` was called for goes on when `resume` is.
        """
        return self._awaited().__await__()

    async def _awaited(self) -> Result:
        import asyncio

        try:
            end = await self._next_end()
        except asyncio.CancelledError:
            if not self._waiting:
                self.interrupt()
                await asyncio.to_thread(self.wait_stopped, STOP_WITHIN_S)
            raise
        return end.outcome()

    async def _next_end(self) -> End:
        """That is no pause which is to be waited through."""
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[End] = loop.create_future()

        def settle(end: End) -> None:
            if not future.done():
                future.set_result(end)

        def tell(end: End) -> None:
            if not (end.is_pause and (self._is_held or self._goes_on)):
                loop.call_soon_threadsafe(settle, end)

        with self._changed:  # nothing goes on, or ends, in between
            self._waiting += 1
            self._go_on_unless_held()
            forget = self.when_ended(tell)
        try:
            while not future.done():  # a kernel's loop hears of its stop button when it next wakes
                await asyncio.wait((future,), timeout=WAIT_S)
            return future.result()
        finally:
            forget()
            with self._changed:
                self._waiting -= 1

    def _go_on_unless_held(self) -> None:
        """With what nobody waited for any more."""
        is_interrupted = self._control.stopped and not self._cancelled and self._ended in (None, State.PAUSED)
        if is_interrupted and not self._is_held:
            self.resume()

    def when_ended(self, tell: Callable[[End], None]) -> Callable[[], None]:
        """Calls this at each end, before `result` returns, in the thread that ended it; at once if it has ended.

        What it returns ends that. It must be quick; what it raises is logged.
        """
        with self._changed:
            self._tell = (*self._tell, tell)
            end = self._end_told
        if end:
            tell(end)

        def forget() -> None:
            with self._changed:
                self._tell = tuple(each for each in self._tell if each is not tell)

        return forget

    @property
    def is_held(self) -> bool:
        """Whether somebody paused it: it goes on when he says so, and a queue leaves it alone."""
        return self._is_held

    def pause(self) -> None:
        """Ends all requests and keeps every byte, until `resume`. A download that has ended stays as it is."""
        with self._changed:
            self._is_held = True
        self.interrupt()

    def interrupt(self) -> None:
        """The same, but whoever carries out downloads may go on with it: the process ends, or the queue pauses."""
        self._check_process()
        with self._changed:
            self._goes_on = False
            self._control.stop(PausedError(f"{self.order.ref} was paused"))

    def cancel(self) -> None:
        """Ends all requests and removes what is not complete. Files that are complete stay in the store."""
        self._check_process()
        with self._changed:
            if self._ended is State.READY:
                return
            self._goes_on, self._cancelled = False, True
            self._control.stop(self._cancellation())
            was_over = self._ended is not None
        if was_over:
            discard_rest(self._tally, self._shop)
            self._announcer.end(State.PAUSED, error := self._cancellation(), None)
            self._end(State.PAUSED, error)

    def resume(self) -> None:
        """Goes on after a pause or a failure; a download that runs or is ready is left alone."""
        self._check_process()
        with self._changed:
            self._is_held = False
            if self._ended in (State.PAUSED, State.FAILED):
                self._reset()
                self.begin()
            else:
                self._goes_on = self._control.stopped

    retry = resume

    def wait_stopped(self, timeout: float) -> bool:
        """After `pause`: waits until this download writes no more; False if that takes longer than `timeout` s."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    # -- for the cache ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Returns at once; also where there is no thread to be had: then `result` says so."""
        with self._changed:
            try:
                (self._thread,) = started(self._run, "modelcache-download", 1)
            except StoreError as error:
                self._end(State.PAUSED, error)

    def be_ready(self, result: Result) -> None:
        """Everything is here already: ends before it began."""
        self._tally.found(result)
        self._result = result
        self._announcer.end(State.READY, None, result)
        self._end(State.READY, None)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Whatever happens, the download ends in a state that says so: somebody waits for it."""
        is_over = False
        while not is_over:
            error: BaseException | None = None
            try:
                state, error = self._carry_out()
                self._announcer.end(state, error, self._result)
                is_over = self._settle(state, error)
            except BaseException as unexpected:  # noqa: BLE001 - raised by `result` in the thread that asks
                self._announcer.record(State.FAILED, error or unexpected)
                self._end(State.FAILED, error or unexpected)
                is_over = True

    def _settle(self, state: State, error: BaseException | None) -> bool:
        """Ends in this state; False if it is to go on after all. A cancel that came late counts, too."""
        is_told = False
        while True:
            with self._changed:
                if self._goes_on and state is State.PAUSED:
                    self._reset()
                    return False
                late = self._cancelled and state is not State.READY and not isinstance(error, CancelledError)
                if is_told and not late:
                    self._set_ended(state, error)
                    return True
            if late:
                discard_rest(self._tally, self._shop)
                state, error = State.PAUSED, self._cancellation()
                self._announcer.record(state, error)
            self._tell_end(state, error)
            is_told = True

    def _end(self, state: State, error: BaseException | None) -> None:
        self._tell_end(state, error)
        self._set_ended(state, error)

    def _tell_end(self, state: State, error: BaseException | None) -> None:
        """Comes first, so that whoever waits for the end finds all of it done."""
        with self._changed:
            end = self._end_told = End(state, self._result, error)
            listeners = self._tell
        for tell in listeners:
            try:
                tell(end)
            except Exception:  # an event loop that was closed; a download does not fail for who listens
                log.exception("a listener failed at the end of a download")

    def _set_ended(self, state: State, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = state, error
            self._changed.notify_all()

    def _reset(self) -> None:
        self._ended, self._error, self._end_told, self._control = None, None, None, Control()
        self._goes_on = self._cancelled = False
        self._tally.begin_again()

    def _carry_out(self) -> tuple[State, BaseException | None]:
        """Does everything; how it ended."""
        self._announcer.tell("started", f"fetching {self.order.ref}")
        self._announcer.record(State.PENDING)
        try:
            errand = Errand(self._tally, self._shop, self._control, self._announcer, self._renew)
            self._result = errand.run()
        except (PausedError, StoreError) as error:
            if isinstance(error, CancelledError):
                discard_rest(self._tally, self._shop)
                error.kept_bytes = 0
            elif isinstance(error, PausedError):  # of one file, as it was raised
                error.kept_bytes = self._tally.kept_bytes
            return State.PAUSED, error  # also when the disk refuses: it goes on when that is mended (A8)
        except BaseException as error:  # noqa: BLE001 - raised by `result` in the thread that asks
            return State.FAILED, explained(error, self._tally)
        return State.READY, None

    def _cancellation(self) -> CancelledError:
        return CancelledError(f"{self.order.ref} was cancelled")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError("this download belongs to the process before the fork", next_step="fetch it again here")
