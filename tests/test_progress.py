"""What people see: lines on a stream with a clock of our own, bars on a real terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from modelcache.errors import UsageError
from modelcache.events import Fact, Progress
from modelcache.progress.lines import LINE_EVERY_S, Lines
from modelcache.progress.show import subscriber_for
from modelcache.units import in_units

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
PIECE_FAILED = Fact("piece_failed", "m", "piece 3 is wrong", "a.bin", "http://127.0.0.1:8000/m/a.bin").to_wire()


def sample(file: str = "a.bin", here: int = 0, total: int = 0, **fields: Any) -> dict[str, Any]:
    given = {"status": "downloading", "completed_files": 0, "total_files": 1, "timestamp": 0} | fields
    return Progress("m", file=file, bytes_downloaded=here, total_bytes=total, **given).to_wire()


# -- lines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_fact_is_a_line_at_once_and_names_the_host_alone(clock: Clock) -> None:
    stream = io.StringIO()
    Lines(stream, clock)(PIECE_FAILED)
    assert stream.getvalue() == "a.bin: 127.0.0.1:8000: piece 3 is wrong\n"


def test_without_facts_there_are_lines_of_bytes_alone(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock, facts=False)
    lines(PIECE_FAILED)
    assert stream.getvalue() == ""


def test_a_fact_does_not_name_its_file_twice(clock: Clock) -> None:
    stream = io.StringIO()
    Lines(stream, clock)(Fact("repaired", "m", "a.bin is repaired", "a.bin", "http://h/a.bin").to_wire())
    assert stream.getvalue() == "a.bin is repaired\n"


def test_what_only_programs_need_is_no_line(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock)
    for kind in ("started", "source_tried", "verifying", "installed", "completed"):
        lines(Fact(kind, "m", "text", "a.bin").to_wire())  # type: ignore[arg-type]
    lines({"type": "download_complete", "downloadId": "1", "filepath": "/f"})
    assert stream.getvalue() == ""


def test_while_bytes_move_there_is_a_line_every_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock)
    for second in range(35):
        clock.now = float(second)
        lines(sample(here=second * MIB, total=100 * MIB, speed=MIB))
    assert stream.getvalue().splitlines() == [
        "a.bin: 10.0/100.0 MiB (10 %), 1.0 MiB/s, 1:30 left",
        "a.bin: 20.0/100.0 MiB (20 %), 1.0 MiB/s, 1:20 left",
        "a.bin: 30.0/100.0 MiB (30 %), 1.0 MiB/s, 1:10 left",
    ]


def test_a_model_of_several_files_is_told_as_a_whole(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock, {"a.bin": 40 * MIB, "b.bin": 60 * MIB, "c.bin": 100 * MIB})
    lines(sample("a.bin", 40 * MIB, 40 * MIB, total_files=3, completed_files=1))
    clock.now = LINE_EVERY_S
    lines(sample("b.bin", 10 * MIB, 60 * MIB, total_files=3, completed_files=1, speed=5 * MIB))
    assert stream.getvalue() == "m: 1 of 3 files, 50.0/200.0 MiB (25 %), 5.0 MiB/s, 0:30 left\n"


def test_what_is_not_known_is_not_told(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock, {"a.bin": None})
    clock.now = LINE_EVERY_S
    lines(sample(here=3 * MIB, speed=MIB))
    assert stream.getvalue() == "a.bin: 3.0 MiB, 1.0 MiB/s\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (MIB - 1, "1.0 MiB"), (30_203_309, "28.8 MiB"),
        (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB"),
    ],
)  # fmt: skip
def test_bytes_are_written_in_units_of_people(size: int, text: str) -> None:
    assert in_units(size) == text


# -- which of them


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "mode", "is_terminal", "shown"),
    [
        (None, "auto", True, "bars"), (None, "auto", False, ""), (None, "text", True, "lines"),
        (True, "auto", True, "bars"), (True, "text", False, "lines"), (True, "text", True, "lines"),
        (True, "off", True, ""), (False, "auto", True, ""), (False, "text", True, ""),
    ],
)  # fmt: skip
def test_bars_or_lines_or_nothing(
    progress: bool | None, mode: str, is_terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("MODELCACHE_PROGRESS", mode)
    monkeypatch.setenv("TERM", "xterm")
    show = subscriber_for(progress, "m")
    for event in (PIECE_FAILED, sample(here=1, total=2), sample("", 2, 2, done=True)) if show else ():
        show(event)
    assert ("bars" if "50%" in stream.getvalue() else "lines" if stream.getvalue() else "") == shown


def test_where_no_terminal_is_lines_are_of_bytes_unless_facts_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for facts in (False, True):
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        show = subscriber_for(True, "m", facts=facts)
        assert show is not None
        show(PIECE_FAILED)
        assert bool(stream.getvalue()) is facts


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    show = subscriber_for(True, "m")
    assert show
    show(sample(here=1, total=2))
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_without_a_stderr_there_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert subscriber_for(True, "m") is None


def test_a_function_gets_the_events_of_its_model_alone() -> None:
    seen: list[dict[str, Any]] = []
    show = subscriber_for(seen.append, "m")
    assert show
    other = {**sample(), "modelId": "other"}
    for event in (PIECE_FAILED, other, {"type": "download_complete", "downloadId": "1", "filepath": "/f"}):
        show(event)
    assert [event["type"] for event in seen] == ["piece_failed", "download_complete"]


def test_an_unknown_mode_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_PROGRESS", "loud")
    with pytest.raises(UsageError, match="MODELCACHE_PROGRESS = 'loud': one of auto, widget, html, text, off"):
        subscriber_for(True, "m")


# -- bars

DRAW = """
import json, os, sys
from modelcache.progress.bars import Bars
sizes, events = json.loads(sys.argv[1])
bars = Bars(sizes)
for event in events:
    sys.stderr.write(event) if event == "^C" else bars(event)
