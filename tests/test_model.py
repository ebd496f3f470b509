"""Values are read strictly from foreign text and written back (product H)."""

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.model import Digest, Manifest, ModelFile, PieceDigests

SHA256 = "ab" * 32
BLAKE3 = "cd" * 32
FILE = {"path": "a/b.bin", "size": 9, "sha256": SHA256, "urls": ["https://host/b.bin"]}
PIECES = {"size": 4, "blake3": [BLAKE3] * 3}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(SHA256),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*FILE, *PIECES, "name", "url", "files", "model", "pieces"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def parsed(data: object) -> Manifest:
    return Manifest.parse(json.dumps(data).encode())


def is_one_clean_line(message: str) -> bool:
    return not {unicodedata.category(character) for character in message} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def format1(**fields: Any) -> dict[str, Any]:
    return {"format": 1, "id": "m", "version": "1", "ref": "", "files": [FILE], **fields}


@pytest.mark.parametrize(
    ("text", "algorithm", "digest"),
    [
        (SHA256, None, Digest("sha256", SHA256)),
        ("SHA256:" + SHA256.upper(), None, Digest("sha256", SHA256)),
        (f" sha-256:{SHA256}\n", "sha256", Digest("sha256", SHA256)),
        ("0" * 32, "md5", Digest("md5", "0" * 32)),
        ("blake3:" + BLAKE3, None, Digest("blake3", BLAKE3)),
    ],
)
def test_a_digest_is_hex_with_or_without_its_algorithm(text: str, algorithm: str | None, digest: Digest) -> None:
    assert Digest.parse(text, algorithm) == digest
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        SHA256[1:],
        SHA256 + "0",
        "../" + SHA256,
        "g" * 64,
        "٣" * 64,
        "crc32:00000000",
        "a:sha256:" + SHA256,
        f"{SHA256}\n0",
    ],
)
def test_what_is_no_digest_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Digest.parse(text)


def test_a_digest_of_another_algorithm_is_refused() -> None:
    with pytest.raises(UsageError, match="expected"):
        Digest.parse("md5:" + "0" * 32, "sha256")


@given(st.text())
def test_any_text_is_a_digest_or_a_usage_error(text: str) -> None:
    for claim in (text, "sha256:" + text, text + ":" + SHA256):
        try:
            assert len(Digest.parse(claim).hex) == 64
        except UsageError as error:
            assert is_one_clean_line(error.message)


def test_the_own_form_of_a_manifest_is_read() -> None:
    manifest = parsed(format1(ref="https://u:p@host/x?token=1", files=[{**FILE, "pieces": PIECES}]))
    pieces = PieceDigests(4, bytes.fromhex(BLAKE3) * 3)
    file = ModelFile("a/b.bin", 9, (Digest("sha256", SHA256),), ("https://host/b.bin",), pieces)
    assert manifest == Manifest("m", "1", "https://host/x", (file,))
    assert manifest.total_bytes == 9
    assert len(pieces) == 3
    assert pieces[2].hex() == BLAKE3


def test_a_bare_list_is_read() -> None:
    manifest = parsed([{"name": "b.bin", "url": "https://host/b.bin", "sha256": SHA256, "size": 9}])
    assert manifest == Manifest(
        "manifest", "", "", (ModelFile("b.bin", 9, (Digest("sha256", SHA256),), ("https://host/b.bin",)),)
    )


def test_the_form_with_files_by_path_is_read_and_the_key_is_the_path() -> None:
    manifest = parsed(
        {"model": {"files": {"d/b.bin": {"size": 9, "sha256": SHA256, "path": "other"}}, "ipfsHash": "Qm"}}
    )
    assert manifest.files == (ModelFile("d/b.bin", 9, (Digest("sha256", SHA256),)),)


def test_a_size_without_a_digest_is_only_a_lower_bound() -> None:
    (file,) = parsed([{"name": "b.bin", "size": 100}]).files
    assert (file.size, file.least_size) == (None, 80)


