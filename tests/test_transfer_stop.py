"""A stop ends every phase at once, keeps what is here, and nothing is written after it (I16, A13)."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transfers import KEY, leave, run, wanted

from modelcache.errors import CancelledError, PausedError, StoreError, TransientError
from modelcache.remotes.source import Chunk, Request, Traits
from modelcache.store.partial import Partial
from modelcache.testing import (
    Content,
    DribbleHeaders,
    Hold,
    Origin,
    SilentAccept,
    Slow,
    Stall,
    Status,
    Wire,
    certificate,
)
from modelcache.transfer.control import Control

MIB = 1 << 20
MODEL = Content.generated(3 * MIB, 1)
DATA = MODEL.read()
SOON_S = 2.0  # the promise is 0.5; a busy machine may take longer


class Stopped:
    """A run in a thread of its own, and a stop once it has come to where it is to be stopped."""

    def __init__(self, folder: Path, sources, *, connections: int = 1, **settings: float) -> None:
        self.control = Control()
        self.took_s = 0.0
        self.told: list[tuple[str, str, str]] = []
        self._run = threading.Thread(target=self._go, args=(folder, sources, {"connections": connections, **settings}))
        self._run.start()

    def _go(self, folder: Path, sources, settings) -> None:
        self.outcome = run(folder, wanted(MODEL), sources, control=self.control, told=self.told, **settings)

    def when(self, there: Callable[[], object], reason: PausedError | None = None) -> "Stopped":
        wait_for(there)
        began = time.monotonic()
        self.control.stop(reason or PausedError("paused"))
        self._run.join(30)
        self.took_s = time.monotonic() - began
        print(f"stopped after {1000 * self.took_s:.0f} ms")
        assert not self._run.is_alive()
        assert self.took_s < SOON_S
        return self


def wait_for(there: Callable[[], object], limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not there():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Each test ends with as many threads of ours as it began with."""
    before = {thread.ident for thread in threading.enumerate()}

    def ours() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.ident not in before and one.name.startswith("modelcache")]

    yield
    wait_for(lambda: not ours())


class Stubborn:
    """A source that nothing can wake, as a name that does not resolve, until its test lets it go."""

    name, kind = "stubborn", "http"

    def __init__(self, *, waits_in_open: bool = True) -> None:
        self.reached = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self._waits_in_open = waits_in_open
        self.start, self.total, self.validator, self.host, self.status = 0, MODEL.size, '"1"', "", 200
        self.first_byte_s, self.framed = 0.0, True

    def traits(self, file) -> Traits:
        return Traits()

    def open(self, request: Request) -> "Stubborn":
        if self._waits_in_open:
            self._wait()
        return self

    def __enter__(self) -> "Stubborn":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def __iter__(self) -> Iterator[Chunk]:
        yield Chunk(0, DATA[:MIB])
        if not self._waits_in_open:
            self._wait()
        yield Chunk(MIB, DATA[MIB:])

    def _wait(self) -> None:
        self.reached.set()
        self.release.wait(30)

    def close(self) -> None:
        pass


@pytest.fixture
def stubborn() -> Iterator[Callable[..., Stubborn]]:
    with contextlib.ExitStack() as stack:

        def make(**options: bool) -> Stubborn:
            source = Stubborn(**options)
            stack.callback(source.release.set)
            return source

        yield make


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m": MODEL}) as origin:
        yield origin


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """A port whose queue of connections is full: who connects waits."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/m"


@pytest.fixture
def silent_port() -> Iterator[tuple[int, Callable[[], int]]]:
    """Accepts by its backlog and says nothing: a TLS handshake never ends."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def accept() -> None:
            with contextlib.suppress(OSError):
                accepted.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1], lambda: len(accepted)
    for one in accepted:
        one.close()


def left_in(folder: Path) -> int:
    partial = Partial.open(str(folder), KEY, wanted(MODEL))
    try:
        return partial.written_bytes
    finally:
        partial.close()


# ---- each phase


def test_while_a_name_resolves(tmp_path, stubborn) -> None:
    source = stubborn()
    stopped = Stopped(tmp_path, [source]).when(source.reached.is_set)
    assert isinstance(stopped.outcome.error, PausedError)


