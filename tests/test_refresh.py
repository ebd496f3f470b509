"""What a hub said long ago will do for what is here, and is asked about beside; a new version costs what changed."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from caches import Events, run

import modelcache as mc
from modelcache import refresh
from modelcache.caching import Cache
from modelcache.errors import NotFoundError
from modelcache.order import Order
from modelcache.testing import Content, Hold, Hub, Status

COMMIT, NEXT = "1" * 40, "2" * 40
FILES = {
    "config.json": Content.of(b'{"a": 1}'), "a.bin": Content.generated(300_000, seed=1),
    "b.bin": Content.generated(200_000, seed=2),
}  # fmt: skip
CHANGED = Content.generated(120_000, seed=3)
REF = "hf:org/name"


def changes(hub: Hub) -> None:
    hub.publish("org/name", FILES | {"b.bin": CHANGED}, commit=NEXT)


def grow_old(cache: Cache, model: str = "hf--org--name") -> None:
    """All that was said of the model was said two hours ago."""
    path = Path(cache.root, "catalog", model, "aliases.json")
    said = json.loads(path.read_text())
    for alias in said["aliases"].values():
        alias["at"] -= 7_200_000
    path.write_text(json.dumps(said))


def meant(cache: Cache) -> str:
    aliases = json.loads(Path(cache.root, "catalog", "hf--org--name", "aliases.json").read_text())["aliases"]
    return str(aliases["main"]["version"])


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def asks() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "modelcache-refresh"]


def asked(hub: Hub) -> list[str]:
    return [seen.path.partition("?")[0] for seen in hub.requests]


def test_what_is_here_is_served_at_once_and_the_next_fetch_brings_what_has_changed(hub: Hub, cache: Cache) -> None:
    first = cache.fetch(REF)
    changes(hub)
    grow_old(cache)
    hold, events = Hold(0), Events()
    hub.faults(hold, path="api/models/org/name/revision/main")
    unsubscribe = cache.on_event(events)
    again = cache.fetch(REF)  # the hub is silent: nobody waits for it
    assert isinstance(again, mc.Model)
    assert again.path == str(first) and {file.status for file in again.files} == {"hit"}
    hold.release.set()
    assert events.wait_for("newer")["version"] == NEXT
    assert meant(cache) == NEXT
    before = len(hub.requests)
    newer = cache.fetch(REF)
    assert isinstance(newer, mc.Model) and newer.version == NEXT
    assert [(file.name, file.bytes_fetched) for file in newer.files if file.bytes_fetched] == [("b.bin", CHANGED.size)]
    assert asked(hub)[before:] == [f"/org/name/resolve/{NEXT}/b.bin"]
    assert sum(seen.bytes_sent for seen in hub.requests[before:]) == CHANGED.size
    (updated,) = events.of("updated")
    assert (updated["version"], updated["path"]) == (NEXT, newer.path)
    assert cache.path(REF) == newer.path
    unsubscribe()


def test_many_fetches_ask_once(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    grow_old(cache)
    before, hold = len(hub.requests), Hold(0)
    hub.faults(hold, path="api/models/org/name/revision/main")
    for _ in range(20):
        cache.fetch(REF)
    hold.release.set()
    eventually(lambda: not asks())
    assert len(hub.requests) - before == 2  # the revision and its list
    cache.fetch(REF)
    assert len(hub.requests) - before == 2


def test_what_still_means_the_same_is_young_again_and_nothing_is_told(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    grow_old(cache)
    events = Events()
    unsubscribe = cache.on_event(events)
    cache.fetch(REF)
    eventually(lambda: not asks())
    cache.close()
    assert not events.of("newer", "resolving", "manifest_pulled")
    unsubscribe()
    hub.stop()
    before = len(hub.requests)
    Cache(cache.root).fetch(REF)
    assert len(hub.requests) == before


def test_a_hub_that_is_gone_takes_nothing_away(hub: Hub, cache: Cache) -> None:
    first = cache.fetch(REF)
    grow_old(cache)
    hub.stop()
    assert str(cache.fetch(REF)) == str(first)
    eventually(lambda: not asks())
    assert meant(cache) == COMMIT
    assert str(cache.fetch(REF)) == str(first)


@pytest.mark.parametrize("what", ["model", "file", "output"])
def test_a_newer_commit_that_nobody_can_be_reached_for_leaves_the_older_one_and_says_so(
    hub: Hub, cache: Cache, tmp_path: Path, what: str
) -> None:
    cache.fetch(REF)
    changes(hub)
    assert [row["outcome"] for row in cache.refresh()] == ["newer"]
    hub.stop()
    events = Events()
    unsubscribe = cache.on_event(events)
    how = {"output": tmp_path / "out"} if what == "output" else {}
    got = cache.fetch(f"{REF}/b.bin" if what == "file" else REF, **how)  # type: ignore[call-overload]
    assert got.version == COMMIT
    place = Path(got.path, "b.bin") if what != "file" else Path(got.path)
    assert place.read_bytes() == FILES["b.bin"].read()
    (stale,) = events.of("stale")
    assert stale["message"].startswith(f"the newer {NEXT[:12]} is known, and could not be fetched (")
    assert stale["message"].endswith(f"); this is {COMMIT[:12]}, from before")
    unsubscribe()
    told = run("fetch", REF, "--json")
    assert told.returncode == 0 and COMMIT in told.stdout
    assert NEXT[:12] in told.stderr and meant(cache) == NEXT
    with pytest.raises(mc.AllSourcesFailedError):
        cache.fetch(f"{REF}@{NEXT}")


def test_a_newer_commit_whose_files_are_wrong_is_an_error(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    changes(hub)
    cache.refresh()
    hub.faults(Status(403), path=f"org/name/resolve/{NEXT}/b.bin")
    with pytest.raises(mc.AllSourcesFailedError):
        cache.fetch(REF)


def test_a_bug_in_one_question_ends_no_other(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("org/other", FILES, commit=COMMIT)
    cache.fetch(REF)
    cache.fetch("hf:org/other")
    grow_old(cache)
    grow_old(cache, "hf--org--other")
    asked, real = [], refresh.asked

    def maybe(order: Order, *rest: object) -> object:
        asked.append(order.id)
        if len(asked) == 1:
            raise ValueError("a bug")
        return real(order, *rest)

    monkeypatch.setattr(refresh, "asked", maybe)
    cache.fetch(REF)
    eventually(lambda: asked and not asks())
    cache.fetch("hf:org/other")
    eventually(lambda: len(asked) == 2 and not asks())
    assert asked == ["hf--org--name", "hf--org--other"]


def test_what_is_not_here_is_asked_about_first(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF, files="a.bin")
    changes(hub)
    grow_old(cache)
    model = cache.fetch(REF)
    assert isinstance(model, mc.Model) and model.version == NEXT
    hub.publish("org/name", FILES | {"new.bin": CHANGED}, commit="3" * 40)
    grow_old(cache)
    assert [file.name for file in cache.fetch(REF, files="new.bin").files] == ["new.bin"]  # type: ignore[union-attr]
    grow_old(cache)
    with pytest.raises(NotFoundError, match=r"has no file gone\.bin"):
        cache.fetch(REF, files="gone.bin")


def test_closing_gives_up_a_question_that_nobody_answers(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    grow_old(cache)
    hold = Hold(0)
    hub.faults(hold, path="api/models/org/name/revision/main")
    cache.fetch(REF)
    cache.close()
    assert not asks()
    assert meant(cache) == COMMIT
    hold.release.set()


def test_the_command_does_not_wait_for_a_silent_hub(hub: Hub, cache: Cache) -> None:
    first = cache.fetch(REF)
    grow_old(cache)
    hold = Hold(0)
    hub.faults(hold, path="api/models/org/name/revision/main")
    done = run("fetch", REF, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{first}\n", "")
    assert not hold.release.is_set()
    hold.release.set()


def test_the_command_learns_of_a_new_version_before_it_ends(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    changes(hub)
    grow_old(cache)
    assert COMMIT in run("fetch", REF, "--quiet").stdout
    assert meant(cache) == NEXT
    assert NEXT in run("fetch", REF, "--quiet").stdout


def test_a_name_of_a_catalog_is_served_so_too(hub: Hub, cache: Cache) -> None:
    folder = Path(cache.root, "catalog")
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(f'[mine]\nref = "{REF}"\nfiles = ["*.bin"]\noptional = ["gone"]')
    first = cache.fetch("mine")
    changes(hub)
    grow_old(cache, "mine")
    events = Events()
    unsubscribe = cache.on_event(events)
    again = cache.fetch("mine")
    assert isinstance(again, mc.Model)
    assert (str(again), again.lacking) == (str(first), ("gone",))
    events.wait_for("newer")
    unsubscribe()
    assert cache.fetch("mine").version == NEXT


def test_where_nothing_is_kept_the_hub_is_asked_first(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    cache.fetch(REF)
    cache.fetch(REF, output=tmp_path / "out")
    changes(hub)
    grow_old(cache)
    model = cache.fetch(REF, output=tmp_path / "out", cache=False)
    assert isinstance(model, mc.Model) and model.version == NEXT
    assert Path(model["b.bin"].path).read_bytes() == CHANGED.read()


# -- answers that are of no use ---------------------------------------------------------------------------------------

HERE = {"config.json": FILES["config.json"], "a.bin": FILES["a.bin"]}


def listing(cache: Cache) -> str:
    """A catalog whose entry wants all that the hub has at first."""
    folder = Path(cache.root, "catalog")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text(f'[mine]\nref = "{REF}"\nfiles = ["a.bin", "b.bin"]')
    return "mine"


def test_a_list_that_lacks_a_wanted_file_takes_nothing_away(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache.fetch(listing(cache))
    hub.publish("org/name", HERE, commit=NEXT)
    grow_old(cache, "mine")
    events = Events()
    unsubscribe = cache.on_event(events)
    assert str(cache.fetch("mine")) == str(first)
    stale = events.wait_for("stale")
    assert stale["message"] == (
        "the answer of its hub cannot be used (hf:org/name has no file b.bin; check the name); "
        "this is what it meant 2 h ago"
    )
    assert (stale["modelId"], stale["version"]) == ("mine", COMMIT)
    eventually(lambda: not asks())
    unsubscribe()
    assert str(Cache(cache.root).fetch("mine")) == str(first)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert str(Cache(cache.root).fetch("mine")) == str(first)


def test_neither_does_it_where_the_hub_is_asked_first(hub: Hub, cache: Cache) -> None:
    first = cache.fetch(listing(cache))
    hub.publish("org/name", HERE, commit=NEXT)
    for _ in range(2):
        done = run("fetch", "mine", MODELCACHE_MANIFEST_TTL="0")
        assert (done.returncode, done.stdout) == (0, f"{first}\n")
        assert "mine: the answer of its hub cannot be used (hf:org/name has no file b.bin; " in done.stderr
    hub.publish("org/name", FILES | {"b.bin": CHANGED}, commit="3" * 40)
    assert "3" * 40 in run("fetch", "mine", MODELCACHE_MANIFEST_TTL="0").stdout


@pytest.mark.parametrize("ttl", ["0", "3600"])
def test_the_command_tells_an_answer_that_is_of_no_use_from_none(hub: Hub, cache: Cache, ttl: str) -> None:
    first = cache.fetch(REF)
    grow_old(cache)
    with Hub() as other:
        other.publish("org/name", {"../x": Content.of(b"x")})
        bad = run("fetch", REF, HF_ENDPOINT=other.endpoint, MODELCACHE_MANIFEST_TTL=ttl)
    hub.stop()
    none = run("fetch", REF, MODELCACHE_MANIFEST_TTL=ttl)
    assert bad.stdout == none.stdout == f"{first}\n"
    assert "hf--org--name: the answer of its hub cannot be used (127.0.0.1:" in bad.stderr
    assert "'../x' cannot be a path here" in bad.stderr
    assert "hf--org--name: its hub could not be asked (127.0.0.1:" in none.stderr
    assert bad.stderr.endswith("; this is what it meant 2 h ago\n") and none.stderr.endswith("2 h ago\n")


def test_the_command_says_that_a_silent_hub_has_not_answered(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    grow_old(cache)
    hub.faults(hold := Hold(0), path="api/models/org/name/revision/main")
    assert "its hub could not be asked (no answer so far); this is what it meant 2 h ago" in run("fetch", REF).stderr
    hold.release.set()


def test_a_hub_that_lets_nobody_in_any_more_is_told_beside_what_is_here(hub: Hub, cache: Cache) -> None:
    first = cache.fetch(REF)
    grow_old(cache)
    hub.gate("org/name", "good")
    done = run("fetch", REF)
    assert (done.returncode, done.stdout) == (0, f"{first}\n")
    assert "the answer of its hub cannot be used (hf:org/name is gated; accept its terms" in done.stderr


def test_offline_what_is_here_comes_before_what_is_new(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.fetch(REF)
    changes(hub)
    grow_old(cache)
    cache.fetch(REF)
    eventually(lambda: meant(cache) == NEXT)
    cache.close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert str(Cache(cache.root).fetch(REF)) == str(first)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    grow_old(cache)
    assert NEXT in str(Cache(cache.root).fetch(REF))
