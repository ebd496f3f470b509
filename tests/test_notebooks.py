"""The notebooks that come with the package run without network, are saved with what they showed, and can be copied."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from books import FOLDER, NAMES, WIDGET, run, tidied
from caches import run as command

SAVED = [FOLDER / f"{name}.ipynb" for name in NAMES]
LARGEST = 60_000
_LINK = re.compile(r"\]\(([^)]+)\)|https?://([\w.-]+)")
SHOWABLE = {"text/plain", "text/html", "image/png", "image/svg+xml"}


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def environment(folder: Path) -> dict[str, str]:
    """Where a kernel keeps what it does not show: all of it in one folder."""
    for name in ("tmp", "home", "ipython"):
        (folder / name).mkdir()
    return {
        "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home"), "IPYTHONDIR": str(folder / "ipython"),
        "MODELCACHE_HOME": str(folder / "unused"), "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", SAVED, ids=NAMES)
def test_it_runs_from_top_to_bottom_without_network_and_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    notebook = tidied(run(path, environment(tmp_path)))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in read(path).cells]
    assert os.listdir(tmp_path / "tmp") == [] and not (tmp_path / "unused").exists()
    assert not [name for name in os.listdir(tmp_path / "home") if "modelcache" in name]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_last_cell_of_the_quick_start_is_a_fetch_and_its_file_is_whole_when_it_has_run(tmp_path: Path) -> None:
    path = FOLDER / "quickstart.ipynb"
    last = len(read(path).cells) - 1
    assert read(path).cells[last].source.startswith("mc.fetch(")
    found: list[list[int]] = []

    def look(index: int) -> None:
        if index == last:
            found.append(
                [each.stat().st_size for each in (tmp_path / "tmp").glob("*/models/*text*/*/model.safetensors")]
            )

    notebook = run(path, environment(tmp_path), look)
    assert found == [[8 << 20]]
    assert "verified" in notebook.cells[last].outputs[-1].data["text/plain"]


@pytest.mark.parametrize("path", SAVED, ids=NAMES)
def test_what_is_saved_can_be_shown_anywhere_and_tells_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    text, notebook = path.read_text("utf-8"), read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert WIDGET not in text and "widgets" not in notebook.metadata and kinds <= SHOWABLE
    assert all("text/plain" in output.data for output in outputs if "data" in output)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(home|root|work|Users)/|/tmp/(?!modelcache\b)", text)
    assert {cell.metadata.get("collapsed") for cell in cells} == {None}


@pytest.mark.parametrize("path", SAVED, ids=NAMES)
def test_its_links_lead_to_the_notebooks_beside_it_and_nowhere_else(path: Path) -> None:
    told = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = [link for link, _ in _LINK.findall(told)]
    assert links and all((FOLDER / link).is_file() for link in links)
    assert {host for _, host in _LINK.findall(path.read_text("utf-8")) if host} <= {"127.0.0.1"}


def test_the_command_copies_them_and_replaces_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "notebooks"
    done = command("notebooks", "copy", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / name) for name in sorted(path.name for path in SAVED)]
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in SAVED)
    mine = folder / "quickstart.ipynb"
    mine.write_text("mine")
    (folder / "sources.ipynb").unlink()
    refused = command("notebooks", "copy", str(folder))
    assert refused.returncode == 2 and "is there already" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert mine.read_text() == "mine" and not (folder / "sources.ipynb").exists()
    assert json.loads(command("notebooks", "copy", str(tmp_path / "json"), "--json").stdout)[0].endswith(".ipynb")


def test_a_folder_that_cannot_be_made_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("notebooks", "copy", str(tmp_path / "file" / "below"))
    assert done.returncode == 6 and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_wheel_holds_them_and_copies_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=FOLDER.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "from modelcache.cli import main; raise SystemExit(main(['notebooks', 'copy', 'here']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == sorted(path.name for path in SAVED)
