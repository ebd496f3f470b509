"""`report`: how well fetching went, as a table, CSV, JSON, or a page."""

import argparse
import sys
from dataclasses import replace

from modelcache.commands.common import Commands, add_json, cache_of, is_taken, print_json
from modelcache.errors import UsageError
from modelcache.printing import printable


def add_to(commands: Commands) -> None:
    report = commands.add("report", "show how well fetching went: by layer, gateway, model and day", _report)
    report.add_argument("--since", default="24h", metavar="TIME", help="24h, 7d, or a date like 2026-05-04 (UTC)")
    report.add_argument("--by", metavar="GROUP", help="rows of one group alone: layer, gateway, model or day")
    report.add_argument("--csv", metavar="FILE", help="write the rows there; - for stdout")
    report.add_argument("--html", metavar="FILE", help="write a page with plots there; - for stdout")
    add_json(report)


def _report(options: argparse.Namespace) -> int:
    from modelcache.store.disk import chosen_by

    paths = [path for path in (options.csv, options.html) if path is not None]
    is_piped = "-" in paths
    if paths.count("-") + options.json > 1 and is_piped:
        raise UsageError("one thing at a time goes to stdout: --csv -, --html - or --json")
    report = cache_of(options).report(options.since, options.by)
    for note in report.notes:
        print(printable(note), file=sys.stderr)
    if options.csv is not None:
        with chosen_by("--csv"):
            report.to_csv(sys.stdout.buffer if options.csv == "-" else options.csv)
    if options.html is not None:
        with chosen_by("--html"):
            report.to_html(sys.stdout.buffer if options.html == "-" else options.html)
    if options.json:
        print_json(list(report))
    elif not paths and is_taken(report, options):
        pass
    elif not paths:
        print(replace(report, notes=()))
    elif not is_piped:
        print("\n".join(paths))
    return 0
