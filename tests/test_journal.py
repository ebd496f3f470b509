"""A journal claims nothing that was not written, whatever happened to its file."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.model import Span
from modelcache.store.journal import Facts, Journal, read_facts
from modelcache.store.owner import Owner

HEADER = b'{"format": 1, "key": "k", "size": 100}\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One path for all examples of a test."""
    return str(tmp_path_factory.mktemp("journal") / "journal")


def begin(path: str) -> Journal:
    if os.path.lexists(path):
        os.unlink(path)
    return Journal.create(path, {"key": "k", "size": 100})


def facts_of(path: str) -> Facts:
    facts = read_facts(path)
    assert facts is not None
    return facts


def spans_of(facts: Facts) -> list[Span]:
    return list(facts.written)


def reads(path: str, content: bytes) -> Facts | None:
    Path(path).write_bytes(content)
    return read_facts(path)


STEPS: dict[str, Callable[[Journal, int, int], None]] = {
    "wrote": lambda journal, low, high: journal.wrote(low, high, f"source {low % 3}\nw 0 99 0"),
    "dropped": lambda journal, low, high: journal.dropped(low, high),
    "called": lambda journal, low, high: journal.called(f"source {low % 3}", f'"v{high}"\n\u2028é'),
    "sized": lambda journal, low, high: journal.sized(high),
    "anew": lambda journal, low, high: journal.begin_anew(),
    "owned": lambda journal, low, high: journal.owned_by(Owner("höst", "b", low, high + 1, 3)),
}
numbers = st.tuples(st.integers(0, 50), st.integers(50, 99))
steps = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), numbers), max_size=12)


@given(steps)
def test_what_was_told_is_read_again(place, told) -> None:
    journal = begin(place)
    for name, (low, high) in told:
        STEPS[name](journal, low, high)
    journal.close()
    again = facts_of(place)
    assert spans_of(again) == spans_of(journal.facts)
    for name in ("header", "sources", "wrote", "validators", "owner", "size"):
        assert getattr(again, name) == getattr(journal.facts, name)


@given(steps, st.integers(0, 2000), st.binary(max_size=40))
def test_a_journal_cut_anywhere_is_believed_up_to_its_last_whole_line(place, told, cut, _) -> None:
    journal = begin(place)
    known = {os.stat(place).st_size: []}
    for name, (low, high) in told:
        STEPS[name](journal, low, high)
        if name != "anew":  # which is three lines
            known[os.stat(place).st_size] = spans_of(journal.facts)
    journal.close()
    content = Path(place).read_bytes()[:cut]
    facts = reads(place, content)
    if content.count(b"\n") == 0:
        assert facts is None
    elif content.rfind(b"\n") + 1 in known:
        assert facts is not None and spans_of(facts) == known[content.rfind(b"\n") + 1]


@given(st.binary(max_size=300))
def test_any_bytes_are_no_journal_or_one_without_claims(place, content) -> None:
    facts = reads(place, content)
    assert facts is None
    assert Journal.open(place) is None


@given(st.binary(max_size=200))
def test_no_garbage_adds_a_claim(place, garbage) -> None:
    """The letters of the facts that claim, and of digits, are the only bytes that could."""
    garbage = garbage.replace(b"w", b"?").replace(b"x", b"?")
    facts = reads(place, HEADER + b's "a"\nw 0 10 0\n' + garbage + b"\n")
    assert facts is not None
    assert spans_of(facts) == [Span(0, 10)]


@pytest.mark.parametrize(
    "line",
    [
        b"w 0 90", b"w 0 90 ", b"w 0 90 7", b"w 0 90 -1", b"w -5 90 0", b"w 90 0 0", b"w 0 9_0 0", b"w  0 90 0",
        b"w 0 90 0 ", b"w 0 90 0 0", b"w 0 9223372036854775808 0", "w 0 9\u0660 0".encode(), b"W 0 90 0", b"w",
        b"w 0 90 0\r", b"x 0", b"x 0 5 0", b"x 5 0", b"x -1 5", b"s", b"s 1", b"s name", b"v", b'v ["a"]',
        b'v ["a", 1]', b"v 0",
        b"v {}", b'v ["a", "b", "c"]', b"z", b"z x", b"z -2", b"z true", b"z 1e3", b"z 9223372036854775808",
        b"z " + b"9" * 5000,
        b"o", b"o []", b"o {}", b'o {"host": "h", "boot": "b", "space": 1, "pid": Infinity, "start": 1}',
        b"\xff\xfe", b"\0" * 4096, b"? 1", b"v " + b"[" * 100_000, b'{"format": 1}',
    ],
    ids=lambda line: repr(line[:40]),
)  # fmt: skip
def test_a_garbled_line_ends_the_reading(tmp_path, line) -> None:
    facts = reads(str(tmp_path / "journal"), HEADER + b's "a"\nw 0 10 0\n' + line + b"\nw 20 30 0\n")
    assert facts is not None
    assert spans_of(facts) == [Span(0, 10)]
    assert (facts.size, facts.validators, facts.owner, facts.sources) == (None, {}, None, ["a"])


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", HEADER[:-1], b"[]\n", b'{"format": 2}\n', b"{}\n", b"null\n", b"[" * 100_000 + b"\n", b"\0" * 512],
    ids=lambda content: repr(content[:20]),
)
def test_what_does_not_begin_as_a_journal_is_none(tmp_path, content) -> None:
    path = str(tmp_path / "journal")
    assert reads(path, content) is None
    assert Journal.open(path) is None


