"""A network that goes down, a server that dies, is slow or falls silent, as whoever types the command sees it (A3-A5).

The link is between two network namespaces of the test's own; servers and commands are processes.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import network
import pytest
from crash import check_store, command, environment, eventually, leftovers, lines, run, sha256_of
from server import FILE, MIB, Server

from modelcache.store.journal import read_facts
from modelcache.testing import Content, Hold, Origin, Slow, Stall

PLACES = (2 * MIB, 4 * MIB, 6 * MIB)
ONE = ("--sha256", FILE.sha256, "--connections", "1")
ENDURING = {
    "MODELCACHE_PROGRESS": "text", "MODELCACHE_CONNECT_TIMEOUT": "0.5", "MODELCACHE_STALL_TIMEOUT": "0.5",
    "MODELCACHE_ATTEMPTS_PER_SOURCE": "100", "MODELCACHE_REQUESTS_FOR_NOTHING": "100", "MODELCACHE_BACKOFF": "0.2",
    "MODELCACHE_BACKOFF_FACTOR": "1",
}  # fmt: skip
IMPATIENT = ENDURING | {"MODELCACHE_ATTEMPTS_PER_SOURCE": "3"}
SMALL = Content.generated(MIB, seed=72)


def said(child: "subprocess.Popen[str]", words: str) -> str:
    """The next line on its stderr that has these words; it may end before it says so."""
    assert child.stderr is not None
    line = next((line for line in child.stderr if words in line), None)
    assert line is not None, f"it ended with {child.wait()} and never said {words!r}"
    return line


def noted(home: Path) -> int:
    """What the journals say is written."""
    found = [read_facts(str(path)) for path in home.glob("partials/*/journal")]
    return sum(facts.written.size for facts in found if facts)


def start_of(asked: str | None) -> int:
    return int((asked or "bytes=0-")[6:].partition("-")[0])


def check_ended(home: Path, child: "subprocess.Popen[str]") -> None:
    output, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert sha256_of(Path(output.strip())) == FILE.sha256
    check_store(home)
    assert not leftovers(home)


# ---- a link


@pytest.fixture
def link() -> Iterator[network.Link]:
    if not network.can_be_had():
        pytest.skip("no network namespaces to be had here")
    with network.Link() as link:
        yield link


@pytest.fixture
def origin(link: network.Link) -> Iterator[Origin]:
    with link.at_far():
        serving = Origin({"m.bin": FILE}, host=network.FAR)
    with serving:
        yield serving


def begin_near(link: network.Link, home: Path, settings: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        link.near(command(*words)), env=environment(home, **settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def check_came_once(link: network.Link) -> None:
    """By the count of the near host's network: each byte of the file, and the headers of packets."""
    assert FILE.size <= link.received() < 1.06 * FILE.size + 100_000


@pytest.mark.slow
@pytest.mark.parametrize("end", ["near", "far"])
def test_a_link_that_goes_down_three_times_costs_no_byte_twice(
    link: network.Link, origin: Origin, cache_root: Path, end: str
) -> None:
    holds = [Hold(place) for place in PLACES]
    origin.faults(*holds)
    child = begin_near(link, cache_root, ENDURING, "fetch", origin.url("m.bin"), *ONE)
    for hold in holds:
        assert hold.reached.wait(60)
        link.down(end)
        hold.release.set()
        told = said(child, "; again in ")
        assert ("network is unreachable" if end == "near" else "no connection within 0.5 s") in told
        link.up(end)
    check_ended(cache_root, child)
    check_came_once(link)
    starts = [start_of(seen.range) for seen in origin.requests]
    assert starts == sorted(set(starts)), "each goes on after the one before"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["near", "far"])
