"""What is installed: `ls`, `info`, `path`, `rm`, `add`, and `manifest`, which describes a folder."""

import argparse
import json
import os
import sys
import warnings
from typing import Any

from modelcache.commands.common import (
    Commands,
    add_json,
    add_model,
    cache_of,
    is_taken,
    print_json,
    print_report,
)
from modelcache.errors import VerificationError
from modelcache.printing import printable
from modelcache.units import in_bytes

MOST_NAMED = 5


def add_to(commands: Commands) -> None:
    add_json(commands.add("ls", "list installed models", _ls))
    info = commands.add("info", "show the files of a model", _info)
    add_model(info)
    add_json(info)
    path = commands.add("path", "print where a model is; asks no network", _path)
    add_model(path)
    add_json(path)
    rm = commands.add(
        "rm",
        "remove the version that a ref means (of a hub: main, latest), or all of an id; what others share stays",
        _rm,
    )
    add_model(rm)
    add_json(rm)
    add = commands.add("add", "take a file or folder of this disk into the cache", _add)
    add.add_argument("path", metavar="PATH")
    add.add_argument("--model", required=True, metavar="ID")
    add.add_argument("--version", metavar="V")
    add.add_argument("--replace", action="store_true", help="even if that version is here with other bytes")
    adopt = commands.add("adopt", "take what other tools have downloaded into the cache", _adopt)
    adopt.add_argument(
        "source", metavar="hf|ollama|PATH", help="whose cache, its folder, or one models--org--name of it"
    )
    adopt.add_argument("--quiet", action="store_true", help="no progress")
    add_json(adopt)
    _add_manifest(commands.add("manifest", "describe a folder so that others can fetch it verified", _manifest))


def _add_manifest(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=["make"])
    sub.add_argument("dir", metavar="DIR")
    sub.add_argument("--model", metavar="ID", help="default: the name of the folder")
    sub.add_argument("--base-url", default="", metavar="URL", help="where the folder will be served")
    sub.add_argument("--output", metavar="FILE", help="default, and - : stdout")


def _ls(options: argparse.Namespace) -> int:
    return print_report(cache_of(options).models(), options)


def _info(options: argparse.Namespace) -> int:
    return print_report(cache_of(options).info(options.model, options.version), options)


def _path(options: argparse.Namespace) -> int:
    with warnings.catch_warnings(record=True) as doubts:
        path = cache_of(options).path(options.model, options.version)
    for doubt in doubts:
        print(printable(f"modelcache: {doubt.message}"), file=sys.stderr)
    if options.json:
        print_json({"model": options.model, "path": path})
    elif not is_taken(path, options):
        print(path)
    return 0


def _rm(options: argparse.Namespace) -> int:
    report = cache_of(options).remove(options.model, options.version)
    is_taken(report, options)
    if options.json:
        freed, left = sum(row["size"] for row in report), report[0]["left"]
        removed = [row["version"] for row in report]
        print_json({"model": options.model, "bytes_freed": freed, "removed": removed, "left": left})
    for row in report:
        named = f"{row['model']}@{row['version'][:12]}"
        line = ", ".join((f"removed {named}", f"{in_bytes(row['size'])} freed"))
        print(printable("; ".join((line, *report.notes))), file=sys.stderr)
    return 0


def _add(options: argparse.Namespace) -> int:
    model = cache_of(options).add(options.path, options.model, options.version or "1", replace=options.replace)
    if not is_taken(model, options):
        print(model)
    _tell_left_out(options.path)
    return 0


def _tell_left_out(folder: str) -> None:
    """What is not a plain file is in no model: that must not be overlooked."""
    from modelcache.manifests import ADOPT, left_out

    names = left_out(folder) if os.path.isdir(folder) else []
    if names:
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        some = ", ".join(names[:MOST_NAMED]) + more
        print(printable(f"left out, for it is no plain file: {some}; {ADOPT}"), file=sys.stderr)


def _adopt(options: argparse.Namespace) -> int:
    report = cache_of(options).adopt(options.source, progress=not options.quiet)
    if options.json:
        print_json(list(report))
    elif not is_taken(report, options):
        for path in dict.fromkeys(row["path"] for row in report if row["outcome"] in ("taken", "here")):
            print(path)
    for row in report:
        if row["outcome"] in ("wrong", "left"):
            print(printable(f"{row['outcome']}: {_named(row)}: {row['reason']}"), file=sys.stderr)
    print(_summary(list(report)) if len(report) else f"{report.title}: nothing", file=sys.stderr)
    return VerificationError.exit_code if any(row["outcome"] == "wrong" for row in report) else 0


def _named(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["model"] and f"{row['model']}@{row['version'][:12]}", row["file"])))


def _summary(rows: list[dict[str, Any]]) -> str:
    """What came of an adoption, in one line."""
    by = {outcome: [row for row in rows if row["outcome"] == outcome] for outcome in ("taken", "here", "absent")}
    sizes = {outcome: sum(row["size"] for row in some) for outcome, some in by.items()}
    copied = sum(row["size"] for row in by["taken"] if row["copied"])
    files = "1 file" if len(by["taken"]) == 1 else f"{len(by['taken']):,} files"
    return (
        f"{files} taken ({in_bytes(sizes['taken'])}, {copied:,} of them copied), {len(by['here']):,} here already "
        f"({in_bytes(sizes['here'])}), {len(by['absent']):,} not there"
    )


def _manifest(options: argparse.Namespace) -> int:
    from modelcache.manifests import make

    folder = os.path.abspath(options.dir)
    target = "" if options.output in (None, "-") else os.path.abspath(options.output)
    manifest = make(folder, options.model or os.path.basename(folder), options.base_url, leave_out=target)
    text = json.dumps(manifest.to_json(), indent=1)
    if target:
        from modelcache.store.disk import write_atomic

        write_atomic(target, text.encode() + b"\n", 0o644)
        print(options.output)
    else:
        print(text)
    _tell_left_out(folder)
    return 0
