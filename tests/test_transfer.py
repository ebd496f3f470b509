"""One file over real sockets from servers that cut, lie, change and refuse (product A1-A11, I7-I10, I23, I24)."""

import itertools
import random
import threading
import time
from collections.abc import Iterator

import pytest
from transfers import leave, run, wanted

from modelcache.errors import AllSourcesFailedError, StoreError, VerificationError
from modelcache.model import Digest, ModelFile, Span
from modelcache.remotes.source import Traits
from modelcache.store.partial import Partial
from modelcache.testing import (
    ChangedContent,
    Chunked,
    Content,
    ContentRange,
    ContentType,
    Corrupt,
    Cut,
    CutAt,
    Delay,
    DribbleHeaders,
    ETag,
    ExtraBytes,
    Header,
    Hold,
    IgnoreRange,
    LastModified,
    NoLength,
    Origin,
    ShutDown,
    SilentAccept,
    Slow,
    Stall,
    Status,
    Wire,
    WrongLength,
)
from modelcache.throttle import Throttle
from modelcache.transfer.hedge import Shadow

KIB, MIB = 1 << 10, 1 << 20
MODEL = Content.generated(3 * MIB, 1)
OTHER = Content.generated(3 * MIB, 2)  # as long as MODEL, and something else
BIG = Content.generated(80 * MIB, 3)  # big enough for several connections
DATA = MODEL.read()
NO_VALIDATOR = (ETag(None), LastModified(None))


@pytest.fixture
def origin() -> Iterator[Origin]:
    """One content under three names, as three mirrors."""
    with Origin({"a": MODEL, "b": MODEL, "c": MODEL}) as origin:
        yield origin


@pytest.fixture
def urls(origin: Origin) -> list[str]:
    return [origin.url(name) for name in "abc"]


def ranges(origin: Origin, path: str = "a") -> list[str | None]:
    return [seen.range for seen in origin.requests if seen.path == f"/{path}"]


# ---- resuming


@pytest.mark.parametrize("percent", [25, 50, 75])
def test_a_resume_continues_at_the_missing_byte_and_proves_the_whole(tmp_path, origin, urls, percent) -> None:
    here = MODEL.size * percent // 100
    leave(tmp_path, wanted(MODEL), urls[0], (0, DATA[:here]))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert ranges(origin) == [f"bytes={here}-"]
    assert done.received == MODEL.size - here
    assert done.content == DATA
    assert done.digests == {"sha256": Digest("sha256", MODEL.sha256)}
    assert done.facts("resumed") == [(f"{here:,} bytes are here already", "")]


def test_a_whole_partial_is_proven_without_asking_anybody(tmp_path, origin, urls) -> None:
    leave(tmp_path, wanted(MODEL), urls[0], (0, DATA))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.content, origin.requests) == (DATA, [])


def test_a_whole_partial_needs_no_source(tmp_path) -> None:
    leave(tmp_path, wanted(MODEL), "gone", (0, DATA))
    assert run(tmp_path, wanted(MODEL), []).content == DATA


def test_holes_are_filled_each_by_its_own_request(tmp_path, origin, urls) -> None:
    leave(tmp_path, wanted(MODEL), urls[0], (1000, DATA[1000:2000]), (5000, DATA[5000:6000]))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert ranges(origin) == ["bytes=0-999", "bytes=2000-4999", "bytes=6000-"]
    assert (done.content, done.received, done.facts("source_failed")) == (DATA, MODEL.size - 2000, [])


def test_a_source_without_ranges_fills_all_holes_in_one_pass(tmp_path, origin, urls) -> None:
    origin.faults(IgnoreRange())
    leave(tmp_path, wanted(MODEL), urls[0], (1000, DATA[1000:2000]), (5000, DATA[5000:6000]))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.content, done.tries, done.received) == (DATA, 1, MODEL.size)


def test_wrong_bytes_of_an_earlier_run_cost_one_clean_download_and_nobody_the_blame(tmp_path, origin, urls) -> None:
    leave(tmp_path, wanted(MODEL), urls[0], (0, bytes(MIB)))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert ranges(origin) == [f"bytes={MIB}-", None]
    assert (done.content, done.blamed, len(done.facts("restarted"))) == (DATA, [], 1)


def test_wrong_bytes_of_an_earlier_run_are_found_by_piece(tmp_path, origin, urls) -> None:
    file = wanted(MODEL, piece=64 * KIB)
    leave(tmp_path, file, urls[0], (0, bytes(64 * KIB) + DATA[64 * KIB : 2 * MIB]))
    done = run(tmp_path, file, urls[:1])
    assert (done.content, done.blamed) == (DATA, [])
    assert done.received == MIB + 64 * KIB


def test_a_piece_behind_a_writer_that_waits_for_the_proof_is_fetched_all_the_same(tmp_path, urls) -> None:
    """The only connection is a window ahead of a wrong piece: it must go back, or both wait for ever."""
    content = Content.generated(16 * MIB, 4)
    with Origin({"big": content}) as origin:
        file = wanted(content, piece=256 * KIB)
        leave(tmp_path, file, "before", (0, bytes(256 * KIB) + content.read(256 * KIB, MIB)))
        done = run(tmp_path, file, [origin.url("big")], window=MIB)
    assert done.content == content.read()


def test_a_window_smaller_than_a_piece_holds_nobody_back_for_ever(tmp_path, urls) -> None:
    assert run(tmp_path, wanted(MODEL, piece=2 * MIB), urls[:1], window=1).content == DATA


