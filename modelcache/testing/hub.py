"""A Hugging Face hub on this machine: an origin that has repositories and answers the API that clients use.

Responsible for: revisions and commits, the list of files page by page, who may see what, and sending clients elsewhere
for large files, by links that end. Its refusals are those of the real one.
Leaves to `origin`: serving files, faults (their paths are those of the requests) and what was asked.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from modelcache.testing.content import Content
from modelcache.testing.faults import Fault
from modelcache.testing.listener import Certificate
from modelcache.testing.origin import Origin
from modelcache.testing.reply import Offer, Question, Reply, answer

_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)|/(auth-check))?")
_FILE = re.compile(r"/((?:datasets/|spaces/)?)([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(slots=True)
class _Repository:
    """Its commits, what revisions mean, and the tokens that may see it (None: everybody)."""

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    tokens: frozenset[str] | None = None
    is_private: bool = False


class Hub(Origin):
    """A hub without repositories; `endpoint` is what HF_ENDPOINT has to be.

    lfs_from: files of so many bytes are kept apart from git, and have a SHA-256.
    cdn: those come from another origin, `hub.cdn`, where no token goes; a link is good for `link_uses` requests.
    page: so many files are on a page of a list.
    """

    def __init__(
        self,
        *,
        lfs_from: int = 10_000,
        cdn: bool = False,
        link_uses: int | None = None,
        page: int = 1000,
        faults: Iterable[Fault] = (),
        tls: Certificate | None = None,
        port: int = 0,
    ) -> None:
        self._repositories: dict[str, _Repository] = {}
        self._renamed: dict[str, str] = {}
        self._lfs_from = lfs_from
        self._page = page
        self.cdn = _Cdn(link_uses, tls) if cdn else None
        super().__init__(faults=faults, tls=tls, port=port)

    @property
    def endpoint(self) -> str:
        return self.url().rstrip("/")

    def publish(self, name: str, files: Mapping[str, bytes | Path | Content], *revisions: str, commit: str = "") -> str:
        """Makes a commit of these files, which the revisions (by default main) mean from now on; returns it.

        `name` is `org/name`, `datasets/org/name` or `spaces/org/name`.
        """
        contents = {path: Content.of(given) for path, given in files.items()}
        listed = "\n".join(f"{path} {self._oid(content)}" for path, content in sorted(contents.items()))
        commit = commit or _sha1(f"{name}\n{listed}".encode())
        with self._lock:
            repository = self._repositories.setdefault(name, _Repository())
            repository.commits[commit] = contents
            repository.revisions |= dict.fromkeys(revisions or ("main",), commit)
        for content in contents.values():
            if self.cdn and content.size >= self._lfs_from:
                self.cdn.put(content.sha256, content)
        return commit

    def gate(self, name: str, *tokens: str) -> None:
        """Everybody sees that it is there; its files are for those tokens."""
        self._repositories[name].tokens = frozenset(tokens)

    def hide(self, name: str, *tokens: str) -> None:
        """It is private: for anybody else it is not there."""
        self.gate(name, *tokens)
        self._repositories[name].is_private = True

    def rename(self, old: str, name: str) -> None:
        """Who asks by the old name is sent to the other, without the query: `gpt2`, `openai-community/gpt2`."""
        self._renamed[old] = name

    def stop(self) -> None:
        super().stop()
        if self.cdn:
            self.cdn.stop()

    def close(self) -> None:
        super().close()
        if self.cdn:
            self.cdn.close()

    # -- answers ------------------------------------------------------------------------------------------------------

    def offer(self, question: Question) -> Offer:
        found = _FILE.fullmatch(urlsplit(question.target).path)
        content = self._content(found) if found else None
        if content is None:
            return super().offer(question)
        offer = Offer.honest(question, content)
        offer.etag = f'"{self._oid(content)}"'
        return offer

    def reply(self, offer: Offer) -> Reply:
        path = urlsplit(offer.question.target).path
        for old, name in self._renamed.items():
            if path.startswith((f"/api/models/{old}/", f"/{old}/resolve/")):
                return Reply.plain(307, b"", ("Location", path.replace(f"/{old}/", f"/{name}/", 1)))
        if path == "/api/whoami-v2":
            return self._whoami(offer.question)
        if found := _API.fullmatch(path):
            kind, name, verb, revision, checks = found.groups()
            full = name if kind == "models" else f"{kind}/{name}"
            return self._api(offer.question, full, verb or checks, unquote(revision or ""))
        if found := _FILE.fullmatch(path):
            return self._file(offer, found)
        return super().reply(offer)

    def _whoami(self, question: Question) -> Reply:
        """A token is known that some repository is for."""
        token = question.headers.get("authorization", "").removeprefix("Bearer ")
        if any(token in (repository.tokens or ()) for repository in self._repositories.values()):
            return _json({"type": "user", "name": "somebody"})
        return _error(401, "", "Invalid username or password.")

    def _content(self, found: re.Match[str]) -> Content | None:
        kind, name, revision, path = found.groups()
        repository = self._repositories.get(kind + name)
        commit = repository and _commit(repository, unquote(revision))
        return repository.commits[commit].get(unquote(path)) if repository and commit else None

    def _api(self, question: Question, name: str, verb: str | None, revision: str) -> Reply:
        repository = self._repositories.get(name)
        if refused := _refused(repository, question, asks_files=verb == "auth-check"):
            return refused
        if verb == "auth-check":
            return _json({})
        assert repository is not None
        commit = _commit(repository, revision or "main")
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if verb == "tree":
            return self._tree(question, repository.commits[commit])
        return _json(
            {
                "id": name.removeprefix("datasets/").removeprefix("spaces/"), "sha": commit, "private": False,
                "gated": "manual" if repository.tokens is not None else False, "disabled": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in repository.commits[commit]],
            }
        )  # fmt: skip

    def _tree(self, question: Question, files: Mapping[str, Content]) -> Reply:
        """A page of the list: folders come with the first one, as the real hub mixes them in."""
        query = parse_qs(urlsplit(question.target).query)
        start = int(query.get("cursor", ["0"])[0])
        folders = sorted({path.rpartition("/")[0] for path in files} - {""})
        listed = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders if not start]
        chosen = list(files.items())[start : start + self._page]
        listed += [self._entry(path, content) for path, content in chosen]
        stop = start + self._page
        if stop >= len(files):
            return _json(listed)
        url = self.url(urlsplit(question.target).path) + f"?recursive=true&expand=false&cursor={stop}"
        return _json(listed, ("Link", f'<{url}>; rel="next"'))

    def _entry(self, path: str, content: Content) -> dict[str, object]:
        """What the list tells of a file."""
        known: dict[str, object] = {"type": "file", "path": path, "size": content.size}
        if content.size < self._lfs_from:
            return known | {"oid": self._oid(content)}
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.sha256}\nsize {content.size}\n"
        lfs = {"oid": content.sha256, "size": content.size, "pointerSize": len(pointer)}
        return known | {"oid": _git_oid(pointer.encode()), "lfs": lfs}

    def _file(self, offer: Offer, found: re.Match[str]) -> Reply:
        kind, name, revision, path = found.groups()
        repository = self._repositories.get(kind + name)
        if refused := _refused(repository, offer.question, asks_files=True):
            return refused
        assert repository is not None
        commit = _commit(repository, unquote(revision))
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        if offer.content is None:
            return _error(404, "EntryNotFound", f"{unquote(path)} does not exist", ("X-Repo-Commit", commit))
        known = [("X-Repo-Commit", commit)]
        if offer.content.size >= self._lfs_from:
            known += [("X-Linked-Size", str(offer.content.size)), ("X-Linked-ETag", f'"{offer.content.sha256}"')]
        if self.cdn and offer.content.size >= self._lfs_from:
            return Reply.plain(302, b"", *known, ("Location", self.cdn.link(offer.content.sha256)))
        reply = answer(offer)
        reply.headers += known
        return reply

    def _oid(self, content: Content) -> str:
        return content.sha256 if content.size >= self._lfs_from else _git_oid(content.read())


class _Cdn(Origin):
    """Serves what a link was given for, as long as that is good. `expire` ends all that were given so far."""

    def __init__(self, link_uses: int | None, tls: Certificate | None) -> None:
        self._link_uses = link_uses
        self._uses: dict[str, int] = {}  # of each signature that is good
        self._given = 0
        super().__init__(tls=tls)

    def link(self, sha256: str) -> str:
        with self._lock:
            self._given += 1
            signature = _sha1(str(self._given).encode())
            self._uses[signature] = 0
        elsewhere = self.url(sha256).replace("127.0.0.1", "localhost")  # clients tell a hub from a CDN by the host
        return elsewhere + f"?X-Amz-Expires=3600&X-Amz-Signature={signature}"

    def expire(self) -> None:
        with self._lock:
            self._uses.clear()

    def reply(self, offer: Offer) -> Reply:
        signature = parse_qs(urlsplit(offer.question.target).query).get("X-Amz-Signature", [""])[0]
        with self._lock:
            uses = self._uses.get(signature)
            is_good = uses is not None and (self._link_uses is None or uses < self._link_uses)
            if is_good:
                self._uses[signature] = (uses or 0) + 1
        if not is_good or "authorization" in offer.question.headers:
            return Reply.plain(403, b"<Error><Code>AccessDenied</Code></Error>", ("Content-Type", "application/xml"))
        return super().reply(offer)


def _commit(repository: _Repository, revision: str) -> str | None:
    revision = revision.removeprefix("refs/heads/")
    return revision if revision in repository.commits else repository.revisions.get(revision)


def _refused(repository: _Repository | None, question: Question, *, asks_files: bool) -> Reply | None:
    authorization = question.headers.get("authorization")
    token = (authorization or "").removeprefix("Bearer ")
    tokens: Collection[str] | None = repository.tokens if repository else None
    is_known = repository is not None and (tokens is None or token in tokens)
    if repository is None or (repository.is_private and not is_known):
        return _error(404 if authorization else 401, "RepoNotFound", "Repository not found")
    if asks_files and not is_known:
        return _error(403 if authorization else 401, "GatedRepo", "Access to this repository is restricted.")
    return None


def _error(status: int, code: str, message: str, *headers: tuple[str, str]) -> Reply:
    told = ("X-Error-Code", code), ("X-Error-Message", message)
    return Reply.plain(status, json.dumps({"error": message}).encode(), *told, *headers)


def _json(value: object, *headers: tuple[str, str]) -> Reply:
    """Faults at an offset concern it as they do a file."""
    reply = Reply.plain(200, json.dumps(value).encode(), ("Content-Type", "application/json"), *headers)
    reply.is_file = True
    return reply


def _git_oid(data: bytes) -> str:
    return _sha1(b"blob %d\0" % len(data) + data)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
