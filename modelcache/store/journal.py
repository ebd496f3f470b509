"""The journal of a partial: which bytes were written, by whom, and what each source called the content.

Responsible for: the file format. Line 1 is a JSON header (format, key, size, path, model); then one line a fact:

    w START STOP SOURCE      bytes written from that source
    x START STOP             bytes taken back: they proved wrong, or belong to another version
    s "NAME"                 a source; the w lines call the first one 0, the next 1
    v [SOURCE, VALIDATOR]    what the source calls the content it serves; [] forgets all of them
    z SIZE                   the size of the file, as a source told it; -1 forgets it
    o OWNER                  the process that has the partial from here on

A torn or garbled line ends the reading: what is not known to be written is fetched again. Nothing is
synced: a partial is a guess anyway (I9). Whoever opens a journal goes on in a copy of what could be read,
so that neither the torn line nor a former owner who still appends reaches it (I12).
"""

import errno
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from modelcache.spans import SpanSet
from modelcache.store.disk import READ, create, write_all
from modelcache.store.owner import Owner

FORMAT = 1
_MOST_BYTES = 64 << 20
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NUMBER = "([0-9]{1,19})"
_NUMBER_LINES = {"w": re.compile(f"{_NUMBER} {_NUMBER} {_NUMBER}"), "x": re.compile(f"{_NUMBER} {_NUMBER}")}


@dataclass(slots=True)
class Facts:
    """What a journal tells after a reading."""

    header: dict[str, Any]
    written: SpanSet = field(default_factory=SpanSet)
    sources: list[str] = field(default_factory=list)
    wrote: set[str] = field(default_factory=set)  # sources of bytes that are still in
    validators: dict[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    size: int | None = None

    def add(self, start: int, stop: int, source: str) -> None:
        self.wrote.add(source)
        self.written.add(start, stop)

    def remove(self, start: int, stop: int) -> None:
        self.written.remove(start, stop)
        if not self.written.size:
            self.wrote.clear()


class Journal:
    """Appends facts. One write call a line, so that a kill leaves at most one torn line, the last.

    Not safe for several threads at once. A fact that the disk refused is not in the file; the rest still is.
    """

    def __init__(self, fd: int, facts: Facts, end: int) -> None:
        self._fd = fd
        self._end = end
        self.facts = facts

    @classmethod
    def create(cls, path: str, header: dict[str, Any]) -> "Journal":
        return cls._holding(path, Facts({"format": FORMAT, **header}), b"")

    @classmethod
    def open(cls, path: str) -> "Journal | None":
        """None where there is no journal of ours: its partial is of no use. OSError where it cannot be read now."""
        content = _content(path)
        facts, end = _parsed(content)
        if facts is None:
            return None
        beside = path + ".new"
        with suppress(FileNotFoundError):
            os.unlink(beside)
        journal = cls._holding(beside, facts, content[:end])
        try:
            os.rename(beside, path)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def _holding(cls, path: str, facts: Facts, content: bytes) -> "Journal":
        journal = cls(create(path), facts, 0)
        try:
            journal._append(content or _header_line(facts.header))
        except BaseException:
            journal.close()
            os.unlink(path)
            raise
        return journal

    def wrote(self, start: int, stop: int, source: str) -> None:
        if source not in self.facts.sources:
            self._line("s", json.dumps(source))
            self.facts.sources.append(source)
        self._line("w", f"{start} {stop} {self.facts.sources.index(source)}")
        self.facts.add(start, stop, source)

    def dropped(self, start: int, stop: int) -> None:
        self.facts.remove(start, stop)  # first: a full disk does not make wrong bytes right
        self._line("x", f"{start} {stop}")

    def called(self, source: str, validator: str) -> None:
        if validator and self.facts.validators.get(source) != validator:
            self._line("v", json.dumps([source, validator]))
            self.facts.validators[source] = validator

    def owned_by(self, owner: Owner) -> None:
        self._line("o", json.dumps(owner.to_json()))
        self.facts.owner = owner

    def sized(self, size: int) -> None:
        self._line("z", str(size))
        self.facts.size = size

    def begin_anew(self) -> None:
        """Nothing of the content stays, nor what sources said about it."""
        end = 2**63 - 1
        self.facts.remove(0, end)
        self.facts.validators.clear()
        self.facts.size = None
        self._append(f"x 0 {end}\nv []\nz -1\n".encode())

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1  # a late line must not go into whatever file gets this number next

    def _line(self, kind: str, rest: str) -> None:
        self._append(f"{kind} {rest}\n".encode())

    def _append(self, lines: bytes) -> None:
        write_all(self._fd, memoryview(lines), self._end)  # over what a full disk took of a line before
        self._end += len(lines)


def _header_line(header: dict[str, Any]) -> bytes:
    """Names in UTF-8, which is half of what escaping them takes. What is no Unicode, `json.loads` reads as well."""
    return json.dumps(header, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"


def read_facts(path: str) -> Facts | None:
    """Reads a journal without touching it. None: absent, not ours, of another format, or garbage from the start."""
    try:
        return read_head(path)
    except OSError:
        return None


def read_head(path: str, most: int = _MOST_BYTES) -> Facts | None:
    """The same of its first bytes; OSError where they cannot be read now."""
    return _parsed(_content(path, most))[0]


def _content(path: str, most: int = _MOST_BYTES) -> bytes:
    """Empty where there is no file of ours."""
    try:
        fd = os.open(path, READ | os.O_NONBLOCK)  # a fifo in its place must not hang us
    except OSError as error:
        if error.errno in _ABSENT:
            return b""
        raise
    try:
        status = os.fstat(fd)
        return os.read(fd, min(status.st_size, most)) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(fd)


def _parsed(content: bytes) -> tuple[Facts | None, int]:
    """The facts, and where the last line that was believed ends."""
    first, newline, rest = content.partition(b"\n")
    try:
        header = json.loads(first)
    except (ValueError, RecursionError):
        return None, 0
    if not newline or not isinstance(header, dict) or header.get("format") != FORMAT:
        return None, 0
    facts, end = Facts(header), len(first) + 1
    for line in rest.split(b"\n")[:-1]:  # what follows the last line end is torn
        if line and not _apply(facts, line):
            break
        end += len(line) + 1
    return facts, end


def _apply(facts: Facts, line: bytes) -> bool:
    """Adds one line's fact; False for garbage."""
    kind, _, rest = line.decode(errors="replace").partition(" ")
    if kind in _NUMBER_LINES:
        return _apply_numbers(facts, kind, rest)
    try:
        value = json.loads(rest)
    except (ValueError, RecursionError):
        return False
    match kind, value:
        case "s", str():
            facts.sources.append(value)
        case "v", []:
            facts.validators.clear()
        case "v", [str(source), str(validator)]:
            facts.validators[source] = validator
        case "z", int() if not isinstance(value, bool) and -1 <= value < 2**63:
            facts.size = value if value >= 0 else None
        case "o", dict():
            return _apply_owner(facts, value)
        case _:
            return False
    return True


def _apply_owner(facts: Facts, value: dict[str, Any]) -> bool:
    try:
        facts.owner = Owner.from_json(value)
    except ValueError:
        return False
    return True


def _apply_numbers(facts: Facts, kind: str, rest: str) -> bool:
    found = _NUMBER_LINES[kind].fullmatch(rest)
    if not found:
        return False
    start, stop, *source = map(int, found.groups())
    if start > stop or stop >= 2**63:
        return False
    if kind == "x":
        facts.remove(start, stop)
    elif source[0] < len(facts.sources):
        facts.add(start, stop, facts.sources[source[0]])
    else:
        return False
    return True