@pytest.mark.parametrize(("threshold", "asked"), [(0.4, "bytes=1572864-"), (0.6, None)])
def test_a_reset_stream_is_resumed_above_the_threshold_and_begun_anew_below(
    tmp_path, origin, urls, threshold, asked
) -> None:
    origin.faults(Cut(MODEL.size // 2, times=1))
    done = run(tmp_path, wanted(MODEL), urls[:1], resume_threshold=threshold)
    assert (done.content, ranges(origin)) == (DATA, [None, asked])


@pytest.mark.parametrize(("threshold", "asked"), [(0.2, "bytes=786432-"), (0.3, None)])
def test_what_an_earlier_run_left_is_resumed_only_above_the_threshold(tmp_path, origin, urls, threshold, asked) -> None:
    leave(tmp_path, wanted(MODEL), urls[0], (0, DATA[: MODEL.size // 4]))
    done = run(tmp_path, wanted(MODEL), urls[:1], resume_threshold=threshold)
    assert (done.content, ranges(origin)) == (DATA, [asked])


def test_resets_below_the_threshold_come_to_an_end(tmp_path, origin, urls) -> None:
    origin.faults(Cut(MIB))
    done = run(tmp_path, wanted(MODEL), urls[:1], resume_threshold=0.9)
    assert isinstance(done.error, AllSourcesFailedError)
    assert done.tries == 4


# ---- faults that may pass


def test_when_a_source_dies_the_next_goes_on_at_the_same_byte_at_once(tmp_path, origin, urls) -> None:
    origin.faults(Cut(MIB), path="a")
    began = time.monotonic()
    done = run(tmp_path, wanted(MODEL), urls[:2], backoff=30)
    assert time.monotonic() - began < 10
    assert (done.content, done.asked, ranges(origin, "b")) == (DATA, ["a", "b"], [f"bytes={MIB}-"])
    assert done.received == MODEL.size


def test_a_server_that_dies_in_mid_file_is_followed_by_the_next(tmp_path) -> None:
    with Origin({"m": MODEL}, faults=[Slow(50 * MIB)]) as first, Origin({"m": MODEL}) as second:
        first.faults(ShutDown(MIB))
        done = run(tmp_path, wanted(MODEL), [first.url("m"), second.url("m")])
    assert done.content == DATA
    assert done.received == MODEL.size


def test_a_network_that_is_cut_several_times_costs_no_byte_twice(tmp_path, origin, urls) -> None:
    origin.faults(Cut(400_000, times=6))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.content, done.received, done.tries) == (DATA, MODEL.size, 7)
    assert ranges(origin) == [None, *(f"bytes={at}-" for at in range(400_000, 2_500_000, 400_000))]


def test_every_source_has_three_tries_without_progress_and_all_are_cycled(tmp_path, origin, urls) -> None:
    origin.faults(Status(503))
    done = run(tmp_path, wanted(MODEL), urls)
    assert (done.asked[:3], sorted(done.asked)) == (["a", "b", "c"], ["a"] * 3 + ["b"] * 3 + ["c"] * 3)
    assert isinstance(done.error, AllSourcesFailedError)
    assert [failure.kind for failure in done.error.failures] == ["network"] * 3
    assert done.error.exit_code == 5


def test_tries_that_moved_bytes_are_not_counted(tmp_path, origin, urls) -> None:
    origin.faults(Cut(300_000, times=8))
    done = run(tmp_path, wanted(MODEL), urls[:1], attempts_per_source=1)
    assert (done.content, done.tries) == (DATA, 9)


def test_a_byte_a_request_is_given_up_after_twenty(tmp_path, origin, urls) -> None:
    origin.faults(Cut(1))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.tries, done.left) == (20, 20)


def test_the_waits_between_tries_of_the_only_source_grow(tmp_path, origin, urls) -> None:
    origin.faults(Status(500, times=3))
    done = run(tmp_path, wanted(MODEL), urls[:1], backoff=0.2, attempts_per_source=4)
    times = [seen.at_s for seen in origin.requests]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert done.content == DATA
    assert all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


def test_retry_after_is_obeyed(tmp_path, origin, urls) -> None:
    origin.faults(Status(503, {"Retry-After": "1"}, times=1))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    first, second = [seen.at_s for seen in origin.requests]
    assert done.content == DATA
    assert second - first >= 1


def test_who_asks_to_wait_too_long_is_left_for_the_next(tmp_path, origin, urls) -> None:
    origin.faults(Status(429, {"Retry-After": "3600"}), path="a")
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, done.asked) == (DATA, ["a", "b"])


def test_not_found_is_asked_once_and_the_mirror_next(tmp_path, origin, urls) -> None:
    origin.remove("a")
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, done.asked) == (DATA, ["a", "b"])


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_not_repeated(tmp_path, origin, urls, code) -> None:
    origin.faults(Status(code))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.tries, done.error.exit_code) == (1, 4)


def test_when_all_failed_the_error_tells_each_story(tmp_path, origin, urls) -> None:
    origin.remove("a")
    origin.faults(Status(503), path="b")
    origin.faults(Cut(MIB), Status(500, after=1), path="c")
    done = run(tmp_path, wanted(MODEL), urls)
    assert isinstance(done.error, AllSourcesFailedError)
    assert [failure.reason[:3] for failure in done.error.failures] == ["404", "503", "500"]
    assert (done.error.kind, done.error.kept_bytes) == ("network", MIB)
    assert all(name in str(done.error) for name in urls)


def test_without_any_source_the_error_says_so(tmp_path) -> None:
    done = run(tmp_path, wanted(MODEL), [])
    assert isinstance(done.error, AllSourcesFailedError)
    assert "no source" in str(done.error)


# ---- deadlines