sys.stderr.flush()
os._exit(0)
"""


def drawn(events: Sequence[dict[str, Any] | str], sizes: dict[str, int | None], columns: int = 90) -> list[str]:
    """The screen of a terminal after these events, as a person sees it. "^C" is what it writes itself for that key."""
    import json

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", DRAW, json.dumps([sizes, events])], cwd=ROOT, stderr=theirs, stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    os.close(theirs)
    raw = b""
    try:
        while chunk := os.read(ours, 65536):
            raw += chunk
    except OSError:
        pass  # the other side is closed
    os.close(ours)
    assert child.wait() == 0
    return screen(raw.decode(), columns)


def screen(text: str, columns: int) -> list[str]:
    """What a terminal shows: carriage return, line feed, cursor up, and characters are all that bars use."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for token in re.findall(r"\x1b\[A|\x1b\[\d*\w|.|\n|\r", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif token == "\x1b[A":
            row -= 1
        else:
            assert len(token) == 1, f"unknown control {token!r}"
            if column == columns:
                row, column = row + 1, 0
                lines += [[] for _ in range(row + 1 - len(lines))]
            lines[row] += " " * (column + 1 - len(lines[row]))
            lines[row][column] = token
            column += 1
    shown = ["".join(line).rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def brief(lines: list[str]) -> list[str]:
    """Without the bar itself."""
    return [re.sub(r" +", " ", re.sub(r"\|.*\|", " ", line)) for line in lines]


DONE = sample("", 10 * MIB, 10 * MIB, status="completed", done=True)


def test_one_file_has_one_bar_that_ends_at_its_end() -> None:
    events = [
        sample(here=at * MIB, total=10 * MIB, gateway="http://h:1/a.bin", timestamp=1000 + 500 * at) for at in range(10)
    ]
    assert brief(drawn(events, {"a.bin": 10 * MIB})) == ["a.bin: 90% 9.0/10.0 MiB 2.0 MiB/s 0:00 left h:1"]
    events += [sample(here=10 * MIB, total=10 * MIB, status="success", timestamp=11_000), DONE]
    assert brief(drawn(events, {"a.bin": 10 * MIB})) == ["a.bin: 100% 10.0/10.0 MiB 1.0 MiB/s done"]


def test_a_file_of_unknown_size_shows_what_is_here() -> None:
    events = [sample(here=at * MIB, timestamp=1000 * at + 1) for at in range(3)]
    assert brief(drawn(events, {"a.bin": None})) == ["a.bin: 2.0 MiB 1.0 MiB/s"]


def test_facts_stand_above_the_bar() -> None:
    lines = drawn([sample(here=MIB, total=4 * MIB), PIECE_FAILED, sample(here=2 * MIB, total=4 * MIB)], {"a.bin": None})
    assert brief(lines) == ["a.bin: 127.0.0.1:8000: piece 3 is wrong", "a.bin: 50% 2.0/4.0 MiB"]


def test_a_file_that_is_all_here_is_being_verified_and_one_that_stopped_failed() -> None:
    here = sample(here=4 * MIB, total=4 * MIB, gateway="http://h/a")
    assert brief(drawn([here], {"a.bin": 4 * MIB})) == ["a.bin: 100% 4.0/4.0 MiB verifying"]
    some = sample(here=MIB, total=4 * MIB, gateway="http://h/a")
    for status, end in (("error", "failed"), ("paused", "paused")):
        last = sample("", MIB, 4 * MIB, status=status, done=True)
        assert brief(drawn([some, last], {"a.bin": 4 * MIB})) == [f"a.bin: 25% 1.0/4.0 MiB {end}"]


def test_a_file_that_was_read_and_is_wrong_is_a_line_and_its_repair_has_a_bar_anew() -> None:
    read = sample(here=MIB, total=4 * MIB, source="cache")
    assert brief(drawn([read], {"a.bin": 4 * MIB})) == ["a.bin: 25% 1.0/4.0 MiB verifying"]
    wrong = sample(here=4 * MIB, total=4 * MIB, source="cache", status="error", error="corrupt: it differs")
    mended = sample(here=3 * MIB, total=4 * MIB, source="http", gateway="http://h/a")
    assert brief(drawn([read, wrong, mended], {"a.bin": 4 * MIB})) == [
        "a.bin: 100% 4.0/4.0 MiB wrong", "a.bin: 75% 3.0/4.0 MiB h",
    ]  # fmt: skip


SIZES: dict[str, int | None] = {"a.bin": 4 * MIB, "b.bin": 8 * MIB, "c.json": MIB, "long/name.bin": 3 * MIB}


def of_four(file: str, here: int, done: int, **fields: Any) -> dict[str, Any]:
    return sample(file, here * MIB, SIZES[file] or 0, total_files=4, completed_files=done, **fields)


def test_a_model_has_a_bar_per_file_at_work_and_one_for_the_whole() -> None:
    """The files that are done stand above; between the bars there is no gap where one was; what was here has none."""
    events = [
        of_four("c.json", 1, 1, status="success"),
        of_four("a.bin", 1, 1), of_four("b.bin", 2, 1), of_four("long/name.bin", 0, 1),
        of_four("a.bin", 4, 2, status="success"), of_four("b.bin", 4, 2), of_four("long/name.bin", 1, 2),
    ]  # fmt: skip
    assert brief(drawn(events, SIZES)) == [
        "a.bin : 100% 4.0/4.0 MiB done",
        "all 4 files : 62% 10.0/16.0 MiB 2 done",
        "b.bin : 50% 4.0/8.0 MiB",
        "long/name.bin: 33% 1.0/3.0 MiB",
    ]
    events += [
        of_four("b.bin", 8, 3, status="success"), of_four("long/name.bin", 3, 4, status="success"),
        sample("", 16 * MIB, 16 * MIB, status="completed", done=True, completed_files=4, total_files=4),
    ]  # fmt: skip
    assert brief(drawn(events, SIZES)) == [
        "a.bin : 100% 4.0/4.0 MiB done",
        "b.bin : 100% 8.0/8.0 MiB done",
        "long/name.bin: 100% 3.0/3.0 MiB done",
        "all 4 files : 100% 16.0/16.0 MiB done",
    ]


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_what_a_terminal_writes_for_ctrl_c_stays_on_no_screen(columns: int) -> None:
    begun = [of_four("a.bin", 1, 0), of_four("b.bin", 1, 0)]
    for events in (begun[:1], begun):
        ended = [*(event | {"status": "paused"} for event in events), sample("", MIB, status="paused", done=True)]
        assert drawn([*events, "^C", *ended], SIZES, columns) == drawn([*events, *ended], SIZES, columns)


def test_a_bar_keeps_its_length_while_numbers_grow() -> None:
    def ends(here: int, at: int) -> list[int]:
        begin = sample(total=1000 * MIB)
        line = drawn([begin, sample(here=here, total=1000 * MIB, timestamp=at)], {"a.bin": None})[0]
        return [column for column, letter in enumerate(line) if letter == "|"]

    assert ends(0, 0) == ends(5 * MIB, 1000) == ends(999 * MIB, 2000)


LONG = "onnx/model-00001-of-00002-quantized.safetensors"


@pytest.mark.parametrize("columns", [20, 30, 40, 50, 60, 80, 120, 200])
def test_bars_fit_the_terminal_and_stand_in_columns(columns: int) -> None:
    sizes: dict[str, int | None] = {LONG: 1000 * MIB, "a.json": 900 * MIB}
    events = [
        sample(file, here * MIB, 1000 * MIB, gateway="http://cdn.huggingface.co/x", timestamp=1 + 1000 * at,
               total_files=2)
        for at, here in enumerate((1, 998, 999)) for file in sizes
    ]  # fmt: skip
    lines = drawn(events, sizes, columns)
    assert len(lines) == 3 and max(map(len, lines)) < columns
    assert len({line.index("|") for line in lines}) <= 1 or columns < 30
    assert len({line.rindex("|") for line in lines if "|" in line}) <= 1
    for width, word in ((30, "%"), (40, "999.0/1000.0 MiB"), (60, "/s"), (80, "left"), (120, "cdn.huggingface.co")):
        assert columns < width or word in lines[1]


@pytest.mark.parametrize(("columns", "shown"), [(120, True), (80, True), (60, True), (40, False)])
def test_how_a_file_ended_is_shown_where_a_host_has_no_room(columns: int, shown: bool) -> None:
    first = sample(LONG, MIB, 4 * MIB, gateway="http://h/a")
    last = sample("", MIB, 4 * MIB, status="error", done=True)
    (line,) = drawn([first, last], {LONG: 4 * MIB}, columns)
    assert ("failed" in line, len(line) < columns) == (shown, True)


def test_what_was_here_before_is_no_speed() -> None:
    events = [of_four("b.bin", 7, 0), of_four("a.bin", 2, 0, timestamp=500), of_four("a.bin", 4, 0, timestamp=2000)]
    assert brief(drawn(events, SIZES)) == [
        "all 4 files : 69% 11.0/16.0 MiB 1.0 MiB/s 0:05 left 0 done",
        "b.bin : 88% 7.0/8.0 MiB",
        "a.bin : 100% 4.0/4.0 MiB 1.3 MiB/s 0:00 left verifying",
    ]


def test_what_an_earlier_run_left_is_no_speed_either() -> None:
    """The first sample comes before the partial is opened: a resume shows what was here in the next one."""
    resumed = {**PIECE_FAILED, "type": "resumed", "message": "8 MiB are here already", "gateway": ""}
    events = [
        sample(total=16 * MIB), resumed, sample(here=8 * MIB, total=16 * MIB, timestamp=500),
        sample(here=10 * MIB, total=16 * MIB, timestamp=2000),
    ]  # fmt: skip
    assert brief(drawn(events, {"a.bin": 16 * MIB}))[-1] == "a.bin: 62% 10.0/16.0 MiB 1.0 MiB/s 0:06 left"


def test_a_stall_is_no_speed_and_wrong_bytes_that_go_are_none_either() -> None:
    moving = [sample(here=at * MIB, total=100 * MIB, timestamp=1 + 1000 * at) for at in range(4)]
    assert "1.0 MiB/s 1:37 left" in drawn(moving, {})[0]
    stalled = [sample(here=3 * MIB, total=100 * MIB, timestamp=4001 + 1000 * at) for at in range(6)]
    assert "/s" not in drawn(moving + stalled, {})[0]
    again = [sample(here=0, total=100 * MIB, timestamp=4001), sample(here=MIB, total=100 * MIB, timestamp=5001)]
    assert "1.0 MiB/s 1:39 left" in drawn(moving + again, {})[0]
