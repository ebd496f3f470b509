"""What is installed: `ls`, `info`, `path`, `rm`, `add`, and `manifest`, which describes a folder."""

import argparse
import json
import os
import sys

from modelcache.commands.common import Commands, add_json, add_model, cache_of, print_json, print_report


def add_to(commands: Commands) -> None:
    add_json(commands.add("ls", "list installed models", _ls))
    info = commands.add("info", "show the files of a model", _info)
    add_model(info)
    add_json(info)
    add_model(commands.add("path", "print where a model is; asks no network", _path))
    rm = commands.add("rm", "remove a model; files that others share stay", _rm)
    add_model(rm)
    add_json(rm)
    add = commands.add("add", "take a file or folder of this disk into the cache", _add)
    add.add_argument("path", metavar="PATH")
    add.add_argument("--model", required=True, metavar="ID")
    add.add_argument("--version", metavar="V")
    add.add_argument("--replace", action="store_true", help="even if that version is here with other bytes")
    _add_manifest(commands.add("manifest", "describe a folder so that others can fetch it verified", _manifest))


def _add_manifest(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=["make"])
    sub.add_argument("dir", metavar="DIR")
    sub.add_argument("--model", metavar="ID", help="default: the name of the folder")
    sub.add_argument("--base-url", default="", metavar="URL", help="where the folder will be served")
    sub.add_argument("--output", metavar="FILE", help="default: stdout")


def _ls(options: argparse.Namespace) -> int:
    return print_report(cache_of(options).models(), options)


def _info(options: argparse.Namespace) -> int:
    return print_report(cache_of(options).info(options.model, options.version), options)


def _path(options: argparse.Namespace) -> int:
    print(cache_of(options).path(options.model, options.version))
    return 0


def _rm(options: argparse.Namespace) -> int:
    freed = cache_of(options).remove(options.model, options.version)
    if options.json:
        print_json({"model": options.model, "bytes_freed": freed})
    print(f"{options.model}: {freed:,} bytes freed", file=sys.stderr)
    return 0


def _add(options: argparse.Namespace) -> int:
    print(cache_of(options).add(options.path, options.model, options.version or "1", replace=options.replace))
    return 0


def _manifest(options: argparse.Namespace) -> int:
    from modelcache.manifests import make

    folder = os.path.abspath(options.dir)
    target = "" if options.output is None else os.path.abspath(options.output)
    manifest = make(folder, options.model or os.path.basename(folder), options.base_url, leave_out=target)
    text = json.dumps(manifest.to_json(), indent=1)
    if target:
        from modelcache.store.disk import write_atomic

        write_atomic(target, text.encode() + b"\n", 0o644)
        print(options.output)
    else:
        print(text)
    return 0
