"""`fetch` and `check`."""

import argparse
import os
import sys
from typing import Any

from modelcache.commands.audit import findings
from modelcache.commands.common import Commands, add_json, add_sources, cache_of, headers_of, is_taken, print_json, rate
from modelcache.errors import ModelCacheError, PausedError, StoreError, UsageError, of_several

MOST_TOLD = 10


def add_to(commands: Commands) -> None:
    _add_fetch(commands.add("fetch", "fetch files, verified and resumable", _fetch))
    check = commands.add("check", "say whether a folder holds what a manifest lists", _check)
    check.add_argument("--manifest", required=True, metavar="FILE")
    check.add_argument("--output-dir", required=True, metavar="DIR")
    add_json(check)


def _add_fetch(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("targets", nargs="*", metavar="TARGET", help="a URL, hf:org/name, ollama:name, oci://… or a name")
    sub.add_argument("--sha256", metavar="HEX", help="what the file must be")
    sub.add_argument("--checksum", metavar="ALGO:HEX", help="the same by sha256, sha512, sha1, md5, blake3 or git-sha1")
    sub.add_argument("--size", type=int, metavar="N", help="its size in bytes")
    sub.add_argument("--output", metavar="PATH", help="put it there as well")
    sub.add_argument("--manifest", metavar="FILE", help="fetch the files that it lists")
    sub.add_argument("--files", action="append", default=[], metavar="PATTERN", help="of a model, only these files")
    sub.add_argument("--output-dir", metavar="DIR", help="put the files of the manifest there as well")
    sub.add_argument("--layout", choices=("ollama",), help="make --output a folder of models as Ollama keeps them")
    sub.add_argument("--connections", type=int, metavar="N", help="per file, at most (8)")
    sub.add_argument("--parallel-files", type=int, metavar="N", help="of a model, at once")
    sub.add_argument("--limit-rate", type=rate, metavar="RATE", help="bytes/s of all together, as 500K or 2.5M")
    sub.add_argument("--prefer", metavar="KIND", help="ask sources of this kind first: ipfs, huggingface, http, …")
    sub.add_argument("--no-cache", action="store_true", help="leave nothing in the cache: --output is the only copy")
    sub.add_argument("--strict", action="store_true", help="read what is here from end to end")
    sub.add_argument("--require-digest", action="store_true", help="refuse what nothing can be verified against")
    sub.add_argument("--unpack", action="store_true", help="unpack archives into a new folder (--output names it)")
    sub.add_argument("--queue", action="store_true", help="by way of the queue, which survives this process")
    sub.add_argument("--priority", type=int, default=0, metavar="N", help="in the queue; higher comes first")
    add_sources(sub)


def _fetch(options: argparse.Namespace) -> int:
    from modelcache.manifests import load

    targets: list[Any] = list(options.targets)
    if options.manifest is not None:
        targets.append(load(options.manifest))
    _check_fetch(options, targets)
    cache, told, failures = cache_of(options), [], []
    if not options.quiet:
        _show_unfinished(cache)
    if options.queue:
        return _fetch_queued(cache, targets, options)
    for target in targets:
        try:
            result = _fetch_one(cache, target, options)
        except (StoreError, UsageError, PausedError):
            raise  # no other target would fare better
        except ModelCacheError as error:
            failures.append(error)
            continue
        told.append(_told(target, result))
        if not options.json and not is_taken(result, options):
            print(result, flush=True)
        _warn(told[-1], is_kept=not options.no_cache)
    if failures:
        raise of_several(failures, len(targets), "targets") if len(targets) > 1 else failures[0]
    if options.json:
        print_json(told)
    return 0


def _fetch_queued(cache: Any, targets: list[Any], options: argparse.Namespace) -> int:
    """Puts the targets into the queue, and works it off: also what others put there, or an earlier run left."""
    from modelcache.commands.queue import run
    from modelcache.queueing import Queue

    if options.header or options.unpack or options.layout:
        raise UsageError("--header, --unpack and --layout do not go with --queue: headers may be secrets, and not kept")
    queue = Queue(cache)
    for target in targets:
        queue.add(
            target,
            priority=options.priority,
            sha256=options.sha256,
            checksum=options.checksum,
            size=options.size,
            output=options.output if options.output is not None else options.output_dir,
            mirrors=options.mirror,
            cache=not options.no_cache,
            strict=options.strict,
            require_digest=options.require_digest,
            prefer=options.prefer or "",
            files=tuple(options.files),
        )
    return run(queue, options)


def _show_unfinished(cache: Any) -> None:
    """What earlier runs left, before it is gone on with (product D1)."""
    found = cache.check_at_start()
    if len(found):
        print(found.title, file=sys.stderr)
    for row in found:
        print(row["text"], file=sys.stderr)


def _fetch_one(cache: Any, target: Any, options: argparse.Namespace) -> Any:
    return cache.fetch(
        target,
        sha256=options.sha256,
        checksum=options.checksum,
        size=options.size,
        output=options.output if options.output is not None else options.output_dir,
        mirrors=options.mirror,
        headers=headers_of(options),
        progress=not options.quiet,
        cache=not options.no_cache,
        strict=options.strict,
        require_digest=options.require_digest,
        files=tuple(options.files),
        unpack=options.unpack,
        prefer=options.prefer or "",
        layout=options.layout or "",
    )


def _check_fetch(options: argparse.Namespace, targets: list[Any]) -> None:
    if not targets and not options.queue:
        raise UsageError("nothing to fetch: name a TARGET or a --manifest")
    single = ("sha256", "checksum", "size", "output", "output_dir", "mirror", "header")
    given = [name for name in single if getattr(options, name) not in (None, [])]
    if len(targets) > 1 and given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with one target, not with {len(targets)}")
    if "-" in (options.output, options.output_dir):
        raise UsageError("a model does not go to stdout", next_step="cat what `modelcache path` names, or say ./-")
    if options.output is not None and options.output_dir is not None:
        raise UsageError("--output and --output-dir are the same for a manifest: give one")
    if options.output_dir is not None and options.manifest is None:
        raise UsageError("--output-dir goes with --manifest; for a URL there is --output")


def _told(target: Any, result: Any) -> dict[str, Any]:
    """An entry of `fetch --json` (product H)."""
    from modelcache.outcome import File
    from modelcache.refs import Ref

    if not isinstance(result, File):
        entry: dict[str, Any] = result.to_json()
        return entry
    ref = Ref.parse(target)
    return {
        "ref": ref.shown, "id": ref.id, "version": result.version, "path": str(result), "files": [result.to_json()]
    }  # fmt: skip


def _warn(told: dict[str, Any], *, is_kept: bool) -> None:
    """Says what nothing vouched for (product H), and what its hub does not have."""
    for file in told["files"]:
        if file["verified"] == "unverified":
            doubt = f"{file['path']}: unverified, for nothing was known to compare it with; sha256 {file['sha256']}"
            print(doubt + (" is recorded and has to match next time" if is_kept else ""), file=sys.stderr)
    if missing := told.get("missing"):
        more = f" and {len(missing) - MOST_TOLD} more" if len(missing) > MOST_TOLD else ""
        what = f"{told['ref']} is here without {', '.join(missing[:MOST_TOLD])}{more}"
        print(f"{told['id']}: {what}: fetch it again when its hub can be asked", file=sys.stderr)
    for path in told.get("lacking", ()):
        print(f"{told['id']}: {told['ref']} does not have {path}, which is optional", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from modelcache.check import check
    from modelcache.manifests import load

    rows = list(check(load(options.manifest), os.path.expanduser(options.output_dir)))
    return findings(rows, options, options.output_dir)
