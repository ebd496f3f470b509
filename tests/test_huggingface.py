"""Hugging Face: who may see what, links that end, lists in pages, tokens, and what is said when it does not work."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import AGAIN, ModelCacheError, NotFoundError
from modelcache.model import Manifest
from modelcache.refs import Ref
from modelcache.remotes import document
from modelcache.remotes.huggingface import Hub as Account
from modelcache.store.journal import read_facts
from modelcache.testing import (
    Content,
    Corrupt,
    CutAt,
    DribbleHeaders,
    ETag,
    Header,
    Hold,
    Hub,
    IgnoreRange,
    Origin,
    Redirect,
    Slow,
    Status,
)
from tests.caches import Events, partials, run, start, written

SMALL = Content.of(b'{"a": 1}')
LARGE = Content.generated(3_000_000, seed=1)
FILES = {"config.json": SMALL, "model.safetensors": LARGE}
REF = "hf:org/name"
TOKEN = "hf_s3cret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(cdn=True) as hub:
        hub.publish("org/name", FILES)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def cdn_of(hub: Hub) -> Origin:
    assert hub.cdn is not None
    return hub.cdn


def refused(cache: Cache, ref: str) -> str:
    """The one line that is said, of a hub that does not let us have it."""
    with pytest.raises(NotFoundError) as refusal:
        cache.fetch(ref)
    assert (refusal.value.kind, refusal.value.exit_code) == ("not_found", 4)
    assert len(refusal.value.line().splitlines()) == 1
    assert not list(Path(cache.root, "models").rglob("*"))
    return refusal.value.line()


# ---- where bytes come from, and what goes along


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.gate("org/name", TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(0)
    model = cache.fetch(REF)
    assert isinstance(model, mc.Model)
    assert model["model.safetensors"].sha256 == LARGE.sha256
    assert {seen.headers.get("authorization") for seen in hub.requests} == {f"Bearer {TOKEN}"}
    assert {seen.headers.get("authorization") for seen in cdn_of(hub).requests} == {None}
    cache.close()
    assert TOKEN.encode() not in written(cache)
    assert TOKEN not in caplog.text
    assert b"X-Amz-Signature" not in written(cache)


def test_a_mirror_gets_no_token(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cdn_of(hub).stop()
    with Origin({"m/config.json": SMALL, "m/model.safetensors": LARGE}) as mirror:
        model = cache.fetch(REF, mirrors=[mirror.url("m")], headers={"X-Mine": "1"})
        assert isinstance(model, mc.Model)
        assert model["model.safetensors"].source == "http"
        assert not any("authorization" in seen.headers or "x-mine" in seen.headers for seen in mirror.requests)
    assert any("x-mine" in seen.headers for seen in hub.requests)


def test_a_cut_is_gone_on_with_by_a_new_link(hub: Hub, cache: Cache, one_connection: None) -> None:
    cdn_of(hub).faults(CutAt(1_000_000, times=1), CutAt(2_000_000, after=1, times=1))
    file = cache.fetch(f"{REF}/model.safetensors")
    assert isinstance(file, mc.File)
    assert (file.sha256, file.bytes_fetched) == (LARGE.sha256, LARGE.size)
    links = {seen.path for seen in cdn_of(hub).requests}
    assert len(links) == 3


def test_a_place_that_calls_the_same_bytes_otherwise_each_time_costs_none(
    hub: Hub, cache: Cache, one_connection: None
) -> None:
    cdn_of(hub).faults(IgnoreRange(), ETag('"another"', after=1), CutAt(1_000_000, times=1))
    events = Events()
    file = cache.fetch(f"{REF}/model.safetensors", progress=events)
    assert isinstance(file, mc.File) and file.sha256 == LARGE.sha256
    assert events.of("restarted") == []


def test_a_link_that_has_ended_is_asked_for_again_once(
    monkeypatch: pytest.MonkeyPatch, cache: Cache, one_connection: None
) -> None:
    with Hub(cdn=True) as hub:
        hub.publish("org/name", FILES)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        cdn_of(hub).faults(Status(403, times=1))
        file = cache.fetch(f"{REF}/model.safetensors")
        assert isinstance(file, mc.File) and file.sha256 == LARGE.sha256
        assert [seen.status for seen in cdn_of(hub).requests] == [403, 200]
        cdn_of(hub).faults(Status(403))
        hub.publish("org/other", {"m": Content.generated(20_000, seed=5)})
        before = len(cdn_of(hub).requests)
        with pytest.raises(ModelCacheError) as refusal:
            cache.fetch("hf:org/other")
        assert refusal.value.kind == "not_found"
        assert len(cdn_of(hub).requests) - before == 2


def noted(cache: Cache) -> int:
    """How many bytes of what is on its way would survive a kill."""
    facts = [read_facts(str(folder / "journal")) for folder in partials(cache)]
    return sum(each.written.size for each in facts if each)


def test_a_process_that_is_killed_is_gone_on_with_where_it_was(hub: Hub, cache: Cache, one_connection: None) -> None:
    hold = Hold(2_500_000)
    cdn_of(hub).faults(hold)
    process = start("fetch", REF, "--quiet")
    assert hold.reached.wait(30)
    end = time.monotonic() + 20
    while noted(cache) < 1_000_000:
        assert time.monotonic() < end, "it never wrote that much"
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=30)
    hold.release.set()
    before = len(hub.requests)
    done = run("fetch", REF, "--json", "--quiet")
    (told,) = json.loads(done.stdout)
    large = next(file for file in told["files"] if file["path"] == "model.safetensors")
    assert (large["status"], large["verified"]) == ("resumed", "sha256")
    assert 1_000_000 < large["bytes_resumed"] <= 2_500_000
    assert not any("/api/" in seen.path for seen in hub.requests[before:])  # what main meant is known still
    last = cdn_of(hub).requests[-1]
    assert last.range is not None and last.range.startswith(f"bytes={large['bytes_resumed']}-")


def test_wrong_bytes_are_noticed_whichever_digest_the_hub_has(hub: Hub, cache: Cache) -> None:
    commit = hub.publish("org/name", FILES)
    cdn_of(hub).faults(Corrupt([1_500_000]))
    with pytest.raises(mc.AllSourcesFailedError) as wrong:
        cache.fetch(REF)
    assert wrong.value.exit_code == 3
    assert not list(Path(cache.root, "models").rglob("model.safetensors"))
    hub.publish("org/other", {"own.json": Content.of(b"own")}, commit=commit)
    hub.faults(Corrupt([1]), path=f"org/other/resolve/{commit}/own.json")
    for ref in ("hf:org/other/own.json", "hf:org/other"):
        with pytest.raises(mc.AllSourcesFailedError) as wrong:
            cache.fetch(ref)
        assert wrong.value.exit_code == 3


def test_a_file_that_a_model_shares_with_another_version_is_not_fetched_again(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    hub.publish("org/name", FILES | {"new.txt": Content.of(b"new")}, "v2")
    before = len(cdn_of(hub).requests)
    model = cache.fetch(f"{REF}@v2")
    assert isinstance(model, mc.Model)
    assert {file.name: file.status for file in model.files} == {
        "config.json": "linked", "model.safetensors": "linked", "new.txt": "fetched",
    }  # fmt: skip
    assert len(cdn_of(hub).requests) == before


# ---- names


@pytest.mark.parametrize("name", ["datasets/org/name", "spaces/org/name"])
def test_datasets_and_spaces_are_repositories_too(hub: Hub, cache: Cache, name: str) -> None:
    hub.publish(name, {"data/train.csv": Content.of(b"a,b\n"), "big.bin": LARGE})
    model = cache.fetch(f"hf:{name}")
    assert isinstance(model, mc.Model)
    assert model.id == "hf--" + name.replace("/", "--")
    assert Path(model["data/train.csv"].path).read_bytes() == b"a,b\n"
    assert cache.path(f"hf:{name}") == model.path


def test_a_revision_may_hold_a_slash_and_a_path_what_urls_may_not(hub: Hub, cache: Cache) -> None:
    odd = {"a b/c#d 100%.bin": LARGE, "é.txt": SMALL}
    commit = hub.publish("org/name", odd, "refs/pr/1")
    model = cache.fetch(f"{REF}@refs%2Fpr%2F1")
    assert isinstance(model, mc.Model)
    assert (model.version, {file.name for file in model.files}) == (commit, set(odd))
    assert cache.path(f"{REF}@refs%2Fpr%2F1/a b/c%23d 100%25.bin") == model["a b/c#d 100%.bin"].path
    assert [row["finding"] for row in cache.verify(f"{REF}@refs%2Fpr%2F1")] == ["whole", "whole"]


def test_an_id_that_stands_for_something_else_is_refused(hub: Hub, cache: Cache) -> None:
    entry = {"path": "m", "size": LARGE.size, "sha256": LARGE.sha256, "urls": [hub.url("m")]}
    hub.put("m", LARGE)
    other = {"format": 1, "id": "hf--org--name", "version": "1", "ref": "https://host/m", "files": [entry]}
    cache.fetch(Manifest.parse(json.dumps(other).encode()))
    with pytest.raises(mc.UsageError, match="one id cannot stand for hf:org/name as well"):
        cache.fetch(REF)


def test_the_endpoint_may_have_a_path() -> None:
    account, ref = Account("https://host/hf"), Ref.parse("hf:datasets/org/name@" + "1" * 40 + "/a b")
    assert account.api(ref, "tree", "refs/pr/1") == "https://host/hf/api/datasets/org/name/tree/refs%2Fpr%2F1"
    assert account.file(ref) == "https://host/hf/datasets/org/name/resolve/" + "1" * 40 + "/a%20b"


# ---- lists


@pytest.mark.parametrize("page", [1, 2, 5])
def test_a_list_of_many_pages_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch, cache: Cache, page: int) -> None:
    files = {f"d{number % 2}/{number}.txt": Content.of(str(number).encode()) for number in range(5)}
    with Hub(page=page) as hub:
        hub.publish("org/name", files)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        model = cache.fetch(REF)
        assert isinstance(model, mc.Model)
        assert {file.name for file in model.files} == set(files)
        assert sum("/tree/" in seen.path for seen in hub.requests) == -(-5 // page)


def test_a_list_goes_on_at_the_hub_or_not_at_all(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = hub.publish("org/name", FILES)
    with Origin({"more": b"[]"}) as other:
        hub.faults(Header("Link", f'<{other.url("more")}>; rel="next"'), path=f"api/models/org/name/tree/{commit}")
        with pytest.raises(mc.AllSourcesFailedError, match="goes on at another place, which is not followed"):
            cache.fetch(REF)
        assert other.requests == []


def test_a_list_that_leads_back_to_itself_ends(hub: Hub, cache: Cache) -> None:
    commit = hub.publish("org/name", FILES)
    url = hub.url(f"api/models/org/name/tree/{commit}") + "?again"
    hub.faults(Header("Link", f'<{url}>; rel="next"'), path=f"api/models/org/name/tree/{commit}")
    with pytest.raises(mc.AllSourcesFailedError, match="its list of files does not end") as endless:
        cache.fetch(REF)
    assert endless.value.exit_code == 5


# ---- refusals, in one sentence each


def test_a_gated_repository_says_what_to_do(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gate("org/name", TOKEN)
    page = f"{hub.endpoint}/org/name"
    assert refused(cache, REF) == f"hf:org/name is gated; accept its terms at {page} and set HF_TOKEN, then {AGAIN}"
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    told = refused(cache, REF)
    assert told == f"hf:org/name is gated, and your token has no access; accept its terms at {page}, then {AGAIN}"
    assert not any("/resolve/" in seen.path for seen in hub.requests)
    assert isinstance(cache.fetch(REF, headers={"authorization": f"Bearer {TOKEN}"}), mc.Model)


def test_a_mirror_that_cannot_tell_who_has_access_lets_the_files_tell(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gate("org/name", TOKEN)
    hub.faults(Status(404), path="api/models/org/name/auth-check")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ModelCacheError, match="hf:org/name is gated, and your token has no access") as refusal:
        cache.fetch(f"{REF}/config.json")
    assert refusal.value.exit_code == 4
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert isinstance(cache.fetch(REF), mc.Model)


@pytest.mark.parametrize("change", ["gate", "hide"])
def test_what_was_fetched_before_its_hub_refused_says_by_which_name_it_works(
    hub: Hub, cache_root: Path, change: str
) -> None:
    cache = Cache(cache_root, manifest_ttl=0)
    model = cache.fetch(REF)
    assert isinstance(model, mc.Model)
    {"gate": hub.gate, "hide": hub.hide}[change]("org/name", TOKEN)
    with pytest.raises(NotFoundError) as refusal:
        cache.fetch(REF)
    name = f"{REF}@{model.version}"
    assert f", but {name} is here and works without the hub; " in refusal.value.line()
    for kept in (cache.fetch(name), cache.fetch(name, strict=True)):
        assert isinstance(kept, mc.Model) and {file.status for file in kept.files} == {"hit"}


def test_a_revision_with_a_slash_says_how_to_write_it(hub: Hub, cache: Cache) -> None:
    told = refused(cache, f"{REF}@refs/pr/1")
    assert told.startswith("hf:org/name has no revision refs; check its name, or write `hf:org/name@refs%2Fpr%2F1` ")


def test_what_is_private_or_missing_says_so(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"127.0.0.1:{hub.port}"
    hub.publish("org/own", FILES)
    hub.hide("org/own", TOKEN)
    for name in ("org/own", "org/missing"):
        told = f"hf:{name} is not at {host}; check the name, or set HF_TOKEN if it is private"
        assert refused(cache, f"hf:{name}") == told
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    told = f"hf:org/own is not at {host}, or your token may not see it; check the name"
    assert refused(cache, "hf:org/own") == told
    assert refused(cache, f"{REF}@v9") == "hf:org/name has no revision v9; check its name"
    assert refused(cache, f"{REF}@{'9' * 40}") == f"hf:org/name has no revision {'9' * 40}; check its name"
    assert refused(cache, f"{REF}/none.bin") == "hf:org/name has no file none.bin; check the name"


def test_the_command_says_it_in_one_line(hub: Hub) -> None:
    done = run("fetch", "hf:org/missing", "--quiet")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1)


@pytest.mark.parametrize("endpoint", ["ftp://x", "http://", "x", "http://h/?q", "http://u:s3cret@h/"])
def test_an_endpoint_that_is_none_is_a_usage_error(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(mc.UsageError, match="HF_ENDPOINT") as wrong:
        cache.fetch(REF)
    assert "s3cret" not in wrong.value.line()


@pytest.mark.parametrize(("word", "wish"), [("Retry-After", "0"), ("RateLimit", '"api";r=0;t=0')])
def test_a_rate_limit_is_waited_for(hub: Hub, cache: Cache, word: str, wish: str) -> None:
    events = Events()
    hub.faults(Status(429, {word: wish}, times=2), path="api/models/org/name/revision/main")
    cache.fetch(REF, progress=events)
    assert [event["message"] for event in events.of("source_failed")] == ["429: too many requests"] * 2


@pytest.mark.parametrize(("word", "wish"), [("Retry-After", "900"), ("RateLimit", '"api";r=0;t=900')])
def test_one_that_takes_too_long_is_told_at_once(hub: Hub, cache: Cache, word: str, wish: str) -> None:
    hub.faults(Status(429, {word: wish}), path="api/models/org/name/revision/main")
    with pytest.raises(mc.AllSourcesFailedError, match="429: too many requests") as limited:
        cache.fetch(REF)
    assert limited.value.exit_code == 5
    assert len(hub.requests) == 1


def test_a_reply_that_never_ends_is_ended(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MOST_S", 0.2)
    for fault in (DribbleHeaders(0.05), Slow(100)):
        hub.heal()
        hub.faults(fault, path="api/models/org/name/revision/main")
        with pytest.raises(mc.AllSourcesFailedError, match="no complete reply in time"):
            cache.fetch(REF)


def test_a_hub_that_moved_is_followed(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.publish("org/new", FILES)
    hub.hide("org/new", TOKEN)
    hub.faults(Redirect(hub.url("api/models/org/new/revision/main"), 307), path="api/models/org/old/revision/main")
    with pytest.raises(NotFoundError):  # the list of the old name is gone, too; but the token went along
        cache.fetch("hf:org/old")
    assert hub.requests[1].status == 200


# ---- tokens


def test_the_token_is_looked_for_where_hugging_face_keeps_it(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sent() -> str | None:
        before = len(hub.requests)
        with pytest.raises(NotFoundError):
            cache.fetch("hf:org/missing")
        return hub.requests[before].headers.get("authorization")

    assert sent() is None
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_of_home\n")
    assert sent() == "Bearer hf_of_home"
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert sent() is None
    (tmp_path / "elsewhere").write_text("hf_of_path")
    assert sent() == "Bearer hf_of_path"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert sent() is None
    monkeypatch.setenv("HF_TOKEN", " hf_of_environment ")
    assert sent() == "Bearer hf_of_environment"


@pytest.mark.parametrize("token", ["a\nb", "a\x00b".replace("\x00", "\x07"), "ключ"])
def test_a_token_that_is_none_is_not_sent_and_not_shown(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(mc.UsageError, match="holds characters that no token has") as wrong:
        cache.fetch(REF)
    assert token not in wrong.value.line()
    assert hub.requests == []


def test_garbage_where_the_token_is_kept_is_no_token(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    assert isinstance(cache.fetch(REF), mc.Model)
    garbage = tmp_path / "token"
    garbage.write_bytes(b"\xff\xfe" * 10)
    monkeypatch.setenv("HF_TOKEN_PATH", str(garbage))
    hub.publish("org/other", FILES)
    assert isinstance(cache.fetch("hf:org/other"), mc.Model)


# ---- without the network


def test_offline_a_file_that_is_not_here_says_why(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.fetch(REF, files="config.json")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(hub.requests), len(cdn_of(hub).requests)
    assert isinstance(cache.fetch(REF, files="config.json"), mc.Model)
    with pytest.raises(ModelCacheError, match="HF_HUB_OFFLINE is set"):
        cache.fetch(REF)
    assert (len(hub.requests), len(cdn_of(hub).requests)) == before
