"""The command, as a process: what it prints where, and with which code it ends (product G1, H; I16, I27)."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from caches import manifest_of, rot, run, start
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcache.caching import Cache
from modelcache.cli import Terminated, main, parser
from modelcache.commands import installed
from modelcache.errors import UsageError
from modelcache.model import Manifest
from modelcache.testing import Content, Corrupt, Cut, Hold, Origin, Status

CONTENT = Content.generated(3_000_000, seed=1)
FILES = {"config.json": Content.generated(5_000, seed=2), "model.bin": Content.generated(9_000_000, seed=3)}
ENTRY = {"path", "size", "sha256", "status", "verified", "source", "bytes_fetched", "bytes_resumed"}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.gguf": CONTENT, **FILES}) as origin:
        yield origin


@pytest.fixture
def manifest(origin: Origin, tmp_path: Path) -> Path:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(manifest_of(origin, FILES, piece=4 << 20).to_json()))
    return path


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`main` is for a process of its own: it catches signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def check_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr that says it all, and nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("modelcache: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


# -- fetch ----------------------------------------------------------------------------------------------------------


def test_of_several_targets_one_that_fails_does_not_cost_the_others(origin: Origin) -> None:
    done = run("fetch", origin.url("none"), origin.url("m.gguf"), origin.url("none-either"))
    assert done.returncode == 4 and done.stdout.splitlines()[0].endswith("m.gguf")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("modelcache: 2 of 3 targets failed: none ") and "none-either" in last


def test_fetch_prints_the_path_alone(origin: Origin, tmp_path: Path) -> None:
    for output in ([], ["--output", str(tmp_path / "out.gguf")]):
        done = run("fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256, *output)
        assert (done.returncode, done.stderr) == (0, "")
        (path,) = done.stdout.splitlines()
        assert Path(path).read_bytes() == CONTENT.read()


def test_fetch_of_several_prints_a_line_each(origin: Origin) -> None:
    done = run("fetch", origin.url("m.gguf"), origin.url("config.json"))
    assert [Path(line).name for line in done.stdout.splitlines()] == ["m.gguf", "config.json"]
    assert done.stderr.count("unverified") == 2


def test_what_nothing_vouches_for_is_said_and_can_be_refused(origin: Origin) -> None:
    for _ in range(2):  # fetched, and found
        done = run("fetch", origin.url("m.gguf"), "--quiet")
        assert done.returncode == 0
        assert done.stderr == (
            "m.gguf: unverified, for nothing was known to compare it with; "
            f"sha256 {CONTENT.sha256} is recorded and has to match next time\n"
        )
    check_error(run("fetch", origin.url("m.gguf"), "--require-digest"), 3, "nothing is known to verify m.gguf against")


def test_fetch_json_of_a_url(origin: Origin) -> None:
    done = run("fetch", origin.url("m.gguf") + "?token=x", "--checksum", f"sha256:{CONTENT.sha256}", "--json")
    (entry,) = json.loads(done.stdout)
    assert set(entry) == {"ref", "id", "version", "path", "files"}
    assert (entry["ref"], entry["version"]) == (origin.url("m.gguf"), CONTENT.sha256[:12])
    assert entry["id"].startswith("url--m.gguf--")
    (file,) = entry["files"]
    assert set(file) == ENTRY
    assert (file["path"], file["size"], file["sha256"]) == ("m.gguf", CONTENT.size, CONTENT.sha256)
    assert (file["status"], file["verified"], file["source"]) == ("fetched", "sha256", "http")
    assert (file["bytes_fetched"], file["bytes_resumed"]) == (CONTENT.size, 0)


def test_fetch_json_of_a_manifest(manifest: Path, tmp_path: Path) -> None:
    done = run("fetch", "--manifest", str(manifest), "--output-dir", str(tmp_path / "out"), "--json")
    (entry,) = json.loads(done.stdout)
    assert (entry["id"], entry["version"], entry["path"]) == ("m", "1", str(tmp_path / "out"))
    assert {file["path"]: set(file) == ENTRY for file in entry["files"]} == {"config.json": True, "model.bin": True}
    assert (tmp_path / "out" / "model.bin").read_bytes() == FILES["model.bin"].read()


def test_an_error_in_json_has_the_whole_story(origin: Origin) -> None:
    origin.faults(Cut(1_000_000, times=1), Status(404, after=1))
    done = run("fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256, "--json")
    story = json.loads(done.stdout)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert set(story) == {"error", "kind", "sources", "kept_files", "kept_bytes", "next"}
    assert (story["kind"], story["sources"][0]["source"]) == ("not_found", origin.url("m.gguf"))
    assert set(story["sources"][0]) == {"source", "reason"}
    assert 0 < story["kept_bytes"] <= 1_000_000
    assert story["next"]
    usage = run("fetch", origin.url("m.gguf"), "--sha256", "x", "--json")
    assert (usage.returncode, json.loads(usage.stdout)["kind"]) == (2, "usage")


def test_fetch_unpacks_on_request(origin: Origin, tmp_path: Path) -> None:
    archive = subprocess.run(["tar", "-C", str(tmp_path), "-cz", "m"], capture_output=True, check=False)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_bytes(b"w")
    archive = subprocess.run(["tar", "-C", str(tmp_path), "-cz", "m"], capture_output=True, check=True)
    origin.put("a.tar.gz", archive.stdout)
    done = run("fetch", origin.url("a.tar.gz"), "--unpack", "--output", str(tmp_path / "new"), "--quiet")
    assert done.stdout == f"{tmp_path / 'new'}\n"
    assert (tmp_path / "new" / "m" / "weights").read_bytes() == b"w"
    told = json.loads(run("fetch", origin.url("a.tar.gz"), "--unpack", "--json").stdout)
    assert told[0]["files"][0]["unpacked"] == told[0]["path"]
    check_error(run("fetch", origin.url("a.tar.gz"), "--unpack", "--no-cache"), 2, "needs the cache")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["no-such"], "invalid choice"),
        (["fetch"], "name a TARGET"),
        (["fetch", "URL", "URL2", "--sha256", "0" * 64], "--sha256 goes with one target, not with 2"),
        (["fetch", "URL", "URL2", "--output", "x"], "--output goes with one target"),
        (["fetch", "URL", "URL2", "--mirror", "http://h/x"], "--mirror goes with one target"),
        (["fetch", "URL", "URL2", "--header", "A: b"], "--header goes with one target"),
        (["fetch", "URL", "--sha256", "abc"], "malformed sha256 digest"),
        (["fetch", "URL", "--sha256", ""], "malformed sha256 digest"),
        (["fetch", "URL", "--checksum", "crc:00"], "unknown checksum algorithm"),
        (["fetch", "URL", "--size", "-1"], "not a number of bytes"),
        (["fetch", "URL", "--size", "many"], "invalid int value"),
        (["fetch", "URL", "--connections", "0"], "connections = 0"),
        (["fetch", "URL", "--parallel-files", "0"], "parallel_files = 0"),
        (["fetch", "URL", "--header", "nonsense"], "--header takes 'Name: value'"),
        (["fetch", "URL", "--mirror", "ftp://h/x"], "only http:// and https:// are served"),
        (["fetch", "URL", "--output-dir", "x"], "--output-dir goes with --manifest"),
        (["fetch", "URL", "--no-cache"], "an output is needed"),
        (["fetch", "URL", "--output", "."], "is a folder"),
        (["fetch", "URL", "--output", "new/"], "is a folder"),
        (["fetch", "URL", "--output", ""], "is a folder"),
        (["fetch", "URL", "--output", "/dev/null"], "a device or a pipe"),
        (["fetch", "URL", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["fetch", "gopher://host/x"], "unknown scheme 'gopher:'"),
        (["fetch", "http://"], "is not a usable URL"),
        (["fetch", "../etc/passwd"], "cannot be a path here"),
        (["fetch", "m", "--sha256", "0" * 64], "goes with one file"),
        (["fetch", "--manifest", "no-such.json"], "cannot be read: No such file"),
        (["repair", "--header", "A: b"], "one model: name it"),
        (["manifest", "make", "no-such-folder"], "is not a folder"),
        (["add", "no-such", "--model", "a/b"], "cannot be a path here"),
    ],
)
def test_what_cannot_be_meant_is_exit_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, cache_root: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"URL": "http://127.0.0.1:9/m.gguf", "URL2": "http://127.0.0.1:9/n.gguf"}
    code = main([places.get(argument, argument) for argument in arguments])
    said = capsys.readouterr()
    check_error(subprocess.CompletedProcess(arguments, code, said.out, said.err), 2, complaint)
    assert not cache_root.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "https://me:hunter2@h/x?token=hunter2"], "unrecognized arguments: https://h/x;"),
        (
            ["ls", "--token", "hunter2", "--key=hunter2", "y#hunter2"],
            "unrecognized arguments: --token ... --key=... y;",
        ),
        (["ls", "--header", "Authorization: hunter2"], "unrecognized arguments: --header ...;"),
        (["fetch", "x", "--size", "https://h/x?token=a hunter2"], "invalid int value: 'https://h/x;"),
        (["fetch", "x", "--limit-rate", "https://h/x?token=hunter2"], "'https://h/x;"),
        (["https://me:hunter2@h/x"], "invalid choice: 'https://h/x"),
    ],
)
def test_a_word_that_is_not_understood_is_told_without_secrets(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments)
    said = capsys.readouterr()
    check_error(subprocess.CompletedProcess(arguments, code, said.out, said.err), 2, complaint)
    assert "hunter2" not in said.out + said.err


@pytest.mark.parametrize(
    ("case", "code"),
    [("wrong bytes", 3), ("gone", 4), ("refused", 4), ("dead", 5), ("broken", 5), ("local", 6), ("absent id", 4)],
)
def test_exit_codes_tell_what_to_do(origin: Origin, case: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    faults = {"wrong bytes": Corrupt((5,)), "gone": Status(410), "refused": Status(403), "broken": Status(503)}
    if case in faults:
        origin.faults(faults[case])
    if case == "dead":
        origin.stop()
    home = {"MODELCACHE_HOME": str(tmp_path / "file" / "home")} if case == "local" else {}
    target = ["nothing-here"] if case == "absent id" else [origin.url("m.gguf"), "--sha256", CONTENT.sha256]
    check_error(run("fetch", *target, **home), code)


def test_a_home_that_is_a_file_is_one_line(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("fetch", origin.url("m.gguf"), MODELCACHE_HOME=str(tmp_path / "file"))
    check_error(done, 6, "a file is where a folder should be")
    assert (tmp_path / "file").read_text() == "mine"


def test_wrong_environment_is_one_line(origin: Origin) -> None:
    check_error(run("fetch", origin.url("m.gguf"), MODELCACHE_STALL_TIMEOUT="soon"), 2, "MODELCACHE_STALL_TIMEOUT")
    check_error(run("fetch", origin.url("m.gguf"), MODELCACHE_CONNECTIONS="0"), 2, "connections = 0")
    check_error(run("fetch", origin.url("m.gguf"), MODELCACHE_CONFIG="/no/such"), 2, "MODELCACHE_CONFIG names /no/such")
    check_error(run("fetch", origin.url("m.gguf"), MODELCACHE_PROGRESS="loud"), 2, "MODELCACHE_PROGRESS")
    assert run("fetch", origin.url("m.gguf"), MODELCACHE_PROGRESS="").returncode == 0  # as if it were not set


# -- interrupts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_the_bytes_and_says_how_many(
    origin: Origin, cache: Cache, number: signal.Signals, code: int
) -> None:
    hold = Hold(2_000_000, times=1)
    origin.faults(hold)
    process = start("fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256)
    assert hold.reached.wait(60)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    words = errors.split()
    assert errors.startswith("modelcache: interrupted; ")
    assert errors.count("\n") == 1
    kept = int(words[2].replace(",", ""))
    assert 1_000_000 <= kept <= 2_000_000
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    assert (file.status, file.bytes_resumed) == ("resumed", kept)


def test_an_interrupt_reaches_a_job_in_the_background(origin: Origin) -> None:
    """A shell starts it with SIGINT ignored."""
    hold = Hold(2_000_000, times=1)
    origin.faults(hold)
    command = [sys.executable, "-m", "modelcache", "fetch", origin.url("m.gguf")]
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command], stderr=subprocess.PIPE, text=True
    )
    assert hold.reached.wait(60)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].count("\n") == 1
    assert process.returncode == 130


def test_interrupts_that_do_not_stop_leave_a_valid_state(origin: Origin) -> None:
    hold = Hold(2_000_000, times=1)
    origin.faults(hold)
    process = start("fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256)
    assert hold.reached.wait(60)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors
    assert run("fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256).returncode == 0


KILL = """if True:
    import os, signal, sys
    from modelcache.caching import Cache

    def kill(event):
        if event.get("bytesDownloaded", 0) >= 2_500_000:
            os.kill(os.getpid(), signal.SIGKILL)

    Cache().fetch(sys.argv[1], sha256=sys.argv[2], progress=kill)
