"""`clean`, `pin`, `unpin`, `reset`, `doctor` and `logs`: what goes and what stays, what is wrong, and what happened."""

import argparse
import sys
from typing import Any

from modelcache.commands.common import Commands, add_json, add_model, cache_of, is_taken, named, print_json
from modelcache.errors import StoreError, UsageError
from modelcache.printing import printable
from modelcache.rows import Report
from modelcache.units import in_bytes


def add_to(commands: Commands) -> None:
    clean = commands.add("clean", "remove what is old and nobody's: unfinished downloads, leftovers, logs", _clean)
    clean.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    clean.add_argument("--foreign", action="store_true", help="also what other tools began, and left for a day")
    add_json(clean)
    for name, text, run in (
        ("pin", "keep a model, whatever room it takes: `clean` does not remove it", _pin),
        ("unpin", "let `clean` remove a model to make room", _unpin),
    ):
        sub = commands.add(name, text, run)
        add_model(sub)
        add_json(sub)
    reset = commands.add("reset", "forget a model, and what is unfinished of it; files that others share stay", _reset)
    reset.add_argument("model", metavar="MODEL")
    add_json(reset)
    add_json(commands.add("doctor", "say what is wrong with the cache, and which command helps", _doctor))
    logs = commands.add("logs", "show what happened to models", _logs)
    logs.add_argument("model", nargs="?", metavar="MODEL")
    logs.add_argument("--export", metavar="FILE", help="write it as lines of JSON, for a bug report; - for stdout")
    add_json(logs)


def _clean(options: argparse.Namespace) -> int:
    report = cache_of(options).clean(dry_run=options.dry_run, foreign=options.foreign)
    _tell(report, options)
    total = sum(row["size"] for row in report if row["removed"] or options.dry_run)
    print(f"{in_bytes(total)} {'would be freed' if options.dry_run else 'freed'}", file=sys.stderr)
    return StoreError.exit_code if report.findings else 0


def _pin(options: argparse.Namespace) -> int:
    (row,) = cache_of(options).pin(options.model, options.version)
    if options.json:
        print_json(row | {"model": options.model, "pinned": True})
    if not row["here"]:
        print(f"{options.model} is not here yet: it is kept when it is fetched", file=sys.stderr)
    else:
        print(f"pinned {_pinned(row)}", file=sys.stderr)
    return 0


def _pinned(row: dict[str, Any]) -> str:
    named = f"{row['model']}@{row['version'][:12]}" if row["version"] else f"all versions of {row['model']}"
    return printable(named)


def _unpin(options: argparse.Namespace) -> int:
    rows = list(cache_of(options).unpin(options.model, options.version))
    if options.json:
        versions = [row["version"] for row in rows]
        print_json({"model": options.model, "versions": versions, "pinned": False, "was": bool(rows)})
    for row in rows:
        print(f"unpinned {_pinned(row)}", file=sys.stderr)
    if not rows:
        print(f"{options.model} was not pinned", file=sys.stderr)
    return 0


def _reset(options: argparse.Namespace) -> int:
    report = cache_of(options).reset(options.model)
    _tell(report, options)
    freed = sum(row["size"] for row in report)
    done = f"reset, {in_bytes(freed)} freed" if len(report) else "nothing of it was here"
    print(f"{options.model}: {done}", file=sys.stderr)
    return 0


def _tell(report: Report, options: argparse.Namespace) -> None:
    if options.json:
        print_json(list(report))
        return
    if is_taken(report, options):
        return
    for row in report:
        if row["kind"] == "budget":  # it tells of the cache, and of nothing that was removed
            print(printable(f"the cache is {row['reason']}"), file=sys.stderr)
            continue
        what = f"{row['model']}: {row['path']}" if row["model"] else row["path"]
        print(printable(f"{row['kind']:<10} {row['size']:>15,}  {what}: {row['reason']}"))


def _doctor(options: argparse.Namespace) -> int:
    report = cache_of(options).doctor()
    if options.json:
        print_json(list(report))
    elif not is_taken(report, options):
        for row in report:
            print(printable(f"{row['level']:<5}  " + "; ".join(filter(None, (row["finding"], row["fix"])))))
    is_wrong = any(row["level"] == "wrong" for row in report)
    if not is_wrong:
        print("nothing is wrong", file=sys.stderr)
    return 3 if is_wrong else 0


def _logs(options: argparse.Namespace) -> int:
    report = cache_of(options).logs(options.model)
    if options.export == "-":
        from modelcache.logbook import as_lines

        if options.json:
            raise UsageError("one thing at a time goes to stdout: --export - or --json")
        sys.stdout.write(as_lines(list(report)).decode())
    elif options.export is not None:
        from modelcache.logbook import export

        export(list(report), options.export)
        if options.json:
            print_json({"path": options.export})
        else:
            print(options.export)
    elif options.json:
        print_json(list(report))
    elif not is_taken(report, options):
        for row in report:
            print(_line(row))
        if not len(report):
            print(f"{report.title}: nothing", file=sys.stderr)
    return 0


def _line(row: dict[str, Any]) -> str:
    details = row["details"]
    version, file = (str(details.get(name, "")) for name in ("version", "file"))
    about = named(row["model_name"], version[:12], "" if file in row["message"] else file)
    return printable(f"{row['timestamp']} {about} {row['event_type']}: {row['message']}")
