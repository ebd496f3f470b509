"""What a user says about a ref, checked as far as that can be without the ref.

Responsible for: the value, and making it of what is typed. Leaves to others: what it means for a ref (`ordering`).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modelcache.errors import UsageError
from modelcache.model import Digest
from modelcache.settings import Settings
from modelcache.urls import checked_url


@dataclass(frozen=True, slots=True)
class Wish:
    """`headers` may hold secrets. UsageError for what cannot be meant."""

    digests: tuple[Digest, ...] = ()
    size: int | None = None
    output: str | None = None
    mirrors: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cached: bool = True
    strict: bool = False
    require_digest: bool = False
    prefer: str = ""
    chosen: tuple[str, ...] = ()  # patterns of file names; none: all
    counted: bool = True  # as a request for the model; not where a job asks

    def __post_init__(self) -> None:
        if self.prefer:
            Settings(prefer=self.prefer)  # UsageError for none of the kinds
        if self.size is not None and not 0 <= self.size < 2**63:
            raise UsageError(f"size {self.size} is not a number of bytes")
        for mirror in self.mirrors:
            checked_url(mirror)
        for name, value in self.headers.items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise UsageError(f"header {name!r}: its name and its value must be text")


def wish_of(
    sha256: str | None = None,
    checksum: str | None = None,
    size: int | None = None,
    output: str | os.PathLike[str] | None = None,
    mirrors: Iterable[str] = (),
    headers: Mapping[str, str] | None = None,
    cache: bool = True,
    strict: bool = False,
    require_digest: bool = False,
    prefer: str = "",
    files: Iterable[str] | str = (),
) -> Wish:
    """Of what `Cache.fetch` takes, which says what it means. UsageError."""
    place = None if output is None else os.fspath(output)
    return Wish(
        digests_of(sha256, checksum), size, place, tuple(mirrors), dict(headers or {}), cache, strict, require_digest,
        prefer, chosen_of(files),
    )  # fmt: skip


def digests_of(sha256: str | None, checksum: str | None) -> tuple[Digest, ...]:
    """UsageError for what is malformed, and for two of one kind that differ."""
    given = [Digest.parse(sha256, "sha256")] if sha256 is not None else []
    given += [Digest.parse(checksum)] if checksum is not None else []
    distinct = tuple(dict.fromkeys(given))
    if len({digest.algorithm for digest in distinct}) < len(distinct):
        raise UsageError("sha256 and checksum contradict each other")
    return distinct


def chosen_of(files: Iterable[str] | str) -> tuple[str, ...]:
    """Patterns of file names; UsageError for what is none."""
    patterns = (files,) if isinstance(files, str) else tuple(files)
    if not patterns and files != ():  # a selection that came out empty; () is what nobody gave
        raise UsageError("no pattern of file names is given", next_step="leave `files` out where all are wanted")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise UsageError(f"{pattern!r} is no pattern of file names")
    return patterns