@pytest.mark.parametrize("tail", [b"w 0 9", b"\0\0\0", b"garbage\nw 50 60 0\n"])
def test_facts_told_after_garbage_are_not_lost(tmp_path, tail) -> None:
    path = str(tmp_path / "journal")
    reads(path, HEADER + b's "a"\nw 0 10 0\n' + tail)
    journal = Journal.open(path)
    assert journal is not None
    journal.wrote(30, 40, "b")
    journal.close()
    assert spans_of(facts_of(path)) == [Span(0, 10), Span(30, 40)]
    assert facts_of(path).wrote == {"a", "b"}


def test_a_former_owner_who_goes_on_does_not_reach_the_journal(tmp_path) -> None:
    path = str(tmp_path / "journal")
    former = begin(path)
    former.wrote(0, 10, "a")
    journal = Journal.open(path)
    assert journal is not None
    former.wrote(10, 90, "a")
    journal.wrote(10, 20, "a")
    former.close()
    journal.close()
    assert spans_of(facts_of(path)) == [Span(0, 20)]
    assert os.listdir(tmp_path) == ["journal"]


def test_an_opening_that_was_killed_does_not_hinder_the_next(tmp_path) -> None:
    path = str(tmp_path / "journal")
    begin(path).close()
    (tmp_path / "journal.new").write_bytes(b"half")
    journal = Journal.open(path)
    assert journal is not None
    journal.close()
    assert os.listdir(tmp_path) == ["journal"]


def test_bytes_taken_back_as_a_whole_are_nobodys(tmp_path) -> None:
    path = str(tmp_path / "journal")
    journal = begin(path)
    journal.wrote(0, 10, "a")
    journal.dropped(0, 5)
    assert journal.facts.wrote == {"a"}
    journal.dropped(0, 50)
    journal.close()
    assert (journal.facts.wrote, facts_of(path).wrote) == (set(), set())


def test_a_link_is_not_followed(tmp_path) -> None:
    target = tmp_path / "target"
    target.write_bytes(HEADER)
    (tmp_path / "journal").symlink_to(target)
    path = str(tmp_path / "journal")
    assert read_facts(path) is None
    assert Journal.open(path) is None
    with pytest.raises(FileExistsError):
        Journal.create(path, {})
    assert target.read_bytes() == HEADER


def test_what_is_not_a_file_is_no_journal_and_hangs_nobody(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder", "absent", "fifo/inside"):
        assert read_facts(str(tmp_path / name)) is None
        assert Journal.open(str(tmp_path / name)) is None


def test_a_journal_that_cannot_be_read_now_is_not_taken_for_none(tmp_path) -> None:
    path = str(tmp_path / "journal")
    begin(path).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Journal.open(path)
        assert read_facts(path) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    journal = Journal.open(path)
    assert journal is not None
    journal.close()


def test_a_full_disk_tears_no_line_out_of_those_that_follow(small_disk) -> None:
    path = str(small_disk / "journal")
    journal = begin(path)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(bytes(4096))
    told = 0
    with pytest.raises(OSError, match="No space"):
        while True:
            journal.wrote(told, told + 10, "a")
            told += 10
    assert journal.facts.written.size == told
    ballast.unlink()
    journal.wrote(5000, 5010, "a")
    journal.close()
    assert spans_of(facts_of(path)) == [Span(0, told), Span(5000, 5010)]


def test_bytes_that_proved_wrong_are_absent_even_if_the_disk_does_not_take_the_fact(small_disk) -> None:
    journal = begin(str(small_disk / "journal"))
    journal.wrote(0, 100, "a")
    with (small_disk / "ballast").open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(bytes(4096))
    with pytest.raises(OSError, match="No space"):
        while True:
            journal.sized(7)
    with pytest.raises(OSError, match="No space"):
        journal.dropped(0, 100)
    assert journal.facts.written.size == 0
    journal.close()


def test_the_header_is_one_line_of_json(tmp_path) -> None:
    path = str(tmp_path / "journal")
    Journal.create(path, {"key": "k", "path": "a\nb", "size": None}).close()
    assert json.loads(Path(path).read_bytes()) == {"format": 1, "key": "k", "path": "a\nb", "size": None}
    assert facts_of(path).header["path"] == "a\nb"
