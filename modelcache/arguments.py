"""What can be typed after `modelcache`.

Responsible for: commands, options and their help. Leaves to `cli`: doing it.
"""

import argparse
from typing import NoReturn

from modelcache import __version__
from modelcache.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all of our errors are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next_step=f"see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """Its result has the name of the command in `command`. UsageError for what cannot be meant."""
    root = Parser(prog="modelcache", description="One verified, resumable cache for model files.", allow_abbrev=False)
    root.add_argument("--version", action="version", version=f"modelcache {__version__}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=name)
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        return sub

    _add_fetch(command("fetch", "fetch files, verified and resumable"))
    check = command("check", "say whether a folder holds what a manifest lists")
    check.add_argument("--manifest", required=True, metavar="FILE")
    check.add_argument("--output-dir", required=True, metavar="DIR")
    _json(check)
    _json(command("ls", "list installed models"))
    info = command("info", "show the files of a model")
    path = command("path", "print where a model is; asks no network")
    rm = command("rm", "remove a model; files that others share stay")
    for sub in (info, path, rm):
        sub.add_argument("model", metavar="REF")
        sub.add_argument("--version", metavar="V")
    _json(info)
    verify = command("verify", "read every byte and say what is wrong")
    verify.add_argument("models", nargs="*", metavar="REF")
    _json(verify)
    repair = command("repair", "fetch again only the pieces that are wrong")
    repair.add_argument("models", nargs="*", metavar="REF")
    _sources(repair)
    add = command("add", "take a file or folder of this disk into the cache")
    add.add_argument("path", metavar="PATH")
    add.add_argument("--model", required=True, metavar="ID")
    add.add_argument("--version", metavar="V")
    add.add_argument("--replace", action="store_true", help="even if that version is here with other bytes")
    _add_manifest(command("manifest", "describe a folder so that others can fetch it verified"))
    command("demo", "show on this machine, without network, what modelcache does")
    return root


def _add_fetch(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("targets", nargs="*", metavar="TARGET", help="a URL, or the id of an installed model")
    sub.add_argument("--sha256", metavar="HEX", help="what the file must be")
    sub.add_argument("--checksum", metavar="ALGO:HEX", help="the same by sha256, sha512, sha1, md5 or blake3")
    sub.add_argument("--size", type=int, metavar="N", help="its size in bytes")
    sub.add_argument("--output", metavar="PATH", help="put it there as well")
    sub.add_argument("--manifest", metavar="FILE", help="fetch the files that it lists")
    sub.add_argument("--output-dir", metavar="DIR", help="put the files of the manifest there as well")
    sub.add_argument("--connections", type=int, metavar="N", help="per file")
    sub.add_argument("--parallel-files", type=int, metavar="N")
    sub.add_argument("--no-cache", action="store_true", help="leave nothing in the cache: --output is the only copy")
    sub.add_argument("--strict", action="store_true", help="read what is here from end to end")
    sub.add_argument("--require-digest", action="store_true", help="refuse what nothing can be verified against")
    sub.add_argument("--unpack", action="store_true", help="unpack archives into a new folder (--output names it)")
    _sources(sub)


def _sources(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--mirror", action="append", default=[], metavar="URL", help="another source of the same file")
    sub.add_argument(
        "--header", action="append", default=[], metavar="'K: V'", help="sent to the first URL's origin, to no other"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress")
    _json(sub)


def _json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print JSON on stdout")


def _add_manifest(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=["make"])
    sub.add_argument("dir", metavar="DIR")
    sub.add_argument("--model", metavar="ID", help="default: the name of the folder")
    sub.add_argument("--base-url", default="", metavar="URL", help="where the folder will be served")
    sub.add_argument("--output", metavar="FILE", help="default: stdout")
