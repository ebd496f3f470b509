"""`verify` and `repair`."""

import argparse
import sys
from typing import Any

from modelcache.commands.common import Commands, add_json, add_sources, cache_of, headers_of, print_json

FINDING_CODES = {"corrupt": 3, "unreadable": 6, "missing": 4}  # the gravest first
MOST_SPANS = 4  # of a file, in a line for people


def add_to(commands: Commands) -> None:
    verify = commands.add("verify", "read every byte and say what is wrong", _verify)
    verify.add_argument("models", nargs="*", metavar="REF")
    verify.add_argument("--strict", action="store_true", help="by the SHA-256 of whole files, not by their pieces")
    verify.add_argument("--quiet", action="store_true", help="no progress")
    add_json(verify)
    repair = commands.add("repair", "fetch again only the pieces that are wrong", _repair)
    repair.add_argument("models", nargs="*", metavar="REF")
    add_sources(repair)


def _verify(options: argparse.Namespace) -> int:
    cache = cache_of(options)
    shown = not options.quiet
    reports = [cache.verify(model, strict=options.strict, progress=shown) for model in options.models or [None]]
    rows = [row for report in reports for row in report]
    return findings(rows, options, ", ".join(options.models) or cache.root)


def findings(rows: list[dict[str, Any]], options: argparse.Namespace, subject: str) -> int:
    """Prints what was found; the code of the gravest finding."""
    if options.json:
        print_json(rows)
    found = {row["finding"] for row in rows} - {"whole"}
    for row in rows:
        if row["finding"] != "whole":
            where = f" (bytes {_first(row['wrong_bytes'])})" if row["wrong_bytes"] else ""
            print(f"{row['model']} {row['file']}: {row['finding']}{where}: {row['reason']}", file=sys.stderr)
    if not found:
        print(f"{subject}: {len(rows)} {'file is' if len(rows) == 1 else 'files are'} right", file=sys.stderr)
    return next((code for finding, code in FINDING_CODES.items() if finding in found), 0)


def _first(spans: str) -> str:
    """The first of many: a file that is wrong all over has thousands."""
    each = spans.split(", ")
    more = len(each) - MOST_SPANS
    return ", ".join(each[:MOST_SPANS]) + (f", and {more:,} more pieces" if more > 0 else "")


def _repair(options: argparse.Namespace) -> int:
    report = cache_of(options).repair(
        options.models, headers=headers_of(options), mirrors=options.mirror, progress=not options.quiet
    )
    if options.json:
        print_json(list(report))
    for row in report:
        done = f"repaired, {row['bytes_fetched']:,} of {row['size']:,} bytes fetched"
        print(f"{row['model']} {row['file']}: {done if row['repaired'] else row['reason']}", file=sys.stderr)
    if not len(report):
        print("nothing is known to be wrong; `modelcache verify` reads every byte", file=sys.stderr)
    return 0 if all(row["repaired"] for row in report) else 3
