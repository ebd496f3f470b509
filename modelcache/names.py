"""What may be a path: the one place that decides it (I18, I19).

Responsible for: checking every name that a user, a manifest or a server chose, before it is joined to anything;
finding names that one file system would take for the same; making a file name out of a URL.
Leaves to others: opening files without following links (`store`), and what the names mean.
A checked path is relative, NFC-normalised, separated by "/" and means the same on every OS.
"""

import os
import re
import unicodedata
from collections.abc import Iterable

from modelcache.errors import UsageError
from modelcache.urls import without_session

MOST_PARTS = 32
MOST_PART_BYTES = 200
MOST_PATH_BYTES = 1024
MOST_FILE_NAME_BYTES = 150  # of a name made from a URL: room for what is put around it ("url--", "--1a2b3c4d")
MOST_CUT_BYTES = 120  # of a name that is only told apart by it
_MOST_RAW_CHARACTERS = 4096  # before normalising, whose time is not linear in runs of combining characters
_SHOWN_CHARACTERS = 80

_ILLEGAL = '<>:"|?*\\'  # on Windows; ":" is also a drive letter or an alternate stream
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, bidi and invisible format, surrogates, line separators
_PLAIN = re.compile(r"[\w .+=@-]*", re.ASCII)  # nearly every name: spares a look at each character
_DEVICE = re.compile(
    r"(?:CON|PRN|AUX|NUL|(?:COM|LPT)[0-9¹²³]|CONIN\$|CONOUT\$|CLOCK\$) *(?:\..*)?", re.IGNORECASE | re.ASCII
)
_SUFFIX = re.compile(r"(?:\.tar)?\.[^. ]{1,15}$")


def checked_path(text: str, parts: int | None = None) -> str:
    """The path, NFC-normalised; UsageError says in one line why it cannot be one. `parts` demands exactly so many."""
    if len(text) > _MOST_RAW_CHARACTERS:
        raise _refusal(text, "it is too long")
    path = unicodedata.normalize("NFC", text)
    names = path.split("/")
    if len(names) > MOST_PARTS or (parts is not None and len(names) != parts):
        raise _refusal(
            text, f"it must have {parts or f'at most {MOST_PARTS}'} part{'' if parts == 1 else 's'}, not {len(names)}"
        )
    for name in names:
        if fault := _fault(name):
            raise _refusal(text, fault)
    if len(path.encode()) > MOST_PATH_BYTES:
        raise _refusal(text, f"it is longer than {MOST_PATH_BYTES} bytes")
    return path


def check_conflicts(paths: Iterable[str]) -> None:
    """UsageError if two paths are one on some file system (case, normalisation), or one is a folder of another.

    It is the same on every OS: a model that installs here installs everywhere.
    """
    files: dict[str, str] = {}
    for path in paths:
        folded = _folded(path)
        if folded in files:
            raise UsageError(f"{_shown(files[folded])} and {_shown(path)} are one name where case does not count")
        files[folded] = path
    for folded, path in files.items():
        names = folded.split("/")
        for depth in range(1, len(names)):
            if other := files.get("/".join(names[:depth])):
                raise UsageError(f"{_shown(other)} is a file and, for {_shown(path)}, a folder")


def file_name_of(url: str) -> str:
    """The last segment of the URL's path as a name that `checked_path` accepts; "download" where it has none.

    Percent-decoded once: what decodes to a separator or to another escape is no path (I28).
    """
    from urllib.parse import unquote

    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*", "", without_session(re.split("[?#]", url, maxsplit=1)[0]))
    decoded = unquote(path.rpartition("/")[2][-_MOST_RAW_CHARACTERS:])
    seen = "".join("_" if _is_bad(character) else character for character in unicodedata.normalize("NFC", decoded))
    name = _trimmed(seen.strip().rstrip(". ")).rstrip(". ")
    # A device or one of our own names is harmless with something before it.
    return next((candidate for candidate in (name, "_" + name) if name and not _fault(candidate)), "download")


def joined(root: str, path: str) -> str:
    """`path` below `root`; checked again, so that it stays inside whoever calls."""
    return os.path.join(root, *checked_path(path).split("/"))


def cut(name: str) -> str:
    """The start of a name, in whole characters: what fits into a longer one, where a disk counts bytes."""
    return os.fsencode(name)[:MOST_CUT_BYTES].decode(errors="ignore")


def _fault(name: str) -> str:
    """Why `name` (NFC) cannot be one part of a path; empty if it can."""
    if not name:
        return "a part of it is empty"
    if name in (".", ".."):
        return f"{name!r} is not a name"
    if not _PLAIN.fullmatch(name) and (bad := next((character for character in name if _is_bad(character)), "")):
        return f"the character {bad!a} is not allowed"
    if name != name.strip() or name.endswith("."):
        return "a part of it starts or ends with a space, or ends with a dot"
    if _DEVICE.fullmatch(name):
        return f"{_shown(name)} is a device on Windows"
    if (folded := name.casefold()).startswith(".modelcache") or folded == ".manifest.json":
        return f"{_shown(name)} is kept for modelcache itself"
    if len(name.encode()) > MOST_PART_BYTES:
        return f"a part of it is longer than {MOST_PART_BYTES} bytes"
    return ""


def _is_bad(character: str) -> bool:
    return character == "/" or character in _ILLEGAL or unicodedata.category(character) in _UNSEEN


def _trimmed(name: str) -> str:
    """At most MOST_FILE_NAME_BYTES of it, less one to put before; what is cut comes out of the middle."""
    suffix = found.group() if (found := _SUFFIX.search(name)) else ""
    stem = name.removesuffix(suffix).encode()[: MOST_FILE_NAME_BYTES - 1 - len(suffix.encode())]
    return stem.decode(errors="ignore") + suffix


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _refusal(text: str, fault: str) -> UsageError:
    return UsageError(f"{_shown(text)} cannot be a path here: {fault}")


def _shown(text: str) -> str:
    """For a message: control and invisible characters escaped, never raw."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