def test_a_slow_but_steady_server_is_never_cut(tmp_path, origin) -> None:
    origin.put("slow", DATA[:60_000])
    origin.faults(Slow(60_000), path="slow")
    file = wanted(Content.of(DATA[:60_000]))
    done = run(tmp_path, file, [origin.url("slow")], slow_rate=20_000, slow_window=0.3, stall_timeout=0.3)
    assert (done.content, done.tries) == (DATA[:60_000], 1)


def test_a_server_below_the_least_rate_is_cut(tmp_path, origin, urls) -> None:
    origin.faults(Slow(5_000), path="a")
    done = run(tmp_path, wanted(MODEL), urls[:2], slow_rate=20_000, slow_window=0.3)
    assert (done.content, done.asked) == (DATA, ["a", "b"])
    assert "bytes/s" in done.facts("source_failed")[0][0]


def test_a_server_that_becomes_too_slow_is_cut(tmp_path, urls) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MODEL.size
    drops = [item for at in range(MIB, MIB + 400) for item in (0.02, DATA[at : at + 1])]
    with Wire([head + DATA[:MIB], *drops]) as wire:
        done = run(tmp_path, wanted(MODEL), [wire.url("slow"), urls[0]], slow_rate=20_000, slow_window=0.3)
    assert (done.content, done.asked) == (DATA, ["slow", "a"])
    assert "bytes/s" in done.facts("source_failed")[0][0]


def test_a_stalled_body_is_resumed_elsewhere(tmp_path, origin, urls) -> None:
    origin.faults(Stall(MIB), path="a")
    done = run(tmp_path, wanted(MODEL), urls[:2], stall_timeout=0.3)
    assert (done.content, ranges(origin, "b")) == (DATA, [f"bytes={MIB}-"])
    assert done.facts("source_failed") == [("no byte for 0.3 s", urls[0])]


@pytest.mark.parametrize("fault", [SilentAccept(), DribbleHeaders(0.05)])
def test_headers_have_one_deadline_also_when_they_dribble(tmp_path, origin, urls, fault) -> None:
    origin.faults(fault, path="a")
    done = run(tmp_path, wanted(MODEL), urls[:2], connect_timeout=0.2, header_timeout=0.3)
    assert (done.content, done.asked) == (DATA, ["a", "b"])
    assert "no complete answer" in done.facts("source_failed")[0][0]


def test_the_time_of_the_headers_is_not_counted_against_the_body(tmp_path, origin) -> None:
    origin.put("late", DATA[:30_000])
    origin.faults(Delay(0.6), Slow(60_000), path="late")
    file = wanted(Content.of(DATA[:30_000]))
    done = run(tmp_path, file, [origin.url("late")], slow_rate=30_000, slow_window=0.4, stall_timeout=0.4)
    assert (done.content, done.tries) == (DATA[:30_000], 1)


# ---- servers and their ranges


def test_a_server_without_ranges_sends_the_whole_and_only_what_is_absent_is_written(tmp_path, origin, urls) -> None:
    origin.faults(IgnoreRange())
    leave(tmp_path, wanted(MODEL), urls[0], (0, DATA[:MIB]))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.content, done.tries, done.received) == (DATA, 1, MODEL.size)


def test_a_server_without_ranges_that_always_cuts_at_the_same_place_comes_to_an_end(tmp_path, origin, urls) -> None:
    origin.faults(IgnoreRange(), Cut(MIB))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.tries, done.left) == (4, MIB)


@pytest.mark.parametrize(
    "fault",
    [
        ContentRange("bytes 7-9/10", only_ranged=True),
        ContentRange(None, only_ranged=True),
        Header("Content-Encoding", "gzip", only_ranged=True),
        Status(416, only_ranged=True),
        Status(416, {"Content-Range": "bytes */99"}, only_ranged=True),
        Status(501, only_ranged=True),
        Status(400, only_ranged=True),
        ETag('"other"', only_ranged=True),
    ],
)
def test_after_an_unusable_answer_to_a_range_one_plain_request_is_made(tmp_path, origin, urls, fault) -> None:
    leave(tmp_path, wanted(MODEL), urls[0], (0, DATA[:MIB]), validator=MODEL.tag)
    origin.faults(Header("If-Range", None), fault)
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert done.content == DATA
    assert len(ranges(origin)) <= 2


def test_a_liar_about_ranges_does_not_cost_the_bytes_that_are_here(tmp_path, origin, urls) -> None:
    """Its 416 says that the file has 99 bytes: it has another file, and the size is known."""
    leave(tmp_path, wanted(MODEL), "before", (0, DATA[: 2 * MIB]))
    origin.faults(Status(416, {"Content-Range": "bytes */99"}, only_ranged=True), path="a")
    origin.faults(Status(404), path="a")
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, ranges(origin, "b")) == (DATA, [f"bytes={2 * MIB}-"])


def test_416_with_as_many_bytes_as_are_here_verifies_them(tmp_path, origin, urls) -> None:
    file = wanted(MODEL, size=False)
    leave(tmp_path, file, urls[0], (0, DATA))
    done = run(tmp_path, file, urls[:1])
    assert (done.content, done.received, ranges(origin)) == (DATA, 0, [f"bytes={MODEL.size}-"])


def test_416_below_what_is_here_begins_anew(tmp_path, origin, urls) -> None:
    file = wanted(MODEL, size=False)
    leave(tmp_path, file, urls[0], (0, DATA + b"more"))
    done = run(tmp_path, file, urls[:1])
    assert (done.content, ranges(origin)) == (DATA, [f"bytes={MODEL.size + 4}-", None])


# ---- bodies


def test_a_body_longer_than_promised_is_not_written(tmp_path, origin, urls) -> None:
    origin.faults(ExtraBytes(1000))
    assert run(tmp_path, wanted(MODEL), urls[:1]).content == DATA


