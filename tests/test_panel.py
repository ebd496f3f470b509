"""What a panel says, from events made by hand: rows, sums, speeds, words. Real kernels are in test_panel_kernel.py."""

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from modelcache.download import End
from modelcache.errors import AllSourcesFailedError, CancelledError, PausedError, SourceFailure, StoreError
from modelcache.events import Fact, Progress
from modelcache.outcome import File, Model
from modelcache.progress import drawn
from modelcache.progress.board import MOST_ROWS, Board, View
from modelcache.progress.drawn import Line
from modelcache.progress.endings import ending, read
from modelcache.progress.panel import Panel
from modelcache.progress.surfaces import Bundle, Output
from modelcache.states import State

MIB = 1 << 20
HOST = "http://127.0.0.1:8000"


def sample(file: str, here: int = 0, total: int = 0, **fields: Any) -> dict[str, Any]:
    given = {"status": "downloading", "timestamp": 1, "source": "http", "gateway": f"{HOST}/m/{file}"} | fields
    return Progress(given.pop("model", "m"), file=file, bytes_downloaded=here, total_bytes=total, **given).to_wire()


def seen(board: Board, *events: dict[str, Any]) -> View:
    for event in events:
        board.hear(event)
    return board.view()


# -- rows -------------------------------------------------------------------------------------------------------------


def test_files_that_nothing_was_told_of_wait_in_the_order_of_the_model() -> None:
    view = seen(Board({"a": 5, "b": 7, "c": 9}), sample("b", 3, 7, total_files=3))
    assert [(row.name, row.state, row.percent) for row in view.rows] == [
        ("a", "waiting", ""), ("b", "downloading", "42 %"), ("c", "waiting", ""),
    ]  # fmt: skip
    assert (view.whole.here, view.whole.size, view.files) == (3, 21, 3)


def test_of_many_files_those_that_run_or_failed_come_first_and_the_rest_is_counted() -> None:
    board = Board({f"f{n:03}": MIB for n in range(200)})
    for n in range(180):
        board.hear(sample(f"f{n:03}", MIB, MIB, status="success", completed_files=n + 1, total_files=200))
    view = seen(
        board,
        sample("f190", 5, MIB, completed_files=180, total_files=200),
        sample("f195", 5, MIB, status="error", completed_files=180, total_files=200),
    )
    assert len(view.rows) == MOST_ROWS
    assert [row.name for row in view.rows][:3] == ["f190", "f195", "f180"]
    assert "and 188 more: 180 done" in drawn.files(view)


def test_a_look_costs_by_what_has_moved_and_not_by_how_many_files_there_are() -> None:
    def cost(count: int) -> int:
        board = Board({f"f{n}": 5 for n in range(count)})
        for n in range(count - 20):
            board.hear(sample(f"f{n}", 5, 5, status="success", completed_files=n + 1, total_files=count))
        board.view()
        board.hear(sample("f90", 3, 5, completed_files=count - 20, total_files=count))
        return steps(board.view)

    assert cost(5_000) <= cost(100) + 100


def steps(work: Callable[[], object]) -> int:
    """Lines that were run."""
    count, before = 0, sys.gettrace()

    def trace(*_: object) -> Callable[..., object]:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_a_file_that_stops_and_goes_on_has_one_row_at_its_place() -> None:
    board = Board({f"f{n:02}": 5 for n in range(30)})
    for _ in range(3):
        seen(board, sample("f20", 2, 5, total_files=30))
        seen(board, sample("f20", 2, 5, status="paused", total_files=30))
        stopped = seen(board, sample("f25", 2, 5, total_files=30))
        on = seen(board, Fact("started", "m", "fetching m").to_wire())
    assert [(row.name, row.state) for row in stopped.rows[:3]] == [
        ("f20", "paused"), ("f25", "downloading"), ("f00", "waiting"),
    ]  # fmt: skip
    names = [row.name for row in on.rows]
    assert names == ["f25", *(f"f{n:02}" for n in range(MOST_ROWS - 1))]
    assert (on.whole.here, on.whole.size, on.whole.state) == (4, 150, "downloading")


def test_rows_of_a_few_files_never_change_places() -> None:
    board = Board({"a": 5, "b": 7})
    seen(board, sample("b", 7, 7, status="success", total_files=2))
    assert [row.name for row in seen(board, sample("a", 1, 5, status="error", total_files=2)).rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (sample("a", 0, 9, status="attempting"), "waiting"), (sample("a", 3, 9), "downloading"),
        (sample("a", 9, 9), "verifying"), (sample("a", 3, 9, source="cache"), "verifying"),
        (sample("a", 9, 9, status="success"), "done"), (sample("a", 3, 9, status="paused"), "paused"),
        (sample("a", 3, 9, status="error"), "failed"), (sample("a", 0, 0, status="success"), "done"),
    ],
)  # fmt: skip
def test_a_row_says_its_state(event: dict[str, Any], state: str) -> None:
    (row,) = seen(Board({"a": 9}), event).rows
    assert row.state == state
    assert f'<tr class="file" data-state="{state}">' in drawn.files(seen(Board({"a": 9}), event))


