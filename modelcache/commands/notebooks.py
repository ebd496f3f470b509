"""`notebooks`: the ones that come with the package, to try things in."""

import argparse
import os

from modelcache.commands.common import Commands, add_json, is_taken, print_json
from modelcache.errors import StoreError, UsageError
from modelcache.store.disk import chosen_by, disk_errors, make_output_directories, output_mode, write_atomic

FOLDER = "notebooks"


def add_to(commands: Commands) -> None:
    sub = commands.add("notebooks", "copy the notebooks that come with modelcache to a folder of yours", _notebooks)
    sub.add_argument("action", choices=["copy"])
    sub.add_argument("dir", metavar="DIR", help="made if it is not there; nothing in it is replaced")
    add_json(sub)


def _notebooks(options: argparse.Namespace) -> int:
    paths = copied(os.path.abspath(os.path.expanduser(options.dir)))
    if options.json:
        print_json(paths)
    elif not is_taken(paths, options):
        print("\n".join(paths))
    return 0


def copied(folder: str) -> list[str]:
    """Copies all of them; where they are now. UsageError where one is there: then nothing is copied. StoreError."""
    source = _shipped()
    with disk_errors(source):
        names = sorted(name for name in os.listdir(source) if name.endswith(".ipynb"))
    paths = [os.path.join(folder, name) for name in names]
    if there := [path for path in paths if os.path.lexists(path)]:
        raise UsageError(f"{there[0]} is there already, and stays as it is", next_step="name another folder")
    with chosen_by("DIR"):
        make_output_directories(folder)
        for name, path in zip(names, paths, strict=True):
            with disk_errors(source), open(os.path.join(source, name), "rb") as stream:
                content = stream.read()
            write_atomic(path, content, output_mode())
    return paths


def _shipped() -> str:
    """In a wheel they are inside the package, in a checkout beside it."""
    import modelcache

    package = os.path.dirname(os.path.abspath(modelcache.__file__))
    inside, beside = os.path.join(package, FOLDER), os.path.join(os.path.dirname(package), FOLDER)
    if os.path.isdir(inside):
        return inside
    if os.path.isfile(os.path.join(os.path.dirname(package), "pyproject.toml")):
        return beside
    raise StoreError(f"{inside} is missing", next_step="install modelcache again")
