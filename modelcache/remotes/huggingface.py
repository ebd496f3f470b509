"""Models, datasets and spaces of a Hugging Face hub: what a revision consists of, and its files.

Responsible for: the hub's API, its refusals in plain words, and who may see the token (the endpoint's own origin).
Leaves to others: HTTP (`http`, `document`), where endpoint and token come from (`wiring`), what is kept of it.

Rules:
- A revision becomes a commit once; everything after that is asked for by the commit.
- A page of the list leads to the next one only on the endpoint's own origin.
- Where the hub sends us for the bytes of a file is never kept: each request begins at the hub, so a signed URL that has
  expired is renewed by asking once more.
- Xet is left alone: plain URLs give the same bytes.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from modelcache.errors import AGAIN, NotFoundError, SourceError, UsageError
from modelcache.model import GIT, MAX_MANIFEST_FILES, Digest, Manifest, ModelFile
from modelcache.names import check_conflicts, checked_path
from modelcache.refs import Ref
from modelcache.remotes.connection import Connector
from modelcache.remotes.document import Document, get
from modelcache.remotes.http import HttpSource, ask, plain_length
from modelcache.remotes.reply import Head
from modelcache.remotes.source import Abort, Body, Request, Traits
from modelcache.urls import origin_of, redirect_target, without_secrets

MOST_PAGES = 1000
MOST_PAGE_BYTES = 5_000_000  # of 1,000 files
MOST_LINK = 8192  # characters: looking for its end costs the square of them
_COMMIT = re.compile("[0-9a-f]{40}")
_NEXT = re.compile(r'<([^<>]{1,4000})>[^,]*;\s*rel="?next"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where a hub is, and the headers that are for its origin alone: they may hold a token."""

    endpoint: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]

    def api(self, ref: Ref, *rest: str) -> str:
        kind = "" if ref.name.startswith(("datasets/", "spaces/")) else "models/"
        return "/".join([f"{self.endpoint}/api/{kind}{ref.name}", *(quote(each, safe="") for each in rest)])

    def file(self, ref: Ref) -> str:
        return f"{self.endpoint}/{ref.name}/resolve/{ref.version}/{quote(ref.path)}"


