"""`%modelcache`: the command, in a notebook or in IPython.

Responsible for: the words behind the magic, which are those of the command; results as objects, which show themselves;
errors in one line; what can be completed. Leaves to others: all that a command does (`commands`). No signal handler is
installed here, and nothing ends the process.
"""

import argparse
import contextlib
import re
import shlex
import sys
from typing import Any

from modelcache.api import cache
from modelcache.cli import parser, trace_of
from modelcache.commands.common import Host
from modelcache.errors import ModelCacheError, PausedError, UsageError, told
from modelcache.store.disk import store_error

NAME = "modelcache"
MAGIC = f"%{NAME}"
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext modelcache`."""
    shell.register_magic_function(run, "line", NAME)
    shell.set_hook("complete_command", complete, str_key=MAGIC)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext modelcache`."""
    shell.magics_manager.magics["line"].pop(NAME, None)
    shell.strdispatchers["complete_command"].strs.pop(MAGIC, None)


def run(line: str) -> Any:
    """One verified, resumable cache for model files: `%modelcache --help` lists what can be typed.

    Returns the result of the command, or a list of several, or None. Raises what the command raises; a notebook shows
    one line of it.
    """
    host = Host(cache)
    words = _words(line)
    try:
        with contextlib.redirect_stderr(sys.stdout):  # notes are no errors, and a notebook would show them as such
            _run(words, host)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" not in words:
            raise _in_one_line(_ours(error)) from None
        if isinstance(error, ModelCacheError):
            _rendered(error, trace_of(error))
        raise
    return host.results[0] if len(host.results) == 1 else host.results or None


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:  # the line itself may hold a secret
        raise _in_one_line(UsageError(f"what follows {MAGIC} cannot be read: {error}")) from None
    if "-" in words:
        raise _in_one_line(UsageError("- is for pipes, which a notebook has not", next_step="name a file"))
    return words or ["--help"]


def _run(words: list[str], host: Host) -> None:
    try:
        options = parser(MAGIC).parse_args(words)
    except SystemExit:  # after --help or --version
        return
    options.host = host
    options.run(options)


def _ours(error: BaseException) -> ModelCacheError:
    if isinstance(error, ModelCacheError):
        return error
    if isinstance(error, OSError):
        return store_error(error, str(error.filename or NAME))
    if isinstance(error, KeyboardInterrupt):
        return PausedError("interrupted", kept_bytes=getattr(error, "kept_bytes", 0))
    return ModelCacheError(told(error), next_step="run it with --debug")


def _in_one_line(error: ModelCacheError) -> ModelCacheError:
    """The cell is that line: where in it the error comes from is no question."""
    return _rendered(error, [f"{NAME}: {error.line()}"])


def _rendered(error: ModelCacheError, lines: list[str]) -> ModelCacheError:
    """The same error, that IPython shows so and not otherwise."""
    error._render_traceback_ = lambda: lines  # type: ignore[method-assign]
    return error


def complete(_shell: Any, event: Any) -> list[str]:
    """What can follow: a command; then its options, and names of models."""
    *words, last = event.line.split(" ")
    words, commands = [word for word in words if word][1:], parser(MAGIC).commands
    if not words:
        return [*commands]
    known = commands.get(words[0])
    options = sorted(set(_OPTION.findall(known.format_help()))) if known else []
    found = options + (_actions(known) if known and len(words) == 1 else []) + cache._ipython_key_completions_()
    typed = last.removesuffix(event.symbol)  # a `:` begins a new symbol, and what stands before it stays
    return [each.removeprefix(typed) for each in found if each.startswith(typed)]


def _actions(command: argparse.ArgumentParser) -> list[str]:
    """What the first word after a command can be."""
    return [str(each) for action in command._actions if not action.option_strings for each in action.choices or ()]