"""


def test_a_kill_costs_at_most_a_mebibyte(origin: Origin, cache: Cache) -> None:
    hold = Hold(2_500_000, times=1)
    origin.faults(hold)
    killed = subprocess.run([sys.executable, "-c", KILL, origin.url("m.gguf"), CONTENT.sha256], check=False)
    assert killed.returncode == -signal.SIGKILL
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    assert file.bytes_fetched <= CONTENT.size - 2_500_000 + (1 << 20)
    assert Path(file).read_bytes() == CONTENT.read()


def test_a_reader_that_leaves_is_no_error(origin: Origin) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "modelcache", "fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# -- the other commands ---------------------------------------------------------------------------------------------


def test_check_says_whole_corrupt_or_missing(manifest: Path, tmp_path: Path, origin: Origin) -> None:
    where = ["--manifest", str(manifest), "--output-dir", str(tmp_path / "out")]
    missing = run("check", *where)
    assert missing.returncode == 4
    assert "m@1 config.json: missing" in missing.stderr
    run("fetch", *where)
    whole = run("check", *where, "--json")
    assert whole.returncode == 0
    assert [(row["file"], row["finding"]) for row in json.loads(whole.stdout)] == [
        ("config.json", "whole"), ("model.bin", "whole"),
    ]  # fmt: skip
    with open(tmp_path / "out" / "model.bin", "r+b") as file:
        file.seek(5_000_000)
        file.write(b"!")
    corrupt = run("check", *where)
    assert corrupt.returncode == 3
    assert "model.bin: corrupt (bytes 4194304-8388607)" in corrupt.stderr
    assert run("fetch", *where).returncode == 0
    assert run("check", *where).returncode == 0


def test_verify_and_repair(manifest: Path, origin: Origin) -> None:
    run("fetch", "--manifest", str(manifest))
    whole = run("verify")
    assert (whole.returncode, whole.stdout) == (0, "")
    assert whole.stderr.endswith("2 files are right\n")
    folder = Path(run("path", "m").stdout.strip())
    rot(folder / "model.bin", 8_999_999)
    (folder / "config.json").unlink()
    found = run("verify", "m", "--json")
    assert found.returncode == 3
    assert {row["file"]: row["finding"] for row in json.loads(found.stdout)} == {
        "config.json": "missing", "model.bin": "corrupt",
    }  # fmt: skip
    check_error(run("path", "m"), 4, "Model m@1 is not available: error")
    origin.stop()
    failed = run("repair", "m", "--json")
    assert failed.returncode == 3
    assert {row["file"]: row["repaired"] for row in json.loads(failed.stdout)} == {
        "config.json": True, "model.bin": False,  # the store had the first
    }  # fmt: skip
    with Origin(FILES) as mirror:
        mended = run("repair", "m", "--mirror", mirror.url())
    assert mended.returncode == 0
    assert mended.stderr == "m@1 model.bin: repaired, 611,392 of 9,000,000 bytes fetched\n"
    assert run("verify").returncode == 0
    assert run("repair").stderr.startswith("nothing is known to be wrong")


def test_verify_prefers_the_gravest_finding(manifest: Path, tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    gone, rotten = cache.add(tmp_path / "a", "gone"), cache.add(tmp_path / "b", "rotten")
    os.unlink(gone["a"].path)
    rot(rotten["b"].path, 0)
    assert run("verify", "gone").returncode == 4
    assert run("verify", "gone", "rotten").returncode == run("verify").returncode == 3
    check_error(run("verify", "absent"), 4, "not_installed")


def test_ls_info_path_and_rm(manifest: Path, cache_root: Path) -> None:
    assert run("ls").stdout == "installed models: nothing\n"
    run("fetch", "--manifest", str(manifest))
    (row,) = json.loads(run("ls", "--json").stdout)
    assert (row["model"], row["version"], row["files"], row["status"]) == ("m", "1", 2, "ready")
    rows = json.loads(run("info", "m", "--json").stdout)
    assert [(row["file"], row["verified"], row["proof"]) for row in rows] == [
        ("config.json", "sha256", "listed"), ("model.bin", "sha256", "listed"),
    ]  # fmt: skip
    assert f"m@1 from m, in {cache_root}/models/m/1\n" in (told := run("info", "m").stdout)
    assert rows[0]["path"].endswith("/config.json") and "config.json" in told and rows[0]["sha256"][:12] in told
    assert run("path", "m", "--version", "1").stdout == f"{cache_root}/models/m/1\n"
    check_error(run("path", "m", "--version", "2"), 4, "Model m@2 is not available: not_installed")
    removed = run("rm", "m")
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "", "removed m@1, 9,005,000 bytes freed\n")
    check_error(run("rm", "m"), 4, "not_installed")
    check_error(run("info", "m"), 4, "not_installed")


def test_add_takes_a_folder_in(tmp_path: Path, cache_root: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "f").write_bytes(b"1")
    assert run("add", str(tmp_path / "mine"), "--model", "mine").stdout == f"{cache_root}/models/mine/1\n"
    (tmp_path / "mine" / "f").write_bytes(b"2")
    check_error(
        run("add", str(tmp_path / "mine"), "--model", "mine"), 2, "mine@1 is here with other files", "--replace"
    )
    assert run("add", str(tmp_path / "mine"), "--model", "mine", "--replace").returncode == 0
    check_error(run("add", str(tmp_path / "absent"), "--model", "mine"), 6, "is not there")


def test_manifest_make_describes_a_folder(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.bin").write_bytes(FILES["model.bin"].read())
    done = run("manifest", "make", str(folder), "--base-url", origin.url())
    made = Manifest.parse(done.stdout.encode())
    assert (made.id, [file.path for file in made.files]) == ("mine", ["model.bin"])
    target = folder / "mine.json"
    for _ in range(2):
        assert run("manifest", "make", str(folder), "--output", str(target)).stdout == f"{target}\n"
        assert [file.path for file in Manifest.parse(target.read_bytes()).files] == ["model.bin"]
    (tmp_path / "mine.json").write_text(done.stdout)
    assert run("fetch", "--manifest", str(tmp_path / "mine.json")).returncode == 0


# -- errors of ours, and secrets ------------------------------------------------------------------------------------


def test_debug_shows_where_and_no_secret(origin: Origin) -> None:
    with Origin({}) as dead:
        url = dead.url("m.gguf").replace("://", "://user:pa55@") + "?token=t0ken"
    done = run("fetch", url, "--header", "X-Key: h3ader", "--debug", "--json")
    assert done.returncode == 5
    assert 'File "' in done.stderr
    assert "modelcache.errors.AllSourcesFailedError: " in done.stderr
    for secret in ("pa55", "t0ken", "h3ader"):
        assert secret not in done.stderr + done.stdout
    assert "Traceback" not in run("fetch", url).stderr


def test_a_bug_of_ours_is_one_line_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(installed, "_ls", broken)
    code = main(["ls"])
    said = capsys.readouterr()
    check_error(subprocess.CompletedProcess([], code, said.out, said.err), 1, "a bug in modelcache: ZeroDivisionError")
    assert "secret" not in said.err
    main(["ls", "--debug"])
    assert 'File "' in capsys.readouterr().err


@pytest.mark.parametrize(("interrupt", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interrupt_while_a_class_is_made_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException], code: int
) -> None:
    """As while a module is imported: Python 3.11 turns it into a RuntimeError."""

    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            raise interrupt

    monkeypatch.setattr(installed, "_ls", lambda _: type("Made", (), {"field": Field()}))
    assert main(["ls"]) == code
    assert capsys.readouterr().err == "modelcache: interrupted; run the same command again to go on\n"


def test_an_interrupt_before_anything_was_read_ends_it_without_a_word(tmp_path: Path) -> None:
    """It comes while our modules are imported, for this `argparse` waits."""
    (tmp_path / "argparse.py").write_text("print('here', flush=True)\ninput()\n")
    places = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "modelcache", "ls"], env=os.environ | {"PYTHONPATH": places},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -signal.SIGINT


def test_a_header_that_smuggles_another_is_refused(origin: Origin) -> None:
    done = run("fetch", origin.url("m.gguf"), "--header", "A: b\r\nC: s3cret")
    check_error(done, 2, "characters that no header may hold")
    assert "s3cret" not in done.stderr
    assert not origin.requests


def test_help_and_version_are_for_people() -> None:
    assert run("--help").returncode == 0
    assert "fetch" in run("--help").stdout
    assert run("--version").stdout.startswith("modelcache ")
    listed = run("--help").stdout
    for command in ["fetch", "check", "ls", "info", "path", "rm", "add", "manifest", "verify", "repair", "demo"]:
        assert f"    {command} " in listed


@given(st.lists(st.text(max_size=12), max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_is_typed_is_understood_or_refused(words: list[str]) -> None:
    """Parsing alone: nothing is run."""
    try:
        parser().parse_args([word for word in words if not word.startswith(("-h", "--h", "--version"))])
    except UsageError as error:
        assert "\n" not in error.line()


def test_progress_is_told_where_somebody_asked_for_it(origin: Origin) -> None:
    told = run("fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256, MODELCACHE_PROGRESS="text")
    assert "m.gguf: fetched, verified by sha256" in told.stderr
    assert hashlib.sha256(Path(told.stdout.strip()).read_bytes()).hexdigest() == CONTENT.sha256


def test_an_error_shows_nothing_that_drives_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "import", str(tmp_path / "a\x1b[31mb")]) == 6
    said = capsys.readouterr().err
    assert said.startswith("modelcache: ") and said.count("\n") == 1
    assert said.removesuffix("\n").isprintable(), said
