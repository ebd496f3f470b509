"""How well a gateway has done lately, and whom to ask first next time: rules on plain values, no clock, no I/O.

Responsible for: what an attempt means for its gateway, how old news fades, and the order of the *next* fetch.
Leaves to others: keeping the values (`state`), and the order within one fetch (`plan`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from modelcache.history import Attempt

HALF_LIFE_S = 3 * 86400.0  # what is that old counts half
EVIDENCE = 0.5  # attempts, faded; with less nothing is known
NOMINAL_BYTES = 64 << 20  # what a source is judged by: how long it would take for that many
TIE = 2.0  # differences below this factor are noise: the first given comes first
WORST_RATE = 0.02
# A file that is not there, or a wish that is refused, says nothing about the gateway.
WRONG = "integrity"
FAULTS = ("network", "source", WRONG)

Gateway = tuple[str, str]  # (layer, host)
Interval = tuple[int, int]  # from and to, in ms
S = TypeVar("S")


def gateway_of(kind: str, name: str) -> Gateway:
    """What is judged: a host, by the name of one of its sources (a URL without secrets), as a source of that kind."""
    rest = name.partition("://")[2] or name
    return kind, rest.partition("/")[0].lower()


@dataclass(frozen=True, slots=True)
class Health:
    """Counts fade with time, bytes and seconds too. Times are in ms since 1970."""

    successes: float = 0.0
    failures: float = 0.0
    wrongs: float = 0.0  # of the failures, those that were wrong bytes
    first_byte_s: float = 0.0
    bytes: float = 0.0
    busy_s: float = 0.0  # in which they came, on one connection or on several at once
    weight: float = 0.0  # of the attempts that were measured
    updated_at: int = 0
    last_success: int = 0
    last_error: str = ""

    @property
    def attempts(self) -> float:
        return self.successes + self.failures

    @property
    def success_rate(self) -> float:
        return self.successes / self.attempts if self.attempts else 0.0

    @property
    def throughput(self) -> float:
        """Bytes/s of all its connections together; 0 while unknown."""
        return self.bytes / self.busy_s if self.busy_s else 0.0

    def faded(self, now_ms: int) -> "Health":
        """As it counts at a later time; a clock that went back fades nothing."""
        share = 0.5 ** (max(0, now_ms - self.updated_at) / 1000 / HALF_LIFE_S)
        return replace(
            self, successes=self.successes * share, failures=self.failures * share, wrongs=self.wrongs * share,
            bytes=self.bytes * share, busy_s=self.busy_s * share, weight=self.weight * share,
            updated_at=max(now_ms, self.updated_at),
        )  # fmt: skip

    def after(self, attempt: Attempt, others: Iterable[Interval] = ()) -> "Health":
        """With one more attempt; `others` is when bytes came in those that this gateway has had before."""
        now = self.faded(attempt.timestamp)
        if attempt.status == "error":
            if attempt.error_type not in FAULTS:
                return self
            wrongs = now.wrongs + (attempt.error_type == WRONG)
            return replace(now, failures=now.failures + 1, wrongs=wrongs, last_error=attempt.error_message)
        return replace(now, successes=now.successes + 1, last_success=attempt.timestamp)._measured(attempt, others)

    def _measured(self, attempt: Attempt, others: Iterable[Interval]) -> "Health":
        """What several connections bring at once is all of it the gateway's: time counts once, bytes each."""
        start, stop = body_of(attempt)
        if not attempt.bytes or stop <= start:
            return self
        weight = self.weight + 1
        return replace(
            self, weight=weight, bytes=self.bytes + attempt.bytes,
            first_byte_s=self.first_byte_s + (attempt.latency_ms / 1000 - self.first_byte_s) / weight,
            busy_s=self.busy_s + _uncovered((start, stop), others) / 1000,
        )  # fmt: skip

    def seconds(self) -> float | None:
        """What a nominal file would take, were there no failures; None while that is not known."""
        if self.weight < EVIDENCE or not self.throughput:
            return None
        return self.first_byte_s + NOMINAL_BYTES / self.throughput

    @property
    def is_known(self) -> bool:
        return self.attempts >= EVIDENCE

    def share(self) -> float:
        """Of tries that succeed, for dividing by; 1 while nothing is known."""
        return max(self.success_rate, WORST_RATE) if self.is_known else 1.0

    def rank(self) -> int:
        """0: all is well, or nothing is known; 1: it fails more often than not; 2: it has sent wrong bytes lately."""
        return 2 if self.wrongs >= EVIDENCE else int(self.share() < 0.5)


def body_of(attempt: Attempt) -> Interval:
    """When its bytes came."""
    return attempt.timestamp - attempt.duration_ms + attempt.latency_ms, attempt.timestamp


def _uncovered(interval: Interval, others: Iterable[Interval]) -> int:
    """How many ms of it belong to none of the others."""
    reached, stop = interval
    uncovered = 0
    for begin, end in sorted(others):
        uncovered += max(0, min(begin, stop) - reached)
        reached = max(reached, end)
    return uncovered + max(0, stop - reached)


def order(
    sources: Iterable[S],
    gateway_of: Callable[[S], Gateway],
    scores: Mapping[Gateway, Health],
    now_ms: int,
    prefer: str = "",
) -> list[S]:
    """The sources with the healthiest first: those of a better rank, then those that bring a file sooner.

    What is on this machine (`cache`) comes before all others, then those of the layer that is preferred; each in the
    same order among themselves.

    Among those that do about as well, the first given comes first.
    Where nothing is known, the best is assumed: such a source has its turn where it was given.
    """
    left = list(sources)
    healths = [scores.get(gateway_of(source), Health()).faded(now_ms) for source in left]
    seconds = [health.seconds() for health in healths]
    best = min((each for each in seconds if each is not None), default=1.0)
    costs = [(best if each is None else each) / health.share() for each, health in zip(seconds, healths, strict=True)]
    ranks = [
        ((layer := gateway_of(source)[0]) != "cache", bool(prefer) and layer != prefer, health.rank())
        for source, health in zip(left, healths, strict=True)
    ]
    queue = list(zip(ranks, costs, left, strict=True))
    ordered = []
    while queue:
        rank, least = min((rank, cost) for rank, cost, _ in queue)
        chosen = next(i for i, (other, cost, _) in enumerate(queue) if other == rank and cost <= TIE * least)
        ordered.append(queue.pop(chosen)[2])
    return ordered