@pytest.mark.parametrize("fault", [Chunked(), NoLength()])
def test_a_body_longer_than_the_size_is_no_file_of_that_size(tmp_path, origin, urls, fault) -> None:
    origin.faults(fault, ExtraBytes(1000))
    done = run(tmp_path, wanted(MODEL, digest=False), urls[:1])
    assert isinstance(done.error, AllSourcesFailedError)
    assert (done.error.exit_code, done.left, done.tries) == (3, 0, 1)


def test_a_body_longer_than_the_size_may_still_be_right_by_its_digest(tmp_path, origin, urls) -> None:
    origin.faults(Chunked(), ExtraBytes(1000))
    assert run(tmp_path, wanted(MODEL), urls[:1]).content == DATA


def test_a_body_shorter_than_promised_is_resumed(tmp_path, origin, urls) -> None:
    origin.faults(Cut(MIB, reset=False, times=1))
    done = run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1])
    assert (done.content, ranges(origin)) == (DATA, [None, f"bytes={MIB}-"])


def test_a_promise_of_another_size_is_refused_before_a_byte_is_written(tmp_path, origin, urls) -> None:
    origin.faults(WrongLength(10), path="a")
    done = run(tmp_path, wanted(MODEL, digest=False), urls[:2])
    assert (done.content, done.asked, done.received) == (DATA, ["a", "b"], MODEL.size)
    alone = run(tmp_path / "alone", wanted(MODEL), urls[:1])
    assert (alone.tries, alone.error.exit_code, alone.received) == (1, 3, 0)


@pytest.mark.parametrize("fault", [Chunked(), NoLength()])
@pytest.mark.parametrize(("digest", "size"), [(True, False), (False, True), (True, True)])
def test_a_body_without_a_length_is_judged_by_size_and_digest(tmp_path, origin, urls, fault, digest, size) -> None:
    origin.faults(fault)
    done = run(tmp_path, wanted(MODEL, digest=digest, size=size), urls[:1])
    assert (done.content, done.tries) == (DATA, 1)


def test_chunks_with_an_end_tell_the_size(tmp_path, origin, urls) -> None:
    origin.faults(Chunked())
    assert run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1]).content == DATA


def test_a_body_whose_end_nothing_tells_is_refused(tmp_path, origin, urls) -> None:
    origin.faults(NoLength())
    done = run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1])
    assert (done.tries, done.received) == (1, 0)
    assert "how long" in str(done.error)


@pytest.mark.parametrize("fault", [Chunked(bad_framing=True, times=1), Chunked(missing_end=True, times=1)])
def test_broken_chunks_are_resumed(tmp_path, origin, urls, fault) -> None:
    origin.faults(fault)
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.content, done.received) == (DATA, MODEL.size)


@pytest.mark.parametrize("digest", [True, False])
def test_an_html_page_is_no_model(tmp_path, origin, digest) -> None:
    with Origin({"a": b"<html>login</html>", "b": MODEL}) as mixed:
        mixed.faults(ContentType("text/html"), path="a")
        done = run(tmp_path, wanted(MODEL, digest=digest, size=False), [mixed.url("a"), mixed.url("b")])
    assert done.content == DATA


@pytest.mark.parametrize("digest", [True, False])
def test_an_empty_body_is_no_model(tmp_path, digest) -> None:
    with Origin({"a": b"", "b": MODEL}) as mixed:
        done = run(tmp_path, wanted(MODEL, digest=digest, size=False), [mixed.url("a"), mixed.url("b")])
    assert done.content == DATA
    assert done.asked == ["a", "b"]


def test_an_empty_file_can_be_right(tmp_path) -> None:
    empty = Content.of(b"")
    with Origin({"e": b""}) as origin:
        assert run(tmp_path / "known", wanted(empty), [origin.url("e")]).content == b""
        assert run(tmp_path / "by-digest", wanted(empty, size=False), [origin.url("e")]).content == b""


def test_too_few_bytes_for_a_listed_size_are_refused(tmp_path, origin, urls) -> None:
    file = ModelFile("m.bin", least_size=MODEL.size + 1)
    done = run(tmp_path, file, urls[:1])
    assert (done.tries, done.error.exit_code) == (1, 3)
    origin.faults(Chunked())
    done = run(tmp_path / "chunked", file, urls[:1])
    assert (done.tries, done.error.exit_code, done.content) == (1, 3, None)


# ---- two versions are never mixed


def test_without_a_digest_a_changed_file_is_begun_anew(tmp_path, origin, urls) -> None:
    origin.faults(Cut(MIB, times=1), ChangedContent(OTHER, after=1))
    done = run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1])
    assert (done.content, len(done.facts("restarted"))) == (OTHER.read(), 1)


def test_without_a_digest_a_file_that_changes_and_shrinks_is_begun_anew(tmp_path, origin, urls) -> None:
    short = Content.generated(MIB // 2, 5)
    origin.faults(Cut(MIB, times=1), ChangedContent(short, after=1))
    assert run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1]).content == short.read()


def test_without_a_digest_a_file_that_changed_since_yesterday_is_begun_anew(tmp_path, origin, urls) -> None:
    file = wanted(MODEL, digest=False, size=False)
    leave(tmp_path, file, urls[0], (0, OTHER.read(0, MIB)), validator=OTHER.tag)
    assert run(tmp_path, file, urls[:1]).content == DATA


def test_without_a_digest_and_a_validator_nothing_is_resumed(tmp_path, origin, urls) -> None:
    origin.faults(*NO_VALIDATOR, Cut(MIB, times=1), ChangedContent(OTHER, after=1), *NO_VALIDATOR)
    done = run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1])
    assert (done.content, ranges(origin)) == (OTHER.read(), [None, None])


