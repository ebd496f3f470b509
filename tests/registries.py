"""A registry on this machine, made of an `Origin`: manifests, layers, tokens, and storage elsewhere."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from modelcache.testing import Certificate, Content, Fault, Offer, Origin, Question, Reply
from modelcache.testing.reply import answer

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = re.compile(r"/v2/(.+)/(manifests|blobs)/([^/]+)")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(content: Content, kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{content.sha256}", "size": content.size, **more}


def manifest_of(layers: Iterable[dict[str, Any]], config: Content, /, **more: Any) -> bytes:
    kind = "application/vnd.docker.container.image.v1+json"
    fields = {"schemaVersion": 2, "mediaType": DOCKER, "config": descriptor(config, kind), "layers": list(layers)}
    return json.dumps(fields | more).encode()


class Registry(Origin):
    """Manifests by repository and tag or digest; `open_to` are the logins (None: everybody).

    bearer: a token from /token?service=…&scope=… is needed, each good for `token_uses` requests. storage: layers come
    from another origin, `registry.storage`, by signed links, where no token may go.
    """

    def __init__(
        self,
        *,
        bearer: bool = False,
        token_uses: int | None = None,
        open_to: tuple[str, ...] | None = None,
        storage: bool = False,
        faults: Iterable[Fault] = (),
        tls: Certificate | None = None,
    ) -> None:
        self._bearer = bearer
        self._token_uses = token_uses
        self._open_to = open_to
        self._tokens: dict[str, int] = {}
        self._manifests: dict[tuple[str, str], bytes] = {}
        self._blobs: dict[tuple[str, str], Content] = {}
        self.realm = ""
        self.life_s: object = 300
        self.storage = Origin() if storage else None
        super().__init__(faults=faults, tls=tls)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ref(self, name: str = "library/tiny:latest") -> str:
        return f"oci://{self.host}/{name}"

    def push(self, repository: str, tag: str, manifest: bytes, *contents: Content) -> str:
        """Returns the digest of the manifest."""
        for content in contents:
            self._blobs[repository, f"sha256:{content.sha256}"] = content
            if self.storage:
                self.storage.put(content.sha256, content)
        self._manifests[repository, tag] = self._manifests[repository, digest_of(manifest)] = manifest
        return digest_of(manifest)

    def push_model(self, name: str, tag: str, layers: Mapping[str, Content], config: Content) -> str:
        """One like Ollama's: contents by the end of their media type."""
        listed = [descriptor(each, f"application/vnd.ollama.image.{kind}") for kind, each in layers.items()]
        return self.push(name, tag, manifest_of(listed, config), *layers.values(), config)

    def end_tokens(self) -> None:
        with self._lock:
            self._tokens.clear()

    def asked(self, part: str) -> list[str]:
        return [seen.path for seen in self.requests if part in seen.path]

    def stop(self) -> None:
        super().stop()
        if self.storage:
            self.storage.stop()

    def close(self) -> None:
        super().close()
        if self.storage:
            self.storage.close()

    # -- answers ------------------------------------------------------------------------------------------------------

    def offer(self, question: Question) -> Offer:
        found = _PATH.fullmatch(urlsplit(question.target).path)
        if not found or found[2] == "manifests":
            return super().offer(question)
        content = self._blobs.get((found[1], found[3]))
        offer = Offer.honest(question, content)
        offer.etag = f'"{found[3]}"' if content else None
        return offer

    def reply(self, offer: Offer) -> Reply:
        split = urlsplit(offer.question.target)
        if split.path == "/token":
            return self._token(offer.question, parse_qs(split.query))
        found = _PATH.fullmatch(split.path)
        if not found:
            return super().reply(offer)
        repository, what, reference = found.groups()
        if refused := self._refused(offer.question, repository):
            return refused
        if what == "manifests":
            manifest = self._manifests.get((repository, reference))
            if manifest is None or "application/vnd" not in offer.question.headers.get("accept", ""):
                return _error(404 if manifest is None else 400, "MANIFEST_UNKNOWN")
            return _json(manifest, ("Docker-Content-Digest", digest_of(manifest)))
        if offer.content is None:
            return _error(404, "BLOB_UNKNOWN")
        if self.storage:
            url = self.storage.url(offer.content.sha256) + "?X-Amz-Signature=signed"
            return Reply.plain(307, b"", ("Location", url))
        return answer(offer)

    def _refused(self, question: Question, repository: str) -> Reply | None:
        authorization = question.headers.get("authorization", "")
        if self._bearer:
            token = authorization.removeprefix("Bearer ")
            with self._lock:
                uses = self._tokens.get(token)
                if uses is not None and (self._token_uses is None or uses < self._token_uses):
                    self._tokens[token] = uses + 1
                    return None
            realm = self.realm or self.url("token")
            wanted = f'Bearer realm="{realm}",service="stub",scope="repository:{repository}:pull"'
            return _error(401, "UNAUTHORIZED", ("WWW-Authenticate", wanted))
        if self._open_to is not None and authorization.removeprefix("Basic ") not in self._open_to:
            return _error(401, "UNAUTHORIZED", ("WWW-Authenticate", 'Basic realm="stub"'))
        return None

    def _token(self, question: Question, query: dict[str, list[str]]) -> Reply:
        login = question.headers.get("authorization", "").removeprefix("Basic ")
        if self._open_to is not None and login not in self._open_to:
            return _error(401, "UNAUTHORIZED")
        assert query["service"] == ["stub"] and query["scope"][0].endswith(":pull")
        with self._lock:
            token = f"tok{len(self._seen)}s3cret"
            self._tokens[token] = 0
        return _json(json.dumps({"token": token, "expires_in": self.life_s}).encode())


def _error(status: int, code: str, *headers: tuple[str, str]) -> Reply:
    return _json(json.dumps({"errors": [{"code": code}]}).encode(), *headers, status=status)


def _json(content: bytes, *headers: tuple[str, str], status: int = 200) -> Reply:
    return Reply.plain(status, content, ("Content-Type", "application/json"), *headers)
