"""Which source of several is asked first, and a file that comes from a hub and a mirror at once (product B9)."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from caches import PIECE, Events, entry_of

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import PausedError
from modelcache.history import Attempt
from modelcache.model import Manifest, ModelFile
from modelcache.probing import probed
from modelcache.remotes.http import HttpSource
from modelcache.testing import Content, Corrupt, Hold, Hub, Origin, Status
from modelcache.transfer.control import Control

LARGE = Content.generated(64 << 20, seed=1)
COMMIT = "1" * 40


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Origin({"m.bin": LARGE})) for _ in range(2)]


def tried(events: Events) -> list[str]:
    return [event["gateway"] for event in events.of("source_tried")]


def probes(origin: Origin) -> list[str]:
    return [seen.range for seen in origin.requests if seen.range == "bytes=0-0"]


def fetch(cache: Cache, origins: list[Origin], content: Content = LARGE) -> Events:
    events = Events()
    first, *others = [origin.url("m.bin") for origin in origins]
    cache.fetch(first, mirrors=others, sha256=content.sha256, size=content.size, progress=events)
    return events


def test_a_source_that_is_silent_is_not_asked_first_for_a_large_file(origins: list[Origin], cache: Cache) -> None:
    hold = Hold(0)
    origins[0].faults(hold, path="m.bin")
    events = fetch(cache, origins)
    assert tried(events)[0] == origins[1].url("m.bin")
    hold.release.set()
    rows = {row["gateway"]: row["success_rate"] for row in cache.health()}
    assert rows == {f"127.0.0.1:{origins[1].port}": 1}  # silence says nothing


def test_a_source_that_refuses_a_probe_is_remembered_for_it(origins: list[Origin], cache: Cache) -> None:
    origins[0].faults(Status(500), path="m.bin")
    events = fetch(cache, origins)
    assert tried(events)[0] == origins[1].url("m.bin")
    rows = {row["gateway"]: row["success_rate"] for row in cache.health()}
    assert rows == {f"127.0.0.1:{origins[0].port}": 0, f"127.0.0.1:{origins[1].port}": 1}


def test_what_is_known_is_not_probed_again(origins: list[Origin], cache: Cache) -> None:
    fetch(cache, origins)
    assert [len(probes(origin)) for origin in origins] == [1, 1]
    assert tried(fetch(cache, origins)) == []  # a hit
    cache.remove(origins[0].url("m.bin"))
    cache.close()
    again = Cache(cache.root)
    fetch(again, origins)
    again.close()
    assert [len(probes(origin)) for origin in origins] == [1, 1]


def test_neither_one_source_nor_a_small_file_is_probed(origins: list[Origin], cache: Cache) -> None:
    fetch(cache, origins[:1])
    small = Content.generated(100_000, seed=2)
    for origin in origins:
        origin.put("m.bin", small)
    cache.remove(origins[0].url("m.bin"))
    fetch(cache, origins, small)
    assert [len(probes(origin)) for origin in origins] == [0, 0]


def test_all_are_probed_at_once_and_not_longer_than_a_second(origins: list[Origin]) -> None:
    """By the number of steps that were waited: a clock would measure what else this machine does."""
    hold, waits, told = Hold(0), list[float](), list[Attempt]()
    for origin in origins:
        origin.faults(hold, path="m.bin")
    sources = [HttpSource(origin.url("m.bin")) for origin in origins]

    def wait(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    found = probed(sources, ModelFile("m.bin", LARGE.size), wait, told.append)
    hold.release.set()
    assert sum(waits) <= 1.1
    assert not told
    assert {health.failures for health in found.values()} == {1}
    for source in sources:
        source.close()


def test_a_pause_ends_the_probes(origins: list[Origin]) -> None:
    hold, control = Hold(0), Control()
    for origin in origins:
        origin.faults(hold, path="m.bin")
    sources = [HttpSource(origin.url("m.bin")) for origin in origins]
    control.stop(PausedError("paused"))
    with pytest.raises(PausedError):
        probed(sources, ModelFile("m.bin", LARGE.size), control.wait, lambda _: None)
    hold.release.set()
    for source in sources:
        source.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(cdn=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_a_file_comes_from_a_hub_and_a_mirror_at_once_and_a_liar_is_left(hub: Hub, cache: Cache) -> None:
    content = Content.generated(48 << 20, seed=3)
    hub.publish("org/name", {"m.bin": content}, commit=COMMIT)
    assert hub.cdn is not None
    lies = Corrupt(range(5, content.size, PIECE))
    with Origin({"m.bin": content}) as mirror, Origin({"m.bin": content}, faults=[lies]) as liar:
        entry = entry_of(f"hf:org/name@{COMMIT}/m.bin", "m.bin", content, PIECE)
        entry["urls"] += [mirror.url("m.bin"), liar.url("m.bin")]
        fields = {"format": 1, "id": "mixed", "version": "1", "ref": "", "files": [entry]}
        events = Events()
        cache.limit_rate = 40 << 20  # so that each has its turn
        model = cache.fetch(Manifest.parse(json.dumps(fields).encode()), progress=events)
        assert isinstance(model, mc.Model)
        assert Path(model["m.bin"].path).read_bytes() == content.read()
        counted = {"hub": hub.cdn.requests, "mirror": mirror.requests}
        sent = {name: sum(seen.bytes_sent for seen in requests) for name, requests in counted.items()}
        assert min(sent.values()) > 0, sent
        assert {event["gateway"] for event in events.of("piece_failed")} == {liar.url("m.bin")}
        liars = [row for row in cache.health() if row["gateway"] == f"127.0.0.1:{liar.port}"]
        assert [row["success_rate"] for row in liars] == [0]
    assert model["m.bin"].bytes_fetched < content.size + 2 * PIECE
