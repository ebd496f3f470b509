"""`jobs`: running one, all of them when they are due, and what ran."""

import argparse
import logging
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from modelcache.commands.common import Commands, add_json, cache_of, is_taken, print_json
from modelcache.errors import ModelCacheError, UsageError
from modelcache.printing import printable
from modelcache.rows import Report

if TYPE_CHECKING:
    from modelcache.jobs.ledger import Run

COULD_NOT_RUN = 2
STATUS_CODES = {"ok": 0, "findings": 1, "failed": COULD_NOT_RUN}
LAST = 20
IN_SHELL, IN_PYTHON = "`modelcache jobs` in a shell", "`modelcache.jobs.start()` here"


def add_to(commands: Commands) -> None:
    sub = commands.add("jobs", "run what looks after the cache, now or when it is due", _jobs)
    sub.epilog = "`start` reads settings when it starts: restart it, and it reads them again; nothing is lost by that."
    sub.add_argument("action", choices=["run", "start", "list", "history"])
    sub.add_argument("name", nargs="?", metavar="NAME", help="of a job; `history` without one is of all")
    sub.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="with `run`: an option, as in the settings"
    )
    sub.add_argument("--slot", metavar="SLOT", help="with `run`: the slot, as 20261123T0300Z, which runs once")
    sub.add_argument("--last", type=int, default=LAST, metavar="N", help="with `history`: so many runs of each job")
    sub.add_argument("--quiet", action="store_true", help="with `run`: print nothing where all is well")
    add_json(sub)


def _jobs(options: argparse.Namespace) -> int:
    from modelcache.jobs.overview import history, listed

    if options.name and options.action in ("start", "list"):
        raise UsageError(f"{options.action} takes no NAME", next_step="see `modelcache jobs --help`")
    if options.host is not None and options.action in ("run", "start"):
        raise UsageError(f"{options.action} needs a process of its own", next_step=f"run {IN_SHELL}, or {IN_PYTHON}")
    if options.last < 1:
        raise UsageError(f"--last {options.last}: a number from 1 is expected")
    match options.action:
        case "run" if not options.name:
            raise UsageError("run needs the NAME of a job", next_step="see `modelcache jobs list`")
        case "run":
            return _run(options)
        case "start":
            return _start(options)
        case "list":
            return _print(listed(cache_of(options)), options)
    return _print(history(cache_of(options), options.name, options.last), options)


def _start(options: argparse.Namespace) -> int:
    from modelcache.jobs.daemon import serve

    _log_to_stderr(logging.INFO)
    serve(cache_of(options))
    return 0


def _run(options: argparse.Namespace) -> int:
    """Exit code: 0 fine, 1 findings, 2 it could not run, or not to its end, 143 stopped by SIGTERM (130 by Ctrl-C)."""
    from modelcache.jobs.ledger import plain
    from modelcache.jobs.overview import run_row
    from modelcache.jobs.runner import Runner
    from modelcache.jobs.schedule import schedule
    from modelcache.jobs.signals import Signals

    _log_to_stderr(logging.WARNING if options.quiet else logging.INFO)
    cache, stop = cache_of(options), threading.Event()
    try:
        job = schedule(cache.root, options.name)
        job = replace(job, options={**job.options, **_options(options.set)})
        signals = Signals(stop.set)
        run = Runner(cache).run(job, options.slot or "", stop)
    except ModelCacheError as error:
        error.exit_code = COULD_NOT_RUN
        raise
    cache.close()
    if options.json:
        if run.report is not None:
            run = replace(run, report=replace(run.report, rows=tuple(plain(run.report))))
        print_json(run_row(run))
    elif run.report is not None and not (options.quiet and _is_well(run)):
        _print(run.report, options)
    if run.status == "stopped":
        return signals.code or COULD_NOT_RUN  # without a signal `max_runtime` has ended it
    return STATUS_CODES[run.status]


def _is_well(run: "Run") -> bool:
    """There is nothing that somebody has to know."""
    return run.status == "ok" and run.report is not None and not run.report.notes


def _print(report: Report, options: argparse.Namespace) -> int:
    """What a record holds may be anything."""
    if options.json:
        print_json(list(report))
    elif not is_taken(report, options):
        rows = [{printable(key): _printable(cell) for key, cell in row.items()} for row in report]
        print(replace(report, title=printable(report.title), rows=tuple(rows)))
    return 0


def _printable(cell: object) -> object:
    return cell if cell is None or isinstance(cell, int | float) else printable(str(cell))


def _options(given: list[str]) -> dict[str, object]:
    """Options as they would stand in the file: K=V of TOML; what is none is a text."""
    import tomllib

    options: dict[str, object] = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not sign:
            raise UsageError("--set takes K=V")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            options[name] = value
    return options


def _log_to_stderr(level: int) -> None:
    for each in ("urllib3", "requests"):
        logging.getLogger(each).propagate = False  # they log whole URLs, with secrets (I22)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("modelcache.jobs").setLevel(level)
