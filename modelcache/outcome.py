"""What a fetch gives back: files that are here, and how much is known of them.

Responsible for: values a user holds, their text and JSON forms (product H). Nothing here touches the disk.
"""

from dataclasses import dataclass
from typing import Any, Literal

from modelcache.model import Span
from modelcache.units import DIGEST_SHOWN, in_units, short_version

Finding = Literal["whole", "corrupt", "missing", "unreadable"]
Status = Literal["hit", "fetched", "resumed", "repaired", "linked"]
UNVERIFIED = "unverified"
MOST_FILES, MOST_PATH = 100, 160  # files, and characters of a path, in a notebook
_IN_PLACE: dict[Status, str] = {
    "hit": "here already", "linked": "in the store already", "fetched": "fetched", "resumed": "the rest fetched",
    "repaired": "repaired",
}  # fmt: skip


def in_place_text(status: Status, verified: str) -> str:
    """How a file came to be in place, and what vouched for it, for people: `fetched, verified by sha256`."""
    return f"{_IN_PLACE[status]}, {UNVERIFIED if verified == UNVERIFIED else f'verified by {verified}'}"


@dataclass(frozen=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        return f"<File {self.name!r}, {in_units(self.size)}, {self.in_words}: {str(self)!r}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from modelcache.markup import framed, name

        return framed(
            f"<h3>{name(self.name)}</h3><p>{in_units(self.size)}, {_marked(self.in_words, self.is_verified)}</p>"
            f'<p class="soft">{name(self, MOST_PATH)}</p>'
        )

    @property
    def is_verified(self) -> bool:
        """Whether something vouched for it."""
        return self.verified != UNVERIFIED

    @property
    def in_words(self) -> str:
        """How it came to be in place, and what vouched for it, for people."""
        return in_place_text(self.status, self.verified)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.name, "size": self.size, "sha256": self.sha256, "status": self.status,
            "verified": self.verified, "source": self.source, "bytes_fetched": self.bytes_fetched,
            "bytes_resumed": self.bytes_resumed, **({"unpacked": self.unpacked} if self.unpacked else {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        return f"<Model {self._whole_name}, {self._in_words}: {self.path!r}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from modelcache.markup import framed, name, table

        rows = [(file.name, file.size, file.in_words, file.sha256[:DIGEST_SHOWN]) for file in self.files[:MOST_FILES]]
        left = len(self.files) - MOST_FILES
        absent = [f"{what}: {', '.join(paths)}" for what, paths in self._absent if paths]
        return framed(
            f"<h3>{name(self._whole_name)}</h3><p>{_marked(self._in_words, self.is_verified)}</p>"
            f'<p class="soft">{name(self.path, MOST_PATH)}</p>'
            + "".join(f"<p>{name(line, MOST_PATH)}</p>" for line in absent)
            + table(("file", "size", "", "sha256"), rows, _cell)
            + (f'<p class="soft">and {left:,} more files</p>' if left > 0 else "")
        )

    @property
    def _whole_name(self) -> str:
        return f"{self.id}@{short_version(self.version)}"

    @property
    def _in_words(self) -> str:
        count, doubted = len(self.files), sum(not file.is_verified for file in self.files)
        files = "1 file" if count == 1 else f"{count:,} files"
        verified = "verified" if not doubted else f"{doubted:,} of them {UNVERIFIED}"
        return f"{files}, {in_units(sum(file.size for file in self.files))}, {verified}"

    @property
    def _absent(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("not here, for its hub could not be asked", self.missing), ("its hub does not have", self.lacking)

    def __getitem__(self, name: str) -> File:
        """KeyError where the model has no such file."""
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)

    @property
    def is_verified(self) -> bool:
        """Whether something vouched for every file."""
        return all(file.is_verified for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """An entry of `modelcache fetch --json`."""
        files = [file.to_json() for file in self.files]
        absent = {"lacking": list(self.lacking), "missing": list(self.missing)}
        more = {name: paths for name, paths in absent.items() if paths}
        return {"ref": self.ref, "id": self.id, "version": self.version, "path": self.path, "files": files} | more


def _marked(words: str, is_good: bool) -> str:
    from modelcache.markup import name

    told = name(words, MOST_PATH)
    return f'<span class="good">✓</span> {told}' if is_good else f'<span class="bad">{told}</span>'


def _cell(_column: str, value: object) -> str:
    return in_units(value) if isinstance(value, int) else str(value)


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
