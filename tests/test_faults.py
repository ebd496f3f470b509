"""A fault at the n-th file operation, for every n: what is visible is right, and the next run ends well (I1, I3, I25).

An LD_PRELOAD library (faultshim.c) fails an operation, or kills the process right before or after it. The commands are
the real ones, in forks of one process (faultserver.py) so that a case takes a tenth of a second.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from crash import (
    MIB,
    check_store,
    compiled,
    files_below,
    leftovers,
    lines,
    locks_held,
    partial_bytes,
    read_record,
    sha256_of,
)

from modelcache.testing import Content, Origin

HERE = Path(__file__).parent
META, DATA, READ = range(3)
COUNT, FAIL_ONCE, FAIL_ON, KILL_BEFORE, KILL_AFTER, SHORT_ON = range(6)
CLASS_NAMES = ("meta", "data", "read")
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
SPOKEN = {0, 3, 4, 5, 6, 7, 130, 143}  # exit codes that a fault may lead to
KILLED = -9
MOST_TOLD = 100
SAMPLE = 24  # cases of each scenario in the short run
MOST_TEMPORARIES = 2  # of one killed run: it fetches two files at once
FILE = Content.generated(6 * MIB + 12_345, seed=11)
SMALL = Content.generated(700_001, seed=12)
OTHER = b"what was at the output before"


@dataclass(frozen=True)
class Fault:
    """What happens, and at which operation of a class."""

    kind_class: int = META
    n: int = 0
    mode: int = COUNT
    errno: int = 0

    def __str__(self) -> str:
        modes = ("count", "fail once", "fail on", "kill before", "kill after", "short, then fail on")
        return f"{modes[self.mode]} ({errno.errorcode.get(self.errno, '-')}) at {CLASS_NAMES[self.kind_class]} {self.n}"


CLEAN = Fault()


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what the shim saw of it."""

    code: int
    stdout: str
    stderr: str
    counts: list[int]
    fired: int
    at: int
    notes: list[list[str]]  # kind, path, and where from

    @property
    def hit(self) -> str:
        return " ".join(self.notes[self.at][:2]) if self.fired and 0 <= self.at < len(self.notes) else "-"


class Server:
    """One process that runs commands in forks of itself."""

    def __init__(self, library: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "faultserver.py"), str(library)],
            env=os.environ | {"LD_PRELOAD": str(library)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, place: Path, arguments: Sequence[str], fault: Fault) -> Ended:
        out, err = self._scratch / "stdout", self._scratch / "stderr"
        request = {
            "arguments": list(arguments), "environment": {"MODELCACHE_HOME": str(place / "home")}, "stdout": str(out),
            "stderr": str(err), "roots": [str(place)], "class": fault.kind_class, "n": fault.n, "mode": fault.mode,
            "errno": fault.errno,
        }  # fmt: skip
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return Ended(stdout=out.read_text(), stderr=err.read_text(), **answer)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


class Servers:
    """As many as there are processors; `run` takes whichever is free."""

    def __init__(self, library: Path, scratch: Path, number: int) -> None:
        self.number = number
        self._all = []
        self._free: SimpleQueue[Server] = SimpleQueue()
        for index in range(number):
            folder = scratch / f"server-{index}"
            folder.mkdir()
            self._all.append(Server(library, folder))
            self._free.put(self._all[-1])

    def run(self, place: Path, arguments: Sequence[str], fault: Fault) -> Ended:
        server = self._free.get()
        ended = server.run(place, arguments, fault)
        self._free.put(server)
        return ended

    def close(self) -> None:
        for server in self._all:
            server.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("faultshim.c", tmp_path_factory.mktemp("shim"), "-D_LARGEFILE64_SOURCE")


@pytest.fixture(scope="module")
def servers(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    pool = Servers(library, tmp_path_factory.mktemp("scratch"), 2 * (os.cpu_count() or 1))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE, "small.bin": SMALL}) as serving:
        yield serving


# -- what is done -----------------------------------------------------------------------------------------------------

IN_PLACE = ("partials", "state", "logs")
PIECE = 4 * MIB  # of what is measured along the way
ROTTEN, ROT = 5 * MIB, b"rot"


