"""`queue`, and what `fetch --queue` does."""

import argparse
import sys
from typing import Any

from modelcache.commands.common import Commands, add_json, cache_of, is_taken, print_json, print_report
from modelcache.errors import ModelCacheError, UsageError, of_several


def add_to(commands: Commands) -> None:
    sub = commands.add("queue", "show and change what waits to be fetched", _queue)
    actions = ["ls", "run", "pause", "resume", "priority", "move", "retry", "rm"]
    sub.add_argument("action", nargs="?", default="ls", choices=actions)
    sub.add_argument("id", nargs="?", metavar="ID", help="of an entry; `pause` and `resume` without one are for all")
    sub.add_argument("--priority", type=int, metavar="N", help="with `priority`: higher comes first")
    sub.add_argument("--before", metavar="ID", help="with `move`: the entry that comes right after it")
    sub.add_argument("--quiet", action="store_true", help="no progress")
    add_json(sub)


def _queue(options: argparse.Namespace) -> int:
    from modelcache.queueing import Queue

    queue = Queue(cache_of(options))
    match options.action:
        case "ls":
            return print_report(queue.entries(), options)
        case "run":
            return run(queue, options)
        case "pause":
            queue.pause(options.id)
        case "resume":
            queue.resume(options.id)
        case "priority" if options.priority is None:
            raise UsageError("priority needs --priority N")
        case "priority":
            queue.prioritize(_id(options), options.priority)
        case "move" if options.before is None:
            raise UsageError("move needs --before ID")
        case "move":
            queue.move(_id(options), before=options.before)
        case "retry":
            queue.retry(_id(options))
        case "rm":
            queue.remove(_id(options))
    return print_report(queue.entries(), options) if options.json else 0


def _id(options: argparse.Namespace) -> str:
    if not options.id:
        raise UsageError(f"{options.action} needs the ID of an entry", next_step="see `modelcache queue`")
    return str(options.id)


def run(queue: Any, options: argparse.Namespace) -> int:
    """Fetches until the queue is empty; prints each path, and at the end raises what failed."""
    told: list[dict[str, Any]] = []
    failures: list[ModelCacheError] = []

    def ended(entry: Any) -> None:
        if isinstance(entry.error, ModelCacheError):
            failures.append(entry.error)
        elif entry.error is not None:
            raise entry.error
        else:
            told.append({"id": entry.id, "ref": entry.ref, "path": str(entry.result)})
            if not options.json and not is_taken(entry.result, options):
                print(entry.result, flush=True)

    queue.run(progress=not options.quiet, ended=ended, waiting=lambda words: print(words, file=sys.stderr, flush=True))
    if queue.is_paused and len(queue):
        print(f"the queue is paused, {len(queue)} wait; `modelcache queue resume` lets them go on", file=sys.stderr)
    elif paused := [entry["id"] for entry in queue.entries() if entry["status"] == "paused"]:
        print(f"{len(paused)} paused; `modelcache queue resume {paused[0]}` lets it go on", file=sys.stderr)
    if failures:
        total = len(failures) + len(told)
        raise of_several(failures, total, "queued targets") if total > 1 else failures[0]
    if options.json:
        print_json(told)
    return 0