def test_files_of_several_models_are_told_apart() -> None:
    view = seen(Board(None), sample("a", 1, 9, model="m", total_files=1), sample("a", 2, 9, model="n", total_files=2))
    assert [row.name for row in view.rows] == ["m/a", "n/a"]
    assert view.files == 3


def test_what_went_wrong_is_noted_until_bytes_are_asked_for_again() -> None:
    board = Board({"a": 9})
    failed = Fact("source_failed", "m", "503: it is down", "a", f"{HOST}/a?token=secret").to_wire()
    assert seen(board, failed).note == "a: 127.0.0.1:8000: 503: it is down"
    assert seen(board, Fact("source_tried", "m", "asking", "a").to_wire()).note == ""


# -- speed ------------------------------------------------------------------------------------------------------------


def moved(board: Board, *steps: tuple[int, int]) -> View:
    """Each step: seconds, MiB."""
    view = board.view()
    for at_s, here in steps:
        view = seen(board, sample("a", here * MIB, 100 * MIB, timestamp=1 + 1000 * at_s, total_files=1))
    return view


def test_speed_is_that_of_the_last_five_seconds() -> None:
    (row,) = moved(Board({"a": 100 * MIB}), *((second, 10 * min(second, 5) + second) for second in range(11))).rows
    assert (row.amount, row.speed, row.left) == ("60.0/100.0 MiB", "1.0 MiB/s", "0:40 left")


def test_a_stall_has_no_speed() -> None:
    (row,) = moved(Board({"a": 100 * MIB}), (0, 0), (1, 10), (7, 10), (12, 10)).rows
    assert (row.speed, row.left) == ("", "")


def test_bytes_that_were_here_are_no_speed() -> None:
    board = Board({"a": 100 * MIB})
    board.hear(Fact("resumed", "m", "50 MiB are here already", "a").to_wire())
    view = moved(board, (0, 50), (1, 51), (2, 52))
    assert view.rows[0].speed == view.whole.speed == "1.0 MiB/s"


def test_bytes_that_somebody_else_had_brought_meanwhile_are_no_speed() -> None:
    board = Board({"a": 100 * MIB})
    moved(board, (0, 9), (1, 10))
    board.hear(Fact("resumed", "m", "50 MiB are here already", "a").to_wire())
    view = moved(board, (2, 51), (3, 52))
    assert view.rows[0].speed == view.whole.speed == "682.7 KiB/s"  # 2 MiB in 3 s


def test_what_goes_on_does_not_fall_back_to_zero_before_it_has_looked() -> None:
    board = Board({"a": 9 * MIB})
    seen(board, sample("a", 3 * MIB, 9 * MIB, status="paused"))
    view = seen(board, Fact("started", "m", "fetching m").to_wire(), sample("a", 0, 9 * MIB, status="attempting"))
    assert (view.rows[0].state, view.rows[0].here) == ("waiting", 3 * MIB)


def test_without_a_size_there_is_no_percent_and_the_bar_has_no_value() -> None:
    view = seen(Board({"a": None}), sample("a", 3 * MIB))
    assert view.rows[0].percent == ""
    assert '<progress data-state="downloading" aria-label="a"></progress>' in drawn.files(view)


# -- mark-up ----------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202e.bin"


def test_no_name_becomes_mark_up() -> None:
    view = seen(Board({HOSTILE: 9}), sample(HOSTILE, 3, 9, gateway="http://<b>/", total_files=1))
    line = Line(HOSTILE, HOSTILE, "failed", (HOSTILE,))
    for page in (drawn.files(view), drawn.status(line), drawn.summary(line)):
        assert "<img" not in page
        assert "\u202e" not in page
        assert not re.search(r"=\"[^\"]*<", page)


def test_a_long_name_loses_its_middle_and_has_all_of_it_as_a_title() -> None:
    name = f"model-{'x' * 80}-00001-of-00002.safetensors"
    page = drawn.files(seen(Board({name: 9}), sample(name, 3, 9)))
    assert f'title="{name}"' in page
    assert re.search(r">model-x+…[\w.-]+\.safetensors<", page)


def test_each_bar_has_a_name_for_who_cannot_see_it_and_only_one_line_is_read_aloud() -> None:
    view = seen(Board({"a": 9, "b": 9}), sample("a", 3, 9, total_files=2))
    assert drawn.files(view).count("<progress ") == drawn.files(view).count("aria-label=") == 3
    assert "role=" not in drawn.files(view)
    assert drawn.status(Line("m", "Downloading files…", "running")).count('role="status" aria-live="polite"') == 1


