"""What a user calls a model.

Responsible for: reading it strictly, the id that it has in the store (product C1), and whether it names bytes that
never change. Leaves to others: what it means by now (`remotes`), and what is here of it (`store`).

    https://host/model.gguf                       a URL
    whisper-base, whisper-base@1.0                an id, of an installed model or a catalog
    hf:org/name[@revision][/path]                 hf:datasets/org/name…, hf:spaces/org/name…; %2F is a / in a revision
    hf:name[@revision[/path]]                     those of the early days have no org
    ollama:[user/]name[:tag | @sha256:HEX]
    oci://host[:port]/repository[:tag | @sha256:HEX]
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from modelcache.errors import UsageError
from modelcache.model import Digest
from modelcache.names import checked_path, file_name_of
from modelcache.urls import checked_url, identity_of, without_secrets

_HUB_KINDS = ("datasets", "spaces")
_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_COMMIT = re.compile("[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*\.\.)[\w.+=@~:/-]{1,200}")
_PART = "[A-Za-z0-9]+(?:(?:[._]|__|-+)[A-Za-z0-9]+)*"
_REPOSITORY = re.compile(f"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ANY_PINNED = re.compile("(?:refs/)?(?:sha256[:-])?(?:[0-9a-f]{40}|[0-9a-f]{64})", re.IGNORECASE)
_DIGEST = re.compile("(?:sha256[:-])?[0-9a-f]{64}", re.IGNORECASE)
_PINNED = {"oci": _DIGEST, "ollama": _DIGEST}  # of the others a commit may be a version, too
OLLAMA_REGISTRY = "registry.ollama.ai"
_DEFAULT_ALIAS = {"hf": "main", "ollama": "latest", "oci": "latest"}
_FORMS = {
    "hf": "hf:org/name, hf:org/name@revision or hf:org/name/path, each also with datasets/ or spaces/ before org",
    "ollama": "ollama:name, ollama:name:tag or ollama:name@sha256:HEX",
    "oci": "oci://host/repository, with :tag or @sha256:HEX after it",
}
_SCHEMES = "there are http://, https://, hf:, ollama:, oci:// and, without a scheme, ids of models"
_REPOSITORY_OF_A_HUB = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(?:@[\w.%-]{1,200})?")


@dataclass(frozen=True, slots=True)
class Ref:
    """What a user calls a model: a URL, what a hub calls it, or an id.

    id: its name in the store. version: the one that is named, empty where none is; of a hub it is immutable: a
    commit, or the digest of a manifest. url: of a URL alone.
    scheme: which kind of hub resolves it, empty for a URL and an id. name: what it is called there. revision: a tag
    or branch that is named, or the version. path: the one file of it that is wanted.
    """

    id: str
    version: str = ""
    url: str = ""
    scheme: str = ""
    name: str = ""
    revision: str = ""
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """UsageError for a scheme that nothing here serves, or a name that cannot be an id."""
        if re.match(r"(?i)https?://", text):
            url = checked_url(text)
            return cls(id=_url_id(url), url=url)
        scheme, colon, rest = text.partition(":")
        if colon and (parse := _HUBS.get(scheme)):
            return parse(rest)
        if not text:
            raise UsageError("what is wanted is not named: the ref is empty", next_step=_SCHEMES)
        if colon:
            raise UsageError(f"unknown scheme {scheme[:40] + ':'!r}", next_step=_SCHEMES)
        if _REPOSITORY_OF_A_HUB.fullmatch(text):
            raise UsageError(f"{text!r} is no id of a model", next_step=f"of Hugging Face it is `hf:{text}`")
        name, _, version = text.partition("@")
        return cls(id=checked_path(name, parts=1), version=checked_path(version, parts=1) if version else "")

    @classmethod
    def of_hub(cls, text: str) -> bool:
        """Whether a text is a ref of a hub."""
        try:
            return bool(cls.parse(text).scheme)
        except UsageError:
            return False

    @property
    def base(self) -> str:
        """What all revisions and files of it have in common: what a record calls it."""
        return f"{self.scheme}:{self.name}" if self.scheme else self.shown

    @property
    def shown(self) -> str:
        """The ref as it may be printed and stored: no query, no userinfo."""
        if self.url:
            return without_secrets(self.url)
        if self.scheme:
            is_digest = self.scheme != "hf" and bool(self.version)
            sign = "@sha256:" if is_digest else "@" if self.scheme == "hf" else ":"
            named = f"{sign}{self.revision.replace('/', '%2F')}" if self.revision else ""
            return self.base + named + (f"/{self.path.replace('%', '%25')}" if self.path else "")
        return self.id + ("@" + self.version if self.version else "")

    @property
    def alias(self) -> str:
        """The tag or branch whose meaning may change; empty where a version is named, and for what is of no hub."""
        return "" if self.version else self.revision or _DEFAULT_ALIAS.get(self.scheme, "")


def repository_of(ref: Ref) -> tuple[str, str]:
    """The registry's host and the repository that a ref of `ollama:` or `oci://` stands for."""
    if ref.scheme == "ollama":
        return OLLAMA_REGISTRY, ref.name if "/" in ref.name else f"library/{ref.name}"
    host, _, repository = ref.name.removeprefix("//").partition("/")
    return host, repository


