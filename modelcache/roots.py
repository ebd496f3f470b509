"""The roots of one cache: its own, and the fallback while nothing can be written to that (product A8).

Responsible for: which of them has a model, and which is written to. Leaves to others: what one root is in this
process (`runtime`), and whatever is done there.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelcache.configuration import fallback_for
from modelcache.errors import UsageError
from modelcache.names import checked_path
from modelcache.refs import Ref
from modelcache.runtime import Runtime
from modelcache.store.installed import Installed

if TYPE_CHECKING:
    from modelcache.download import Download

Held = tuple[Runtime, Installed]  # a version of a model, and the root that it is in


class Roots:
    """Making it does no I/O; all methods may be called from any thread."""

    def __init__(self, root: str, overrides: Mapping[str, Any]) -> None:
        self.own = Runtime(root, overrides)
        self._fallback: Runtime | None = None

    def fallback(self) -> Runtime | None:
        """The root to use where nothing can be written to our own; one that was used once stays."""
        if self._fallback is None and (place := fallback_for(self.own.root)):
            self._fallback = Runtime(place, self.own.overrides)
        return self._fallback

    def writable(self) -> Runtime:
        """The one that takes what is new, which is there then. UsageError where it is to be a group's and is not;
        StoreError."""
        runtime = self.fallback() or self.own
        runtime.make_root()
        return runtime

    def all(self) -> list[Runtime]:
        """Our own comes first."""
        other = self.fallback()
        return [self.own, other] if other else [self.own]

    def running(self) -> "list[Download]":
        """Downloads of this process that have not ended, in any root. Looks at no disk."""
        runtimes = [self.own, self._fallback] if self._fallback else [self.own]
        return [download for runtime in runtimes for download in runtime.running if not download.has_ended]

    def holder(self, ref: Ref) -> Runtime:
        """The root that has a model: our own, unless only the fallback has it."""
        if self.own.shelf.record(ref) is None and (other := self.fallback()):
            return other
        return self.own

    def readable(self) -> list[Runtime]:
        """All of them. StoreError where our own cannot be read and there is no fallback."""
        runtimes = self.all()
        if len(runtimes) == 1:
            self.own.shelf.check_readable()
        return runtimes

    def models(self) -> list[Held]:
        """Every version of each. Raises as `readable`."""
        return [(runtime, record) for runtime in self.readable() for record in runtime.shelf.all()]

    def chosen(self, model: str | None, version: str | None = None) -> list[Held]:
        """One model, or all. Raises ModelNotAvailableError."""
        if model is None:
            return self.models()
        ref = model_of(model, version)
        runtime = self.holder(ref)
        return [(runtime, runtime.shelf.present(ref))]

    def corrupt(self) -> list[Held]:
        """What an earlier look found wrong, and what is gone or changed since. What only a fetch completes is not."""
        fine = ("ready", "incomplete")
        return [(runtime, record) for runtime, record in self.models() if runtime.shelf.status(record) not in fine]

    def close(self) -> None:
        if self._fallback:
            self._fallback.close()
        self.own.close()


def ref_of(model: str, version: str | None) -> Ref:
    ref = Ref.parse(model)
    return replace(ref, version=checked_path(version, parts=1)) if version else ref


def model_of(model: str, version: str | None = None) -> Ref:
    """UsageError where one file is named: what is done to it is done to the whole model."""
    ref = ref_of(model, version)
    if ref.path:
        raise UsageError(f"{ref.shown} is one file of a model", next_step=f"name the model: {ref.base}")
    return ref
