"""A partial against a model, through any sequence of what runs, disks and other processes do to it.

Invariants: `missing()` is what the model says; a commit succeeds only with the right bytes; otherwise nothing is
visible. Files are small, so that bytes reach the journal when their writer is closed.
"""

import hashlib
import os
import random
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from modelcache.errors import StoreError, VerificationError
from modelcache.model import Digest, ModelFile, PieceDigests, Span
from modelcache.spans import END
from modelcache.store.partial import Partial, SpanWriter

PIECE = 100
DATA = random.Random(3).randbytes(950)
WRONG = bytes(byte ^ 1 for byte in DATA)
SHA256 = Digest("sha256", hashlib.sha256(DATA).hexdigest())
PIECES = PieceDigests(PIECE, b"".join(blake3(DATA[at : at + PIECE]).digest() for at in range(0, len(DATA), PIECE)))
FILES = {
    "digest": ModelFile("m.bin", len(DATA), (SHA256,)),
    "digest alone": ModelFile("m.bin", None, (SHA256,)),
    "pieces": ModelFile("m.bin", len(DATA), (), (), PIECES),
    "digest and pieces": ModelFile("m.bin", len(DATA), (SHA256,), (), PIECES),
    "nothing": ModelFile("m.bin"),
}
PATIENCE_S = 5
offsets = st.integers(0, len(DATA))
damages = st.tuples(
    st.sampled_from(["cut", "rot", "journal"]),
    st.integers(0, len(DATA) - 1),
    st.sampled_from([b"", b"\n", b"w 0 9", b"\nw 0 950 0\n"]),
)


@dataclass
class Modelled:
    """A writer, and the first byte of it that is not known to be in the journal."""

    writer: SpanWriter
    recorded: int
    from_boundary: int  # pieces from here on passed through it as a whole


