"""Whatever sources do, a transfer ends, and what it delivers is right: random sources at the seam."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from transfers import run, wanted

from modelcache.errors import (
    AbortedError,
    AllSourcesFailedError,
    ModelCacheError,
    NotFoundError,
    RangeRefusedError,
    SourceError,
    TransientError,
    VerificationError,
)
from modelcache.model import ModelFile
from modelcache.remotes.source import Chunk, Request, Traits
from modelcache.testing import Content

MODEL = Content.of(Content.generated(4000, 1).read())
DATA = MODEL.read()
MOST_REQUESTS = 600

ERRORS: list[ModelCacheError] = [
    TransientError("503"),
    TransientError("busy", retry_after_s=0.001),
    TransientError("busy", retry_after_s=99),
    NotFoundError("404"),
    SourceError("nonsense"),
    RangeRefusedError("416"),
    RangeRefusedError("416", total=4000),
    RangeRefusedError("416", total=10),
    VerificationError("another length promised"),
]


@dataclass(frozen=True)
class Answer:
    """What one request gets: an error, or a body that obeys the range or not, and is right or not."""

    error: ModelCacheError | None = None
    whole: bool = False
    total: int | None = 4000  # None: does not say
    framed: bool = True
    validator: str = ""
    count: int = 4000  # bytes before the end
    cut: bool = False
    lie: int | None = None  # the offset of a wrong byte


ANSWERS = st.builds(
    Answer,
    error=st.one_of(st.none(), st.none(), st.none(), st.sampled_from(ERRORS)),
    whole=st.booleans(),
    total=st.sampled_from([4000, 4000, 4000, None, 3000, 5000]),
    framed=st.booleans(),
    validator=st.sampled_from(["", '"1"', '"2"']),
    count=st.sampled_from([0, 1, 900, 2000, 3999, 4000, 5000]),
    cut=st.booleans(),
    lie=st.sampled_from([None, None, 0, 1500, 3999]),
)


@dataclass
class Play:
    """A body as its answer says."""

    answer: Answer
    request: Request
    host: str = "127.0.0.1"
    first_byte_s: float = 0.0
    start: int = field(init=False)
    total: int | None = field(init=False)
    validator: str = field(init=False)
    status: int = field(init=False)
    framed: bool = field(init=False)
    served: bytes = DATA

    def __post_init__(self) -> None:
        is_whole = self.answer.whole or (self.request.start == 0 and self.request.stop is None)
        self.start = 0 if is_whole else self.request.start
        self.status = 200 if is_whole else 206
        self.total, self.validator, self.framed = self.answer.total, self.answer.validator, self.answer.framed

    def __enter__(self) -> "Play":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Chunk]:
        served = bytearray((self.served + bytes(2000))[: 5000 if self.total is None else self.total])
        if self.answer.lie is not None and self.answer.lie < len(served):
            served[self.answer.lie] ^= 0xFF
        stop = len(served) if self.status == 200 or self.request.stop is None else self.request.stop
        end = min(stop, self.start + self.answer.count)
        for at in range(self.start, end, 700):
            yield Chunk(at, served[at : min(at + 700, end)])
        if self.answer.cut or (self.total is not None and end < stop):
            raise TransientError("cut")


class Scripted:
    """A source that answers the i-th request with the i-th answer; after the last it begins again."""

    kind = "http"

    def __init__(self, name: str, answers: list[Answer], ranges: bool) -> None:
        self.name = name
        self.opened = 0
        self._answers = answers
        self._ranges = ranges

    def traits(self, file: ModelFile) -> Traits:
        return Traits(ranges=self._ranges)

    def open(self, request: Request) -> Play:
        answer = self._answers[self.opened % len(self._answers)]
        self.opened += 1
        if self.opened > MOST_REQUESTS:
            raise AssertionError("this transfer does not end")
        if answer.error:
            raise answer.error
        return Play(answer, request)

    def close(self) -> None:
        pass


SCRIPTS = st.lists(st.tuples(st.lists(ANSWERS, min_size=1, max_size=6), st.booleans()), min_size=1, max_size=3)
KNOWN = st.fixed_dictionaries(
    {"digest": st.booleans(), "size": st.booleans(), "piece": st.sampled_from([0, 0, 512, 1500])}
).filter(lambda known: known["size"] or not known["piece"])
NOTHING, LITTLE = Answer(count=0), Answer(count=900)
SPANS_AND_CUTS = [([NOTHING], False), ([NOTHING, NOTHING, LITTLE], True)]


def outcome_of(scripts, known, connections, threshold):
    sources = [Scripted(f"s{index}", *script) for index, script in enumerate(scripts)]
    with tempfile.TemporaryDirectory() as folder:
        return run(
            Path(folder),
            wanted(MODEL, **known),
            sources,
            connections=connections,
            resume_threshold=threshold,
            backoff=0.0001,
        )


@settings(max_examples=300, deadline=None)
@given(SCRIPTS, KNOWN, st.integers(1, 3), st.sampled_from([0, 0, 0.5]))
@example(SPANS_AND_CUTS, {"digest": False, "size": True, "piece": 512}, 2, 0.5)
def test_every_transfer_ends_and_what_it_proves_is_right(scripts, known, connections, threshold) -> None:
    done = outcome_of(scripts, known, connections, threshold)
    assert isinstance(done.error, AllSourcesFailedError | None)
    if known["digest"] or known["piece"]:
        assert done.content in (None, DATA)


@settings(max_examples=150, deadline=None)
@given(SCRIPTS, KNOWN)
def test_an_honest_source_behind_any_others_is_found(scripts, known) -> None:
    if known["digest"] or known["piece"]:
        done = outcome_of([*scripts, ([Answer(validator='"1"')], True)], known, 1, 0)
        assert done.content == DATA


class Changing(Scripted):
    """True to its versions: bytes of version N under the validator N; without one, other bytes each time."""

    def open(self, request: Request) -> Play:
        play = super().open(request)
        if play.validator != request.validator and play.start and (request.validator or not play.validator):
            play.start, play.status = 0, 200  # as If-Range asks for; and without a validator nobody is sure
        play.answer = replace(play.answer, lie=None)
        play.total = play.answer.total and len(DATA)
        version = int(play.validator.strip('"') or self.opened + 100)
        play.served = bytes((byte + version + 7 * int(self.name[1:])) % 256 for byte in DATA)
        return play


@settings(max_examples=150, deadline=None)
@given(SCRIPTS, st.booleans())
def test_without_any_digest_two_versions_are_never_mixed(scripts, size) -> None:
    sources = [Changing(f"s{index}", *script) for index, script in enumerate(scripts)]
    with tempfile.TemporaryDirectory() as folder:
        done = run(Path(folder), wanted(MODEL, digest=False, size=size), sources, backoff=0.0001)
    assert isinstance(done.error, AllSourcesFailedError | None)
    if done.content is not None:
        shifts = {(byte - honest) % 256 for byte, honest in zip(done.content, DATA, strict=False)}
        assert len(shifts) <= 1


def test_a_body_longer_than_the_given_size_is_no_file_of_that_size(tmp_path) -> None:
    longer = Scripted("s0", [Answer(total=None, count=5000)], ranges=True)
    assert isinstance(run(tmp_path, wanted(MODEL, digest=False), [longer]).error, AllSourcesFailedError)


def test_a_source_that_ends_its_requests_itself_is_asked_three_times(tmp_path) -> None:
    moody = Scripted("s0", [Answer(error=AbortedError("no more"))], ranges=True)
    run(tmp_path, wanted(MODEL), [moody], backoff=0.0001)
    assert moody.opened == 3