def test_without_a_digest_a_server_without_ranges_is_resumed_under_its_validator(tmp_path, origin, urls) -> None:
    origin.faults(IgnoreRange(), Cut(MIB, times=1))
    done = run(tmp_path, wanted(MODEL, digest=False, size=False), urls[:1])
    assert (done.content, done.facts("restarted")) == (DATA, [])


def test_without_a_digest_a_fallback_begins_anew(tmp_path, origin, urls) -> None:
    origin.put("b", OTHER)
    origin.faults(Cut(MIB), Status(404, after=1), path="a")
    done = run(tmp_path, wanted(MODEL, digest=False), urls[:2])
    assert (done.content, ranges(origin, "b")) == (OTHER.read(), [None])


def test_without_a_digest_the_source_of_the_bytes_here_has_its_tries_first(tmp_path, origin, urls) -> None:
    origin.faults(Cut(MIB, times=1), path="a")
    done = run(tmp_path, wanted(MODEL, digest=False), urls[:2])
    assert (done.content, done.asked, done.received) == (DATA, ["a", "a"], MODEL.size)


@pytest.mark.parametrize("faults", [(), NO_VALIDATOR, (IgnoreRange(), *NO_VALIDATOR)])
def test_without_a_digest_mirrors_that_all_cut_come_to_an_end(tmp_path, origin, urls, faults) -> None:
    origin.faults(*faults, CutAt(MIB))
    done = run(tmp_path, wanted(MODEL, digest=False, size=False), urls)
    assert isinstance(done.error, AllSourcesFailedError)
    assert done.tries == 12


def test_without_a_digest_and_by_several_connections_versions_are_not_mixed(tmp_path) -> None:
    changed = Content.generated(BIG.size, 6)
    with Origin({"big": BIG}) as origin:
        origin.faults(ChangedContent(changed, after=3), Slow(200 * MIB))
        done = run(tmp_path, wanted(BIG, digest=False, size=False), [origin.url("big")], connections=3, grow_every=0.05)
    assert done.content in (changed.read(), BIG.read())


def test_with_a_digest_a_changed_file_is_begun_anew_and_proven(tmp_path, origin, urls) -> None:
    origin.faults(ChangedContent(OTHER, times=1), Cut(MIB, times=1))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.content, done.blamed) == (DATA, [])
    assert done.received == MIB + MODEL.size


def test_with_a_digest_a_file_that_changed_to_something_else_is_left_for_a_mirror(tmp_path, origin, urls) -> None:
    origin.faults(Cut(MIB, times=1), ChangedContent(OTHER, after=1), path="a")
    origin.faults(Status(503, times=1), path="b")
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, done.blamed) == (DATA, ["a"])


def test_with_a_digest_replicas_with_validators_of_their_own_come_to_an_end(tmp_path) -> None:
    """One name, and each request another ETag: skipped forward instead of beginning anew for ever."""
    size = MODEL.size
    head = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "%d"\r\n\r\n'
    replies = [head % (size, number) + DATA[: 500_000 + 300_000 * number] for number in range(12)]
    with Wire(*replies) as wire:
        done = run(tmp_path, wanted(MODEL), [wire.url("m")])
    assert done.content == DATA
    assert len(done.facts("restarted")) == 1


def test_a_source_whose_size_changes_each_time_comes_to_an_end(tmp_path) -> None:
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (9_000 + at) + DATA[:1000] for at in range(200)]
    with Wire(*replies) as wire:
        done = run(tmp_path, wanted(MODEL, size=False), [wire.url("m")])
    assert isinstance(done.error, AllSourcesFailedError)
    assert done.tries <= 20


# ---- sizes that a source told


@pytest.mark.parametrize("liar", [Cut(2000, reset=False), Stall(2000)])
def test_a_size_that_a_liar_told_does_not_lock_the_honest_out(tmp_path, origin, urls, liar) -> None:
    """It says 5,000 bytes, sends some, and fails: then those who say otherwise have their turn."""
    origin.put("a", OTHER.read(0, 5000))
    origin.faults(liar, Status(503, after=1), path="a")
    done = run(tmp_path, wanted(MODEL, size=False), urls[:2], stall_timeout=0.3)
    assert (done.content, done.blamed) == (DATA, [])


def test_a_liar_about_the_size_does_not_cost_the_bytes_of_the_honest(tmp_path, origin, urls) -> None:
    origin.put("b", OTHER.read(0, 5000))
    origin.faults(IgnoreRange(), path="b")
    origin.faults(Cut(2 * MIB, times=1), path="a")
    done = run(tmp_path, wanted(MODEL, size=False), urls[:2])
    assert (done.content, done.asked, done.received) == (DATA, ["a", "b", "a"], MODEL.size)


def test_a_liar_about_the_size_uses_up_no_tries_of_the_honest(tmp_path, urls) -> None:
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nx" % size for size in range(5000, 5100)]
    with Wire(*replies) as wire:
        done = run(tmp_path, wanted(MODEL, size=False), [wire.url("liar"), urls[0]])
    assert (done.content, done.blamed) == (DATA, [])


def test_a_part_of_a_file_of_another_size_is_not_written(tmp_path) -> None:
    with Wire(
        b'HTTP/1.1 200 OK\r\nContent-Length: 3000\r\nETag: "1"\r\n\r\n' + DATA[:1000],
        b'HTTP/1.1 206 OK\r\nContent-Length: 4000\r\nETag: "1"\r\nContent-Range: bytes 1000-4999/5000\r\n\r\n'
        + DATA[1000:5000],
        b'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nETag: "1"\r\n\r\n' + OTHER.read(0, 5000),
    ) as wire:
        done = run(tmp_path, wanted(MODEL, digest=False, size=False), [wire.url("m")])
        asked = ["Range:" in head for head in wire.requests]
    assert (done.content, asked) == (OTHER.read(0, 5000), [False, True, False])


