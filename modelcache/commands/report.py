"""`report`: how well fetching went, as a table, CSV, JSON, or a page."""

import argparse
import sys
from dataclasses import replace

from modelcache.commands.common import Commands, add_json, cache_of, print_json, printable


def add_to(commands: Commands) -> None:
    report = commands.add("report", "show how well fetching went: by layer, gateway, model and day", _report)
    report.add_argument("--since", default="24h", metavar="TIME", help="24h, 7d, or a date like 2026-05-04 (UTC)")
    report.add_argument("--by", metavar="GROUP", help="rows of one group alone: layer, gateway, model or day")
    report.add_argument("--csv", metavar="FILE", help="write the rows there")
    report.add_argument("--html", metavar="FILE", help="write a page with plots there")
    add_json(report)


def _report(options: argparse.Namespace) -> int:
    report = cache_of(options).report(options.since, options.by)
    for note in report.notes:
        print(printable(note), file=sys.stderr)
    if options.csv is not None:
        report.to_csv(options.csv)
    if options.html is not None:
        report.to_html(options.html)
    if options.json:
        print_json(list(report))
    elif options.csv is None and options.html is None:
        print(replace(report, notes=()))
    else:
        print("\n".join(path for path in (options.csv, options.html) if path is not None))
    return 0