def test_a_name_without_end_does_not_fill_the_page_again_and_again() -> None:
    name = "m" * 100_000
    view = seen(Board({name: 9}), sample(name, 3, 9))
    assert 'aria-label="mmm' in drawn.files(view) and len(drawn.files(view)) < 4_000


# -- the end ----------------------------------------------------------------------------------------------------------

FAR = Progress("m", "paused", bytes_downloaded=3 * MIB, total_bytes=6 * MIB)


def end_of(error: BaseException, how_on: str = "run the cell again") -> Line:
    return ending("m", End(State.PAUSED, None, error), FAR, (), 1.0, how_on)


def test_a_pause_says_what_is_kept_and_how_to_go_on() -> None:
    assert end_of(PausedError("m was paused")).words == "paused; 3.0 of 6.0 MiB kept; run the cell again to go on"
    assert end_of(PausedError("m was paused"), "").words == "paused; 3.0 of 6.0 MiB kept"


def test_a_failure_says_in_one_sentence_what_happened_then_what_to_do() -> None:
    failure = SourceFailure(f"{HOST}/m", "503: it is overloaded", "network")
    line = end_of(AllSourcesFailedError("m", (failure,)))
    assert line.words == f"could not be fetched ({HOST}/m: 503: it is overloaded); 3.0 of 6.0 MiB kept"
    assert line.more == ("check the network, or name another mirror, then run the cell again to go on",)
    assert line.phase == "failed"


def test_a_full_disk_is_a_failure_and_a_cancel_is_none() -> None:
    assert end_of(StoreError("the disk is full")).phase == "failed"
    assert end_of(CancelledError("m was cancelled")).phase == "cancelled"


def test_a_foreign_error_is_told_by_its_kind_alone() -> None:
    line = end_of(RuntimeError("https://host/?token=secret"))
    assert line.words == "a bug in modelcache: RuntimeError; 3.0 of 6.0 MiB kept"


def test_where_most_was_here_the_end_says_how_much_of_it_was_fetched() -> None:
    file = File("/c/a", "a", 48 * MIB, "", "fetched", "sha256", "http", MIB)
    line = ending("m", End(State.READY, file, None), FAR, (), 0.4, "")
    assert line.words == "1 file, 1.0 of 48.0 MiB fetched in 0.4 s (2.5 MiB/s)"


def test_of_several_that_went_wrong_the_end_names_the_first_and_counts_the_rest() -> None:
    line = read("Queue", Board(None).view(), 1.0, ["a: 404", "b: 404", "c: 404"])
    assert (line.phase, line.words) == ("failed", "0 files, 0 B in 1.0 s; 3 not right")
    assert line.more == ("a: 404, and 2 more",)
    assert read("Queue", Board(None).view(), 1.0).phase == "done"


def test_success_says_how_much_how_fast_from_where_and_verified_by_what() -> None:
    files = tuple(
        File(f"/c/{name}", name, 3 * MIB, "", "fetched", verified, "http", 3 * MIB)
        for name, verified in (("a", "sha256"), ("b", "blake3"))
    )
    model = Model("m", "m", "1", "/c", files)
    line = ending("m", End(State.READY, model, None), FAR, ("one", "two"), 2.0, "")
    assert drawn.plain(line) == (
        "✓ m: 2 files, 6.0 MiB in 2.0 s (3.0 MiB/s) from one, two\n  verified by blake3, sha256 · /c"
    )


def test_a_front_end_that_refuses_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[Any] = []

    def refuse(output: Output, bundle: Bundle) -> None:
        refused.append(bundle)
        raise OSError

    monkeypatch.setattr(Output, "put", refuse)
    panel = Panel("m", {}, "html", waits=True)
    panel.appear("m")
    panel.end(Line("m", "", "done"))
    assert len(refused) == 2
    assert [record.name for record in caplog.records] == ["modelcache.progress.panel"]


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["sha256", "git-sha1"], "verified by git-sha1, sha256"),
        (["sha256", "unverified"], "nothing vouched for 1 of 2 files"),
        (["unverified", "unverified"], "nothing vouched for it"),
    ],
)
def test_a_summary_says_of_how_many_files_nothing_vouched(kinds: list[str], words: str) -> None:
    files = tuple(File(f"/m/{name}", name, 5, "00", "fetched", kind) for name, kind in zip("ab", kinds, strict=True))
    line = ending("m", End(State.READY, Model("m", "m", "1", "/m", files), None), FAR, (), 1.0, "")
    assert line.more == (f"{words} · /m",)