def test_a_link_that_stays_down_is_exit_5_and_the_next_run_goes_on_at_the_missing_byte(
    link: network.Link, origin: Origin, cache_root: Path, end: str
) -> None:
    hold = Hold(4 * MIB)
    origin.faults(hold)
    words = ("fetch", origin.url("m.bin"), *ONE, "--json")
    child = begin_near(link, cache_root, IMPATIENT, *words, "--quiet")
    assert hold.reached.wait(60)
    link.down(end)
    hold.release.set()
    output, errors = child.communicate(timeout=60)
    story = json.loads(output)
    assert (child.returncode, story["kind"], len(lines(errors))) == (5, "network", 1), errors
    assert f"{story['kept_bytes']:,} bytes kept" in errors
    link.up(end)
    asked = len(origin.requests)
    child = begin_near(link, cache_root, IMPATIENT, *words[:-1])
    check_ended(cache_root, child)
    check_came_once(link)
    assert start_of(origin.requests[asked].range) == story["kept_bytes"] > MIB


@pytest.mark.slow
def test_a_link_that_is_down_at_the_start_is_exit_5_and_the_next_run_ends_well(
    link: network.Link, origin: Origin, cache_root: Path
) -> None:
    link.down("near")
    child = begin_near(link, cache_root, IMPATIENT, "fetch", origin.url("m.bin"), *ONE, "--quiet")
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, len(lines(errors)), "network is unreachable" in errors) == (5, 1, True), errors
    link.up("near")
    check_ended(cache_root, begin_near(link, cache_root, IMPATIENT, "fetch", origin.url("m.bin"), *ONE))


# ---- a server that dies


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_three_times_is_gone_on_with(cache_root: Path) -> None:
    with Server(hold=PLACES[0]) as first:
        child = subprocess.Popen(
            command("fetch", first.url, *ONE), env=environment(cache_root, **ENDURING),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert eventually(lambda: noted(cache_root) >= PLACES[0] - MIB)
        kept = noted(cache_root)
    for hold in (*PLACES[1:], -1):
        assert "; again in " in said(child, "connection refused")  # after what ended the reply
        with Server(first.port, hold) as server:
            if hold < 0:
                check_ended(cache_root, child)
            else:
                assert eventually(lambda hold=hold: noted(cache_root) >= hold - MIB)  # type: ignore[misc]
            (asked,) = server.ranges()
            assert start_of(asked) >= kept
            kept = noted(cache_root)


# ---- one that is slow, or silent


@pytest.mark.slow
def test_a_server_that_is_slow_for_longer_than_a_stall_is_waited_for(cache_root: Path) -> None:
    with Origin({"m.bin": SMALL}, faults=[Slow(200 << 10)]) as origin:
        words = ("fetch", origin.url("m.bin"), "--connections", "1", "--quiet")
        done = run(cache_root, *words, MODELCACHE_STALL_TIMEOUT="2")
        assert (done.returncode, done.stderr.count("unverified")) == (0, 1), done.stderr
        assert [(seen.range, seen.bytes_sent) for seen in origin.requests] == [(None, SMALL.size)]


def test_a_server_that_is_silent_after_its_headers_is_exit_5_and_the_next_run_goes_on(cache_root: Path) -> None:
    words = ("fetch", "--sha256", SMALL.sha256, "--connections", "1", "--quiet")
    silent = [Stall(300_000, times=1), Stall(after=1)]
    with Origin({"m.bin": SMALL}, faults=silent) as origin:
        failed = run(cache_root, *words, origin.url("m.bin"), MODELCACHE_STALL_TIMEOUT="0.5")
        assert (failed.returncode, len(lines(failed.stderr))) == (5, 1), failed.stderr
        assert "no byte for 0.5 s" in failed.stderr
        assert "300,000 bytes kept" in failed.stderr
        assert [seen.range for seen in origin.requests] == [None, *["bytes=300000-"] * 3]
        origin.heal()
        assert run(cache_root, *words, origin.url("m.bin")).returncode == 0
        assert origin.requests[-1].range == "bytes=300000-"
    check_store(cache_root)
    assert not leftovers(cache_root)
