"""What a fetch gives back: files that are here, and how much is known of them.

Responsible for: values a user holds, their text and JSON forms (product H). Nothing here touches the disk.
"""

from dataclasses import dataclass
from typing import Any, Literal

from modelcache.model import Span

Finding = Literal["whole", "corrupt", "missing", "unreadable"]
Status = Literal["hit", "fetched", "resumed", "repaired", "linked"]
UNVERIFIED = "unverified"
_IN_PLACE: dict[Status, str] = {
    "hit": "here already", "linked": "in the store already", "fetched": "fetched", "resumed": "the rest fetched",
    "repaired": "repaired",
}  # fmt: skip


def in_place_text(status: Status, verified: str) -> str:
    """How a file came to be in place, and what vouched for it, for people: `fetched, verified by sha256`."""
    return f"{_IN_PLACE[status]}, {UNVERIFIED if verified == UNVERIFIED else f'verified by {verified}'}"


@dataclass(frozen=True, slots=True)
class File:
    """One file in place. `path` is absolute, `name` its path inside the model.

    `verified` is the kind of digest that vouched for it, or "unverified": then only framing and size were checked,
    and the digest is recorded for next time. `bytes_fetched` came from the source in this call;
    `bytes_resumed` were here from an earlier one. `unpacked` is the folder with what was in it, if that was asked
    for. `version` is that of the model it belongs to. `os.fspath(file)` is what was asked for: that folder, else the
    path.
    """

    path: str
    name: str
    size: int
    sha256: str
    status: Status
    verified: str
    source: str = ""
    bytes_fetched: int = 0
    bytes_resumed: int = 0
    unpacked: str = ""
    version: str = ""

    def __fspath__(self) -> str:
        return self.unpacked or self.path

    def __str__(self) -> str:
        return self.unpacked or self.path

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.name, "size": self.size, "sha256": self.sha256, "status": self.status,
            "verified": self.verified, "source": self.source, "bytes_fetched": self.bytes_fetched,
            "bytes_resumed": self.bytes_resumed, **({"unpacked": self.unpacked} if self.unpacked else {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A model in place: `path` is its folder, `model["config.json"]` one of its files.

    `lacking` are files that its catalog calls optional, and that its hub does not have; `missing` belong to it and are
    not here, because its hub could not be asked for them.
    """

    ref: str
    id: str
    version: str
    path: str
    files: tuple[File, ...]
    lacking: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def __getitem__(self, name: str) -> File:
        """KeyError where the model has no such file."""
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)

    @property
    def is_verified(self) -> bool:
        """Whether something vouched for every file."""
        return all(file.verified != UNVERIFIED for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """An entry of `modelcache fetch --json`."""
        files = [file.to_json() for file in self.files]
        absent = {"lacking": list(self.lacking), "missing": list(self.missing)}
        more = {name: paths for name, paths in absent.items() if paths}
        return {"ref": self.ref, "id": self.id, "version": self.version, "path": self.path, "files": files} | more


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found of one file. `wrong` are the spans that differ; empty where no piece is known, too."""

    model: str
    version: str
    path: str
    place: str
    size: int
    finding: Finding
    wrong: tuple[Span, ...] = ()
    reason: str = ""

    def to_row(self) -> dict[str, object]:
        pieces = ", ".join(span.shown for span in self.wrong)
        return {
            "model": self.model, "version": self.version, "file": self.path, "finding": self.finding,
            "size": self.size, "wrong_bytes": pieces, "reason": self.reason,
        }  # fmt: skip
