"""The notebooks that come with the package, in a JupyterLab."""

import json
from pathlib import Path
from typing import Any

import pytest
from books import FOLDER, WIDGET
from lab import Lab, Notebook, put

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]


def code_of(path: Path) -> dict[str, Any]:
    """Its cells of code with what is saved of them, less their numbers: those of the next run would be the same."""
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return notebook | {"cells": [cell | {"execution_count": None} for cell in cells]}


@pytest.mark.parametrize("name", ["quickstart", "dashboard"])
def test_it_reads_before_it_is_trusted_and_runs_cell_by_cell(
    lab: Lab, page: Any, python: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    lab.offer(python, {"TMPDIR": str(tmp_path / "tmp")})
    book = Notebook(page, lab, f"{name}.ipynb")
    put(lab.folder / "work" / book.name, code_of(FOLDER / book.name))
    book.open()
    shown = page.locator(".jp-OutputArea-output").all_inner_texts()
    assert any("hf:demo/" in text and "</" not in text for text in shown)
    for index in range(page.locator(".jp-CodeCell").count()):
        book.run(index)
        output = book.end(index)
        assert output.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    saved = [output for cell in book.save()["cells"] for output in cell.get("outputs", ())]
    assert saved and not [output for output in saved if output["output_type"] == "error"]
    assert not [output for output in saved if WIDGET in output.get("data", ())]
    lab.end_kernels()