def test_a_size_that_a_liar_told_ends_with_its_bytes(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER.read(0, 5000))
    origin.faults(Cut(2000, times=1), path="a")
    done = run(tmp_path, wanted(MODEL, size=False), urls[:2])
    assert (done.content, done.blamed) == (DATA, ["a"])
    assert done.asked == ["a", "b", "a", "b"]


def test_a_size_from_yesterday_is_not_believed_against_its_own_source(tmp_path, origin, urls) -> None:
    file = wanted(MODEL, size=False)
    leave(tmp_path, file, urls[0], (0, OTHER.read(0, 4000)), validator='"old"')
    done = run(tmp_path, file, urls[:1])
    assert done.content == DATA


# ---- liars


def test_pieces_alone_are_proof_enough(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER)
    done = run(tmp_path, wanted(MODEL, digest=False, piece=MIB), urls[:2])
    assert (done.content, done.blamed) == (DATA, ["a"])


def test_a_lying_mirror_is_caught_at_its_first_bad_piece_and_only_that_is_fetched_again(tmp_path, origin, urls) -> None:
    origin.faults(Corrupt(100_000), path="a")
    done = run(tmp_path, wanted(MODEL, piece=64 * KIB), urls[:2])
    assert (done.content, done.blamed) == (DATA, ["a"])
    assert "piece 1 " in done.facts("piece_failed")[0][0]
    assert done.received <= MODEL.size + 640 * KIB  # the piece, and what had arrived with it


def test_one_wrong_piece_of_the_only_source_is_fetched_again_alone(tmp_path, origin, urls) -> None:
    origin.faults(Corrupt(100_000, times=1))
    done = run(tmp_path, wanted(MODEL, piece=64 * KIB), urls[:1])
    assert (done.content, done.blamed) == (DATA, ["a"])
    assert ranges(origin)[1] == "bytes=65536-"


def test_a_piece_that_is_always_wrong_is_fetched_three_times(tmp_path, origin, urls) -> None:
    origin.faults(Corrupt(100_000))
    done = run(tmp_path, wanted(MODEL, piece=64 * KIB), urls[:1])
    assert isinstance(done.error, AllSourcesFailedError)
    assert (done.error.exit_code, done.blamed) == (3, ["a"] * 3)


def test_many_wrong_pieces_of_the_only_source_are_each_fetched_again(tmp_path, origin, urls) -> None:
    """Bad luck with five pieces is no reason to give up a file."""
    origin.faults(*[Corrupt(at, times=1, after=at // 500_000) for at in range(100_000, 2_500_000, 500_000)])
    assert run(tmp_path, wanted(MODEL, piece=64 * KIB), urls[:1]).content == DATA


def test_a_liar_that_cuts_in_the_middle_of_each_piece_does_not_stop_the_honest(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER)
    origin.faults(Cut(MIB + 32 * KIB), path="a")
    done = run(tmp_path, wanted(MODEL, piece=2 * MIB), urls[:2])
    assert done.content == DATA


def test_a_liar_that_cuts_is_doubted_before_a_slow_but_honest_source_is_given_up(tmp_path, origin, urls) -> None:
    content = Content.generated(6 * MIB, 7)
    origin.put("a", Content.generated(6 * MIB, 8))
    origin.put("b", content)
    origin.faults(Cut(MIB + 32 * KIB), path="a")
    origin.faults(Slow(6 * MIB), path="b")
    done = run(tmp_path, wanted(content, piece=2 * MIB), urls[:2])
    assert done.content == content.read()


def test_a_wrong_whole_is_fetched_from_the_next_source(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER)
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, done.asked, done.blamed) == (DATA, ["a", "b"], ["a"])


def test_wrong_bytes_of_several_sources_blame_nobody_and_the_retry_uses_one_alone(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER)
    origin.faults(Cut(MIB), Status(404, after=1), path="a")
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, done.blamed, done.asked) == (DATA, [], ["a", "b", "b"])
    assert ranges(origin, "b") == [f"bytes={MIB}-", None]


def test_a_clean_retry_that_is_cut_is_not_mixed_again(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER)
    origin.faults(Cut(MIB, times=1), path="a")
    origin.faults(Cut(MIB, times=1, after=1), path="b")
    done = run(tmp_path, wanted(MODEL), urls[:2])
    assert (done.content, done.asked) == (DATA, ["a", "b", "b", "b"])


def test_the_same_wrong_bytes_twice_are_not_fetched_a_third_time(tmp_path, origin, urls) -> None:
    origin.put("a", OTHER)
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.tries, done.error.exit_code, done.left) == (2, 3, 0)


def test_the_only_source_has_two_restarts(tmp_path, origin, urls) -> None:
    for number in range(9):
        origin.faults(Corrupt(number, after=number, times=1))
    done = run(tmp_path, wanted(MODEL), urls[:1])
    assert (done.tries, done.error.exit_code) == (3, 3)


def test_the_third_clean_download_may_be_right(tmp_path, origin, urls) -> None:
    origin.faults(Corrupt(1, times=1), Corrupt(2, after=1, times=1))
    assert run(tmp_path, wanted(MODEL), urls[:1]).content == DATA


def test_five_liars_do_not_hide_the_honest(tmp_path) -> None:
    with Origin({str(number): Content.generated(MODEL.size, 10 + number) for number in range(5)}) as origin:
        origin.put("honest", MODEL)
        names = [*"01234", "honest"]
        done = run(tmp_path, wanted(MODEL), [origin.url(name) for name in names])
    assert (done.content, done.asked) == (DATA, names)