@pytest.mark.parametrize(
    "data",
    [
        None, 1, "x", [], {}, {"format": 2, "files": [FILE]}, {"format": [[[]]], "files": [FILE]}, {"format": 1},
        {"model": []},
        {"model": {}}, {"model": {"files": []}}, {"model": {"files": {"\ud800\x1b": 1}}},
        {"model": {"files": {"../x": {}}}}, [1], [{}],
        format1(files={}), format1(files=[]), format1(id=1), format1(id="../x"), format1(id="a/b"), format1(id=""),
        format1(version=".."),
        format1(version=None), format1(files=[FILE, FILE]), format1(files=[FILE, {**FILE, "path": "A/B.BIN"}]),
        format1(files=[FILE, {**FILE, "path": "a"}]), format1(ref=[]),
    ],
)  # fmt: skip
def test_a_corrupt_manifest_is_a_usage_error(data: object) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(data)
    assert is_one_clean_line(refused.value.message)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../x"}, {"path": 1}, {"path": ""}, {"size": -1}, {"size": "9"}, {"size": True}, {"size": 1.0},
        {"size": 2**63},
        {"sha256": "x"}, {"sha256": 1}, {"md5": SHA256}, {"urls": "https://host"}, {"urls": [1]},
        {"urls": None, "url": 1}, {"pieces": []},
        {"pieces": {}}, {"pieces": {**PIECES, "size": 0}}, {"pieces": {**PIECES, "size": 3, "blake3": [BLAKE3] * 2}},
        {"pieces": {**PIECES, "blake3": [BLAKE3, BLAKE3, 1]}}, {"pieces": {**PIECES, "blake3": ["x"] * 3}},
    ],
)  # fmt: skip
def test_a_corrupt_file_entry_is_a_usage_error(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        parsed(format1(files=[{**FILE, **change}]))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b" " * 5_000_001]
)
def test_bytes_that_are_no_manifest_are_a_usage_error(content: bytes) -> None:
    with pytest.raises(UsageError):
        Manifest.parse(content)


@given(st.binary() | JSON.map(lambda data: json.dumps(data).encode()))
def test_any_bytes_are_a_manifest_or_a_usage_error(content: bytes) -> None:
    try:
        Manifest.parse(content)
    except UsageError as error:
        assert is_one_clean_line(error.message)


@given(JSON, st.sampled_from(["own", "list", "by path"]))
def test_any_entry_is_a_file_or_a_usage_error(entry: object, form: str) -> None:
    entries = [{**FILE, **entry}] if isinstance(entry, dict) else [entry]
    data = {"own": format1(files=entries), "list": entries, "by path": {"model": {"files": {"x": entries[0]}}}}[form]
    try:
        manifest = parsed(data)
    except UsageError as error:
        assert is_one_clean_line(error.message)
    else:
        assert len(manifest.files) == 1


@given(
    st.lists(
        st.builds(
            ModelFile,
            path=st.from_regex(r"[b-d]{1,3}\.bin", fullmatch=True),
            size=st.just(9),
            digests=st.sampled_from([(Digest("sha256", SHA256),), (Digest("sha256", SHA256), Digest("md5", "0" * 32))]),
            urls=st.lists(st.text(max_size=5).filter(bool), max_size=2).map(tuple),
            pieces=st.sampled_from([None, PieceDigests(4, b"x" * 96)]),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda file: file.path,
    )
)
def test_what_is_written_is_read_again(files: list[ModelFile]) -> None:
    manifest = Manifest("m", "1", "https://host/x", tuple(files))
    assert parsed(manifest.to_json()) == manifest


def test_the_hash_of_a_git_blob_is_read_and_written_and_needs_the_size() -> None:
    manifest = parsed(format1(files=[{"path": "a", "size": 6, "git-sha1": "c" * 40}]))
    assert manifest.files[0].digests == (Digest("git-sha1", "c" * 40),)
    assert parsed(manifest.to_json()) == manifest
    assert Digest.parse("GIT-SHA1:" + "c" * 40) == Digest("git-sha1", "c" * 40)
    with pytest.raises(UsageError, match="together with the size"):
        parsed(format1(files=[{"path": "a", "git-sha1": "c" * 40}]))


def test_an_empty_file_has_no_pieces() -> None:
    manifest = parsed(format1(files=[{**FILE, "size": 0, "pieces": {"size": 4, "blake3": []}}]))
    assert manifest.files[0].pieces is None
