"""Whatever a hub says, it chooses no path, fills no memory, and never makes a traceback."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, NotFoundError, SourceError
from modelcache.model import Manifest
from modelcache.names import checked_path
from modelcache.refs import Ref
from modelcache.remotes.connection import Connector, Timeouts
from modelcache.remotes.huggingface import Hub, HubResolver
from modelcache.remotes.source import Abort
from modelcache.testing import Content, Delay, Header, NoLength, Origin, Status
from modelcache.testing import Hub as StubHub
from tests.caches import Events

REF = Ref.parse("hf:org/name")
COMMIT = "a" * 40
REVISION, TREE = "api/models/org/name/revision/main", f"api/models/org/name/tree/{COMMIT}"
RIGHT: dict[str, Any] = {"type": "file", "path": "a", "size": 1, "oid": "b" * 40}

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RIGHT, "lfs", "sha"]), inner, max_size=5)
    ),
    max_leaves=8,
)  # fmt: skip
PATHS = st.sampled_from(
    ["../x", "/etc/passwd", "a/../../b", "A", "a", "a/b", "C:\\x", "con", ".manifest.json", "x" * 300, ""]
)
ENTRIES = st.lists(
    ANY
    | st.fixed_dictionaries(
        {"type": st.just("file"), "path": PATHS | st.text(max_size=12), "size": st.integers() | ANY, "oid": ANY},
        optional={"lfs": st.fixed_dictionaries({"oid": st.just("c" * 64) | ANY}) | ANY},
    )
    | st.builds(lambda path: RIGHT | {"path": path}, PATHS | st.text(max_size=12)),
    max_size=5,
)


@pytest.fixture(scope="module")
def hub() -> Iterator[Origin]:
    with Origin() as hub:
        yield hub


@pytest.fixture(scope="module")
def resolver(hub: Origin) -> Iterator[HubResolver]:
    resolver = HubResolver(Hub(hub.url().rstrip("/")), Connector(Timeouts(5, 5)))
    yield resolver
    resolver.close()


def outcome(resolver: HubResolver) -> Manifest | SourceError:
    try:
        manifest = resolver.resolve(REF, Abort())
    except SourceError as error:
        assert error.message.isprintable() and len(error.message) < 500
        return error
    assert (manifest.id, manifest.version, manifest.ref) == (REF.id, COMMIT, REF.base)
    paths = [file.path for file in manifest.files]
    assert [checked_path(path) for path in paths] == paths
    assert len({path.casefold() for path in paths}) == len(paths)
    assert all(file.size is not None and 0 <= file.size < 2**63 and file.digests for file in manifest.files)
    assert all(Ref.parse(url).path == file.path for file in manifest.files for url in file.urls)
    return manifest


def served(hub: Origin, revision: object, tree: object) -> None:
    hub.heal()
    hub.put(REVISION, revision if isinstance(revision, bytes) else json.dumps(revision).encode())
    hub.put(TREE, tree if isinstance(tree, bytes) else json.dumps(tree).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENTRIES)
@example([RIGHT])
@example([RIGHT, RIGHT])
@example([RIGHT, RIGHT | {"path": "A"}])
@example([RIGHT, RIGHT | {"path": "a/b"}])
@example([RIGHT | {"path": "../../x"}])
@example([RIGHT | {"size": 2**63}])
@example([RIGHT | {"size": True}])
@example([RIGHT | {"size": -1}])
@example([RIGHT | {"lfs": {"oid": "B" * 64, "size": 1}}])
def test_any_list_of_files_is_a_manifest_or_one_line(hub: Origin, resolver: HubResolver, entries: list[Any]) -> None:
    served(hub, {"sha": COMMIT}, entries)
    outcome(resolver)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY | st.fixed_dictionaries({"sha": st.just(COMMIT) | ANY, "gated": ANY}))
def test_any_word_on_a_revision_is_a_commit_or_one_line(hub: Origin, resolver: HubResolver, said: Any) -> None:
    served(hub, said, [RIGHT])
    outcome(resolver)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b'{"sha": ' + b"1" * 5000 + b"}")
def test_any_bytes_are_one_line(hub: Origin, resolver: HubResolver, content: bytes) -> None:
    for revision, tree in ((content, [RIGHT]), ({"sha": COMMIT}, content)):
        served(hub, revision, tree)
        outcome(resolver)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@example("<>; rel=next")
@example('<javascript:x>; rel="next"')
@example('<http://>; rel="next"')
@example('<//[>; rel="next"')
@example('<?a>; rel="next", <?b>; rel="next"')
def test_any_link_to_a_next_page_is_followed_to_an_end(hub: Origin, resolver: HubResolver, link: str) -> None:
    served(hub, {"sha": COMMIT}, [RIGHT])
    for value in (link, f'<{link}>; rel="next"'):
        hub.heal()
        hub.faults(Header("Link", value), path=TREE)
        outcome(resolver)


def test_a_link_that_would_take_long_to_understand_is_refused(hub: Origin, resolver: HubResolver) -> None:
    served(hub, {"sha": COMMIT}, [RIGHT])
    hub.faults(Header("Link", "<a>" * 5000), path=TREE)
    result = outcome(resolver)
    assert isinstance(result, SourceError) and "too long" in result.message


def test_what_cannot_be_used_is_not_asked_for_again(hub: Origin, resolver: HubResolver, cache: Cache) -> None:
    served(hub, {"sha": "none"}, [])
    events = Events()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AllSourcesFailedError, match="which commit"):
        patch.setenv("HF_ENDPOINT", hub.url())
        cache.fetch("hf:org/name", progress=events)
    assert len(events.of("resolving")) == 1


def test_pages_without_end_end(hub: Origin, resolver: HubResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.remotes.huggingface.MOST_PAGES", 20)
    served(hub, {"sha": COMMIT}, [RIGHT])
    before = len(hub.requests)
    for number in range(30):
        hub.faults(Header("Link", f'<?page={number}>; rel="next"', after=number, times=1), path=TREE)
    result = outcome(resolver)
    assert isinstance(result, SourceError) and result.message == "its list of files does not end"
    assert len(hub.requests) - before == 21


def test_a_reply_without_end_is_left(hub: Origin, resolver: HubResolver) -> None:
    served(hub, {"sha": COMMIT}, b"")
    hub.put(TREE, Content.generated(1 << 40))
    for faults in ((), (NoLength(),)):
        hub.heal()
        hub.faults(*faults, path=TREE)
        result = outcome(resolver)
        assert isinstance(result, SourceError) and "is longer than 5,000,000 bytes" in result.message


def test_more_files_than_any_model_has_are_refused(
    hub: Origin, resolver: HubResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcache.remotes.huggingface.MAX_MANIFEST_FILES", 3)
    served(hub, {"sha": COMMIT}, [RIGHT | {"path": str(number)} for number in range(4)])
    result = outcome(resolver)
    assert isinstance(result, SourceError) and "more than 3 files" in result.message


@pytest.mark.parametrize("code", ["", "GatedRepo", "RepoNotFound", "x" * 5000, "\\x1b[31m"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 429, 451, 500, 503, 599])
def test_any_refusal_is_one_line(hub: Origin, resolver: HubResolver, status: int, code: str) -> None:
    served(hub, {"sha": COMMIT}, [RIGHT])
    hub.faults(Status(status, {"X-Error-Code": code} if code else {}))
    result = outcome(resolver)
    assert isinstance(result, SourceError)
    assert isinstance(result, NotFoundError) == (400 <= status < 500 and status != 429)
    hub.heal()


def test_a_hub_that_is_slow_with_every_page_is_left_in_time(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its replies is late by itself."""
    pages = 40
    with StubHub(page=1, faults=[Delay(0.1)]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.publish("org/name", {f"f{number}": b"x" for number in range(pages)})
        slow = Cache(cache.root, resolve_timeout=1.0)
        with pytest.raises(AllSourcesFailedError, match="has not said in time all that the model consists of") as error:
            slow.fetch("hf:org/name")
        assert (error.value.exit_code, error.value.next_step) == (5, "try later, or raise the setting resolve_timeout")
        assert len(hub.requests) < pages
        assert sum("/revision/" in seen.path for seen in hub.requests) == 1
        slow.close()


def test_a_hub_that_wishes_for_a_longer_pause_than_is_left_is_left(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubHub(faults=[Status(503), Header("Retry-After", "30")]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hasty = Cache(cache.root, resolve_timeout=5.0)
        with pytest.raises(AllSourcesFailedError, match="503"):
            hasty.fetch("hf:org/name")
        assert len(hub.requests) == 1
        hasty.close()