def is_alias(name: str, scheme: str) -> bool:
    """Whether a tag or branch at that kind of hub (empty: any) may be called so: what reads like a version is none."""
    looks_pinned = _PINNED.get(scheme, _ANY_PINNED)
    return bool(_REVISION.fullmatch(name) or _TAG.fullmatch(name)) and not looks_pinned.fullmatch(name)


def scheme_of_id(model_id: str) -> str:
    """Of the kind of hub whose models have such ids; empty for others."""
    scheme, mark, _ = model_id.partition("--")
    return scheme if mark and scheme in _HUBS else ""


def _hugging_face(rest: str) -> Ref:
    from urllib.parse import unquote

    kind, _, after = rest.partition("/")
    kind, bare = (f"{kind}/", after) if kind in _HUB_KINDS else ("", rest)
    org, slash, tail = bare.partition("/")
    parts, tail = ([org], tail) if slash and "@" not in org else ([], bare)  # those of the early days have no org
    named, slash, path = tail.partition("/")
    name, at, revision = named.partition("@")
    parts.append(name)
    revision, path = unquote(revision), unquote(path)
    if not all(map(_HUB_NAME.fullmatch, parts)) or (at and not revision) or (slash and not path):
        raise _malformed("hf", rest)
    if revision and not _REVISION.fullmatch(revision):
        raise UsageError(f"{revision[:80]!a} is no revision: a branch, a tag or a commit is")
    full = kind + "/".join(parts)
    version = revision if _COMMIT.fullmatch(revision) else ""
    model_id = checked_path("hf--" + full.replace("/", "--"), parts=1)
    return Ref(model_id, version, "", "hf", full, revision, checked_path(path) if path else "")


def _ollama(rest: str) -> Ref:
    name, revision, version = _tagged("ollama", rest)
    if not 1 <= len(name.split("/")) <= 2:
        raise _malformed("ollama", rest)
    return Ref(_joined_id("ollama", name), version, "", "ollama", name, revision)


def _oci(rest: str) -> Ref:
    _, at, after = rest.rpartition("@")
    host, slash, tail = rest.removeprefix("//").partition("/")
    if "@" in host or (at and "/" in after):
        raise UsageError("a ref holds no user name and no password", next_step="run `docker login`, or pass --header")
    if not (rest.startswith("//") and slash):
        raise _malformed("oci", rest)
    checked_url(f"https://{host}/")
    name, revision, version = _tagged("oci", tail)
    return Ref(_joined_id("oci", f"{host}/{name}"), version, "", "oci", f"//{host.lower()}/{name}", revision)


def _tagged(scheme: str, text: str) -> tuple[str, str, str]:
    """The name, the revision that is named, and the version if that is a digest."""
    name, at, digest = text.partition("@")
    folder, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = folder + slash + last
    if len(name) > 200 or not _REPOSITORY.fullmatch(name) or (colon and not _TAG.fullmatch(tag)):
        raise _malformed(scheme, text)
    version = Digest.parse(digest, "sha256").hex if at else ""
    return name, version or tag, version


def _joined_id(scheme: str, name: str) -> str:
    return checked_path(f"{scheme}--" + name.lower().replace("/", "--").replace(":", "-"), parts=1)


def _malformed(scheme: str, rest: str) -> UsageError:
    shown = without_secrets(rest)
    cut = rest[len(shown) : len(shown) + 1] if rest.startswith(shown) else ""  # what follows may be a secret
    shown = re.sub("[^/]*:[^/]*@", "...@", shown)[:80] + (f"{cut}..." if cut in ("?", "#") else "")
    return UsageError(f"{scheme + ':' + shown!r} cannot be meant", next_step=f"write {_FORMS[scheme]}")


_HUBS: dict[str, Callable[[str], Ref]] = {"hf": _hugging_face, "ollama": _ollama, "oci": _oci}


def _url_id(url: str) -> str:
    import hashlib

    name = file_name_of(url).replace("@", "_")  # an id has no "@": what follows one is a version
    return f"url--{name}--{hashlib.sha256(identity_of(url).encode()).hexdigest()[:8]}"
