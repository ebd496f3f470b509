"""What is wanted, and what every download of a cache shares: the values between `cache`, `download` and `filefetch`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from modelcache.dispatch import Dispatcher
from modelcache.model import Digest, ModelFile
from modelcache.outcome import UNVERIFIED, Status
from modelcache.remotes.source import Source
from modelcache.settings import Settings
from modelcache.store.installed import Proof
from modelcache.store.layout import Layout
from modelcache.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted, with nothing left to guess.

    `version` is empty where only the bytes can tell it. `output` is a file for a single file, a folder for a model,
    or empty. Without `cached` nothing is put into the store, and `output` is given. `proof` says who vouches for
    the digests; `first_use` is a digest of last time that still has to match. `headers` may hold secrets.
    """

    ref: str
    id: str
    version: str
    files: tuple[ModelFile, ...]
    single: bool
    proof: Proof = "given"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    output: str = ""
    cached: bool = True
    require_digest: bool = False
    strict: bool = False

    def output_of(self, file: ModelFile) -> str:
        """Where the file goes outside the store."""
        return self.output if self.single else os.path.join(self.output, file.path)


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file of an order that is proven and at hand, in the store or at its output."""

    file: ModelFile
    sha256: Digest
    size: int
    status: Status
    source: str = ""
    bytes_fetched: int = 0
    bytes_resumed: int = 0

    def verified(self, proof: Proof) -> str:
        """The kind of digest that vouched for it, or "unverified"."""
        if proof == "first_use":
            return UNVERIFIED
        if self.file.strongest:
            return self.file.strongest.algorithm
        return "blake3" if self.file.pieces else UNVERIFIED

    def proof(self, proof: Proof) -> Proof:
        return "first_use" if self.verified(proof) == UNVERIFIED else proof


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every download of a cache shares."""

    layout: Layout
    registry: Registry
    settings: Settings
    dispatcher: Dispatcher
    sources: Callable[[ModelFile, Mapping[str, str], Settings], Sequence[Source]]
