"""The seam between what users call a model and everything that can say what it consists of.

Responsible for: the protocol (`Resolver`).
Leaves to each resolver: speaking its hub's protocol, refusing malformed replies, translating foreign errors. Leaves to
`resolving`: retries, deadlines, stopping it, and keeping what it says.
"""

from typing import Protocol

from modelcache.model import Manifest
from modelcache.refs import Ref
from modelcache.remotes.source import Abort


class Resolver(Protocol):
    """One hub that knows models by name."""

    name: str  # whom it asks, for people: a host, no secrets
    kind: str  # the wire format's `source`: huggingface, oci

    def resolve(self, ref: Ref, abort: Abort) -> Manifest:
        """What the ref means by now: all files of the model, also where the ref names one of them.

        The manifest's id and ref are `ref.id` and `ref.base`; its version is immutable, and `ref.version` where that
        names one; each file has what the hub says of its size and digests, and a url that a source here serves.
        Raises NotFoundError where there is no such model or revision, or it is not ours to see; TransientError,
        SourceError, AbortedError. Each request sets `abort.until`: whoever watches ends those that take too long.
        """
        ...

    def close(self) -> None: ...
