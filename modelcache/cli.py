"""The command `modelcache`: paths on stdout, everything else on stderr, stable exit codes.

Responsible for: what can be typed, and turning errors into one line and a code. Leaves everything else to `Cache`.

Exit codes: 0 fine; 2 usage; 3 integrity; 4 not found or not allowed; 5 network; 6 local (disk, permission);
7 locked; 130 and 143 interrupted.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from modelcache import __version__
from modelcache.errors import AllSourcesFailedError, ModelCacheError, UsageError
from modelcache.store.disk import store_error

INTERRUPTED, TERMINATED = 130, 143
FINDING_CODES = {"corrupt": 3, "unreadable": 6, "missing": 4, "whole": 0}


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same clean stop as Ctrl-C, with another exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; prints at most one line about an error, unless --debug is given."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except ModelCacheError as error:
        return _failed(error, options)
    except KeyboardInterrupt as error:
        print("interrupted; what was fetched is kept, run the same command again to go on", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has left
        return 0
    except OSError as error:  # where no layer expects one: no file handle is left to import a module, say
        return _failed(store_error(error, str(error.filename or "modelcache")), options)
    return code


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _failed(error: ModelCacheError, options: argparse.Namespace) -> int:
    if options.debug:
        import traceback

        traceback.print_exception(error)
    if getattr(options, "json", False):
        failures = error.failures if isinstance(error, AllSourcesFailedError) else ()
        sources = [{"source": failure.source, "reason": failure.reason} for failure in failures]
        story = {
            "error": error.message, "kind": error.kind, "sources": sources, "kept_bytes": error.kept_bytes,
            "next": error.next_step,
        }  # fmt: skip
        print(json.dumps(story))
    print(f"modelcache: {error.line()}", file=sys.stderr)
    return error.exit_code


# -- commands ---------------------------------------------------------------------------------------------------------


def _cache(options: argparse.Namespace) -> Any:
    from modelcache.cache import Cache

    overrides = {name: getattr(options, name, None) for name in ("connections", "parallel_files")}
    return Cache(**{name: value for name, value in overrides.items() if value is not None})


def _fetch(options: argparse.Namespace) -> int:
    from modelcache.manifests import load

    targets: list[Any] = list(options.targets)
    if options.manifest:
        targets.append(load(options.manifest))
    _check_fetch(options, targets)
    cache, done = _cache(options), []
    for target in targets:
        result = cache.fetch(
            target,
            sha256=options.sha256,
            checksum=options.checksum,
            size=options.size,
            output=None if options.unpack else options.output or options.output_dir,
            mirrors=options.mirror,
            headers=_headers(options.header),
            progress=not options.quiet,
            cache=not options.no_cache,
            strict=options.strict,
            require_digest=options.require_digest,
        )
        if options.unpack:
            result = cache.unpack(result, options.output or options.output_dir)
        done.append((target, result))
        if not options.json:
            print(result)
    if options.json:
        print(json.dumps([_told(target, result) for target, result in done], indent=1))
    return 0


def _check_fetch(options: argparse.Namespace, targets: list[Any]) -> None:
    if not targets:
        raise UsageError("nothing to fetch: name a TARGET or a --manifest")
    single = [name for name in ("sha256", "checksum", "size", "output") if getattr(options, name) is not None]
    if len(targets) > 1 and single:
        raise UsageError(f"--{single[0]} goes with one target, not with {len(targets)}")
    if options.output and options.output_dir:
        raise UsageError("--output and --output-dir are the same for a manifest: give one")
    if options.output_dir and not options.manifest:
        raise UsageError("--output-dir goes with --manifest; for a URL there is --output")


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise UsageError("--header takes 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def _told(target: Any, result: Any) -> dict[str, Any]:
    """An entry of `fetch --json` (product H)."""
    from modelcache.model import Ref
    from modelcache.outcome import File

    if not isinstance(result, File):
        entry: dict[str, Any] = result.to_json()
        return entry
    ref = Ref.parse(target)
    return {
        "ref": ref.shown, "id": ref.id, "version": result.sha256[:12], "path": result.path, "files": [result.to_json()]
    }  # fmt: skip


def _check(options: argparse.Namespace) -> int:
    from modelcache.cache import Cache
    from modelcache.manifests import load

    report = Cache().check(load(options.manifest), options.output_dir)
    return _findings(report, options, options.output_dir)


def _verify(options: argparse.Namespace) -> int:
    cache = _cache(options)
    worst = 0
    for model in options.models or [None]:
        report = cache.verify(model)
        worst = max(worst, _findings(report, options, model or cache.root), key=lambda code: (code in (3, 6), code))
    return worst


def _findings(report: Any, options: argparse.Namespace, subject: str) -> int:
    """Prints what was found; 0 if all is right, 3 if something is corrupt, 4 if something is missing."""
    wrong = [row for row in report if row["finding"] != "whole"]
    if options.json:
        print(json.dumps(list(report), indent=1))
    for row in wrong:
        where = f" (bytes {row['wrong_bytes']})" if row["wrong_bytes"] else ""
        print(f"{row['model']} {row['file']}: {row['finding']}{where}: {row['reason']}", file=sys.stderr)
    if not wrong:
        print(f"{subject}: {len(report)} files are right", file=sys.stderr)
        return 0
    codes = [FINDING_CODES[str(row["finding"])] for row in wrong]
    return next(code for code in (3, 6, 4) if code in codes)


def _repair(options: argparse.Namespace) -> int:
    report = _cache(options).repair(
        options.models, headers=_headers(options.header), mirrors=options.mirror, progress=not options.quiet
    )
    if options.json:
        print(json.dumps(list(report), indent=1))
    for row in report:
        done = f"repaired, {row['bytes_fetched']:,} of {row['size']:,} bytes fetched"
        print(f"{row['model']} {row['file']}: {done if row['repaired'] else row['reason']}", file=sys.stderr)
    if not len(report):
        print("nothing is to be repaired", file=sys.stderr)
    return 0 if all(row["repaired"] for row in report) else 3


def _ls(options: argparse.Namespace) -> int:
    return _table(_cache(options).models(), options)


def _info(options: argparse.Namespace) -> int:
    return _table(_cache(options).info(options.model, options.version), options)


def _table(report: Any, options: argparse.Namespace) -> int:
    print(json.dumps(list(report), indent=1) if options.json else report)
    return 0


def _path(options: argparse.Namespace) -> int:
    print(_cache(options).path(options.model, options.version))
    return 0


def _rm(options: argparse.Namespace) -> int:
    freed = _cache(options).remove(options.model, options.version)
    print(f"{options.model}: {freed:,} bytes freed", file=sys.stderr)
    return 0


def _add(options: argparse.Namespace) -> int:
    print(_cache(options).add(options.path, options.model, options.version or "1", replace=options.replace))
    return 0


def _manifest(options: argparse.Namespace) -> int:
    from modelcache.manifests import make

    folder = os.path.abspath(options.dir)
    manifest = make(folder, options.model or os.path.basename(folder), options.base_url)
    text = json.dumps(manifest.to_json(), indent=1)
    if options.output:
        from modelcache.store.disk import write_atomic

        write_atomic(os.path.abspath(options.output), text.encode() + b"\n", 0o644)
        print(options.output)
    else:
        print(text)
    return 0


def _demo(_options: argparse.Namespace) -> int:
    from modelcache.demo import demo

    return demo()


# -- what can be typed ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modelcache", description="One verified, resumable cache for model files.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"modelcache {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    _add_fetch(command("fetch", _fetch, "fetch files, verified and resumable"))
    check = command("check", _check, "say whether a folder holds what a manifest lists")
    check.add_argument("--manifest", required=True, metavar="FILE")
    check.add_argument("--output-dir", required=True, metavar="DIR")
    _json(check)
    _json(command("ls", _ls, "list installed models"))
    info = command("info", _info, "show the files of a model")
    path = command("path", _path, "print where a model is; asks no network")
    rm = command("rm", _rm, "remove a model; files that others share stay")
    for sub in (info, path, rm):
        sub.add_argument("model", metavar="REF")
        sub.add_argument("--version", metavar="V")
    _json(info)
    verify = command("verify", _verify, "read every byte and say what is wrong")
    verify.add_argument("models", nargs="*", metavar="REF")
    _json(verify)
    repair = command("repair", _repair, "fetch again only the pieces that are wrong")
    repair.add_argument("models", nargs="*", metavar="REF")
    _sources(repair)
    add = command("add", _add, "take a file or folder of this disk into the cache")
    add.add_argument("path", metavar="PATH")
    add.add_argument("--model", required=True, metavar="ID")
    add.add_argument("--version", metavar="V")
    add.add_argument("--replace", action="store_true", help="even if that version is here with other bytes")
    _add_manifest(command("manifest", _manifest, "describe a folder so that others can fetch it verified"))
    command("demo", _demo, "show on this machine, without network, what modelcache does")
    return parser


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
