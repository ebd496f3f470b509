"""`logs`: what happened to models."""

import argparse
import sys
from typing import Any

from modelcache.commands.common import Commands, add_json, cache_of, print_json


def add_to(commands: Commands) -> None:
    logs = commands.add("logs", "show what happened to models", _logs)
    logs.add_argument("model", nargs="?", metavar="MODEL")
    logs.add_argument("--export", metavar="FILE", help="write it to a file, as lines of JSON, for a bug report")
    add_json(logs)


def _logs(options: argparse.Namespace) -> int:
    report = cache_of(options).logs(options.model)
    if options.export is not None:
        from modelcache.logbook import export

        export(list(report), options.export)
        print(options.export)
    elif options.json:
        print_json(list(report))
    else:
        for row in report:
            print(_line(row))
        if not len(report):
            print(f"{report.title}: nothing", file=sys.stderr)
    return 0


def _line(row: dict[str, Any]) -> str:
    text = f"{row['timestamp']} {row['model_name']} {row['event_type']}: {row['message']}"
    return "".join(character if character.isprintable() else " " for character in text)  # a log may hold anything
