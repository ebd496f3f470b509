"""Whatever a registry says, it chooses no path, fills no memory, and never makes a traceback."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelcache.errors import ModelCacheError, SourceError, UsageError, VerificationError
from modelcache.image import MANIFEST, contents_of, is_index, only_manifest_of
from modelcache.model import Manifest, ModelFile
from modelcache.names import checked_path
from modelcache.refs import Ref
from modelcache.remotes.access import Registry as Place
from modelcache.remotes.access import challenges
from modelcache.remotes.connection import Connector, Timeouts
from modelcache.remotes.inline import InlineSource, url_of
from modelcache.remotes.oci import RegistryResolver
from modelcache.remotes.source import Abort, Request
from modelcache.urls import without_secrets
from tests.registries import Registry

SHA256 = "sha256:" + "a" * 64
TITLE = "org.opencontainers.image.title"
ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["digest", "size", "mediaType", "annotations", "platform", TITLE]), inner)
    ),
    max_leaves=8,
)
PATHS = st.sampled_from(
    ["../x", "/etc/passwd", "a/../../b", "A", "a", "a/b", "C:\\x", "con", MANIFEST, "x" * 300, ""]
) | st.text(max_size=12)
KINDS = st.sampled_from([f"application/vnd.ollama.image.{kind}" for kind in ("model", "tensor", "../x", "a" * 50)])
LAYERS = st.fixed_dictionaries(
    {"digest": st.just(SHA256) | ANY, "size": st.integers(0, 2**64) | ANY},
    optional={
        "mediaType": KINDS | ANY,
        "annotations": st.fixed_dictionaries({TITLE: PATHS}) | ANY,
        "name": PATHS | ANY,
        "platform": st.fixed_dictionaries({"os": PATHS | ANY, "architecture": ANY}) | ANY,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"schemaVersion": st.just(2) | ANY},
    optional={"layers": st.lists(LAYERS | ANY, max_size=4), "manifests": st.lists(LAYERS | ANY, max_size=4),
              "config": LAYERS | ANY, "mediaType": KINDS | ANY},
)  # fmt: skip


@given(DOCUMENTS | ANY)
@example({"schemaVersion": 2, "config": {"digest": SHA256, "size": 1}, "layers": [{"digest": SHA256, "size": 1}]})
def test_any_document_is_a_manifest_or_refused_in_one_line(document: Any) -> None:
    content = json.dumps(document).encode()
    try:
        contents = [] if is_index(content) and only_manifest_of(content) else contents_of(content)
    except UsageError as error:
        assert error.message.isprintable()
        return
    for each in contents:
        assert checked_path(each.path) == each.path != MANIFEST
        assert len(each.sha256.hex) == 64 and 0 <= each.size < 2**63
    files = tuple(ModelFile(each.path, each.size, (each.sha256,)) for each in contents)
    assert not files or Manifest.parse(json.dumps(Manifest("m", "1", "", files).to_json()).encode()).files == files


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(content: bytes) -> None:
    for read in (contents_of, is_index, only_manifest_of):
        try:
            read(content)
        except UsageError as error:
            assert error.message.isprintable()


@given(st.text(max_size=200))
def test_any_text_is_read_as_challenges(text: str) -> None:
    for parameters in challenges(text).values():
        assert all(isinstance(value, str) for value in parameters.values())


@given(st.binary(max_size=300), st.data())
def test_what_is_put_into_a_url_comes_out_of_it_by_any_range(content: bytes, data: st.DataObject) -> None:
    url = url_of(content)
    assert without_secrets(url) == url  # as it is recorded
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.none() | st.integers(start, len(content)))
    body = InlineSource(url).open(Request(ModelFile("m"), start, stop, "", Abort()))
    assert b"".join(bytes(chunk.data) for chunk in body) == content[start:stop]
    assert (body.start, body.total) == (start, len(content))


@given(st.text(max_size=60))
def test_any_other_url_is_refused(text: str) -> None:
    for url in (text, "data:" + text, url_of(b"") + text):
        with suppress(ModelCacheError):
            InlineSource(url).open(Request(ModelFile("m"), 7, 9, "", Abort()))


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(DOCUMENTS | st.lists(DOCUMENTS), st.sampled_from([b"", b" ", b"\xff", b"]"]))
def test_whatever_a_registry_sends_a_model_comes_of_it_or_an_error_of_ours(
    registry: Registry, document: Any, tail: bytes
) -> None:
    registry.push("a/b", "latest", json.dumps(document).encode() + tail)
    ref = Ref.parse(registry.ref("a/b"))
    resolver = RegistryResolver(Place(registry.url().rstrip("/")), "a/b", ref.base, Connector(Timeouts()))
    try:
        manifest = resolver.resolve(ref, Abort())
    except (SourceError, VerificationError) as error:
        assert error.line().isprintable() and len(error.line()) < 1000
    else:
        assert manifest.files[-1].path == MANIFEST
        assert len({file.path.casefold() for file in manifest.files}) == len(manifest.files)
    finally:
        resolver.close()
