"""The command `modelcache`: paths on stdout, everything else on stderr, stable exit codes.

Responsible for: what can be typed, and turning errors into one line and a code. Leaves everything else to `Cache`.

Exit codes: 0 fine; 1 a bug of ours; 2 usage; 3 integrity; 4 not found or not allowed; 5 network; 6 local (disk,
permission); 7 locked; 130 and 143 interrupted.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NoReturn

from modelcache.arguments import parser
from modelcache.errors import AllSourcesFailedError, ModelCacheError, PausedError, StoreError, UsageError
from modelcache.store.disk import store_error

INTERRUPTED, TERMINATED = 130, 143
FINDING_CODES = {"corrupt": 3, "unreadable": 6, "missing": 4}  # the gravest first


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same clean stop as Ctrl-C, with another exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; prints one line about an error, and with --debug where it came from."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _catch_signals()
        options = parser().parse_args(arguments)
        code: int = COMMANDS[options.command](options)
        sys.stdout.flush()
    except ModelCacheError as error:
        return _failed(error, arguments)
    except KeyboardInterrupt as error:
        return _interrupted(error, arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has left
        return 0
    except OSError as error:  # where no layer expects one: no file handle is left to import a module, say
        return _failed(store_error(error, str(error.filename or "modelcache")), arguments)
    except Exception as error:  # noqa: BLE001 - the last who can turn it into a line (I27)
        _show_trace(error, arguments)
        what = type(error).__name__  # its text may hold anything
        print(f"modelcache: a bug in modelcache: {what}; run it with --debug and report what it says", file=sys.stderr)
        return 1
    return code


def _catch_signals() -> None:
    """Also SIGINT: a shell starts what it runs in the background with SIGINT ignored, and Python leaves it so."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _interrupted(error: KeyboardInterrupt, arguments: Sequence[str]) -> int:
    """Everything has stopped. One more Ctrl-C would only spoil the end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kept_bytes = getattr(error, "kept_bytes", 0)
    next_step = "run the same command again to go on"
    _failed(PausedError("interrupted", kept_bytes=kept_bytes, next_step=next_step), arguments)
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def _failed(error: ModelCacheError, arguments: Sequence[str]) -> int:
    _show_trace(error, arguments)
    if "--json" in arguments:
        failures = error.failures if isinstance(error, AllSourcesFailedError) else ()
        sources = [{"source": failure.source, "reason": failure.reason} for failure in failures]
        story = {
            "error": error.message, "kind": error.kind, "sources": sources, "kept_bytes": error.kept_bytes,
            "next": error.next_step,
        }  # fmt: skip
        _print_json(story)
    print(f"modelcache: {error.line()}", file=sys.stderr)
    return error.exit_code


def _show_trace(error: BaseException, arguments: Sequence[str]) -> None:
    """Where an error came from. Of foreign errors only the kind: their texts hold whole URLs, with secrets (I22)."""
    if "--debug" not in arguments:
        return
    import traceback

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.insert(0, link)
        link = link.__cause__ or link.__context__
    for each in chain:
        print("".join(traceback.format_tb(each.__traceback__)), end="", file=sys.stderr)
        text = f": {each.message}" if isinstance(each, ModelCacheError) else ""
        print(f"{type(each).__module__}.{type(each).__qualname__}{text}\n", file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


# -- commands ---------------------------------------------------------------------------------------------------------


def _cache(options: argparse.Namespace) -> Any:
    from modelcache.cache import Cache

    return Cache(**{name: getattr(options, name, None) for name in ("connections", "parallel_files")})


def _fetch(options: argparse.Namespace) -> int:
    from modelcache.manifests import load

    targets: list[Any] = list(options.targets)
    if options.manifest is not None:
        targets.append(load(options.manifest))
    _check_fetch(options, targets)
    cache, told, failures = _cache(options), [], []
    for target in targets:
        try:
            result = _fetch_one(cache, target, options)
        except (StoreError, UsageError, PausedError):
            raise  # no other target would fare better
        except ModelCacheError as error:
            failures.append(error)
            continue
        told.append(_told(target, result))
        if not options.json:
            print(result, flush=True)
        _warn(told[-1])
    if failures:
        raise _of_several(failures, len(targets))
    if options.json:
        _print_json(told)
    return 0


def _fetch_one(cache: Any, target: Any, options: argparse.Namespace) -> Any:
    return cache.fetch(
        target,
        sha256=options.sha256,
        checksum=options.checksum,
        size=options.size,
        output=options.output if options.output is not None else options.output_dir,
        mirrors=options.mirror,
        headers=_headers(options.header),
        progress=not options.quiet,
        cache=not options.no_cache,
        strict=options.strict,
        require_digest=options.require_digest,
        unpack=options.unpack,
    )


def _of_several(failures: list[ModelCacheError], targets: int) -> ModelCacheError:
    """The first failure, which gives the exit code; of many targets it says how many failed."""
    worst = failures[0]
    if targets > 1:
        others = "; ".join(error.message for error in failures[1:])
        worst.message = f"{len(failures)} of {targets} targets failed: {worst.message}" + (
            f"; {others}" if others else ""
        )
    return worst


def _check_fetch(options: argparse.Namespace, targets: list[Any]) -> None:
    if not targets:
        raise UsageError("nothing to fetch: name a TARGET or a --manifest")
    single = ("sha256", "checksum", "size", "output", "output_dir", "mirror", "header")
    given = [name for name in single if getattr(options, name) not in (None, [])]
    if len(targets) > 1 and given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with one target, not with {len(targets)}")
    if options.output is not None and options.output_dir is not None:
        raise UsageError("--output and --output-dir are the same for a manifest: give one")
    if options.output_dir is not None and options.manifest is None:
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
        "ref": ref.shown, "id": ref.id, "version": result.sha256[:12], "path": str(result), "files": [result.to_json()]
    }  # fmt: skip


def _warn(told: dict[str, Any]) -> None:
    """Says what nothing vouched for (product H)."""
    for file in told["files"]:
        if file["verified"] == "unverified":
            print(
                f"{file['path']}: unverified, for nothing was known to compare it with; sha256 {file['sha256']} is "
                "recorded and has to match next time",
                file=sys.stderr,
            )


def _check(options: argparse.Namespace) -> int:
    from modelcache.cache import Cache
    from modelcache.manifests import load

    rows = list(Cache().check(load(options.manifest), options.output_dir))
    return _findings(rows, options, options.output_dir)


def _verify(options: argparse.Namespace) -> int:
    cache = _cache(options)
    rows = [row for model in options.models or [None] for row in cache.verify(model)]
    return _findings(rows, options, ", ".join(options.models) or cache.root)


def _findings(rows: list[dict[str, Any]], options: argparse.Namespace, subject: str) -> int:
    """Prints what was found; the code of the gravest finding."""
    if options.json:
        _print_json(rows)
    found = {row["finding"] for row in rows} - {"whole"}
    for row in rows:
        if row["finding"] != "whole":
            where = f" (bytes {row['wrong_bytes']})" if row["wrong_bytes"] else ""
            print(f"{row['model']} {row['file']}: {row['finding']}{where}: {row['reason']}", file=sys.stderr)
    if not found:
        print(f"{subject}: {len(rows)} {'file is' if len(rows) == 1 else 'files are'} right", file=sys.stderr)
    return next((code for finding, code in FINDING_CODES.items() if finding in found), 0)


def _repair(options: argparse.Namespace) -> int:
    report = _cache(options).repair(
        options.models, headers=_headers(options.header), mirrors=options.mirror, progress=not options.quiet
    )
    if options.json:
        _print_json(list(report))
    for row in report:
        done = f"repaired, {row['bytes_fetched']:,} of {row['size']:,} bytes fetched"
        print(f"{row['model']} {row['file']}: {done if row['repaired'] else row['reason']}", file=sys.stderr)
    if not len(report):
        print("nothing is known to be wrong; `modelcache verify` reads every byte", file=sys.stderr)
    return 0 if all(row["repaired"] for row in report) else 3


def _ls(options: argparse.Namespace) -> int:
    return _table(_cache(options).models(), options)


def _info(options: argparse.Namespace) -> int:
    return _table(_cache(options).info(options.model, options.version), options)


def _table(report: Iterable[Any], options: argparse.Namespace) -> int:
    if options.json:
        _print_json(list(report))
    else:
        print(report)
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


def _demo(_options: argparse.Namespace) -> int:
    from modelcache.demo import demo

    return demo()


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fetch": _fetch, "check": _check, "ls": _ls, "info": _info, "path": _path, "rm": _rm, "verify": _verify,
    "repair": _repair, "add": _add, "manifest": _manifest, "demo": _demo,
}  # fmt: skip