def sha256_with_rot() -> str:
    content = bytearray(FILE.read())
    content[ROTTEN : ROTTEN + len(ROT)] = ROT
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.read())


def must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def brief(error: BaseException) -> str:
    """An assertion's own words; of a traceback the end."""
    said = str(error.args[0] if error.args else error).removesuffix("\n")
    return said if len(said) < 500 else f"... {said[-400:]}"


class Bench:
    """Runs a scenario's command with faults, each time in a copy of the same state."""

    def __init__(self, scenario: "Scenario", servers: Servers, folder: Path) -> None:
        self.scenario = scenario
        self._servers = servers
        self._folder = folder
        self._numbers = count(1)
        self.origin = Origin({"template/m.bin": FILE, "template/small.bin": SMALL})
        self._template = folder / "template"
        self._template.mkdir(parents=True)
        scenario.prepare(self._template, self)

    def url(self, name: str) -> str:
        return self.origin.url(f"template/{name}")

    def __call__(self, *arguments: str, fault: Fault = CLEAN, code: int = 0) -> Ended:
        """Runs a command in the template."""
        ended = self.run(self._template, arguments, fault)
        assert ended.code == (code if fault is CLEAN else KILLED), ended.stderr
        return ended

    def run(self, place: Path, arguments: Sequence[str], fault: Fault = CLEAN) -> Ended:
        url = self.origin.url(place.name)
        words = [word.replace("PLACE", str(place)).replace("URL", url) for word in arguments]
        return self._servers.run(place, words, fault)

    def new_place(self) -> Path:
        """A copy of the template: by links, except what is written in place."""
        place = self._folder / f"case-{next(self._numbers)}"
        shutil.copytree(self._template, place, copy_function=os.link, ignore=shutil.ignore_patterns("locks", *IN_PLACE))
        for name in IN_PLACE:
            if (self._template / "home" / name).exists():
                shutil.copytree(self._template / "home" / name, place / "home" / name)
        self.origin.put(f"{place.name}/m.bin", FILE)
        return place

    def served(self, place: Path) -> int:
        return sum(seen.bytes_sent for seen in self.origin.requests if seen.path.startswith(f"/{place.name}/"))

    def measure(self) -> Ended:
        place = self.new_place()
        ended = self.run(place, self.scenario.arguments)
        assert ended.code == 0, ended.stderr
        self.scenario.check(place)
        self.scenario.check_done(place)
        assert not leftovers(place)
        return ended

    def case(self, fault: Fault) -> tuple[Ended, str]:
        """Runs the command with a fault, looks, runs it again without. Returns what was wrong; empty if nothing."""
        place = self.new_place()
        ended = self.run(place, self.scenario.arguments, fault)
        wrong = ""
        try:
            self._check_first(place, ended, fault)
            self._check_second(place, fault)
        except (AssertionError, OSError, ValueError) as error:
            hit = ended.hit.replace(str(place), "").replace(FILE.sha256, "FILE").replace(SMALL.sha256, "SMALL")
            wrong = f"{fault} [{hit}], exit {ended.code}: {brief(error)}"
        shutil.rmtree(place)
        return ended, wrong

    def _check_first(self, place: Path, ended: Ended, fault: Fault) -> None:
        must("Traceback" not in ended.stderr and "Exception" not in ended.stderr, ended.stderr)
        must(not locks_held(place / "home"), "a lock is held")
        self.scenario.check(place)
        if ended.code == 0:
            if not self._may_overlook(fault):
                self.scenario.check_done(place)
        elif fault.mode in (KILL_BEFORE, KILL_AFTER):
            must(ended.code == KILLED, ended.stderr)
        else:
            unreadable = ended.code == 2 and "manifest.json cannot be read" in ended.stderr  # what the user named
            must(ended.code in SPOKEN or unreadable, ended.stderr)
            must(len(lines(ended.stderr)) == 1, f"not one line: {ended.stderr}")

    def _may_overlook(self, fault: Fault) -> bool:
        """A model whose record cannot be read is none, this time."""
        return self.scenario.overlooks and fault.kind_class == READ

    def _check_second(self, place: Path, fault: Fault) -> None:
        most, before = self.scenario.most_fetched(place), self.served(place)
        again = self.run(place, self.scenario.arguments)
        must(again.code in self.scenario.codes_again, f"again: exit {again.code}: {again.stderr}")
        self.scenario.check(place)
        self.scenario.check_done(place)
        if not self._may_overlook(fault):
            self.scenario.check_again(place, again)
        fetched = self.served(place) - before
        must(fetched <= most, f"{fetched:,} bytes fetched again, {most:,} at most were missing")
        left = leftovers(place)
        if fault.mode != FAIL_ONCE:  # a temporary file of who was killed, or could not remove it, stays for the cleaner
            left = [name for name in left if not name.endswith(".tmp")] + left[MOST_TEMPORARIES:]
        must(not left, f"left after success: {left}")


