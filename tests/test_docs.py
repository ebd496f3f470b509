"""What the user guide shows is so: commands parse, tables agree with the code, links lead somewhere, examples run."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import modelcache
from modelcache import errors
from modelcache.cli import parser
from modelcache.events import DownloadComplete, Fact, FactType, Progress
from modelcache.history import DownloadRecord
from modelcache.jobs.job import BUILT_IN
from modelcache.jobs.schedule import KEYS
from modelcache.reporting.overview import SUMMARY
from modelcache.reporting.prometheus import exposition
from modelcache.reporting.publishing import DOWNLOADS
from modelcache.settings import Settings
from modelcache.state.hauls import Hauls
from modelcache.state.place import Place
from modelcache.testing import Content, Hub, Origin

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
CODES_OF_SHELLS = {"0", "143"}  # no error has them: all is well, and SIGTERM


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind, as `sh` or `python run`."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)


def tables(name: str, *columns: str) -> list[list[str]]:
    """The rows of all tables of docs/<name> that begin with these columns, without the marks of code."""
    rows: list[list[str]] = []
    is_ours = False
    for line in (ROOT / "docs" / name).read_text().splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            is_ours = False
        elif tuple(cells[: len(columns)]) == columns:
            is_ours = True
        elif is_ours and not cells[0].startswith("---"):
            rows.append(cells)
    assert rows, f"no such table in {name}"
    return rows


def listed(rows: list[list[str]]) -> list[str]:
    """The names in the first column; a cell may hold several."""
    return [name for row in rows for name in row[0].split(", ")]


def command_lines() -> list[tuple[str, str]]:
    """Every line that begins with our command, in shell blocks and in sessions (`$ modelcache …`)."""
    found = []
    for page in PAGES:
        for kind in ("sh", "console"):
            lines = "".join(blocks(page, kind)).splitlines()
            shown = [line.removeprefix("$ ") for line in lines if kind == "sh" or line.startswith("$ ")]
            found += [(page.name, line) for line in shown if line.startswith("modelcache ")]
    return found


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_that_is_shown_can_be_typed(page: str, line: str) -> None:
    words = shlex.split(re.split(r"\s[|&;<>]", line)[0], comments=True)
    parser().parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        place = page.parent / path if path else page
        assert place.exists(), target
        titles = re.findall(r"^#+ (.*)$", place.read_text(), re.M) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not anchor or anchor in anchors, target


def test_the_readme_has_the_two_commands_that_the_gate_runs() -> None:
    shown, tested = blocks(ROOT / "README.md", "sh")
    assert shown.strip().endswith("/modelcache demo")
    assert tested.strip().endswith("/pytest")


def test_the_page_of_settings_has_each_with_its_default() -> None:
    told = {name: default for name, default, *_ in tables("settings.md", "setting", "default")}
    assert set(told) == {each.name for each in fields(Settings)}
    for each in fields(Settings):
        default: object = {"": "", "false": False, "hf, ollama": ("hf", "ollama")}.get(told[each.name])
        assert (float(told[each.name]) if default is None else default) == each.default


def every_error(base: type[errors.ModelCacheError] = errors.ModelCacheError) -> list[type[errors.ModelCacheError]]:
    return [base, *(each for child in base.__subclasses__() for each in every_error(child))]


def test_the_page_of_jobs_has_each_job_and_each_option_with_its_default() -> None:
    assert [name for name, *_ in tables("jobs.md", "job", "runs")] == list(BUILT_IN)
    assert {name for name, *_ in tables("jobs.md", "key", "default")} == set(KEYS)
    told = {(job, option): default for job, option, default, *_ in tables("jobs.md", "job", "option")}
    for name, target in BUILT_IN.items():
        options = fields(importlib.import_module(target.partition(":")[0]).Options)
        shown = {each.name: "" if each.default == () else str(each.default).replace("F", "f") for each in options}
        assert {option: default for (job, option), default in told.items() if job == name} == shown


def test_the_page_of_errors_has_every_kind_with_its_code() -> None:
    told = {(code, kind) for code, kind, *_ in tables("errors.md", "code", "kind") if code not in CODES_OF_SHELLS}
    assert told == {(str(each.exit_code), each.kind) for each in every_error()}


def test_the_page_of_errors_has_every_error_of_the_package() -> None:
    public = {name: getattr(modelcache, name) for name in modelcache.__all__ if name.endswith("Error")}
    told = {name: kind for name, kind, *_ in tables("errors.md", "exception", "kind")}
    assert told == {name: each.kind for name, each in public.items()} | {
        "AllSourcesFailedError": "of its gravest source"
    }


def test_the_page_of_events_has_every_field_and_type() -> None:
    progress, fact = tables("events.md", "field", "type"), tables("events.md", "field", "meaning")
    assert set(listed(progress)) == set(Progress("m", "downloading").to_wire())
    assert set(listed(fact)) == set(Fact("started", "m", "").to_wire())
    assert set(listed(tables("events.md", "type", "when"))) == set(get_args(FactType))
    text = (ROOT / "docs/events.md").read_text()
    assert all(f"`{name}`" in text for name in DownloadComplete("", "").to_wire())


def test_the_page_of_history_has_every_field_of_a_record() -> None:
    row = DownloadRecord("", "", "", "", "", "success").to_row()
    assert set(listed(tables("history.md", "field", "type"))) == {*row, "canResume"}


def test_the_page_of_reports_has_every_column_and_metric() -> None:
    assert tuple(listed(tables("reports.md", "column"))) == SUMMARY
    (told,) = [row[1] for row in tables("reports.md", "file") if row[0].startswith("downloads-")]
    assert tuple(re.findall(r"\b[a-z_]+\b", told.partition(": ")[2].replace("(hit, success, error)", ""))) == DOWNLOADS
    lines = exposition(Hauls(Place("", "", ""), 0), 1, 0).splitlines()
    metrics = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {name.partition("{")[0] for name, *_ in tables("reports.md", "metric")} == metrics


def cases() -> list[tuple[str, str]]:
    """What docs/cases.md names: files of tests, and what is in them."""
    named, file = [], ""
    for words in re.findall(r"`(test_[^`]+|…[^`]+)`", (ROOT / "docs/cases.md").read_text()):
        name = words
        if ".py" in words:
            file, _, name = words.partition("::")
        named.append((file, name))
    return named


def test_every_test_that_the_page_of_cases_names_exists() -> None:
    assert len(cases()) > 40
    for file, name in cases():
        end = rf"\w+{name[1:]}" if name.startswith("…") else name or r"[tT]est\w+"
        found = re.search(rf"^(def|class) {end}\b", (ROOT / "tests" / file).read_text(), re.M)
        assert found, f"{file} has no {name}"


@pytest.mark.parametrize("program", blocks(ROOT / "docs/testing.md", "python"), ids=["resume", "hub", "hold", "wire"])
def test_the_examples_of_testing_run(program: str, tmp_path: Path) -> None:
    """Each as a program of its own: they need no server but those they start."""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python run")], ids=lambda page: page.name)
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    """Blocks marked `python run`, as one program; URL, digest and hub become those of files that there are."""
    content = Content.generated(100_000, seed=1)
    with Origin({"model.gguf": content}) as origin, Hub() as hub:
        hub.publish("sentence-transformers/all-MiniLM-L6-v2", {"config.json": b"{}", "model.safetensors": content})
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint}
        program = "".join(blocks(page, "python run"))
        program = program.replace("https://host/model.gguf", origin.url("model.gguf")).replace("HEX", content.sha256)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