@pytest.mark.parametrize("digest", [True, False])
def test_of_two_mirrors_with_different_files_of_one_size_one_is_taken_whole(tmp_path, origin, urls, digest) -> None:
    origin.put("a", OTHER)
    origin.faults(Cut(MIB), Status(404, after=1), path="a")
    done = run(tmp_path, wanted(MODEL, digest=digest), urls[:2])
    assert done.content == DATA


def test_a_digest_that_contradicts_the_pieces_blames_no_source(tmp_path, origin, urls) -> None:
    right = wanted(MODEL, piece=64 * KIB)
    done = run(tmp_path, ModelFile("m.bin", right.size, (Digest("sha256", "0" * 64),), (), right.pieces), urls)
    assert isinstance(done.error, VerificationError)
    assert (done.blamed, done.received) == ([], MODEL.size)
    assert "contradict" in str(done.error)


# ---- several connections

CREW = {"connections": 4, "grow_every": 0.05}


def test_several_connections_fetch_each_byte_once(tmp_path) -> None:
    with Origin({"big": BIG}, faults=[Slow(40 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("big")], **CREW)
        assert origin.connections >= 2
    assert BIG.size <= done.received < BIG.size + 4 * MIB  # what a span that is cut short had under way
    assert done.digests == {"sha256": Digest("sha256", BIG.sha256)}


def test_with_only_a_whole_digest_several_connections_are_of_one_source(tmp_path) -> None:
    with Origin({"a": BIG, "b": BIG}, faults=[Slow(40 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("a"), origin.url("b")], **CREW)
    assert set(done.asked) == {"a"}
    assert len(done.asked) > 2


def test_with_pieces_every_source_works(tmp_path) -> None:
    with Origin({"a": BIG, "b": BIG, "c": BIG}, faults=[Slow(60 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG, piece=MIB), [origin.url(name) for name in "abc"])
    assert (set(done.asked), done.received) == ({"a", "b", "c"}, BIG.size)
    assert done.content == BIG.read()


def test_a_liar_among_several_is_left_and_its_pieces_are_fetched_elsewhere(tmp_path) -> None:
    with Origin({"a": BIG, "b": BIG}, faults=[Slow(60 * MIB)]) as origin:
        origin.faults(Corrupt([at + 5 for at in range(0, BIG.size, MIB)]), path="b")
        done = run(tmp_path, wanted(BIG, piece=MIB), [origin.url("a"), origin.url("b")], **CREW)
    assert (done.content == BIG.read(), set(done.blamed)) == (True, {"b"})


def test_a_liar_is_left_with_all_its_connections(tmp_path) -> None:
    """One lies, and the other would keep us waiting."""
    with Origin({"a": BIG, "b": BIG}) as origin:
        origin.faults(Corrupt([at + 5 for at in range(0, BIG.size, 4 * MIB)]), Hold(BIG.size - 1), path="b")
        origin.faults(Slow(40 * MIB), path="a")
        done = run(tmp_path, wanted(BIG, piece=MIB), [origin.url("a"), origin.url("b")], **CREW)
    assert (done.content == BIG.read(), done.blamed, done.facts("source_failed")) == (True, ["b"], [])


def test_spans_end_where_pieces_end(tmp_path) -> None:
    with Origin({"a": BIG}, faults=[Slow(50 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG, piece=3 * MIB), [origin.url("a")], connections=3, grow_every=0.05)
        ranges = [seen.range or f"bytes=0-{BIG.size - 1}" for seen in origin.requests]
        stops = [int(last) + 1 for last in (each.rpartition("-")[2] for each in ranges) if last]
    assert done.content == BIG.read()
    assert len(stops) >= 3
    assert all(stop % (3 * MIB) == 0 or stop == BIG.size for stop in stops)


def test_a_server_without_ranges_is_not_asked_by_several_connections_for_ever(tmp_path) -> None:
    with Origin({"big": BIG}, faults=[IgnoreRange(), Slow(40 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("big")], **CREW)
    assert done.content == BIG.read()
    assert done.tries <= 8
    assert done.received < 1.5 * BIG.size


def test_no_storm_of_plain_requests_beside_another_ranged_source(tmp_path) -> None:
    with Origin({"a": BIG, "b": BIG}, faults=[Slow(40 * MIB)]) as origin:
        origin.faults(IgnoreRange(), path="a")
        done = run(tmp_path, wanted(BIG), [origin.url("a"), origin.url("b")], **CREW)
    assert done.content == BIG.read()
    assert done.tries <= 12


def test_a_server_that_allows_one_connection_is_not_lost(tmp_path) -> None:
    """503 to every connection but the first: one too many, not a fault of the source."""
    with Origin({"big": BIG}, faults=[Slow(40 * MIB), Status(503, after=1, times=3)]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("big")], **CREW)
    assert done.content == BIG.read()


def test_cuts_on_several_connections_are_resumed(tmp_path) -> None:
    rng = random.Random(1)
    with Origin({"a": BIG, "b": BIG}) as origin:
        origin.faults(*[CutAt(rng.randrange(BIG.size), times=1) for _ in range(12)])
        urls = [origin.url("a"), origin.url("b")]
        done = run(tmp_path, wanted(BIG, piece=MIB), urls, **CREW)
    assert done.content == BIG.read()


def test_a_connection_that_goes_to_sleep_is_overtaken_by_the_others(tmp_path) -> None:
    """Its span is split, and its last bytes are asked for twice; nobody waits for its stall to be a fault."""
    with Origin({"big": BIG}, faults=[Stall(10 * MIB, times=1), Slow(40 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("big")], **CREW, stall_timeout=60)
    assert (done.content == BIG.read(), done.facts("source_failed")) == (True, [])
    assert done.received < BIG.size + 16 * MIB


def test_connections_that_are_all_as_slow_are_not_asked_for_the_same_bytes(tmp_path) -> None:
    content = Content.generated(6 * MIB, seed=3)
    with Origin({"slow": content}, faults=[Slow(MIB)]) as origin:
        done = run(tmp_path, wanted(content), [origin.url("slow")], connections=8, grow_every=0.1)
    assert done.content == content.read()
    assert done.received < content.size + MIB // 4


def test_a_sleeper_is_overtaken_by_another_source_where_pieces_are_known(tmp_path) -> None:
    with Origin({"a": BIG, "b": BIG}, faults=[Slow(40 * MIB)]) as origin:
        origin.faults(Stall(2 * MIB), path="a")
        done = run(tmp_path, wanted(BIG, piece=MIB), [origin.url("a"), origin.url("b")], stall_timeout=60)
    assert (done.content == BIG.read(), done.facts("source_failed")) == (True, [])


@pytest.mark.parametrize("digest", [True, False])
def test_who_sleeps_in_the_middle_of_a_large_last_piece_is_overtaken(tmp_path, digest) -> None:
    """More of the piece is left than is asked for twice: it is brought in parts, and what is here is kept."""
    with Origin({"big": BIG}, faults=[Stall(2 * MIB, times=1), Slow(60 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG, digest=digest, piece=BIG.size), [origin.url("big")], **CREW, stall_timeout=60)
        stops = [seen.range for seen in origin.requests]
    assert (done.content == BIG.read(), done.facts("source_failed"), done.blamed) == (True, [], [])
    assert done.received < BIG.size + 24 * MIB  # two hedges, of the sleeper and of whoever is slow at the end
    assert stops[0] is None


def test_a_wrong_piece_of_a_sleeper_and_a_liar_is_fetched_again(tmp_path) -> None:
    """Nobody can be blamed for it; whoever sends it right in the end is believed."""
    with Origin({"big": BIG}) as origin:
        origin.faults(Stall(2 * MIB, times=1), Corrupt(BIG.size - 1, after=1, times=1), Slow(60 * MIB))
        done = run(tmp_path, wanted(BIG, piece=BIG.size), [origin.url("big")], **CREW, stall_timeout=60)
    assert (done.content == BIG.read(), done.error) == (True, None)
    assert done.received < 2 * BIG.size + 20 * MIB


def test_a_liar_who_is_asked_for_the_last_bytes_is_blamed_and_they_stay_absent(tmp_path) -> None:
    with Origin({"a": BIG, "b": BIG}, faults=[Slow(40 * MIB)]) as origin:
        origin.faults(Stall(2 * MIB, times=1), path="a")
        origin.faults(Corrupt([at + 7 for at in range(0, BIG.size, MIB)]), path="b")
        done = run(tmp_path, wanted(BIG, piece=MIB), [origin.url("a"), origin.url("b")], stall_timeout=1)
    assert (done.content == BIG.read(), set(done.blamed)) == (True, {"b"})


def test_a_pause_is_seen_while_the_end_is_far_ahead_of_the_proof(tmp_path) -> None:
    """The end of a slow span comes a second time, further ahead than the window; its first bytes only dribble."""
    file = wanted(MODEL)
    partial = Partial.open(str(tmp_path), "key", file, window=MIB)
    try:
        partial.writer(Span(0, MIB), "front")  # will never come
        shadow = Shadow(Span(2 * MIB, 3 * MIB))
        shadow.write(DATA[2 * MIB :])
        copying = threading.Thread(target=shadow.copy_to, args=(partial, "a"), daemon=True)
        copying.start()
        copying.join(60)
        assert not copying.is_alive()
        assert partial.written_bytes == MIB
    finally:
        partial.close()


def test_one_connection_means_one(tmp_path) -> None:
    with Origin({"big": BIG}, faults=[Slow(60 * MIB)]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("big")], connections=1, grow_every=0.05)
        assert origin.connections == 1
    assert (done.tries, done.received) == (1, BIG.size)


@pytest.mark.parametrize("faults", [(Header("Accept-Ranges", None),), (Header("Accept-Ranges", "none"),)])
def test_a_server_that_does_not_say_that_it_serves_ranges_is_not_tried(tmp_path, faults) -> None:
    with Origin({"big": BIG}, faults=[Slow(60 * MIB), *faults]) as origin:
        done = run(tmp_path, wanted(BIG), [origin.url("big")], **CREW)
    assert (done.tries, done.received) == (1, BIG.size)


def test_a_rate_limit_holds_for_all_connections_and_is_no_stall(tmp_path) -> None:
    began = time.monotonic()
    with Origin({"a": MODEL, "b": MODEL}) as origin:
        urls = [origin.url("a"), origin.url("b")]
        throttle = Throttle(2 * MIB)
        done = run(tmp_path, wanted(MODEL, piece=64 * KIB), urls, throttle=throttle, stall_timeout=0.2)
    assert (done.content == DATA, done.facts("source_failed")) == (True, [])
    assert time.monotonic() - began > MODEL.size / (2 * MIB) - 0.5


# ---- the disk


def test_a_disk_that_refuses_stops_everything(tmp_path, origin, urls) -> None:
    class Full:
        """A source whose bytes cannot be written."""

        name, kind = "full", "http"

        def traits(self, file):
            return Traits()

        def open(self, request):
            raise StoreError("the disk is full")

        def close(self):
            pass

    done = run(tmp_path, wanted(MODEL), [Full(), *urls])
    assert isinstance(done.error, StoreError)
    assert (done.tries, origin.requests) == (1, [])
