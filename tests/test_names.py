"""What may be a path, and what may not (I18, I19)."""

import os
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.names import check_conflicts, checked_path, file_name_of, joined

ORDINARY = [
    "model.safetensors",
    "onnx/encoder model.onnx",
    "a--b/c+d=e@f,g~h!(1) [2]{3}'&#%$;.bin",
    ".gitattributes",
    "...a",
    "console/com/com10/lpt/nul_/icon.txt",
    "modèle/模型/модель.bin",
    "modelcache",
    "manifest.json",
    "x" * 200,
    "/".join(["d"] * 32),
]
NO_PATH = [
    "", "/", "/etc/passwd", "a//b", "a/", ".", "..", "a/../b", "./a", "a\\b", "C:", "C:/x", "a:stream", "a\0b",
    "a\nb", "a\x1b[31m", "a\x7f", "a\x85", "a\u2028b", "a\u2029b", "a\u202eb", "a\u200bb", "a\u2066b", "\ufeffa",
    "a\ud800", "a<b", "a>b", 'a"b', "a|b", "a?b", "a*b", "a.", "a ", " a", "a\u00a0", "...", "x/. ",
    ".modelcache", ".ModelCache-tmp", "a/.MODELCACHE.x", ".manifest.json", "a/.Manifest.JSON",
    ".manife\u017ft.json",
    "CON", "con", "Prn.txt", "aux.tar.gz", "NUL .txt", "com0", "COM9.bin", "lpt1", "COM¹", "lpt³.x", "CONIN$",
    "conout$",
    "clock$.y", "a/nul/b", "x" * 201, "é" * 101, "/".join(["d"] * 33), "/".join(["x" * 190] * 6), "a" * 5000,
]  # fmt: skip
ANY_URL_TAIL = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("%2Fe./\\?#@:ONUL \u0301")))


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    assert checked_path(text) == text


@pytest.mark.parametrize("text", NO_PATH)
def test_what_is_no_path_is_refused_in_one_printable_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked_path(text)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 1000


def test_names_are_normalised() -> None:
    assert checked_path("e\u0301/\u212b") == "\u00e9/\u00c5"


def test_the_number_of_parts_can_be_demanded() -> None:
    assert checked_path("a", parts=1) == "a"
    assert checked_path("a/b", parts=2) == "a/b"
    for text, parts in (("a/b", 1), ("a", 2)):
        with pytest.raises(UsageError, match="must have"):
            checked_path(text, parts)


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("./\\: CON"))))
def test_a_checked_path_is_normal_stays_inside_and_checks_again(text: str) -> None:
    try:
        path = checked_path(text)
    except UsageError as error:
        assert error.message.isprintable()
        return
    assert checked_path(path) == path == unicodedata.normalize("NFC", path)
    assert os.path.normpath(joined("/root", path)) == "/root/" + path
    assert not {"", ".", ".."} & set(path.split("/"))


@pytest.mark.parametrize(
    "paths",
    [
        ("A", "a"),
        ("a", "a"),
        ("é", "e\u0301"),
        ("É", "e\u0301"),
        ("ß", "SS"),
        ("a", "a/b"),
        ("x/A/b/c", "x/a"),
        ("b/c", "B"),
    ],
)
def test_names_that_some_file_system_takes_for_one_are_a_conflict(paths: tuple[str, str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(UsageError):
            check_conflicts(order)


def test_names_that_differ_are_no_conflict() -> None:
    check_conflicts(iter(["a", "a.b", "b/a", "b/c", "ab", "B2/a"]))
    check_conflicts([])


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/model.bin", "model.bin"),
        ("https://host/a/model.bin?x=/y#/z", "model.bin"),
        ("https://host/mod%C3%A8le%20v2.bin", "modèle v2.bin"),
        ("https://host/a--b.bin", "a--b.bin"),
        ("https://host/%252e%252e", "%2e%2e"),
        ("https://host/..%2F..%2Fetc%2Fpasswd", ".._.._etc_passwd"),
        ("https://host/..%5Cx", ".._x"),
        ("https://host/%2e%2e", "download"),
        ("https://host/%ff.bin", "\ufffd.bin"),
        ("https://host/a%0D%0Ab%00", "a__b_"),
        ("https://host/CON.txt", "_CON.txt"),
        ("https://host/.manifest.json", "_.manifest.json"),
        ("https://host/a.%20.", "a"),
        ("https://host/", "download"),
        ("https://host", "download"),
        ("https://host/" + "x" * 300 + ".tar.gz", "x" * 142 + ".tar.gz"),
        ("https://host/" + "é" * 300 + ".safetensors", "é" * 68 + ".safetensors"),
        ("file.bin", "file.bin"),
        ("", "download"),
    ],
)
def test_a_url_ends_in_a_file_name(url: str, name: str) -> None:
    assert file_name_of(url) == name


@given(ANY_URL_TAIL)
@example("CON" + " " * 200 + ".x")
@example("[" * 10)
def test_every_url_yields_a_name_that_is_accepted(tail: str) -> None:
    for url in (tail, "https://host/" + tail, "https://host/a/" + 40 * tail + ".bin"):
        name = file_name_of(url)
        assert checked_path(name, parts=1) == name
        assert len(name.encode()) <= 150


def test_joining_checks_once_more() -> None:
    assert joined("/root", "a/b") == "/root/a/b"
    with pytest.raises(UsageError):
        joined("/root", "../b")