class Scenario:
    """A command, what is there before it, what may be seen whatever happens, and what has to be at the end.

    `place` is a folder of its own for each case: `home` in it is the root of the store.
    """

    arguments: tuple[str, ...] = ()
    tolerated: tuple[str, ...] = ()
    codes_again = (0,)  # of the same command after a fault
    overlooks = False  # whether it has to do with models that it does not name

    def prepare(self, place: Path, run: Bench) -> None:
        """Makes the state before."""

    def check(self, place: Path) -> None:
        check_store(place / "home", self.tolerated)
        must(not list((place / "home/state").glob("*.damaged-*")), "a state that is whole was set aside")

    def check_done(self, place: Path) -> None:
        raise NotImplementedError

    def most_fetched(self, place: Path) -> int:
        """How many bytes the same command may fetch below URL now."""
        return 0

    def check_again(self, place: Path, again: Ended) -> None:
        """After the same command without a fault."""


class Fetch(Scenario):
    arguments = ("fetch", "URL/m.bin", "--sha256", FILE.sha256, "--quiet")

    def check_done(self, place: Path) -> None:
        (model,) = [path for path in (place / "home/models").glob("*/*/*") if path.name == "m.bin"]
        assert sha256_of(model) == FILE.sha256

    def most_fetched(self, place: Path) -> int:
        is_here = any((place / "home/blobs").rglob(FILE.sha256))
        return 0 if is_here else FILE.size - partial_bytes(place / "home/partials") + MIB


class FetchWithOutput(Fetch):
    arguments = (*Fetch.arguments, "--output", "PLACE/out/m.bin")

    def prepare(self, place: Path, run: Bench) -> None:
        (place / "out").mkdir()
        (place / "out/m.bin").write_bytes(OTHER)

    def check(self, place: Path) -> None:
        super().check(place)
        output = place / "out/m.bin"
        assert output.read_bytes() == OTHER or sha256_of(output) == FILE.sha256

    def check_done(self, place: Path) -> None:
        assert sha256_of(place / "out/m.bin") == FILE.sha256

    def check_again(self, place: Path, again: Ended) -> None:
        must(os.listdir(place / "out") == ["m.bin"], f"{os.listdir(place / 'out')} at the output")


class FetchToOutputAlone(FetchWithOutput):
    arguments = (*FetchWithOutput.arguments, "--no-cache")

    def check_done(self, place: Path) -> None:
        super().check_done(place)
        assert not files_below(place / "home")

    def most_fetched(self, place: Path) -> int:
        is_here = sha256_of(place / "out/m.bin") == FILE.sha256
        return 0 if is_here else FILE.size - partial_bytes(place / "out/.m.bin.modelcache") + MIB


class Resume(Fetch):
    """A partial of a killed run is there."""

    def prepare(self, place: Path, run: Bench) -> None:
        run(*self.arguments, fault=Fault(DATA, 24, KILL_BEFORE))
        assert MIB < partial_bytes(place / "home/partials") < FILE.size


def write_manifest(place: Path, model: str, files: Mapping[str, tuple[Content, str]]) -> None:
    entries = [
        {"path": path, "size": content.size, "sha256": content.sha256, "urls": [url]}
        for path, (content, url) in files.items()
    ]
    (place / "manifest.json").write_text(
        json.dumps({"format": 1, "id": model, "version": "1", "ref": model, "files": entries})
    )


