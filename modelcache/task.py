"""One file of a running download, as far as it has come.

Responsible for: its stage and its numbers, read by anyone at any time. Leaves to others:
doing the work (`filefetch`, `mending`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from modelcache.errors import PausedError, told
from modelcache.events import FactType, Progress
from modelcache.model import ModelFile
from modelcache.order import Fetched
from modelcache.sampling import Speed
from modelcache.states import EVENT_STATUS, State
from modelcache.store.locks import Pulse
from modelcache.store.watch import Watch
from modelcache.transfer.transfer import Transfer


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What a transfer says of itself, in bytes and words."""

    here: int = 0
    size: int | None = None
    received: int = 0
    kind: str = ""
    source: str = ""

    @classmethod
    def of(cls, transfer: Transfer) -> Self:
        partial = transfer.partial
        return cls(partial.written_bytes, partial.size, transfer.received, transfer.source_kind, transfer.source)


class Work(Protocol):
    """What fetches, or mends, the file."""

    transfer: Transfer | None  # while bytes move
    watch: Watch | None  # once somebody else has it
    checked: int  # bytes that were read where the file is already

    def pulse(self) -> int:
        """How many bytes were read and hashed by now; whoever waits for the file is shown that it goes on."""
        ...


class Passing:
    """Work that needs no transfer: bytes that pass by, from one place of this machine to another."""

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self.transfer: Transfer | None = None
        self.watch: Watch | None = None
        self.checked = 0
        self._pulses = pulses  # of all locks that are held meanwhile

    def pulse(self) -> int:
        for pulse in self._pulses:
            pulse.show(self.checked)
        return self.checked


class Task:
    """Written by the thread that fetches the file, and by the one that samples it."""

    def __init__(self, file: ModelFile, done: Fetched | None = None) -> None:
        self.file = file
        self.done = done
        self.fetch: Work | None = None
        self.error: BaseException | None = None
        self.stage = State.RESOLVING
        self.retries = 0
        self.speed = 0.0  # bytes/s over the last seconds
        self.hashed = 0  # bytes that were read and hashed, whatever for
        self.watch: Watch | None = None  # while another process has the model
        self.shown = 0  # how far it was in its last progress event
        self.told = done is not None  # its last progress event went out
        self._speed: Speed | None = None
        self._last = _Numbers()

    def begin(self, fetch: Work) -> None:
        self._speed = Speed()
        self.fetch = fetch

    def end(self, done: Fetched | None, error: BaseException | None = None) -> None:
        """Keeps the last numbers and lets go of the transfer: of thousands of files they would fill the memory."""
        self._last = self._own
        self.done, self.error = done, error
        self.fetch = None

    def hear(self, kind: FactType) -> None:
        """What happened to the file says at which stage it is."""
        if kind in ("resumed", "verifying"):
            self.stage = State.RESUMING if kind == "resumed" else State.VERIFYING
        elif kind == "source_tried" and self.stage is not State.RESUMING:
            self.stage = State.DOWNLOADING
        elif kind in ("source_failed", "piece_failed"):
            self.retries += 1

    @property
    def _own(self) -> _Numbers:
        fetch = self.fetch  # read once: it goes in another thread
        transfer = fetch.transfer if fetch else None
        return _Numbers.of(transfer) if transfer else self._last

    @property
    def _numbers(self) -> _Numbers:
        """Our own, or how far we have read what is here, or how far somebody else is with it, for whom we wait."""
        fetch = self.fetch
        if self.is_over or (fetch and fetch.transfer):
            return self._own
        if fetch and fetch.checked:
            here = min(fetch.checked, self.file.size or fetch.checked)
            return _Numbers(here, self.file.size, here, "cache")
        watch = (fetch.watch if fetch else None) or self.watch
        if watch is None:
            return self._own
        far = watch.of(self.file)
        return _Numbers(far.here, far.total)

    @property
    def is_over(self) -> bool:
        return self.done is not None or self.error is not None

    @property
    def is_running(self) -> bool:
        return self.fetch is not None and not self.is_over

    @property
    def total(self) -> int:
        return self.done.size if self.done else self._numbers.size or self.file.size or 0

    @property
    def here(self) -> int:
        return self.done.size if self.done else self._numbers.here

    @property
    def kept(self) -> int:
        """How many of the bytes are ours to go on from."""
        return self._own.here

    def measure(self) -> None:
        """Brings `speed` and `hashed` up to date. Called by one thread, every now and then."""
        gauge, fetch = self._speed, self.fetch
        if fetch:
            self.hashed = fetch.pulse()
        self.speed = gauge.at(self._numbers.received) if gauge and self.is_running else 0.0

    def sample(self, model: str, completed: int, total: int) -> Progress:
        """The progress event of this file; `completed` of `total` files of the model are here."""
        stage = State.PAUSED if isinstance(self.error, PausedError) else State.FAILED if self.error else self.stage
        return Progress(
            model=model, status="success" if self.done else EVENT_STATUS[stage], file=self.file.path,
            bytes_downloaded=self.here, total_bytes=self.total, speed=self.speed, retry_count=self.retries,
            source=self.source, gateway=self.gateway, completed_files=completed, total_files=total,
            error=told(self.error),
        )  # fmt: skip

    @property
    def source(self) -> str:
        """The kind of source that is asked, or that brought it."""
        return self.done.source if self.done else self._numbers.kind

    @property
    def gateway(self) -> str:
        return self._numbers.source
