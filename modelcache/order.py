"""What is wanted, and what every download of a root shares: the values between `fetching` and `filefetch`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from modelcache.dispatch import Dispatcher
from modelcache.events import now_ms
from modelcache.foreign.tier import Tier
from modelcache.health import NOMINAL_BYTES, Gateway, Health, gateway_of
from modelcache.health import order as by_health
from modelcache.model import Digest, ModelFile
from modelcache.outcome import UNVERIFIED, Status
from modelcache.probing import Note, Wait, probed
from modelcache.refs import Ref
from modelcache.remotes.resolver import Resolver
from modelcache.remotes.source import Source
from modelcache.settings import Settings
from modelcache.store.installed import NEVER, InstalledFile, Proof, Stamp
from modelcache.store.layout import Layout
from modelcache.store.records import Records
from modelcache.store.registry import Registry
from modelcache.store.sharing import Sharing
from modelcache.throttle import Throttle


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted, with nothing left to guess.

    `version` is empty where only the bytes can tell it. `output` is a file for a single file, a folder for a model,
    or empty. Without `cached` nothing is put into the store, and `output` is given. `proof` says who vouches for
    the digests, except for the files that are `known`: theirs are those of last time, as they were vouched for then.
    `headers` may hold secrets.

    Of a hub: `asks` is what it has to be asked about first; there are no files then. `alias` is the tag or branch that
    means this version by now, `called` what does not change when it means another one. `pinned`: the version is the
    hub's, whatever files of it are wanted. `meant` is the ref that the version is the meaning of. `missing` are wanted
    as well, and nobody here knows more of them than that.

    Of a catalog: it `is_listed` that the id stands for this ref; a version `is_aside` that was named and is not what
    the id means by itself. `lacking` are the optional files that the hub has not.
    """

    ref: str
    id: str
    version: str
    files: tuple[ModelFile, ...]
    single: bool
    proof: Proof = "given"
    known: tuple[InstalledFile, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    output: str = ""
    cached: bool = True
    require_digest: bool = False
    strict: bool = False
    prefer: str = ""
    asks: Ref | None = None
    alias: str = ""
    called: str = ""
    pinned: bool = False
    meant: Ref | None = None
    is_listed: bool = False
    is_aside: bool = False
    lacking: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    _known: dict[str, InstalledFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", {entry.path: entry for entry in self.known})

    @property
    def name(self) -> str:
        """Of the one file that is wanted; empty for a model."""
        if not self.single:
            return ""
        return self.files[0].path if self.files else self.asks.path if self.asks else ""

    def output_of(self, file: ModelFile) -> str:
        """Where the file goes outside the store."""
        return self.output if self.single else os.path.join(self.output, file.path)

    def vouched(self, file: ModelFile) -> tuple[Proof, str]:
        """Who vouches for its digest, and by which kind of digest ("unverified": nobody, yet)."""
        if entry := self._known.get(file.path):
            return entry.proof, entry.verified
        if file.strongest:
            return self.proof, file.strongest.algorithm
        return (self.proof, "blake3") if file.pieces else ("first_use", UNVERIFIED)

    def unvouched(self) -> list[str]:
        """The files that nothing but last time, or nothing at all, can be compared with."""
        return [file.path for file in self.files if self.vouched(file)[1] == UNVERIFIED]

    @property
    def first_url(self) -> str:
        """Empty where no file has one."""
        return next((each.urls[0] for each in self.files if each.urls), "")


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file of an order that is proven and at hand, in the store or at its output.

    `stamp` is how it looked in the store when it was last proven: before it was read, or before anybody could see it.
    Whoever finds it rotten after that changes how it looks, so no finding is overwritten by an older proof.
    `tier` is the kind of the one that had it.
    """

    file: ModelFile
    sha256: Digest
    size: int
    status: Status
    source: str = ""
    bytes_fetched: int = 0
    bytes_resumed: int = 0
    stamp: Stamp = NEVER
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every download of a cache shares."""

    layout: Layout
    registry: Registry
    settings: Settings
    dispatcher: Dispatcher
    sources: Callable[[Order, ModelFile], Sequence[Source]]
    resolver: Callable[[Ref, Mapping[str, str]], Resolver]
    throttle: Throttle = field(default_factory=Throttle)
    records: Records = field(default_factory=Records)
    sharing: Sharing = field(init=False)
    scores: Callable[[], Mapping[Gateway, Health]] = dict
    tiers: Sequence[Tier] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sharing", Sharing(self.layout, self.registry))

    def sources_by_health(self, order: Order, file: ModelFile, wait: Wait, note: Note) -> Sequence[Source]:
        """The sources of a file of an order, those first that have done best lately; about as good ones as they were
        given.

        Before all others come those of the kind to prefer, by default that of the settings. Of a large file, those of
        which nothing is known are asked for a byte first: `wait` and `note` as in `probed`.
        """
        sources = self.sources(order, file)
        if len(sources) < 2:
            return sources
        now, scores = now_ms(), self.scores()
        unknown = [one for one in sources if not scores.get(_gateway(one), Health()).faded(now).is_known]
        if unknown and (file.size or 0) >= NOMINAL_BYTES:
            try:
                scores = {**scores, **probed(unknown, file, wait, note)}
            except BaseException:
                for source in sources:
                    source.close()
                raise
        return by_health(sources, _gateway, scores, now, order.prefer or self.settings.prefer)


def _gateway(source: Source) -> Gateway:
    return gateway_of(source.kind, source.name)
