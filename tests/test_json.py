"""`--json` of every command: one JSON value on stdout and nothing else, and the exit code as written; and a wrong value
for each option of each command (product H, G1)."""

import argparse
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from caches import manifest_of, rot

from modelcache.caching import Cache
from modelcache.cli import main, parser
from modelcache.testing import Content, Origin

FILES = {"a.json": Content.generated(5_000, seed=1), "b.bin": Content.generated(5_000_000, seed=2)}
URL = "http://127.0.0.1:9/m.gguf"
ERROR = {"error", "kind", "sources", "kept_files", "kept_bytes", "next"}
RECORD = {
    "id", "cidId", "downloadPath", "status", "downloaded_bytes", "total_bytes", "error_message", "started_at",
    "completed_at", "attempts", "lastAttempt", "currentSize", "hash",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`main` is for a process of its own: it catches signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def words(cache: Cache, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """A model that is whole, one that is rotten, one that failed, a queue with an entry, and the words for them."""
    with Origin(FILES) as origin:
        model = manifest_of(origin, FILES)
        (tmp_path / "m.json").write_text(json.dumps(model.to_json()))
        cache.fetch(model, output=tmp_path / "out")
        rotten = cache.fetch(manifest_of(origin, {"c.bin": FILES["b.bin"]}, model="gone"), output=tmp_path / "other")
        origin.put("lost.bin", FILES["b.bin"])
        cache.export_bundle(["m"], tmp_path / "w.tar")
        yield {
            "BUNDLE": str(tmp_path / "w.tar"),
            "MANIFEST": str(tmp_path / "m.json"), "OUT": str(tmp_path / "out"), "EMPTY": str(tmp_path),
            "GOOD": origin.url("a.json"), "LOST": origin.url("no-such"), "ROTTEN": rotten.path,
            "ID": next(row["id"] for row in cache.downloads("success")),
        }  # fmt: skip


def typed(line: str, words: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    code = main([words.get(word, word) for word in line.split()])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


@pytest.mark.parametrize(
    ("line", "code", "kind", "fields"),
    [
        ("fetch GOOD", 0, list, {"ref", "id", "version", "path", "files"}),
        ("fetch --manifest MANIFEST", 0, list, {"ref", "id", "version", "path", "files"}),
        ("fetch GOOD --queue", 0, list, {"id", "ref", "path"}),
        ("check --manifest MANIFEST --output-dir OUT", 0, list, {"file", "finding", "size", "wrong_bytes", "reason"}),
        ("check --manifest MANIFEST --output-dir EMPTY", 4, list, {"file", "finding", "size", "wrong_bytes"}),
        ("verify m", 0, list, {"model", "version", "file", "finding", "size", "wrong_bytes", "reason"}),
        ("ls", 0, list, {"model", "version", "files", "size", "status", "ref"}),
        ("path m", 0, dict, {"model", "path"}),
        ("info m", 0, list, {"file", "size", "sha256", "verified", "path"}),
        ("status", 0, list, RECORD),
        ("status --status success", 0, list, RECORD),
        ("status --status failed", 0, list, None),
        ("status ID", 0, dict, RECORD),
        ("resume ID", 0, list, RECORD),
        ("resume --all", 0, list, None),
        ("cancel ID", 0, dict, RECORD),
        ("repair", 0, list, None),
        ("logs", 0, list, {"timestamp", "model_name", "event_type", "message", "details"}),
        ("logs m", 0, list, {"timestamp", "model_name", "event_type", "message", "details"}),
        ("logs --export EXPORT", 0, dict, {"path"}),
        ("doctor", 0, list, None),
        ("clean --dry-run", 0, list, None),
        ("clean", 0, list, None),
        ("reset m", 0, list, {"kind", "model", "path", "size", "reason"}),
        ("queue", 0, list, None),
        ("queue pause", 0, list, None),
        ("queue resume", 0, list, None),
        ("queue run", 0, list, None),
        ("rm m", 0, dict, {"model", "bytes_freed", "removed", "left"}),
        ("bundle export m -o EXPORT", 0, list, {"model", "version", "files", "size"}),
        ("bundle import BUNDLE", 0, list, {"ref", "id", "version", "path", "files"}),
    ],
)
def test_success_is_one_json_value(
    words: Mapping[str, str], capsys: pytest.CaptureFixture[str], line: str, code: int, kind: type,
    fields: set[str] | None, tmp_path: Path,
) -> None:  # fmt: skip
    """`fields` are among those of each row; None where there may be no row."""
    found, value, _ = typed(f"{line} --json", {**words, "EXPORT": str(tmp_path / "log")}, capsys)
    assert (found, type(value)) == (code, kind)
    rows = [value] if kind is dict else value
    assert rows or fields is None
    assert all(fields <= set(row) for row in rows if fields)


def test_rot_is_one_json_value_and_its_own_code(words: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(Cache().path("gone"), "c.bin")
    rot(place, 5)
    code, (row,), said = typed("verify gone --json", words, capsys)
    assert (code, row["finding"], said.count("\n")) == (3, "corrupt", 1)
    code, (row,), _ = typed("repair gone --json", words, capsys)
    assert (code, row["repaired"], bool(row["reason"])) == (3, False, True)


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        ("fetch LOST", 4, "not_found"),
        ("fetch m LOST", 4, "not_found"),
        ("fetch LOST --queue", 4, "not_found"),
        ("fetch nobody", 4, None),
        ("fetch GOOD --sha256 x", 2, "usage"),
        ("fetch --manifest EMPTY", 2, None),
        ("check --manifest OUT --output-dir EMPTY", 2, None),
        ("verify nobody", 4, None),
        ("repair nobody", 4, None),
        ("info nobody", 4, None),
        ("status nobody", 4, None),
        ("status --status sleeping", 2, "usage"),
        ("resume nobody", 4, None),
        ("resume", 2, "usage"),
        ("cancel nobody", 4, None),
        ("rm nobody", 4, None),
        ("logs ../x", 2, "usage"),
        ("reset ../x", 2, "usage"),
        ("bundle export gone -o OUT", 2, "usage"),
        ("bundle export nobody -o EMPTY/x", 4, "not_found"),
        ("bundle import MANIFEST", 3, "integrity"),
        ("bundle import no-such", 6, "local"),
        ("queue rm", 2, "usage"),
        ("queue rm 99", 2, None),
        ("queue sing", 2, "usage"),
        ("ls --nonsense", 2, "usage"),
    ],
)
def test_an_error_is_one_json_value_too(
    words: Mapping[str, str], capsys: pytest.CaptureFixture[str], line: str, code: int, kind: str | None
) -> None:
    found, story, said = typed(
        f"{line} --json --quiet" if line.startswith("fetch") else f"{line} --json", words, capsys
    )
    assert set(story) == ERROR
    assert found == code, story
    assert kind in (None, story["kind"])
    assert all(set(source) == {"source", "reason"} for source in story["sources"])
    assert said.startswith("modelcache: ") and said.count("\n") == 1


# -- wrong values ---------------------------------------------------------------------------------------------------

WRONG = {
    "fetch": [
        "--sha256 x", "--checksum sha256", "--checksum crc:00", "--size -1", "--size 1e9",
        "--size 99999999999999999999",
        "--output /dev/null", "--output-dir x", "--manifest no-such", "--connections 0", "--connections -1",
        "--connections x", "--connections 9999999999999999999", "--parallel-files 0", "--parallel-files x",
        "--limit-rate -1", "--limit-rate 5X", "--limit-rate fast", "--limit-rate 1e999", "--limit-rate nan",
        "--priority x --queue", "--prefer ftp", "--files *.bin",
        "--prefer HTTP", "--priority 9999999999999999999999 --queue", "--mirror ftp://h/x", "--mirror x",
        "--header x", "--header :", "--layout x",
    ],
    "adopt": ["", "hf x"],
    "check": ["--manifest no-such --output-dir x"],
    "status": ["--status x", "x --status failed"],
    "resume": ["--header x --all", "x --all"],
    "info": ["m --version a/b", "../m"],
    "path": ["m --version a/b", "m --version .."],
    "rm": ["m --version a/b", "../m"],
    "pin": ["m --version a/b", "../m"],
    "unpin": ["m --version a/b", "../m"],
    "add": [". --model a/b", ". --model .. ", ". --model m --version a/b"],
    "manifest": ["make no-such", "make . --model a/b", "make . --base-url ftp://x", "take ."],
    "verify": [
        "../m", "--share 2", "--share x", "--older-than x", "--time-limit x", "--rate-limit x", "--also /no/such",
    ],
    "repair": ["--mirror ftp://h/x", "m --mirror x", "m --header x"],
    "reset": ["../m"],
    "cancel": [""],
    "logs": ["../m"],
    "bundle": [
        "export", "export m", "export ../m -o x", "import", "import x y", "import x -o y", "pack m",
    ],
    "queue": ["x", "priority 1", "priority 1 --priority x", "move 1", "move --before 1", "rm", "retry"],
    "jobs": [
        "", "walk", "run", "run no-such", "run verify --set share",
        "run verify --slot yesterday", "history --last x", "history no-such",
    ],
    "notebooks": ["", "copy", "copy x y", "take x"],
    "report": ["x", "--since yesterday", "--since 5x", "--by colour", "--by"],
    "ls": ["x"], "clean": ["x"], "doctor": ["x"], "demo": ["x"],
}  # fmt: skip


@pytest.mark.parametrize(("command", "rest"), [(command, rest) for command in WRONG for rest in WRONG[command]])
def test_a_wrong_value_is_exit_2_and_one_line(
    command: str, rest: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = [URL] if command == "fetch" and "--manifest" not in rest else []
    code = main([command, *target, *rest.split()])
    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1), said.err
    assert said.err.startswith("modelcache: ")
    assert "bug" not in said.err


def test_every_option_with_a_value_has_a_wrong_one_in_the_table() -> None:
    """Paths to be made, names of existing entries and free text have none."""
    free = {
        ("report", "--csv"),
        ("report", "--html"),
        ("logs", "--export"),
        ("manifest", "--output"),
        ("queue", "--before"),
    }
    commands = next(each for each in parser()._actions if isinstance(each, argparse._SubParsersAction)).choices
    assert set(WRONG) == set(commands)
    for name, command in commands.items():
        for action in command._actions:
            if action.option_strings and action.nargs != 0 and (name, action.option_strings[0]) not in free:
                assert any(action.option_strings[0] in rest for rest in WRONG[name]), (name, action.option_strings)
