"""Takes the models of a bundle into the store. Whoever wrote it, nothing in it is believed.

Responsible for: reading it once, from a file or a pipe; what it may hold; naming each model when all its blobs are
proven. Leaves to others: the form (`archives.bundle`), proving a blob (`store.partial`), names and records (`install`).

The rules:

1. What the manifests say is checked before the first blob: names, versions, sizes, the room on the disk. A blob is
   taken only if a manifest lists it, with that size. Every path in the store is made of checked ids and hashes.
2. A blob is here already, or goes through a partial: nobody sees it before it is proven.
3. A model is named as soon as its last blob is here; what comes after that, or does not, takes nothing away from it.
4. Wrong bytes cost their file, a broken header costs what would come after it. What is proven by then, or written to
   a partial, stays: importing again, or fetching, goes on from there.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

from modelcache.again import bytes_here
from modelcache.archives.bundle import Bundle, Member, Readable
from modelcache.arrival import Arrival, content_of
from modelcache.dispatch import Show
from modelcache.errors import LockedError, ModelCacheError, StoreError, UsageError, VerificationError
from modelcache.history import Attempt
from modelcache.hits import hit
from modelcache.model import MAX_MANIFEST_BYTES, Manifest, ModelFile, Span
from modelcache.names import check_conflicts
from modelcache.order import Fetched, Workshop
from modelcache.outcome import Model
from modelcache.progress.show import gathered
from modelcache.store import blobs
from modelcache.store.claim import forget
from modelcache.store.disk import BUFFER, check_room, disk_errors
from modelcache.store.layout import key_of
from modelcache.store.locks import Pulse
from modelcache.store.partial import Partial
from modelcache.store.shelf import Shelf
from modelcache.task import Passing
from modelcache.urls import is_same_place
from modelcache.wiring import hub_of

MOST_MODELS = 200  # each of them is locked while its bundle is read
MOST_LISTING_BYTES = 64 << 20  # of all manifests, which are in memory
MOST_NAMED = 3  # models, or files, in an error
PROOF_S = 0.2


@contextmanager
def opened(source: "str | os.PathLike[str] | Readable") -> Iterator[Bundle]:
    """A bundle at a path, or a binary stream that somebody else has opened. StoreError where it cannot be read."""
    if not isinstance(source, (str, os.PathLike)):
        yield Bundle(source, "the bundle")
        return
    path = os.path.expanduser(os.fspath(source))
    with ExitStack() as stack:
        with disk_errors(path):
            file = stack.enter_context(open(path, "rb", buffering=0))
        yield Bundle(file, path)


def take_in(shop: Workshop, shelf: Shelf, bundle: Bundle, progress: Show) -> tuple[Model, ...]:
    """Every model of the bundle, verified and installed.

    Raises VerificationError for a bundle that is damaged, cut short or not to be trusted, UsageError where a model
    is here with other files, StoreError, LockedError. The message says which models are here all the same.
    """
    try:
        manifests, first = _listed(bundle)
        for manifest in manifests:
            shelf.check_ref(manifest.id, manifest.ref or manifest.id)
        contents = _contents(manifests)
        with gathered(progress, f"Import {bundle.name}") as show, ExitStack() as locks:
            arrivals = [Arrival(shop, manifest, show) for manifest in manifests]
            for arrival in {arrival.order.id: arrival for arrival in arrivals}.values():
                arrival.lock(locks)
            for arrival in arrivals:
                arrival.check_here()
            return _Import(shop, bundle, arrivals, contents).run(first)
    except VerificationError as error:
        error.message = f"{bundle.name}: {error.message}"
        error.next_step = error.next_step or "import it again from a good copy"
        raise


def _listed(bundle: Bundle) -> tuple[list[Manifest], Member | None]:
    """The models, by id and version, and the first member that is none of their manifests."""
    manifests: list[Manifest] = []
    left = MOST_LISTING_BYTES
    while (member := bundle.next()) and member.kind == "manifest":
        left -= member.size
        if member.size > MAX_MANIFEST_BYTES or left < 0 or len(manifests) == MOST_MODELS:
            raise VerificationError("its manifests are too many, or too large")
        content = b"".join(map(bytes, bundle.read(member.size)))  # copies: the views share one buffer
        if hashlib.sha256(content).hexdigest() != member.sha256.hex:
            raise VerificationError(f"{member.name} is not what its name says")
        manifests.append(_manifest(content))
    if not manifests:
        raise VerificationError("it begins with no manifest: it is no bundle")
    try:
        check_conflicts(f"{manifest.id}/{manifest.version}" for manifest in manifests)
    except UsageError as error:
        raise VerificationError(error.message) from error
    return sorted(manifests, key=lambda manifest: (manifest.id, manifest.version)), member


def _manifest(content: bytes) -> Manifest:
    """VerificationError where it does not say all that is needed, or what it says cannot be used."""
    try:
        manifest = Manifest.parse(content)
    except UsageError as error:
        raise VerificationError(f"a manifest of it cannot be used: {error.message}") from error
    if not manifest.version or any(file.size is None or not file.digest() for file in manifest.files):
        raise VerificationError(f"the manifest of {manifest.id} lacks a version, a size or a sha256")
    if not "".join((manifest.ref, *(url for file in manifest.files for url in file.urls))).isprintable():
        raise VerificationError(f"the manifest of {manifest.id} has an address that cannot be one")
    hub = hub_of(manifest.ref or manifest.id, manifest.id)
    files = (
        replace(
            file,
            digests=tuple(digest for digest in file.digests if digest.algorithm == "sha256"),
            urls=tuple(url for url in file.urls if hub is None or url.startswith("data:") or is_same_place(url, hub)),
        )
        for file in manifest.files
    )
    return replace(manifest, files=tuple(files))


def _contents(manifests: Sequence[Manifest]) -> dict[str, ModelFile]:
    """What blobs are wanted, by SHA-256."""
    contents: dict[str, ModelFile] = {}
    for file in (file for manifest in manifests for file in manifest.files):
        known = contents.setdefault(content_of(file), file)
        if known.size != file.size:
            raise VerificationError(f"its manifests give {file.digests[0]} two sizes")
    return contents


class _Import:
    """Takes in the blobs of a bundle, once."""

    def __init__(
        self, shop: Workshop, bundle: Bundle, arrivals: Sequence[Arrival], contents: dict[str, ModelFile]
    ) -> None:
        self._shop = shop
        self._bundle = bundle
        self._arrivals = arrivals
        self._waiting = list(arrivals)
        self._contents = contents
        self._rotten: set[str] = set()
        self._failures: list[str] = []

    def run(self, member: Member | None) -> tuple[Model, ...]:
        """Raises as `take_in`."""
        try:
            self._look()
            check_room(self._shop.layout.root, sum(file.size or 0 for file in self._unfinished) - self._kept_bytes)
            while member:
                self._take(member)
                member = self._bundle.next()
            self._check_all_are_here()
        except BaseException as error:
            self._give_up(error)
            raise
        return tuple(arrival.result for arrival in self._arrivals if arrival.result)

    # -- what is here already -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Models and blobs that are here are not taken from the bundle."""
        layout = self._shop.layout
        for arrival in list(self._waiting):
            if isinstance(model := hit(arrival.order, layout), Model):
                arrival.begin(self._bundle.name)
                arrival.is_here(model)
                self._waiting.remove(arrival)
        wanted = {content for arrival in self._waiting for content in arrival.lacking}
        for content, file in self._contents.items():
            if content in wanted and blobs.exists(layout, file.digests[0]):
                self._settle(file, in_bundle=False)

    def _from_store(self, file: ModelFile, passing: Passing) -> Fetched | None:
        """The blob, read from end to end. One that has rotted is set aside."""
        layout, sha256 = self._shop.layout, file.digests[0]

        def tick() -> None:
            passing.checked += BUFFER

        if sha256.hex in self._rotten or not blobs.exists(layout, sha256):
            return None
        stamp = blobs.proven(layout, sha256, tick)
        if stamp is None:
            with suppress(StoreError, LockedError):
                self._shop.sharing.distrust(sha256.hex, layout.blob(sha256))
            blobs.set_aside(layout, layout.blob(sha256))
            self._rotten.add(sha256.hex)
            return None
        if stamp.size != file.size:
            raise VerificationError(f"its manifests give {sha256} {file.size:,} bytes, it has {stamp.size:,}")
        return Fetched(file, sha256, stamp.size, "linked", "cache", stamp=stamp)

    @property
    def _unfinished(self) -> tuple[ModelFile, ...]:
        """The files of models that are not here yet, each content once."""
        return tuple({content_of(file): file for arrival in self._waiting for file in arrival.order.files}.values())

    @property
    def _kept_bytes(self) -> int:
        """What is here of them."""
        files = self._unfinished
        return bytes_here(replace(self._waiting[0].order, files=files), self._shop.layout)[0] if files else 0

    # -- what comes ---------------------------------------------------------------------------------------------------

    def _take(self, member: Member) -> None:
        """The next blob, if it is lacking. Raises what ends the import; wrong bytes are only noted."""
        file = self._contents.get(member.sha256.hex)
        if file is None or file.size != member.size:
            raise VerificationError(f"{member.name} with {member.size:,} bytes is in none of its manifests")
        if any(content_of(file) in arrival.lacking for arrival in self._waiting):
            self._settle(file, in_bundle=True)

    def _settle(self, file: ModelFile, *, in_bundle: bool) -> None:
        """Finds the bytes of a file; then names the models that were waiting for nothing else.

        They are in the store or, with `in_bundle`, what comes next in the bundle.
        """
        layout, content, key = self._shop.layout, content_of(file), key_of(file)
        arrival = next(arrival for arrival in self._waiting if content in arrival.lacking)
        passing = Passing([*(each.pulse for each in self._arrivals), Pulse(layout.lock(key))])
        arrival.begin(self._bundle.name)
        arrival.follow(file, passing)
        with arrival.locked(layout.lock(key), (file,), file.path):
            done = self._from_store(file, passing)
            if done is None and in_bundle:
                done = self._from_bundle(file, arrival, passing)
            if done is None:
                return
            forget(layout.partials, key)
        if content in self._rotten:
            self._shop.sharing.repaired(done.sha256, done.stamp)
        for arrival in [each for each in self._waiting if content in each.lacking]:
            arrival.begin(self._bundle.name)
            done = arrival.has(done)
            if not arrival.lacking:
                self._install(arrival)

    def _install(self, arrival: Arrival) -> None:
        with suppress(StoreError, LockedError):  # what other models share stays unavailable then, until it is fetched
            self._shop.sharing.write()
        arrival.install()
        self._waiting.remove(arrival)

    def _from_bundle(self, file: ModelFile, arrival: Arrival, passing: Passing) -> Fetched | None:
        """None where its bytes are wrong: then those that are known to be right stay in the partial."""
        settings = self._shop.settings
        partial = Partial.open(
            self._shop.layout.partials, key_of(file), file,
            window=settings.window, piece_size=settings.piece_size, model=arrival.order.id,
        )  # fmt: skip
        began = time.monotonic()
        with closing(partial):
            resumed = partial.resumed_bytes
            if resumed:
                arrival.tell("resumed", f"{resumed:,} bytes are here", file.path)
            wrong = self._filled(partial, passing)
            if wrong and resumed and self._bundle.can_seek:  # bytes of an earlier run may have been what is wrong
                wrong = self._filled(partial, passing)
            if wrong:
                self._failures.append(f"{arrival}: {file.path} {wrong}")
                arrival.lost(file, VerificationError(f"{file.path} {wrong}"))
                return None
            resumed, sha256 = partial.resumed_bytes, file.digests[0]
            stamp = blobs.commit(self._shop.layout, partial)
        came = stamp.size - resumed
        attempt = Attempt(
            "cache", "bundle", "success", file.path, arrival.order.id, bytes=came, resumed_bytes=resumed,
            duration_ms=round(1000 * (time.monotonic() - began)),
        )  # fmt: skip
        self._shop.dispatcher.note(attempt)
        return Fetched(file, sha256, stamp.size, "resumed" if resumed else "fetched", "cache", came, resumed, stamp)

    def _filled(self, partial: Partial, passing: Passing) -> str:
        """Writes what is absent, and waits for the proof: what is wrong, or nothing."""
        for span in _absent(partial):
            self._bundle.skip_to(span.start)
            with closing(partial.writer(span, "bundle")) as writer:
                for chunk in self._bundle.read(span.size):
                    with suppress(VerificationError):  # a wrong piece, whose bytes are absent again
                        writer.write(chunk)
                    passing.checked = partial.written_bytes
        while not partial.await_proof(PROOF_S):
            if absent := partial.missing():
                return f"has wrong bytes ({absent[0].shown})"
        if partial.wrong_digest():
            partial.restart()
            return "is not what its sha256 says"
        return ""

    # -- the end ------------------------------------------------------------------------------------------------------

    def _check_all_are_here(self) -> None:
        if self._failures:
            raise VerificationError("; ".join(self._failures[:MOST_NAMED]))
        if lacking := {content for arrival in self._waiting for content in arrival.lacking}:
            raise VerificationError(f"{len(lacking):,} of its files are not in it")

    def _give_up(self, error: BaseException) -> None:
        """Says what is here all the same, and how much a later run need not take again."""
        with suppress(StoreError):
            error.kept_bytes = self._kept_bytes  # type: ignore[attr-defined]
        here = [str(arrival) for arrival in self._arrivals if arrival.result]
        if isinstance(error, ModelCacheError) and len(self._arrivals) > 1:
            more = [f"and {len(here) - MOST_NAMED} more"] if len(here) > MOST_NAMED else []
            names = f" ({', '.join(here[:MOST_NAMED] + more)})" if here else ""
            error.message += f"; {len(here)} of {len(self._arrivals)} models are here{names}"
        with suppress(StoreError, LockedError):
            self._shop.sharing.write()
        for arrival in self._waiting:
            arrival.end(None if arrival.result else error)


def _absent(partial: Partial) -> Iterator[Span]:
    """What is to be written, in order and in spans that end where pieces do: a wrong one ends its writer."""
    pieces = partial.given
    for gap in partial.missing():
        at = gap.start
        while at < gap.stop:
            stop = min(gap.stop, pieces.span(pieces.at(at)).stop) if pieces else gap.stop
            yield Span(at, stop)
            at = stop