def test_while_connecting(tmp_path, full_backlog) -> None:
    stopped = Stopped(tmp_path, [full_backlog])
    stopped.when(lambda: "connect" in names_of_waits())
    assert isinstance(stopped.outcome.error, PausedError)


def names_of_waits() -> str:
    """What our worker threads are doing, by the functions on their stacks."""
    frames = sys._current_frames()
    workers = [thread for thread in threading.enumerate() if thread.name == "modelcache-worker"]
    names = []
    for thread in workers:
        frame = frames.get(thread.ident or 0)
        while frame:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
    return " ".join(names)


def test_in_the_tls_handshake(tmp_path, silent_port) -> None:
    port, accepted = silent_port
    stopped = Stopped(tmp_path, [f"https://127.0.0.1:{port}/m"]).when(accepted)
    assert isinstance(stopped.outcome.error, PausedError)


@pytest.mark.parametrize("fault", [SilentAccept(), DribbleHeaders(0.02)])
def test_while_headers_come(tmp_path, origin, fault) -> None:
    origin.faults(fault)
    stopped = Stopped(tmp_path, [origin.url("m")]).when(lambda: origin.requests)
    assert (isinstance(stopped.outcome.error, PausedError), stopped.outcome.left) == (True, 0)


@pytest.mark.parametrize("fault", [Stall(MIB), Hold(MIB), Slow(2 * MIB)])
def test_in_the_body_what_came_is_kept_and_the_next_run_goes_on_there(tmp_path, origin, fault) -> None:
    origin.faults(fault)
    stopped = Stopped(tmp_path, [origin.url("m")])
    stopped.when(lambda: origin.requests and origin.requests[0].bytes_sent >= MIB)
    here = stopped.outcome.left
    assert isinstance(stopped.outcome.error, PausedError)
    assert left_in(tmp_path) == here > 0
    origin.heal()
    done = run(tmp_path, wanted(MODEL), [origin.url("m")])
    assert (done.content, done.received) == (DATA, MODEL.size - here)


def test_in_a_body_over_tls(tmp_path, tmp_path_factory, monkeypatch) -> None:
    tls = certificate(tmp_path_factory.mktemp("tls"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.ca))
    with Origin({"m": MODEL}, faults=[Stall(MIB)], tls=tls) as origin:
        stopped = Stopped(tmp_path, [origin.url("m")])
        stopped.when(lambda: origin.requests and origin.requests[0].bytes_sent >= MIB)
    assert isinstance(stopped.outcome.error, PausedError)


def test_in_a_body_that_nothing_can_wake(tmp_path, stubborn) -> None:
    """Its thread is abandoned: what it does later is not written."""
    source = stubborn(waits_in_open=False)
    stopped = Stopped(tmp_path, [source]).when(source.reached.is_set)
    assert stopped.outcome.left == MIB
    source.release.set()
    assert source.ended.wait(60)
    assert left_in(tmp_path) == MIB


def test_while_all_sources_are_to_be_left_alone(tmp_path, origin) -> None:
    origin.faults(Status(503, {"Retry-After": "60"}))
    stopped = Stopped(tmp_path, [origin.url("m")])
    stopped.when(lambda: any(kind == "source_failed" for kind, *_ in stopped.told))
    assert isinstance(stopped.outcome.error, PausedError)


def test_while_verifying(tmp_path) -> None:
    large = Content.generated(256 * MIB, 2)
    file = wanted(Content.of(b""), size=False)
    leave(tmp_path, file, "before", *((at, large.read(at, at + 16 * MIB)) for at in range(0, large.size, 16 * MIB)))
    control = Control()

    def stop_at(kind: str, *_: str) -> None:
        if kind == "verifying":
            control.stop(PausedError("paused"))

    with Wire(b"HTTP/1.1 416 No\r\nContent-Range: bytes */%d\r\nContent-Length: 0\r\n\r\n" % large.size) as wire:
        began = time.monotonic()
        outcome = run(tmp_path, file, [wire.url("m")], control=control, told=Told(stop_at))
    print(f"stopped after {1000 * (time.monotonic() - began):.0f} ms")
    assert isinstance(outcome.error, PausedError)
    assert outcome.left == large.size


