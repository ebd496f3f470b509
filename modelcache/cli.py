"""The command `modelcache`: paths on stdout, everything else on stderr, stable exit codes.

Responsible for: what can be typed, and turning errors into one line and a code. Leaves everything else to `Cache`.

Exit codes: 0 fine; 1 a bug of ours; 2 usage; 3 integrity; 4 not found or not allowed; 5 network; 6 local (disk,
permission); 7 locked; 130 and 143 interrupted.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from modelcache import __version__
from modelcache.commands import audit, bundle, care, downloads, fetch, installed, jobs, notebooks, queue, report
from modelcache.commands.common import Commands, Parser, print_json
from modelcache.errors import AllSourcesFailedError, ModelCacheError, PausedError
from modelcache.printing import printable
from modelcache.store.disk import store_error

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same clean stop as Ctrl-C, with another exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; prints one line about an error, and with --debug where it came from."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _catch_signals()
        options = parser().parse_args(arguments)
        code: int = options.run(options)
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
        for each in _chain(error):
            if isinstance(each, KeyboardInterrupt):  # while a class was made: up to Python 3.11 RuntimeError hides it
                return _interrupted(each, arguments)
        what = type(error).__name__  # its text may hold anything
        print(f"modelcache: a bug in modelcache: {what}; run it with --debug and report what it says", file=sys.stderr)
        return 1
    return code


def parser(prog: str = "modelcache") -> Parser:
    """Its result has in `run` what does it. UsageError for what cannot be meant."""
    root = Parser(prog=prog, description="One verified, resumable cache for model files.", allow_abbrev=False)
    root.add_argument("--version", action="version", version=f"modelcache {__version__}")
    commands = Commands(root)
    for subject in (fetch, downloads, installed, audit, bundle, care, queue, jobs, report, notebooks):
        subject.add_to(commands)
    commands.add("demo", "show on this machine, without network, what modelcache does", _demo)
    return root


def _demo(_options: argparse.Namespace) -> int:
    from modelcache.demo import demo

    return demo()


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
    _failed(PausedError("interrupted", kept_bytes=kept_bytes), arguments)
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def _failed(error: ModelCacheError, arguments: Sequence[str]) -> int:
    _show_trace(error, arguments)
    if "--json" in arguments:
        failures = error.failures if isinstance(error, AllSourcesFailedError) else ()
        sources = [{"source": failure.source, "reason": failure.reason} for failure in failures]
        story = {
            "error": error.message, "kind": error.kind, "sources": sources, "kept_files": error.kept_files,
            "kept_bytes": error.kept_bytes, "next": error.advice,
        }  # fmt: skip
        print_json(story)
    print(f"modelcache: {printable(error.line())}", file=sys.stderr)
    return error.exit_code


def _show_trace(error: BaseException, arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        print(*trace_of(error), sep="\n", file=sys.stderr)


def trace_of(error: BaseException) -> list[str]:
    """Where an error came from, what it followed from first. Of foreign errors only the kind: their texts hold whole
    URLs, with secrets (I22)."""
    import traceback

    lines = []
    for each in reversed(_chain(error)):
        text = f": {each.message}" if isinstance(each, ModelCacheError) else ""
        trace = "".join(traceback.format_tb(each.__traceback__))
        lines.append(f"{trace}{type(each).__module__}.{type(each).__qualname__}{text}\n")
    return lines


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and what it came from."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
