"""Tables that people read: units, local time, short digests, and as wide as the terminal is."""

import time
from pathlib import Path

import pytest

from modelcache.rows import Report
from modelcache.units import as_clock, moment, short

SHA = "0123456789abcdef" * 4
MODELS = Report(
    "installed models",
    (
        {"model": "url--model.gguf--1c2d3e4f", "version": "0a1b2c3d4e5f", "files": 1, "size": 5 << 30,
         "status": "ready", "ref": "https://host/a/long/way/to/model.gguf"},
        {"model": "m", "version": "1", "files": 13, "size": 712, "status": "error", "ref": "m"},
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_a_table_has_columns_in_units_of_people() -> None:
    assert str(MODELS).splitlines() == [
        "installed models",
        "model                      version       files     size  status  ref",
        "url--model.gguf--1c2d3e4f  0a1b2c3d4e5f      1  5.0 GiB  ready   https://host/a/long/way/to/model.gguf",
        "m                          1                13    712 B  error   m",
    ]


def test_what_does_not_fit_stands_below_its_row_and_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert str(MODELS).splitlines() == [
        "installed models",
        "model                      version       files     size  status",
        "url--model.gguf--1c2d3e4f  0a1b2c3d4e5f      1  5.0 GiB  ready",
        "  https://host/a/long/way/to/model.gguf",
        "m                          1                13    712 B  error",
        "  m",
    ]
    monkeypatch.setenv("COLUMNS", "20")
    assert str(MODELS).splitlines()[2:4] == [
        "url--model.gguf--1c2d3e4f", "  0a1b2c3d4e5f  files 1  size 5.0 GiB  ready  https://host/a/long/way/to/model.gguf",
    ]  # fmt: skip


def test_digests_and_dates_are_short_for_people_and_whole_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"file": "onnx/a-rather-long-name.onnx", "size": -1, "sha256": SHA, "verified_at": 1_750_000_000_000,
           "bytes_fetched": 2048, "repaired": True, "reason": None, "path": "/p"}  # fmt: skip
    report = Report("m", (row, row | {"verified_at": 0}), hidden=("path",))
    assert str(report).splitlines()[1:] == [
        "file                          size  sha256        verified at       bytes fetched  repaired",
        "onnx/a-rather-long-name.onnx     ?  0123456789ab  2025-06-15 15:06        2.0 KiB  yes",
        "onnx/a-rather-long-name.onnx     ?  0123456789ab  never                   2.0 KiB  yes",
    ]
    assert list(report) == [row, row | {"verified_at": 0}]
    monkeypatch.setenv("COLUMNS", "80")
    assert str(report).splitlines()[1].startswith("file               size")
    assert "…r-long-name.onnx" in str(report) and max(map(len, str(report).splitlines())) <= 80


def test_an_empty_report_says_so() -> None:
    assert str(Report("installed models", ())) == "installed models: nothing"


def test_texts_for_people() -> None:
    assert (as_clock(5.4), as_clock(3723)) == ("0:05", "1:02:03")
    assert (moment(10**30), moment(-1)) == ("never", "never")
    assert (short("abcdef", 6), short("abcdef", 4), short("abcdef", 0)) == ("abcdef", "…def", "…")


@pytest.mark.parametrize(
    "row",
    [
        {"size": "12 MB", "bytes": ["a"], "success_rate": "x", "throughput_bps": Path("a"), "free_bytes": "b"},
        {"made_at": "noon", "size": 10**400, "success_rate": 10**400, "bytes_saved": 10**400, "other_at": 10**400},
        {"size": float("nan"), "success_rate": float("inf"), "throughput_bps": float("-inf"), "bytes": -1},
    ],
)
def test_rows_of_any_kind_can_be_printed(row: dict[str, object]) -> None:
    report = Report("odd", (row,))
    assert len(str(report).splitlines()) == 3 and "<table" in report._repr_html_()


def test_a_report_is_printed_in_a_time_that_its_rows_take(monkeypatch: pytest.MonkeyPatch) -> None:
    class Text(str):
        asked = 0

        def __len__(self) -> int:
            Text.asked += 1
            return super().__len__()

    monkeypatch.setattr("modelcache.rows.shown", lambda _key, value: Text(value))
    str(Report("long", tuple({"path": f"/x/{number}", "kind": "old"} for number in range(500))))
    assert Text.asked < 20 * 500