class Told(list):
    """Facts, and what happens when one is told."""

    def __init__(self, heard: Callable[..., None]) -> None:
        super().__init__()
        self._heard = heard

    def append(self, fact) -> None:
        super().append(fact)
        self._heard(*fact)


def test_before_it_begins(tmp_path, origin) -> None:
    control = Control()
    control.stop(PausedError("paused"))
    outcome = run(tmp_path, wanted(MODEL), [origin.url("m")], control=control)
    assert (isinstance(outcome.error, PausedError), origin.requests) == (True, [])


def test_the_first_reason_counts(tmp_path, origin) -> None:
    origin.faults(Stall(MIB))
    stopped = Stopped(tmp_path, [origin.url("m")])
    stopped.when(lambda: origin.requests, CancelledError("cancelled"))
    stopped.control.stop(PausedError("paused"))
    assert isinstance(stopped.outcome.error, CancelledError)


def test_several_connections_end_together(tmp_path) -> None:
    with Origin({"m": Content.generated(80 * MIB, 3)}, faults=[Stall(MIB)]) as origin:
        control, outcome = Control(), []
        file = wanted(Content.generated(80 * MIB, 3), piece=MIB)
        thread = threading.Thread(
            target=lambda: outcome.append(run(tmp_path, file, [origin.url("m")], control=control, connections=4))
        )
        thread.start()
        wait_for(lambda: sum(seen.bytes_sent >= MIB for seen in origin.requests) == 4)
        began = time.monotonic()
        control.stop(PausedError("paused"))
        thread.join(60)
        print(f"stopped after {1000 * (time.monotonic() - began):.0f} ms")
    assert outcome[0].left >= 3 * MIB


# ---- not only a stop


def test_a_name_that_does_not_resolve_in_time_is_followed_by_the_next_source(tmp_path, origin, stubborn) -> None:
    source = stubborn()
    done = run(tmp_path, wanted(MODEL), [source, origin.url("m")], connect_timeout=0.2)
    assert (done.content, "did not resolve" in done.facts("source_failed")[0][0]) == (DATA, True)
    source.release.set()
    assert source.ended.wait(60)


def test_a_disk_that_refuses_ends_the_other_connections(tmp_path, origin) -> None:
    class Breaks(Stubborn):
        """Delivers a little, and then the disk refuses."""

        def open(self, request: Request) -> Stubborn:
            self.start, self.status = request.start, 206
            return self

        def __iter__(self) -> Iterator[Chunk]:
            yield Chunk(self.start, DATA[:10])
            raise StoreError("the disk is full")

    origin.faults(Stall(100))
    began = time.monotonic()
    outcome = run(tmp_path, wanted(MODEL, piece=MIB), [origin.url("m"), Breaks(waits_in_open=False)])
    assert time.monotonic() - began < SOON_S
    assert isinstance(outcome.error, StoreError)


def test_an_error_that_nobody_expected_is_raised_where_it_is_seen(tmp_path) -> None:
    class Broken(Stubborn):
        def open(self, request: Request) -> Stubborn:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, wanted(MODEL), [Broken()])


def test_a_source_that_ends_itself_is_not_asked_for_ever(tmp_path) -> None:
    class Moody(Stubborn):
        def open(self, request: Request) -> Stubborn:
            request.abort.fire(TransientError("enough"))
            request.abort.check()
            return self

    assert run(tmp_path, wanted(MODEL), [Moody()]).tries == 3


SCRIPT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins without
sys.path[:0] = [{tests!r}]
from transfers import run, wanted
from modelcache.testing import Content
try:
    run(Path({folder!r}), wanted(Content.generated(3 << 20, 1)), [{url!r}])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_a_run_and_keeps_what_came(tmp_path, origin) -> None:
    origin.faults(Stall(MIB))
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), url=origin.url("m"))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        wait_for(lambda: origin.requests and origin.requests[0].bytes_sent >= MIB, 30)
        wait_for(lambda: data_in(tmp_path) >= MIB)
        began = time.monotonic()
        os.kill(child.pid, signal.SIGINT)
        said = child.communicate(timeout=10)[0]
    finally:
        child.kill()
    print(f"stopped after {1000 * (time.monotonic() - began):.0f} ms")
    assert (said.strip(), child.returncode) == (b"interrupted", 0)
    assert left_in(tmp_path) == MIB


def data_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/data"))
