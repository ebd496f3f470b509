"""What the commands share: options, and how results are printed or handed over.

Responsible for: the words of options that several commands have. Leaves to each command's module: its own.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from modelcache.errors import UsageError
from modelcache.urls import without_secrets

_UNITS = ("", "K", "M", "G")
SETTINGS = ("connections", "parallel_files", "limit_rate", "prefer")  # that may be given as options
Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class Host:
    """Whoever runs a command inside another program: its cache is used, and it takes results as objects."""

    cache: Any
    results: list[Any] = field(default_factory=list)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all of our errors are. `commands` are the parsers of what can follow."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.commands: dict[str, argparse.ArgumentParser] = {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, surplus = self.parse_known_args(args, namespace)
        if surplus:
            self.error(f"unrecognized arguments: {' '.join(_fit_to_tell(surplus))}")
        return options

    def error(self, message: str) -> NoReturn:
        """What is wrong is often a word that was typed, and that may be a URL."""
        raise UsageError(without_secrets(message), next_step=f"see `{self.prog} --help`")


def _fit_to_tell(words: Sequence[str]) -> Iterator[str]:
    """Of what nobody understands: no secret of a URL, and nothing that may be the value of an option."""
    is_value = False
    for word in words:
        if not word.startswith("-"):
            yield "..." if is_value else without_secrets(word)
            continue
        option, is_given, _ = word.partition("=")
        yield f"{option}=..." if is_given else without_secrets(option)
        is_value = not is_given


class Commands:
    """Where the modules of this package put what can be typed after `modelcache`."""

    def __init__(self, root: Parser) -> None:
        self._root = root
        self._commands = root.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, text: str, run: Run) -> argparse.ArgumentParser:
        """A command; `run` gets what was typed and returns the exit code."""
        sub = self._commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run, host=None)
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        self._root.commands[name] = sub
        return sub


def add_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print JSON on stdout")


def add_sources(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--mirror", action="append", default=[], metavar="URL", help="another source of the same file")
    sub.add_argument(
        "--header", action="append", default=[], metavar="'K: V'", help="sent to the first URL's origin, to no other"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress")
    add_json(sub)


def add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="REF")
    sub.add_argument("--version", metavar="V")


def cache_of(options: argparse.Namespace) -> Any:
    """The cache that a command works on: that of the host, unless other settings are given."""
    from modelcache.caching import Cache

    given = {name: getattr(options, name, None) for name in SETTINGS}
    if options.host is None:
        return Cache(**given)
    return Cache(options.host.cache.root, **given) if any(given.values()) else options.host.cache


def headers_of(options: argparse.Namespace) -> dict[str, str]:
    headers = {}
    for line in options.header:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise UsageError("--header takes 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def rate(text: str) -> int:
    """Bytes/s as they are typed: 500000, 500K, 2.5M, 1G (of 1024)."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: 500K, 2.5M or 1G (bytes/s) is")
    try:
        return int(float(number) * 1024 ** _UNITS.index(unit))
    except OverflowError as error:
        raise ValueError(text) from error


def named(model: str, version: str, file: str = "") -> str:
    """What a line is about: `id@version file`, whatever of it is known."""
    return " ".join(filter(None, (f"{model}@{version}" if version else model, file)))


def print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


def is_taken(result: Any, options: argparse.Namespace) -> bool:
    """Whether the host has taken it as an object: then it is not printed."""
    if options.host is None or getattr(options, "json", False):
        return False
    options.host.results.append(result)
    return True


def print_report(report: Iterable[Any], options: argparse.Namespace) -> int:
    if options.json:
        print_json(list(report))
    elif not is_taken(report, options):
        print(report)
    return 0