class FetchManifest(Scenario):
    """Two files into a folder, and into the store."""

    arguments = ("fetch", "--manifest", "PLACE/manifest.json", "--output-dir", "PLACE/out", "--quiet")

    def prepare(self, place: Path, run: Bench) -> None:
        files = {"big.bin": (FILE, run.url("m.bin")), "sub/small.bin": (SMALL, run.url("small.bin"))}
        write_manifest(place, "mine", files)

    def check(self, place: Path) -> None:
        super().check(place)
        for path, content in (("big.bin", FILE), ("sub/small.bin", SMALL)):
            for folder in (place / "out", place / "home/models/mine/1"):
                assert not (folder / path).exists() or sha256_of(folder / path) == content.sha256

    def check_done(self, place: Path) -> None:
        for folder in (place / "out", place / "home/models/mine/1"):
            assert sha256_of(folder / "big.bin") == FILE.sha256
            assert sha256_of(folder / "sub/small.bin") == SMALL.sha256
            assert read_record(folder)


class Repair(Scenario):
    """A rotten blob that two models share: nothing but the right bytes may take its place, in both."""

    arguments = ("repair", "--quiet")
    overlooks = True
    tolerated = (sha256_with_rot(),)

    def prepare(self, place: Path, run: Bench) -> None:
        write_manifest(place, "twin", {"m.bin": (FILE, run.url("m.bin"))})
        run(*Fetch.arguments)
        run("fetch", "--manifest", "PLACE/manifest.json")
        run("verify")  # notes the digests of the pieces
        (blob,) = files_below(place / "home/blobs")
        blob.chmod(0o644)
        with blob.open("r+b") as stream:
            stream.seek(ROTTEN)
            stream.write(ROT)
        blob.chmod(0o444)
        run("verify", code=3)

    def check_done(self, place: Path) -> None:
        models = list((place / "home/models").rglob("m.bin"))
        assert len(models) == 2
        assert all(sha256_of(path) == FILE.sha256 for path in [*models, *files_below(place / "home/blobs")])

    def check_again(self, place: Path, again: Ended) -> None:
        """What was copied from the rotten file, or fetched, before a kill is not fetched once more."""
        fetched = [
            int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of [\d,]+ bytes fetched", again.stderr)
        ]
        must(sum(fetched) <= PIECE + MIB, again.stderr)


class Remove(Scenario):
    """One of two models that share a file."""

    arguments = ("rm", "one")
    codes_again = (0, 4)  # not found: it was removed
    overlooks = True

    def prepare(self, place: Path, run: Bench) -> None:
        write(place / "one/big.bin", FILE)
        write(place / "one/small.bin", SMALL)
        write(place / "two/small.bin", SMALL)
        run("add", "PLACE/one", "--model", "one")
        run("add", "PLACE/two", "--model", "two")

    def check(self, place: Path) -> None:
        super().check(place)
        assert sha256_of(place / "home/models/two/1/small.bin") == SMALL.sha256

    def check_done(self, place: Path) -> None:
        assert not files_below(place / "home/models/one")

    def check_again(self, place: Path, again: Ended) -> None:
        must(not any((place / "home/blobs").rglob(FILE.sha256)), "nobody has that blob any more")


class Add(Scenario):
    arguments = ("add", "PLACE/src", "--model", "mine")

    def prepare(self, place: Path, run: Bench) -> None:
        write(place / "src/big.bin", FILE)
        write(place / "src/sub/small.bin", SMALL)

    def check_done(self, place: Path) -> None:
        folder = place / "home/models/mine/1"
        assert sha256_of(folder / "big.bin") == FILE.sha256
        assert sha256_of(folder / "sub/small.bin") == SMALL.sha256
        assert sha256_of(place / "src/big.bin") == FILE.sha256


SCENARIOS = {
    "fetch": Fetch(), "resume": Resume(), "output": FetchWithOutput(), "no-cache": FetchToOutputAlone(),
    "manifest": FetchManifest(), "repair": Repair(), "rm": Remove(), "add": Add(),
}  # fmt: skip


# -- the sweeps -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SCENARIOS)
def bench(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(SCENARIOS[request.param], servers, tmp_path / request.param)
    yield made
    made.origin.close()


def sweep(bench: Bench, servers: Servers, faults: Sequence[Fault]) -> None:
    """Every case runs; what was wrong is told of all."""
    with ThreadPoolExecutor(servers.number) as pool:
        results = list(pool.map(bench.case, faults))
    wrong = [text for _, text in results if text]
    print(f"{len(faults)} cases, {sum(ended.fired > 0 for ended, _ in results)} struck")
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(faults)} cases:\n" + "\n".join(wrong[:MOST_TOLD]), pytrace=False)


