"""The journal of a partial: which bytes were written, by whom, and what each source called the content.

Responsible for: the file format. Line 1 is a JSON header; then one line a fact, appended:

    w START STOP SOURCE      bytes written from that source
    x START STOP             bytes taken back: they proved wrong, or belong to another version
    s INDEX NAME             a source, by the index that the w lines use
    v [SOURCE, VALIDATOR]    what the source calls the content it serves; [] forgets all of them
    z SIZE                   the size of the file, as a source told it; -1 forgets it
    o OWNER                  the process that has the partial from here on

A torn or garbled line ends the reading: what is not known to be written is fetched again. Nothing is
synced: a partial is a guess anyway (I9).
"""

import json
import os
from dataclasses import dataclass, field
from typing import Any

from modelcache.spans import SpanSet
from modelcache.store.disk import CREATE, READ, WRITE
from modelcache.store.owner import Owner

FORMAT = 1
_MOST_BYTES = 64 << 20


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


class Journal:
    """Appends facts. One write call a line, so that a kill leaves at most one torn line, the last."""

    def __init__(self, fd: int, facts: Facts) -> None:
        self._fd = fd
        self.facts = facts

    @classmethod
    def create(cls, path: str, header: dict[str, Any]) -> "Journal":
        fd = os.open(path, CREATE | os.O_APPEND, 0o600)
        journal = cls(fd, Facts({"format": FORMAT, **header}))
        journal._append(json.dumps(journal.facts.header))
        return journal

    @classmethod
    def open(cls, path: str) -> "Journal | None":
        """None where there is no journal that can be read: its partial is of no use."""
        facts = read_facts(path)
        if facts is None:
            return None
        fd = os.open(path, WRITE | os.O_APPEND)
        os.write(fd, b"\n")  # closes a torn line; empty lines mean nothing
        return cls(fd, facts)

    def wrote(self, start: int, stop: int, source: str) -> None:
        if source not in self.facts.sources:
            self._append(f"s {len(self.facts.sources)} {source}")
            self.facts.sources.append(source)
        self.facts.wrote.add(source)
        self.facts.written.add(start, stop)
        self._append(f"w {start} {stop} {self.facts.sources.index(source)}")

    def dropped(self, start: int, stop: int) -> None:
        self.facts.written.remove(start, stop)
        if not self.facts.written.size:
            self.facts.wrote.clear()
        self._append(f"x {start} {stop}")

    def called(self, source: str, validator: str) -> None:
        if validator and self.facts.validators.get(source) != validator:
            self.facts.validators[source] = validator
            self._append("v " + json.dumps([source, validator]))

    def owned_by(self, owner: Owner) -> None:
        self.facts.owner = owner
        self._append("o " + json.dumps(owner.to_json()))

    def sized(self, size: int) -> None:
        self.facts.size = size
        self._append(f"z {size}")

    def begin_anew(self) -> None:
        """Nothing of the content stays, nor what sources said about it."""
        self.dropped(0, 2**63 - 1)
        self.facts.validators.clear()
        self.facts.size = None
        self._append("v []")
        self._append("z -1")

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")


def read_facts(path: str) -> Facts | None:
    """Reads a journal without touching it. None: absent, not ours, of another format, or garbage from the start."""
    try:
        fd = os.open(path, READ | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        content = os.read(fd, min(os.fstat(fd).st_size, _MOST_BYTES))
    except OSError:
        return None
    finally:
        os.close(fd)
    first, _, rest = content.partition(b"\n")
    try:
        header = json.loads(first)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            return None
    except (ValueError, RecursionError):
        return None
    facts = Facts(header)
    for line in rest.split(b"\n")[:-1]:  # what follows the last line end is torn
        if line and not _apply(facts, line):
            break
    return facts


def _apply(facts: Facts, line: bytes) -> bool:
    """Adds one line's fact; False for garbage."""
    kind, _, rest = line.decode(errors="replace").partition(" ")
    try:
        if kind == "s":
            facts.sources.append(rest.split(" ", 1)[1])
        elif kind == "v":
            pair = json.loads(rest)
            facts.validators = {**facts.validators, str(pair[0]): str(pair[1])} if pair else {}
        elif kind == "z":
            facts.size = int(rest) if 0 <= int(rest) < 2**63 else None
        elif kind == "o":
            facts.owner = Owner.from_json(json.loads(rest))
        elif kind in ("w", "x"):
            start, stop, *source = map(int, rest.split(" "))
            if not 0 <= start <= stop < 2**63:
                return False
            if kind == "x":
                facts.written.remove(start, stop)
            else:
                facts.wrote.add(facts.sources[source[0]])
                facts.written.add(start, stop)
        else:
            return False
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        return False
    return True
