"""The layers: a wrong import fails like a wrong result.

A module imports only from lines below its own. Modules of one line do not import each other, except inside one
package. A new module takes a place in LINES, or the test fails. Imports inside functions and for type checking count.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import modelcache

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "modelcache"

LINES = [  # from the bottom up; `store.*` is the package `store` with all its modules, `modelcache` the package root
    "printing",
    "traces",
    "errors",
    "urls units markup sheets",
    "names",
    "model events settings states",
    "history refs image wish",
    "spans pieces due retry dispatch outcome health throttle abreast",
    "plan",
    "catalog openfiles",
    "store.* remotes.*",
    "state.* foreign.* probing othertools rows configuration",
    "transfer.* archives.* order",
    "tiers",
    "unpack layouts install filefetch wiring logbook sampling verdict",
    "hubs hits",
    "manifests task ordering audit resolving",
    "account again tally",
    "announcing",
    "modelfetch",
    "errand",
    "download refresh renewal mending",
    "adopt check progress.* maintenance past eviction reporting.*",
    "cleaning findings",
    "surroundings",
    "doctor",
    "adoption arrival exporting sweeps.*",
    "importing",
    "runtime",
    "roots",
    "fetching inventory care",
    "steering",
    "caching",
    "api",
    "queueing",
    "jobs.*",
    "notebook.*",
    "testing.*",  # imports nothing of ours, so that any downloader can be tested with it
    "modelcache",  # a table of names that are imported when they are asked for
    "demostage",
    "demo",
    "commands.*",
    "cli",
    "magics",
    "__main__",
]
# What the sources share. They do not import each other otherwise: each can be understood, and left out, alone.
SHARED_BY_REMOTES = {
    "source",
    "connection",
    "reply",
    "body",
    "http",
    "document",
    "access",
    "inline",
    "tokens",
    "unheard",
}
SLOW_TO_IMPORT = ["requests", "pandas", "filelock", "sqlite3", "tqdm", "ipywidgets", "apscheduler", "dataclasses"]

Sources = Mapping[str, str]  # the text of each module, by its name without `modelcache.`


def sources_of(root: Path) -> dict[str, str]:
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".") or PACKAGE: (
            path.read_text("utf-8")
        )
        for path in sorted(root.rglob("*.py"))
    }


def place_of(module: str) -> tuple[int, str]:
    """The number of its line, and its entry there."""
    entry = module.partition(".")[0]
    for number, line in enumerate(LINES):
        for name in line.split():
            if name in (module, f"{entry}.*"):
                return number, name
    raise LookupError(module)


def imported_names(module: str, is_package: bool, text: str) -> Iterator[str]:
    """The full dotted name of everything a module imports, `modelcache.` included."""
    parts = [PACKAGE] if module == PACKAGE else [PACKAGE, *module.split(".")]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = node.level - is_package
            base = parts[: len(parts) - above] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def imports_in(sources: Sources) -> dict[str, set[str]]:
    """For each module, those of our own that it imports."""
    packages = {module.rpartition(".")[0] for module in sources} | {PACKAGE}
    graph: dict[str, set[str]] = {}
    for module, text in sources.items():
        graph[module] = set()
        for name in imported_names(module, module in packages, text):
            own = name.removeprefix(f"{PACKAGE}.")
            # The root is loaded before any module in it, so its version can be read everywhere.
            if own == name != PACKAGE or own == "__version__":
                continue
            while own not in sources and "." in own:
                own = own.rpartition(".")[0]
            graph[module].add(own if own in sources else PACKAGE)
        graph[module].discard(module)
    return graph


def faults_in(sources: Sources) -> list[str]:
    """Every import that breaks a rule, in words."""
    faults = []
    for module in sources:
        try:
            place_of(module)
        except LookupError:
            faults.append(f"{module} has no place: add it to LINES")
    if faults:
        return faults
    graph = imports_in(sources)
    for module, imported in graph.items():
        faults += [fault for other in sorted(imported) if (fault := fault_of(module, other))]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append("a cycle: " + " imports ".join(reversed(error.args[1])))
    return faults


def fault_of(module: str, other: str) -> str:
    (line, entry), (other_line, other_entry) = place_of(module), place_of(other)
    if entry == "testing.*" != other_entry:
        return f"{module} imports {other}: testing stands alone"
    if entry == other_entry == "remotes.*" and other.removeprefix("remotes.") not in SHARED_BY_REMOTES:
        return f"{module} imports {other}: sources do not import each other"
    if entry != other_entry and other_line >= line:
        return f"{module} imports {other}, which is {'beside' if other_line == line else 'above'} it"
    return ""


def test_every_import_goes_down() -> None:
    sources = sources_of(ROOT / PACKAGE)
    assert {"errors", "store.disk", "remotes.source", PACKAGE} <= set(sources)
    assert "store.disk" in imports_in(sources)["store.partial"]
    assert faults_in(sources) == []


@pytest.mark.parametrize(
    ("sources", "fault"),
    [
        (
            {"errors": "from modelcache.caching import Cache", "caching": ""},
            "errors imports caching, which is above it",
        ),
        ({"errors": "import modelcache.caching as c", "caching": ""}, "errors imports caching, which is above it"),
        ({"errors": "from . import caching", "caching": ""}, "errors imports caching, which is above it"),
        ({"store.disk": "from ..caching import Cache", "caching": ""}, "store.disk imports caching, which is above it"),
        (
            {"store": "from .disk import x", "store.disk": "from .. import caching", "caching": ""},
            "store.disk imports caching",
        ),
        ({"urls": "def f():\n    import modelcache.model", "model": ""}, "urls imports model, which is above it"),
        ({"urls": "if TYPE_CHECKING:\n    from modelcache import model", "model": ""}, "urls imports model"),
        ({"model": "from modelcache.events import Fact", "events": ""}, "model imports events, which is beside it"),
        ({"store.disk": "import modelcache.remotes.http", "remotes.http": ""}, "remotes.http, which is beside it"),
        ({"remotes.ipfs": "import modelcache.remotes.oci", "remotes.oci": ""}, "sources do not import each other"),
        ({"testing.wire": "from modelcache.errors import StoreError", "errors": ""}, "testing stands alone"),
        ({"wiring": "from modelcache.testing.wire import Wire", "testing.wire": ""}, "testing.wire, which is above it"),
        (
            {"caching": "from modelcache import fetch", "modelcache": ""},
            "caching imports modelcache, which is above it",
        ),
        ({"store.a": "from . import b", "store.b": "from modelcache.store.a import x"}, "a cycle: store."),
        ({"newcomer": ""}, "newcomer has no place: add it to LINES"),
        ({"store": "", "newcomers.one": ""}, "newcomers.one has no place"),
    ],
)
def test_a_wrong_import_is_found(sources: Sources, fault: str) -> None:
    assert any(fault in found for found in faults_in({PACKAGE: "", **sources}))


@pytest.mark.parametrize(
    "sources",
    [
        {"caching": "from modelcache import __version__, errors\nimport os.path, json", "errors": ""},
        {"store.a": "from modelcache.store import b\nfrom ..errors import StoreError", "store.b": "", "errors": ""},
        {"store": "from .disk import read", "store.disk": ""},
        {"remotes.ipfs": "from modelcache.remotes import http", "remotes.http": "import requests"},
        {"modelcache": "if TYPE_CHECKING:\n    from modelcache.caching import Cache", "caching": ""},
        {
            "demo": "from modelcache.testing.wire import Wire",
            "testing.wire": "from .reply import R",
            "testing.reply": "",
        },
    ],
)
def test_a_right_import_is_none(sources: Sources) -> None:
    assert faults_in({PACKAGE: "", **sources}) == []


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing a module binds its name in the package, and hides what is called so: `modelcache.repair` was one."""
    modules = {path.stem for path in (ROOT / PACKAGE).iterdir()}
    assert modules.isdisjoint(modelcache.__all__)


def loaded_by(code: str) -> set[str]:
    """The modules that an interpreter has loaded after `code`, less those it started with."""
    script = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    return set(subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_nothing_slow() -> None:
    loaded = loaded_by("import modelcache")
    assert loaded.isdisjoint(SLOW_TO_IMPORT)
    assert PACKAGE in loaded
    assert "sqlite3" in loaded_by("import sqlite3")