def faults_of(counts: Sequence[int]) -> Iterator[Fault]:
    """At every metadata operation; at some writes and reads, of which there may be many."""
    for n in range(1, counts[META] + 1):
        yield Fault(META, n, FAIL_ONCE, ERRNOS[n % len(ERRNOS)])
        yield Fault(META, n, KILL_AFTER)
        if n % 2:
            yield Fault(META, n, FAIL_ON, ERRNOS[n // 2 % len(ERRNOS)])
        if n % 3 == 0:
            yield Fault(META, n, KILL_BEFORE)
    for n in spread(counts[DATA], 10):
        yield Fault(DATA, n, SHORT_ON, errno.ENOSPC)
        yield Fault(DATA, n, FAIL_ONCE, errno.EIO)
        yield Fault(DATA, n, KILL_BEFORE if n % 2 else KILL_AFTER)
    for n in spread(counts[READ], 16):
        yield Fault(READ, n, FAIL_ONCE if n % 2 else FAIL_ON, errno.EIO)


def spread(most: int, number: int) -> list[int]:
    """So many numbers from 1 to `most`, drawn from a seed; all, if there are fewer."""
    return sorted(random.Random(most).sample(range(1, most + 1), min(number, most)))


def test_a_sample_of_the_operations(bench: Bench, servers: Servers) -> None:
    faults = list(faults_of(bench.measure().counts))
    sweep(bench, servers, random.Random(len(faults)).sample(faults, SAMPLE))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_operation(bench: Bench, servers: Servers) -> None:
    sweep(bench, servers, list(faults_of(bench.measure().counts)))


UNREADABLE = """
import ctypes, glob, os, sys
from modelcache.history import Attempt
from modelcache.state.state import State
from modelcache.state.uses import Uses
library, root, read, fail_on, error = sys.argv[1:]
shim = ctypes.CDLL(library)
shim.shim_reset()
shim.shim_add_root(os.fsencode(root))
for n in range(1, 25):
    state, folder = State(root, Uses(), 1e9), os.path.join(root, "state")
    shim.shim_arm(int(read), ctypes.c_long(n), int(fail_on), int(error))
    state([Attempt("http", "host", "success")])
    shim.shim_arm(int(read), ctypes.c_long(1 << 40), int(fail_on), 0)
    shim.shim_reset()
    assert not glob.glob(folder + "/*.damaged-*"), n
"""


def test_a_state_that_the_disk_cannot_read_is_not_taken_for_damaged(library: Path, tmp_path: Path) -> None:
    """SQLite says of a page that cannot be read that the database is malformed."""
    words = [str(library), str(tmp_path), str(READ), str(FAIL_ON), str(errno.EIO)]
    preloaded = os.environ | {"LD_PRELOAD": str(library)}
    subprocess.run([sys.executable, "-c", UNREADABLE, *words], env=preloaded, timeout=60, check=True)


def test_what_gets_a_name_was_synced_before_and_its_folder_after(bench: Bench) -> None:
    """A power cut cannot be had here; the order of the operations that it takes can be seen (I1, I3)."""
    notes = bench.measure().notes
    synced = [check_synced(notes, place) for place, (kind, *_) in enumerate(notes) if kind == "rename"]
    assert any(synced) or bench.scenario is SCENARIOS["rm"]


def check_synced(notes: list[list[str]], place: int) -> bool:
    """Before a rename, the last that was done to the file's bytes is an fsync; after it, its folder is synced."""
    _, path, source = notes[place]
    if "/partials/" in path:
        return False  # claimed, not published
    done = [
        kind for kind, other, _ in notes[:place] if other == source and kind in ("pwrite", "write", "fsync", "link")
    ]
    must(done[-1:] in (["fsync"], ["link"]), f"{path} was not synced before it got its name")  # a link is to a blob
    folder = os.path.dirname(path)
    must(["fsync", folder, ""] in notes[place + 1 :], f"the folder of {path} was not synced")
    return True
