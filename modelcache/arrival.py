"""One model of a bundle on its way into the store.

Responsible for: keeping others away from it, which of its contents are lacking still, its names, and telling how far
it is. Leaves to others: reading the bundle and proving what is in it (`importing`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from modelcache.account import Account
from modelcache.dispatch import Show
from modelcache.errors import PausedError, StoreError, UsageError, VerificationError, told
from modelcache.events import DownloadComplete, Fact, FactType
from modelcache.install import install
from modelcache.model import Manifest, ModelFile
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import Model, in_place_text
from modelcache.progress.show import shown
from modelcache.refs import is_alias, scheme_of_id
from modelcache.sampling import Sampler
from modelcache.states import State
from modelcache.store.gate import await_sweep
from modelcache.store.installed import Installed
from modelcache.store.locks import Patience, Pulse, Subject, locked
from modelcache.store.watch import Watch
from modelcache.task import Passing, Task
from modelcache.wiring import hub_of

MOST_NAMED = 3  # names that are left out


class Arrival:
    """One model of a bundle, on its way."""

    def __init__(self, shop: Workshop, manifest: Manifest, progress: Show) -> None:
        ref = manifest.ref or manifest.id
        self.order = Order(ref, manifest.id, manifest.version, manifest.files, single=False, proof="listed")
        self.lacking = {content_of(file) for file in manifest.files}
        self.result: Model | None = None
        self.pulse = Pulse(shop.layout.model_lock(manifest.id))
        self._strange = [name for name in manifest.aliases if not self._may_be(name)]
        self._aliases = [name for name in manifest.aliases if name not in self._strange]
        self._shop = shop
        self._progress = progress
        self._tasks = [Task(file) for file in manifest.files]
        self._by_content: dict[str, list[Task]] = {}
        for task in self._tasks:
            self._by_content.setdefault(content_of(task.file), []).append(task)
        self._account = Account(self.order, shop.layout, shop.dispatcher, "")
        self._telling = ExitStack()
        self._sampler: Sampler | None = None

    def __str__(self) -> str:
        return f"{self.order.id}@{self.order.version}"

    def _may_be(self, alias: str) -> bool:
        """Whether it can be a tag or branch: only what a hub has has any."""
        return hub_of(self.order.ref, self.order.id) is not None and is_alias(alias, scheme_of_id(self.order.id))

    def _left_out(self) -> str:
        """What is said of names that can be none."""
        if not self._strange:
            return ""
        more = f" and {len(self._strange) - MOST_NAMED} more" if len(self._strange) > MOST_NAMED else ""
        return f"; left out, as no names of its tags or branches: {', '.join(self._strange[:MOST_NAMED])}{more}"

    # -- who else has it ----------------------------------------------------------------------------------------------

    def lock(self, locks: ExitStack) -> None:
        """Nobody else fetches or removes the model from here on."""
        shop = self._shop
        with shown(self._progress, shop.dispatcher, self.order.id, {}):
            locks.enter_context(self.locked(shop.layout.model_lock(self.order.id), self.order.files))
            await_sweep(shop.layout, Patience(shop.settings.lock_timeout))

    def locked(self, path: str, files: Sequence[ModelFile], name: str = "") -> AbstractContextManager[None]:
        """Waits for whoever has it as long as he makes progress, and says so."""
        layout = self._shop.layout
        watch = Watch(layout, layout.partials, files, lambda words: self.tell("waiting", words, name), self.order.id)
        subject = Subject(self.order.id, self.order.version, name)
        return locked(path, subject, Patience(self._shop.settings.lock_timeout, watch.look))

    def check_here(self) -> None:
        """UsageError where a file of that version is here with other bytes. Files may be here that are not listed."""
        here = Installed.read(self._shop.layout.model(self.order.id, self.order.version))
        listed = {file.path: content_of(file) for file in self.order.files}
        if here and any(listed.get(file.path, file.sha256) != file.sha256 for file in here.files):
            raise UsageError(f"{self} is here with other files", next_step=f"remove it first: `modelcache rm {self}`")

    # -- how far it is ------------------------------------------------------------------------------------------------

    def begin(self, source: str) -> None:
        """From here on it is told how far it is."""
        if self._sampler:
            return
        dispatcher, sizes = self._shop.dispatcher, {file.path: file.size for file in self.order.files}
        self._telling.enter_context(shown(self._progress, dispatcher, self.order.id, sizes))
        self._telling.callback(self._tell_complete)
        self._sampler = self._telling.enter_context(Sampler(dispatcher, self.order.id, len(self._tasks)))
        self.tell("started", f"importing {self.order.ref} from {source}{self._left_out()}")
        self._account.begins(self.order, self._tasks)

    def follow(self, file: ModelFile, passing: Passing) -> None:
        """This file of it, and all with the same bytes, are worked at."""
        assert self._sampler
        task = self._by_content[content_of(file)][0]
        task.begin(passing)
        task.hear("verifying")
        self._sampler.follow(task)

    def has(self, done: Fetched) -> Fetched:
        """These bytes are proven, and in the store. Returns what they are for the next that has the same file."""
        assert self._sampler
        self.lacking.discard(done.sha256.hex)
        for task in self._by_content[done.sha256.hex]:
            mine = replace(done, file=task.file)
            task.end(mine)
            self._sampler.end(task)
            if done.status in ("hit", "linked"):
                self._account.found(self.order, mine)
            else:
                done = replace(done, status="linked", bytes_fetched=0, bytes_resumed=0)
            self.tell("file_ready", in_place_text(mine.status, done.sha256.algorithm), task.file.path)
        return done

    def lost(self, file: ModelFile, error: VerificationError) -> None:
        """What the bundle had for this file is wrong."""
        assert self._sampler
        task = self._by_content[content_of(file)][0]
        task.end(None, error)
        self._sampler.end(task)
        self.tell("piece_failed", error.message, file.path)

    def is_here(self, model: Model) -> None:
        """All of it was installed already."""
        for file in {content_of(file): file for file in self.order.files}.values():
            self.has(Fetched(file, file.digests[0], file.size or 0, "hit", "cache"))
        self._name(model)

    def install(self) -> None:
        """Names it. Raises as `install` does."""
        done = [task.done for task in self._tasks if task.done]
        result = install(self.order, self._shop, done, self.tell)
        assert isinstance(result, Model)
        self._name(result)

    def _name(self, model: Model) -> None:
        """It is here: from now on tags and branches mean what they meant where the bundle was made."""
        self._shop.registry.aliased(model.id, self._aliases, model.version)
        self.result = model
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """The last that is told of it."""
        if self._sampler is None:
            return
        is_paused = isinstance(error, (StoreError, PausedError, KeyboardInterrupt))
        state = State.PAUSED if is_paused else State.FAILED if error else State.READY
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else told(error)
        self._account.stands(self.order, self._tasks, state, text)
        kind: FactType = "paused" if is_paused else "error" if error else "completed"
        self.tell(kind, text or f"{self.order.ref} is here")
        self._telling.__exit__(type(error) if error else None, error, None)

    def tell(self, kind: FactType, message: str, file: str = "", *, path: str = "", version: str = "") -> None:
        version = version or self.order.version
        self._shop.dispatcher.publish(Fact(kind, self.order.id, message, file, "", version, path))

    def _tell_complete(self) -> None:
        if self.result:
            self._shop.dispatcher.publish(DownloadComplete(self._account.id, self.result.path))


def content_of(file: ModelFile) -> str:
    """The SHA-256 of a file of a bundle, by which its blob is called."""
    return file.digests[0].hex
