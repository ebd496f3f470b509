"""That the tests of notebooks stand on what they believe to stand on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import ROOT, Notebook, every_kernel

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]
WHERE = (
    "import os, sys, modelcache as m; (sys.executable, m.__file__, *map(os.environ.get, ('MODELCACHE_HOME', 'HOME')))"
)


@every_kernel
def test_a_cell_runs_modelcache_of_this_tree_in_the_surroundings_of_the_test(
    notebook: Callable[..., Notebook], python: str, home: Path
) -> None:
    book = notebook(WHERE)
    book.run(0)
    shown = book.end(0).inner_text()
    assert all(repr(str(path)) in shown for path in (python, ROOT / "modelcache/__init__.py", home)), shown
    assert repr(os.environ["HOME"]) not in shown
    assert book.save()["cells"][0]["outputs"][0]["data"]["text/plain"][0].startswith("(")


def test_the_button_with_the_square_interrupts_a_cell(notebook: Callable[..., Notebook], page: Any) -> None:
    book = notebook("import threading; print('in ' + 'it'); threading.Event().wait()")
    book.run(0).get_by_text("in it", exact=True).wait_for()
    book.interrupt()
    book.end(0).get_by_text("KeyboardInterrupt").first.wait_for()
