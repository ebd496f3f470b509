"""What every source promises to the transfer, whatever it speaks (modelcache/remotes/source.py).

A new source gets a `Backend` that serves one file its way, and everything here holds for it too.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from modelcache.errors import (
    AbortedError,
    ModelCacheError,
    NotFoundError,
    RangeRefusedError,
    SourceError,
    TransientError,
)
from modelcache.model import Digest, ModelFile
from modelcache.remotes.access import Registry as Place
from modelcache.remotes.connection import Connector, Timeouts
from modelcache.remotes.http import HttpSource
from modelcache.remotes.huggingface import Hub as Account
from modelcache.remotes.huggingface import HubSource
from modelcache.remotes.oci import RegistrySource
from modelcache.remotes.source import Abort, Chunk, Request, Source
from modelcache.testing import (
    ChangedContent,
    Chunked,
    Content,
    Cut,
    DribbleHeaders,
    Hub,
    IgnoreRange,
    Origin,
    SilentAccept,
    Slow,
    Stall,
    Status,
)
from tests.registries import Registry

SIZE = 3 << 20
MODEL = Content.generated(SIZE, 1)
DATA = MODEL.read()
KINDS = {"cache", "ipfs", "huggingface", "http", "oci", "peer", "object"}
SOON_S = 2.0  # the promise is 0.5; a busy machine may take longer


class Backend(Protocol):
    """Serves DATA to one source, and fails on request."""

    source: Source

    @property
    def asked(self) -> int:
        """How many requests came."""

    def cut(self, after: int, *, reset: bool) -> None: ...
    def slow_down(self) -> None: ...
    def lose_the_file(self) -> None: ...
    def be_busy(self, seconds: int) -> None: ...
    def know_no_ranges(self) -> None: ...
    def tell_no_size(self) -> None: ...
    def change(self) -> None: ...
    def hang(self, phase: str) -> None: ...
    def die(self) -> None: ...


class Http:
    """Over plain HTTP."""

    def __init__(self, stack: ExitStack) -> None:
        self.origin = stack.enter_context(Origin({"m.bin": MODEL}))
        self.source: Source = HttpSource(
            self.origin.url("m.bin") + "?token=s3cret", timeouts=Timeouts(connect_s=10, stall_s=10)
        )
        stack.callback(self.source.close)
        self._stack = stack

    @property
    def asked(self) -> int:
        return len(self.origin.requests)

    def cut(self, after: int, *, reset: bool) -> None:
        self.origin.faults(Cut(after, reset=reset))

    def slow_down(self) -> None:
        self.origin.faults(Slow(20 << 20))

    def lose_the_file(self) -> None:
        self.origin.remove("m.bin")

    def be_busy(self, seconds: int) -> None:
        self.origin.faults(Status(503, {"Retry-After": str(seconds)}))

    def know_no_ranges(self) -> None:
        self.origin.faults(IgnoreRange())

    def tell_no_size(self) -> None:
        self.origin.faults(Chunked())

    def change(self) -> None:
        self.origin.faults(ChangedContent(bytes(SIZE)))

    def hang(self, phase: str) -> None:
        faults = {"answer": SilentAccept(), "dribble": DribbleHeaders(0.05), "body": Stall(1000)}
        if phase in faults:
            self.origin.faults(faults[phase])
            return
        full = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = self._stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        self.source = HttpSource(f"http://127.0.0.1:{full.getsockname()[1]}/m.bin")

    def die(self) -> None:
        self.origin.stop()


class Huggingface(Http):
    """A large file of a hub, which sends us to another origin for it."""

    def __init__(self, stack: ExitStack) -> None:
        self.hub = stack.enter_context(Hub(cdn=True))
        commit = self.hub.publish("org/name", {"m.bin": MODEL})
        assert self.hub.cdn is not None
        self.origin = self.hub.cdn
        connector = Connector(Timeouts(connect_s=10, stall_s=10))
        account = Account(self.hub.endpoint, {"Authorization": "Bearer s3cret"})
        self.source: Source = HubSource(f"hf:org/name@{commit}/m.bin", account, connector)
        stack.callback(self.source.close)
        self._stack = stack

    def lose_the_file(self) -> None:
        self.origin.remove(MODEL.sha256)

    def change(self) -> None:
        pytest.skip("a commit, or a digest, does not change")

    def hang(self, phase: str) -> None:
        if phase == "connect":
            pytest.skip("connecting is the business of plain HTTP")
        super().hang(phase)


class Oci(Huggingface):
    """A layer of a registry that wants a token, and sends us to storage for it."""

    def __init__(self, stack: ExitStack) -> None:
        registry = stack.enter_context(Registry(bearer=True, storage=True))
        registry.push("a/b", "latest", b"{}", MODEL)
        assert registry.storage is not None
        self.origin = registry.storage
        connector = Connector(Timeouts(connect_s=10, stall_s=10))
        place = Place(registry.url().rstrip("/"), {"X-Mine": "s3cret"})
        self.source: Source = RegistrySource(place, "a/b", Digest("sha256", MODEL.sha256), connector)
        stack.callback(self.source.close)
        self._stack = stack


@pytest.fixture(params=[Http, Huggingface, Oci])
def backend(request) -> Iterator[Backend]:
    with ExitStack() as stack:
        yield request.param(stack)


def asking(start: int = 0, stop: int | None = None, *, validator: str = "", abort: Abort | None = None, size=None):
    return Request(ModelFile("m.bin", size), start, stop, validator, abort or Abort())


def chunks_of(source: Source, request: Request) -> list[Chunk]:
    with source.open(request) as body:
        return [Chunk(chunk.offset, bytes(chunk.data)) for chunk in body]


def read(source: Source, request: Request) -> bytes:
    return b"".join(bytes(chunk.data) for chunk in chunks_of(source, request))


# ---- what it is


def test_its_name_holds_no_secret_and_its_kind_is_known(backend) -> None:
    assert "s3cret" not in backend.source.name
    assert backend.source.kind in KINDS


def test_its_traits_ask_nobody(backend) -> None:
    traits = backend.source.traits(ModelFile("m.bin"))
    assert traits is not None
    assert traits.most_connections >= 1
    assert backend.asked == 0


# ---- bytes


def test_the_whole_begins_at_0_and_tells_its_size(backend) -> None:
    with backend.source.open(asking()) as body:
        assert (body.start, body.total) == (0, SIZE)
        assert body.framed
        assert b"".join(bytes(chunk.data) for chunk in body) == DATA
        assert body.first_byte_s >= 0
        assert body.host


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, SIZE), (1, 2), (1 << 20, 2 << 20), (SIZE - 1, None), (SIZE - 1, SIZE), (7, None)]
)
def test_a_span_is_sent_exactly(backend, start, stop) -> None:
    with backend.source.open(asking(start, stop)) as body:
        assert (body.start, body.total) == (start, SIZE)
        assert b"".join(bytes(chunk.data) for chunk in body) == DATA[start:stop]


def test_chunks_are_consecutive_and_never_larger_than_a_mebibyte(backend) -> None:
    position = 100
    for chunk in chunks_of(backend.source, asking(100)):
        assert chunk.offset == position
        assert 0 < len(chunk.data) <= 1 << 20
        position += len(chunk.data)
    assert position == SIZE


def test_bytes_come_as_they_arrive(backend) -> None:
    backend.slow_down()
    with backend.source.open(asking()) as body:
        first = next(iter(body))
    assert len(first.data) < SIZE


def test_threads_use_it_at_the_same_time(backend) -> None:
    got: dict[int, bytes] = {}

    def fetch(start: int) -> None:
        got[start] = read(backend.source, asking(start, start + 300_000))

    threads = [threading.Thread(target=fetch, args=(start,)) for start in range(0, SIZE - 300_000, 300_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(got[start] == DATA[start : start + 300_000] for start in range(0, SIZE - 300_000, 300_000))


def test_a_body_left_early_harms_no_later_one(backend) -> None:
    for _ in range(3):
        with backend.source.open(asking()) as body:
            next(iter(body))
    assert read(backend.source, asking(5, 10)) == DATA[5:10]


def test_a_body_without_a_size_says_so(backend) -> None:
    backend.tell_no_size()
    with backend.source.open(asking()) as body:
        assert body.total is None
        assert b"".join(bytes(chunk.data) for chunk in body) == DATA


# ---- ranges and versions


def test_a_range_beyond_the_end_is_refused_and_tells_the_size(backend) -> None:
    with pytest.raises(RangeRefusedError) as refused:
        backend.source.open(asking(SIZE))
    assert refused.value.total == SIZE


def test_without_ranges_the_whole_comes_from_0(backend) -> None:
    backend.know_no_ranges()
    with backend.source.open(asking(1000)) as body:
        assert body.start == 0
        assert b"".join(bytes(chunk.data) for chunk in body) == DATA


def test_under_its_validator_a_range_is_continued(backend) -> None:
    with backend.source.open(asking()) as body:
        validator = body.validator
    with backend.source.open(asking(1000, validator=validator)) as body:
        assert (body.start, body.validator) == (1000, validator)


def test_another_version_is_never_sent_as_a_part_of_the_one_before(backend) -> None:
    with backend.source.open(asking()) as body:
        validator = body.validator
    backend.change()
    try:
        with backend.source.open(asking(1000, validator=validator)) as body:
            assert body.start == 0
            assert body.validator != validator
    except RangeRefusedError:
        pass


def test_another_size_than_the_one_given_is_refused_before_a_byte_comes(backend) -> None:
    for request in (asking(size=SIZE + 1), asking(1000, size=SIZE + 1)):
        with pytest.raises(ModelCacheError):
            backend.source.open(request)


# ---- faults


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("after", [0, 1, 1000, 100_000, 1_000_001, SIZE - 1])
def test_a_cut_is_transient_after_every_byte_that_arrived(backend, after, reset) -> None:
    backend.cut(after, reset=reset)
    got = bytearray()
    with pytest.raises(TransientError), backend.source.open(asking()) as body:
        for chunk in body:
            got += chunk.data
    assert got == DATA[:after]


def test_a_server_that_is_gone_is_transient(backend) -> None:
    backend.die()
    with pytest.raises(TransientError):
        backend.source.open(asking())


def test_a_busy_server_is_transient_and_its_wish_is_told(backend) -> None:
    backend.be_busy(7)
    with pytest.raises(TransientError) as busy:
        backend.source.open(asking())
    assert busy.value.retry_after_s == 7


def test_a_file_that_is_not_there_is_not_found(backend) -> None:
    backend.lose_the_file()
    with pytest.raises(NotFoundError):
        backend.source.open(asking())


def test_after_a_fault_it_can_be_asked_again(backend) -> None:
    backend.cut(1000, reset=True)
    for _ in range(20):
        with pytest.raises(SourceError):
            read(backend.source, asking())
    assert read(backend.source, asking(SIZE - 500)) == DATA[-500:]


def test_errors_hold_no_secret(backend) -> None:
    backend.lose_the_file()
    with pytest.raises(SourceError) as missing:
        backend.source.open(asking())
    assert "s3cret" not in f"{missing.value} {missing.value.__cause__}"


# ---- abort


def aborted_after(backend: Backend, there: Callable[[Abort], object]) -> float:
    """Seconds from firing to AbortedError in the thread that waits."""
    abort, ended, raised = Abort(), threading.Event(), []

    def wait() -> None:
        try:
            read(backend.source, asking(abort=abort))
        except ModelCacheError as error:
            raised.append(error)
        finally:
            ended.set()

    threading.Thread(target=wait, daemon=True).start()
    end = time.monotonic() + 10
    while not there(abort):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)
    began = time.monotonic()
    abort.fire()
    assert ended.wait(60)
    assert [type(error) for error in raised] == [AbortedError]
    return time.monotonic() - began


@pytest.mark.parametrize("phase", ["connect", "answer", "dribble", "body"])
def test_an_abort_ends_a_request_in_every_phase(backend, phase) -> None:
    backend.hang(phase)
    there = (lambda abort: abort.attached) if phase == "connect" else (lambda _: backend.asked)
    assert aborted_after(backend, there) < SOON_S


def test_a_request_that_was_aborted_before_asks_nobody(backend) -> None:
    abort = Abort()
    abort.fire()
    with pytest.raises(AbortedError):
        backend.source.open(asking(abort=abort))
    assert backend.asked == 0


def test_an_abort_after_the_end_harms_nobody(backend) -> None:
    abort = Abort()
    assert read(backend.source, asking(0, 100, abort=abort)) == DATA[:100]
    abort.fire()
    assert read(backend.source, asking(100, 200)) == DATA[100:200]
