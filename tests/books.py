"""The notebooks that come with the package: running them, and saving them with what they showed.

`python tests/books.py NAME...` runs notebooks/NAME.ipynb (all of them without a name) and saves the outputs, less what
is of that one run: widgets, which a viewer cannot show, times, ports, and where the machine keeps things.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import gethostname
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = ("quickstart", "sources", "maintenance_and_reports", "dashboard")
WAIT_S = 300
WIDGET = "application/vnd.jupyter.widget-view+json"
_PLACE = re.compile(r"[^\s\"'<>=]*?/modelcache-[a-z0-9_]{8}(?![a-z0-9_])")
_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_PORT = re.compile(r"127\.0\.0\.1:(\d{4,5})")


def run(
    path: Path, environment: Mapping[str, str], after: Callable[[int], None] = lambda _: None
) -> nbformat.NotebookNode:
    """From top to bottom in a kernel of its own, as `Run all` does; `after` is called after each cell."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = client_of(notebook, resources={"metadata": {"path": folder}})
        client.on_cell_executed = lambda cell, cell_index, **_: after(cell_index)
        client.execute(env={**os.environ, **environment})
        assert os.listdir(folder) == []
    return notebook


def client_of(notebook: nbformat.NotebookNode, **options: Any) -> NotebookClient:
    """It waits as long as a busy machine takes, also for a kernel that tidies up before it ends."""
    client = NotebookClient(
        notebook, timeout=WAIT_S, startup_timeout=WAIT_S, iopub_timeout=WAIT_S, kernel_name="python3", **options
    )
    client.create_kernel_manager().shutdown_wait_time = WAIT_S
    return client


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """As it is saved. A style stands in the first output that needs it: it holds for all of the page."""
    seen: set[str] = set()
    ports: dict[str, str] = {}

    def once(style: re.Match[str]) -> str:
        return "" if style[0] in seen or seen.add(style[0]) else style[0]

    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)} | {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = _plain(output.text, ports)
            if "data" in output:
                output.data = {kind: _plain(value, ports) for kind, value in output.data.items() if kind != WIDGET}
                if "text/html" in output.data:
                    output.data["text/html"] = _STYLE.sub(once, output.data["text/html"])
                output.metadata = {}
            output.pop("transient", None)
    return notebook


def _plain(value: Any, ports: dict[str, str]) -> Any:
    def numbered(port: re.Match[str]) -> str:
        return "127.0.0.1:" + ports.setdefault(port[1], str(8000 + len(ports)))

    if not isinstance(value, str):
        return value
    return _PORT.sub(numbered, _PLACE.sub("/tmp/modelcache", value)).replace(f" on {gethostname()}", " on this machine")


def main(names: list[str]) -> None:
    for name in names or NAMES:
        path = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory(prefix="notebooks-") as folder:
            nbformat.write(tidied(run(path, {"IPYTHONDIR": folder, "TMPDIR": folder})), path)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])
