"""`status`, `resume` and `cancel`: downloads of before and now."""

import argparse
import re
import sys
import time
from typing import Any

from modelcache.commands.common import Commands, add_json, cache_of, headers_of, is_taken, named, print_json
from modelcache.errors import ModelCacheError, PausedError, StoreError, UsageError, of_several
from modelcache.units import DIGEST_SHOWN, in_units, short_version

_PINNED = re.compile(r"(?<=[@:/])(?:[0-9a-f]{64}|[0-9a-f]{40})\b")


def add_to(commands: Commands) -> None:
    status = commands.add("status", "show downloads: what is here of them, and what went wrong", _status)
    status.add_argument("id", nargs="?", metavar="ID")
    status.add_argument("--status", metavar="S", help="pending, in_progress, resuming, paused, failed or success")
    add_json(status)
    resume = commands.add("resume", "go on with a download that was paused or failed", _resume)
    resume.add_argument("id", nargs="?", metavar="ID", help="as `modelcache status` shows it")
    resume.add_argument("--all", action="store_true", help="all that are paused or failed and were not cancelled")
    resume.add_argument("--header", action="append", default=[], metavar="'K: V'", help="headers are not kept")
    resume.add_argument("--quiet", action="store_true", help="no progress")
    add_json(resume)
    cancel = commands.add("cancel", "remove what is not complete of a download", _cancel)
    cancel.add_argument("id", metavar="ID")
    add_json(cancel)


def _status(options: argparse.Namespace) -> int:
    if options.id is not None and options.status is not None:
        raise UsageError("an ID or a --status: give one")
    cache = cache_of(options)
    if options.id is not None:
        record = cache.download(options.id)
        return 0 if is_taken(record, options) else _show(record.to_row(), options)
    report = cache.downloads(*(() if options.status is None else (options.status,)))
    rows = list(report)
    if options.json:
        print_json(rows)
    if options.json or is_taken(report, options):
        return 0
    for row in rows:
        print(_line(row))
    if not rows:
        print("no downloads", file=sys.stderr)
    return 0


def _show(row: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        print_json(row)
    else:
        print(_line(row))
    return 0


def _line(row: dict[str, Any]) -> str:
    """`4f1e… paused  28.8 MiB of 48.0 MiB  2 attempts  2026-01-31 12:00  https://…  why`."""
    here, total = row["downloaded_bytes"], row["total_bytes"]
    size = f"{in_units(here)} of {in_units(total)}" if total and here != total else in_units(here)
    attempts = f"{row['attempts']} attempt" + ("" if row["attempts"] == 1 else "s")
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(row["lastAttempt"], 10**13) / 1000))
    what = named(_PINNED.sub(lambda found: found[0][:DIGEST_SHOWN], row["source"]), short_version(row["version"]))
    parts = (row["id"], f"{row['status']:<11}", f"{size:>22}", attempts, moment, what, row["error_message"])
    return "  ".join(part for part in parts if part)


def _resume(options: argparse.Namespace) -> int:
    if (options.id is None) != options.all:
        raise UsageError("name the ID of a download, or --all")
    cache, headers = cache_of(options), headers_of(options)
    chosen = [options.id] if options.id is not None else _unfinished(cache)
    rows, failures = [], []
    for download_id in chosen:
        try:
            record = cache.resume(download_id, headers=headers, progress=not options.quiet)
        except (StoreError, PausedError):
            raise  # no other would fare better
        except ModelCacheError as error:
            failures.append(error)
            continue
        rows.append(record.to_row())
        if not options.json and not is_taken(record, options):
            print(record.path, flush=True)
    if failures:
        raise of_several(failures, len(chosen), "downloads") if len(chosen) > 1 else failures[0]
    if options.json:
        print_json(rows)
    if not chosen:
        print("nothing to resume", file=sys.stderr)
    return 0


def _unfinished(cache: Any) -> list[str]:
    rows = [*cache.downloads("paused"), *cache.downloads("failed")]
    return [row["id"] for row in rows if row["canResume"]]


def _cancel(options: argparse.Namespace) -> int:
    row = cache_of(options).cancel(options.id).to_row()
    if options.json:
        print_json(row)
    text = "is complete and stays" if row["status"] == "success" else "is cancelled"
    print(f"{row['source']}: {text}", file=sys.stderr)
    return 0
