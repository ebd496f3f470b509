"""`verify` and `repair`."""

import argparse
import sys
from typing import Any

from modelcache.commands.common import (
    Commands,
    add_json,
    add_sources,
    cache_of,
    headers_of,
    is_taken,
    named,
    print_json,
)
from modelcache.errors import UsageError
from modelcache.printing import printable
from modelcache.rows import Report, joined

FINDING_CODES = {"corrupt": 3, "unreadable": 6, "missing": 4}  # the gravest first
MOST_SPANS = 4  # of a file, in a line for people


def add_to(commands: Commands) -> None:
    verify = commands.add("verify", "read every byte and say what is wrong", _verify)
    verify.add_argument("models", nargs="*", metavar="REF")
    verify.add_argument("--strict", action="store_true", help="by the SHA-256 of whole files, not by their pieces")
    verify.add_argument("--quiet", action="store_true", help="no progress")
    _add_sweep(verify)
    add_json(verify)
    repair = commands.add("repair", "fetch again only the pieces that are wrong", _repair)
    repair.add_argument("models", nargs="*", metavar="REF")
    add_sources(repair)


def _add_sweep(sub: argparse.ArgumentParser) -> None:
    """Of the whole cache, a share a run."""
    sweep = sub.add_argument_group("sweeping", "what was verified longest ago first; the next run goes on there")
    sweep.add_argument("--share", metavar="1/30", help="read that share of all bytes (1/30, 0.1, full)")
    sweep.add_argument("--older-than", metavar="10d", help="leave what was verified less long ago (10d, with --share)")
    sweep.add_argument("--time-limit", metavar="1h", help="begin no file after so long")
    sweep.add_argument("--rate-limit", metavar="50M", help="read so many bytes/s at most")
    sweep.add_argument("--repair", action="store_true", help="mend at once what has rotted here")
    sweep.add_argument(
        "--also", action="append", default=[], metavar="PLACE",
        help="read, and never change: hf, ollama, a cache of theirs, or a folder with a manifest",
    )  # fmt: skip


def _verify(options: argparse.Namespace) -> int:
    if any((options.share, options.older_than, options.time_limit, options.rate_limit, options.repair, options.also)):
        return _sweep(options)
    cache = cache_of(options)
    shown = not options.quiet
    report = joined([cache.verify(name, strict=options.strict, progress=shown) for name in options.models or [None]])
    is_taken(report, options)
    rows = list(report)
    names = dict.fromkeys(named(row["model"], row["version"]) for row in rows)
    code = findings(rows, options, ", ".join(names) if options.models else cache.root)
    _print_notes(report)
    return code


def _print_notes(report: Report) -> None:
    for note in report.notes:
        print(printable(note), file=sys.stderr)


def _sweep(options: argparse.Namespace) -> int:
    if options.models:
        raise UsageError("a sweep goes through the whole cache", next_step="repair one model with `modelcache repair`")
    cache = cache_of(options)
    report = cache.sweep(
        share=options.share or "full",
        older_than=options.older_than or ("10d" if options.share else 0),
        time_limit=options.time_limit or 0,
        rate_limit=options.rate_limit or 0,
        strict=options.strict,
        repair=options.repair,
        also=options.also,
        progress=not options.quiet,
    )
    if not is_taken(report, options) and options.json:
        print_json(list(report))
    for row in report:
        if row["repaired"]:
            done = f"repaired, {row['bytes_fetched']:,} of {row['size']:,} bytes fetched"
            print(f"{_subject(row)}: {done}", file=sys.stderr)
    left = [row for row in report if not row["repaired"]]
    if not any(row["where"] == "" for row in report):
        print(f"{cache.root}: no file was due", file=sys.stderr)
    for where in dict.fromkeys(row["where"] for row in left):
        told([row for row in left if row["where"] == where], printable(where) or cache.root)
    _print_notes(report)
    print(report.title, file=sys.stderr)
    return _code(left)


def findings(rows: list[dict[str, Any]], options: argparse.Namespace, subject: str) -> int:
    """Prints what was found; the code of the gravest finding."""
    if options.json:
        print_json(rows)
    return told(rows, subject)


def told(rows: list[dict[str, Any]], subject: str) -> int:
    """The same for people alone."""
    for row in rows:
        if row["finding"] != "whole":
            where = f" (bytes {_first(row['wrong_bytes'])})" if row["wrong_bytes"] else ""
            print(f"{_subject(row)}: {row['finding']}{where}: {row['reason']}", file=sys.stderr)
    if not (code := _code(rows)):
        print(f"{subject}: {len(rows)} {'file is' if len(rows) == 1 else 'files are'} right", file=sys.stderr)
    return code


def _code(rows: list[dict[str, Any]]) -> int:
    found = {row["finding"] for row in rows}
    return next((code for finding, code in FINDING_CODES.items() if finding in found), 0)


def _subject(row: dict[str, Any]) -> str:
    """With the place, where that is not the cache itself."""
    where = printable(row.get("where", ""))
    return f"{where}: " * bool(where) + named(row["model"], row["version"], row["file"])


def _first(spans: str) -> str:
    """The first of many: a file that is wrong all over has thousands."""
    each = spans.split(", ")
    more = len(each) - MOST_SPANS
    return ", ".join(each[:MOST_SPANS]) + (f", and {more:,} more pieces" if more > 0 else "")


def _repair(options: argparse.Namespace) -> int:
    report = cache_of(options).repair(
        options.models, headers=headers_of(options), mirrors=options.mirror, progress=not options.quiet
    )
    if not is_taken(report, options) and options.json:
        print_json(list(report))
    for row in report:
        done = f"repaired, {row['bytes_fetched']:,} of {row['size']:,} bytes fetched"
        print(f"{_subject(row)}: {done if row['repaired'] else row['reason']}", file=sys.stderr)
    _print_notes(report)
    if not len(report):
        print("nothing is known to be wrong; `modelcache verify` reads every byte", file=sys.stderr)
    return 0 if all(row["repaired"] for row in report) else 3
