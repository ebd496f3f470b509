"""`bundle`: models in one file, for machines without network."""

import argparse
import os
import sys

from modelcache.commands.common import Commands, add_json, cache_of, is_taken, print_json
from modelcache.errors import UsageError


def add_to(commands: Commands) -> None:
    bundle = commands.add("bundle", "carry models in one file to a machine without network", _bundle)
    bundle.add_argument("action", choices=["export", "import"])
    bundle.add_argument("names", nargs="+", metavar="NAME", help="models to export; or the file to import, - for stdin")
    bundle.add_argument("-o", "--output", metavar="FILE", help="of an export; replaced if it is there; - for stdout")
    bundle.add_argument("--quiet", action="store_true", help="no progress")
    add_json(bundle)


def _bundle(options: argparse.Namespace) -> int:
    return _export(options) if options.action == "export" else _import(options)


def _export(options: argparse.Namespace) -> int:
    if not options.output:
        raise UsageError("export needs --output FILE")
    if options.output == "-":
        if options.json or sys.stdout.isatty():
            raise UsageError("a bundle on stdout goes with nothing else there, and to no terminal")
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as stdout:
            cache_of(options).export_bundle(options.names, stdout, progress=not options.quiet)
        return 0
    is_there = os.path.lexists(os.path.expanduser(options.output))
    report = cache_of(options).export_bundle(options.names, options.output, progress=not options.quiet)
    if is_there:
        print(f"{options.output}: replaced", file=sys.stderr)
    if options.json:
        print_json(list(report))
    elif not is_taken(report, options):
        print(options.output)
    return 0


def _import(options: argparse.Namespace) -> int:
    if len(options.names) > 1 or options.output is not None:
        raise UsageError("import takes one bundle, and nothing else")
    cache, source = cache_of(options), options.names[0]
    if source == "-":
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
            models = cache.import_bundle(stdin, progress=not options.quiet)
    else:
        models = cache.import_bundle(source, progress=not options.quiet)
    if options.json:
        print_json([model.to_json() for model in models])
        return 0
    for model in models:
        if not is_taken(model, options):
            print(model)
    return 0