class HubResolver:
    """What a revision consists of. One at a time; closing it frees its connections."""

    kind = "huggingface"

    def __init__(self, hub: Hub, connector: Connector) -> None:
        self.name = hub.host
        self._hub = hub
        self._connector = connector.shared()

    def resolve(self, ref: Ref, abort: Abort) -> Manifest:
        commit, full = self._commit(ref, abort)
        files: list[ModelFile] = []
        try:
            for page in self._pages(full, commit, abort):
                files += [_file(ref, commit, entry) for entry in _entries(page)]
                if len(files) > MAX_MANIFEST_FILES:
                    raise SourceError(f"it lists more than {MAX_MANIFEST_FILES:,} files")
            check_conflicts(file.path for file in files)
        except UsageError as error:
            raise SourceError(f"it lists files that cannot be kept here: {error.message}") from error
        if not files:
            raise NotFoundError(f"{ref.base} has no files in this revision")
        return Manifest(ref.id, commit, ref.base, tuple(files))

    def close(self) -> None:
        self._connector.close()

    def _commit(self, ref: Ref, abort: Abort) -> tuple[str, Ref]:
        """The commit, and the ref by the full name: from a short one the hub redirects, maybe without the query."""
        said = self._get(ref, self._hub.api(ref, "revision", ref.revision or ref.alias), abort).json()
        commit = said.get("sha") if isinstance(said, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or ref.version not in ("", commit):
            raise SourceError("it does not say which commit the revision is")
        if said.get("gated"):
            self._check_access(ref, abort)
        return commit, _by_full_name(ref, said.get("id"))

    def _check_access(self, ref: Ref, abort: Abort) -> None:
        """The list of a gated repository is for everybody: better told now than by each of its files."""
        if "Authorization" not in self._hub.secrets:
            raise _refused(self._hub, ref, "GatedRepo", 401)
        try:
            self._get(ref, self._hub.api(ref, "auth-check"), abort)
        except NotFoundError as error:
            if error.status != 404:  # a mirror may not know this question: then its files will tell
                raise

    def _pages(self, ref: Ref, commit: str, abort: Abort) -> Iterator[Document]:
        url = self._hub.api(ref, "tree", commit) + "?recursive=true&expand=false"
        seen: set[str] = set()
        while url not in seen and len(seen) < MOST_PAGES:
            seen.add(url)
            page = self._get(ref, url, abort)
            yield page
            link = page.head.text("link")
            if len(link) > MOST_LINK:
                raise SourceError("its list of files goes on at a place whose name is too long")
            following = _NEXT.search(link)
            if not following:
                return
            url = self._followed(page.url, following[1])
        raise SourceError("its list of files does not end")

    def _followed(self, url: str, link: str) -> str:
        with suppress(SourceError):
            target = redirect_target(url, link)
            if origin_of(target) == origin_of(self._hub.endpoint):
                return target
        raise SourceError("its list of files goes on at another place, which is not followed")

    def _get(self, ref: Ref, url: str, abort: Abort) -> Document:
        explain = partial(refusal, self._hub, ref)
        return get(self._connector, url, abort, secrets=self._hub.secrets, explain=explain, most_bytes=MOST_PAGE_BYTES)


def _by_full_name(ref: Ref, said: object) -> Ref:
    """Of a name without an organization, the one with it, if the hub tells one that can be."""
    kind, slash, name = ref.name.rpartition("/")
    if kind in ("", "datasets", "spaces") and isinstance(said, str):
        with suppress(UsageError):
            full = Ref.parse(f"hf:{kind}{slash}{said}")
            return replace(ref, name=full.name) if full.name.endswith(f"/{name}") and not full.path else ref
    return ref


class HubSource:
    """One file of a commit: `hf:org/name@COMMIT/path`. UsageError for anything else."""

    kind = "huggingface"

    def __init__(self, url: str, hub: Hub, connector: Connector) -> None:
        ref = Ref.parse(url)
        if ref.scheme != "hf" or not (ref.version and ref.path):
            raise UsageError(f"{ref.shown} names no file of a commit")
        self._validator = f'"{ref.version}"'
        explain = partial(refusal, hub, ref)
        self._http = HttpSource(hub.file(ref), headers=hub.secrets, connector=connector, explain=explain)
        self.name = self._http.name

    def traits(self, file: ModelFile) -> Traits | None:
        return self._http.traits(file)

    def open(self, request: Request) -> Body:
        """The commit says which content it is: validators differ between the hub and the places it sends us to."""
        body = self._http.open(replace(request, validator=""))
        body.validator = self._validator
        return body

    def close(self) -> None:
        self._http.close()


def whoami(hub: Hub, connector: Connector, abort: Abort) -> Head:
    """How the hub answers to whom the token belongs: 401 for none, or for one that it does not know."""
    answer = ask(connector, f"{hub.endpoint}/api/whoami-v2", hub.secrets, {"Accept-Encoding": "identity"}, abort)
    answer.exchange.dismiss(plain_length(answer.head))
    return answer.head


def refusal(hub: Hub, ref: Ref, head: Head) -> SourceError | None:
    """What the hub's refusal means; None where it gives no reason: its status says what there is to say."""
    code = head.text("x-error-code")
    return _refused(hub, ref, code, head.status) if code and head.status in (401, 403, 404) else None


def _refused(hub: Hub, ref: Ref, code: str, status: int) -> NotFoundError:
    has_token = "Authorization" in hub.secrets
    again = ""
    match code:
        case "GatedRepo":
            text = f"{ref.base} is gated" + (", and your token has no access" if has_token else "")
            page = f"{without_secrets(hub.endpoint)}/{ref.name}"
            advice = f"accept its terms at {page}" + ("" if has_token else " and set HF_TOKEN")
            again = AGAIN
        case "RevisionNotFound":
            text, advice = f"{ref.base} has no revision {ref.revision or ref.alias}", "check its name"
            if ref.path:
                longer = f"{ref.base}@" + f"{ref.revision}/{ref.path}".replace("/", "%2F")
                advice += f", or write `{longer}` if all of that is it"
        case "EntryNotFound":
            text, advice = f"{ref.base} has no file {ref.path}", "check its name"
        case _:
            text = f"{ref.base} is not at {hub.host}" + (", or your token may not see it" if has_token else "")
            advice = "check the name" + ("" if has_token else ", or set HF_TOKEN if it is private")
    found = NotFoundError(text, next_step=advice)
    found.again, found.status = again, status
    return found


def _entries(page: Document) -> list[dict[str, Any]]:
    said = page.json()
    if not isinstance(said, list) or not all(isinstance(entry, dict) for entry in said):
        raise SourceError("its list of files is malformed")
    return [entry for entry in said if entry.get("type") == "file"]


def _file(ref: Ref, commit: str, entry: dict[str, Any]) -> ModelFile:
    """UsageError where the name can be no path here, SourceError for what is no entry."""
    lfs = entry.get("lfs")
    match entry, lfs:
        case {"path": str(text), "size": int(size)}, {"oid": str(sha256)}:
            digest = Digest.parse(sha256, "sha256")
        case {"path": str(text), "size": int(size), "oid": str(sha1)}, None:
            digest = Digest.parse(sha1, GIT)
        case _:
            raise SourceError("its list of files is malformed")
    if isinstance(size, bool) or not 0 <= size < 2**63:
        raise SourceError("its list of files is malformed: a size that none can be")
    path = checked_path(text)
    return ModelFile(path, size, (digest,), (f"hf:{ref.name}@{commit}/{quote(path)}",))