class PartialMachine(RuleBasedStateMachine):
    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="partial"))
        self.target = self.root / "out"
        self.former: list[Partial] = []
        self.live: list[Modelled] = []
        self.written: set[int] = set()
        self.proven: set[int] = set()  # pieces that a writer judged in this run
        self.disk = bytearray(len(DATA))

    @initialize(known=st.sampled_from(sorted(FILES)))
    def begin(self, known: str) -> None:
        self.file = FILES[known]
        self.size = self.file.size
        self.open()

    # -- the model ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.partial = Partial.open(str(self.root / "partials"), "key", self.file)
        self.proven.clear()
        self.settle()

    def settle(self) -> None:
        """What the follower will have found out once it is through."""
        if not self.file.pieces:
            return
        for index in range(len(PIECES)):
            span = range(index * PIECE, min((index + 1) * PIECE, len(DATA)))
            if not self.written.issuperset(span):
                return
            judged = index in self.proven and self.file.digests
            if not judged and self.disk[span.start : span.stop] != DATA[span.start : span.stop]:
                self.written -= set(span)
                return

    def record(self, one: Modelled, position: int) -> None:
        self.written |= set(range(one.recorded, position))
        one.recorded = max(one.recorded, position)

    @property
    def extent(self) -> int:
        return END if self.size is None else self.size

    def absent(self) -> list[Span]:
        """The gaps of the model, as spans."""
        spans, start = [], None
        for offset in range(len(DATA) + 1):
            gap = offset < len(DATA) and offset not in self.written
            if gap and start is None:
                start = offset
            elif not gap and start is not None:
                spans.append(Span(start, offset))
                start = None
        if self.size is None:
            start = spans.pop().start if spans and spans[-1].stop == len(DATA) else len(DATA)
            spans.append(Span(start, END))
        return spans

    # -- writing ------------------------------------------------------------------------------------------------------

    @rule(target=writers, start=offsets, stop=offsets)
    def starts(self, start: int, stop: int) -> object:
        taken = {
            at for one in self.live for at in range(one.recorded, one.writer.left.stop if self.size else len(DATA))
        }
        if start >= min(stop, self.extent) or start in self.written | taken:
            return multiple()
        writer = self.partial.writer(Span(start, stop), "a")
        end = next((at for at in range(start, stop) if at in self.written | taken), stop)
        assert writer.left == Span(start, end)
        one = Modelled(writer, start, -(-start // PIECE) * PIECE)
        self.live.append(one)
        return one

    @rule(one=writers, count=st.integers(1, 400), right=st.integers(0, 4).map(bool))
    def writes(self, one: Modelled, count: int, right: bool) -> None:
        writer = one.writer
        start, stop = writer.position, min(writer.position + count, writer.left.stop)
        if one not in self.live:  # its run is over: it is fenced, or writes where nobody sees it
            with suppress(StoreError, VerificationError):
                writer.write(WRONG[start : start + count])
            return
        self.disk[start:stop] = (DATA if right else WRONG)[start:stop]
        bad = self.judged(one, start, stop)
        if bad is None:
            writer.write((DATA if right else WRONG)[start:stop])
            self.record(one, writer.recorded)
        else:
            with pytest.raises(VerificationError):
                writer.write(WRONG[start:stop])
            self.record(one, bad.start)
            self.written -= set(range(*bad))
            one.recorded = stop
            self.closes(one)
        self.settle()

    def judged(self, one: Modelled, start: int, stop: int) -> Span | None:
        """The first piece that is wrong of those that these bytes complete."""
        if not self.file.pieces:
            return None
        for index in range(one.from_boundary // PIECE, len(PIECES)):
            span = Span(index * PIECE, min((index + 1) * PIECE, len(DATA)))
            if start < span.stop <= stop:
                if self.disk[slice(*span)] != DATA[slice(*span)]:
                    return span
                self.proven.add(index)
        return None

    @rule(one=writers)
    def closes(self, one: Modelled) -> None:
        one.writer.close()
        if one in self.live:
            self.live.remove(one)
            self.record(one, one.writer.position)
            self.settle()

    @rule(start=offsets, stop=offsets, right=st.booleans())
    def is_seeded(self, start: int, stop: int, right: bool) -> None:
        taken = {at for one in self.live for at in range(one.recorded, one.writer.left.stop)}
        (self.root / "seed").write_bytes(DATA if right else WRONG)
        self.partial.seed(str(self.root / "seed"), [Span(start, stop)])
        for at in range(start, min(stop, self.extent)):
            if at not in self.written | taken:
                self.disk[at] = (DATA if right else WRONG)[at]
                self.written.add(at)
        self.settle()

    @precondition(lambda self: self.size is None)
    @rule(size=st.sampled_from([len(DATA), len(DATA) // 2]))
    def learns_the_size(self, size: int) -> None:
        here = max([0, *(at + 1 for at in self.written), *(one.writer.position for one in self.live)])
        if here > size:
            with pytest.raises(VerificationError):
                self.partial.settle_size(size)
        elif size == len(DATA):
            self.partial.settle_size(size)
            self.size = size

    @rule()
    def restarts(self) -> None:
        self.partial.restart()
        self.live.clear()
        self.written.clear()
        self.proven.clear()
        self.size = self.file.size

    # -- ends ---------------------------------------------------------------------------------------------------------

    @rule(kept=st.booleans(), damage=st.lists(damages, max_size=2))
    def another_run_comes(self, kept: bool, damage: list[tuple[str, int, bytes]]) -> None:
        """After a close, a kill, or while there is an owner who does not know yet that he no longer is one."""
        if not kept:
            self.former.append(self.partial)
        else:
            for one in self.live:
                self.record(one, one.writer.position)
            self.partial.close()
        self.live.clear()
        self.settle()
        (folder,) = (self.root / "partials").iterdir()
        for kind, offset, garbage in damage:
            self.damage(folder, kind, offset, garbage)
        self.open()
        assert self.partial.resumed_bytes >= len(self.written)

    def damage(self, folder: Path, kind: str, offset: int, garbage: bytes) -> None:
        """What happens to files while nobody looks."""
        data = folder / "data"
        if kind == "journal":
            with (folder / "journal").open("ab") as stream:
                stream.write(b"?" + garbage)
        elif kind == "cut" and offset < data.stat().st_size:
            os.truncate(data, offset)
            self.written = {at for at in self.written if at < offset}
            self.disk[offset:] = bytes(len(DATA) - offset)
        elif kind == "rot" and offset < data.stat().st_size:
            mode = data.stat().st_mode
            data.chmod(0o600)
            with data.open("r+b") as stream:
                stream.seek(offset)
                stream.write(bytes([self.disk[offset] ^ 2]))
            data.chmod(mode)
            self.disk[offset] ^= 2

    @rule()
    def is_committed(self) -> None:
        whole = self.size is not None and self.written.issuperset(range(self.size)) and not self.live
        right = self.disk[: self.size] == DATA or not (self.file.digests or self.file.pieces)
        assert self.partial.await_proof(PATIENCE_S if whole else 0) or not whole
        if whole and right:
            self.partial.commit(str(self.target), 0o444)
            assert self.target.read_bytes() == self.disk[: self.size]
            self.target.unlink()
            self.written.clear()
            self.disk = bytearray(len(DATA))
            self.size = self.file.size
            self.open()
        else:
            with pytest.raises(VerificationError if whole else StoreError):
                self.partial.commit(str(self.target), 0o444)

    @precondition(lambda self: self.former)
    @rule(how=st.sampled_from(["commit", "close", "discard", "restart"]))
    def a_former_owner_ends(self, how: str) -> None:
        """Whatever it does, it reaches nothing of ours."""
        former = self.former.pop()
        with suppress(StoreError, VerificationError):
            former.commit(str(self.target), 0o444) if how == "commit" else getattr(former, how)()
        former.close()

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def lacks_what_the_model_lacks(self) -> None:
        """The follower may still be on its way; it comes to what the model says, and stays there."""
        end = time.monotonic() + PATIENCE_S
        while self.partial.missing() != self.absent():
            assert time.monotonic() < end, (self.partial.missing(), self.absent())
            os.sched_yield()

    @invariant()
    def shows_nothing(self) -> None:
        assert not self.target.exists()

    def teardown(self) -> None:
        for partial in [*self.former, self.partial]:
            partial.close()
        shutil.rmtree(self.root)


TestPartial = PartialMachine.TestCase
TestPartial.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
