"""Models in OCI registries, those of Ollama among them: what a tag consists of, and its layers.

Responsible for: the registry's API (OCI distribution spec), that a manifest is what its digest says, and refusals in
plain words. Leaves to others: what a manifest may list (`image`), who we are (`access`), HTTP (`http`, `document`),
and where registries and logins come from (`wiring`).

Rules:
- The digest of a manifest's own bytes is the version; what the registry says of it, or a ref that names it, must agree.
- Everything else is asked for by its digest, so nothing depends on validators, and another place will do for the rest.
- http is spoken to this machine and, as long as there is nothing secret to say, to addresses of private networks.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock

from modelcache.errors import NotFoundError, SourceError, UsageError, VerificationError
from modelcache.image import (
    INDEXES,
    MANIFEST,
    MANIFESTS,
    MOST_BYTES,
    contents_of,
    digest_of,
    is_index,
    only_manifest_of,
)
from modelcache.model import Digest, Manifest, ModelFile
from modelcache.refs import OLLAMA_REGISTRY, Ref, repository_of
from modelcache.remotes.access import Access, Registry, challenge_of, is_here, is_inside
from modelcache.remotes.connection import Connector
from modelcache.remotes.document import get
from modelcache.remotes.http import HttpSource
from modelcache.remotes.inline import url_of
from modelcache.remotes.reply import Head
from modelcache.remotes.source import Abort, Body, Request, Traits

_DOCKER_HUB = ("docker.io", "index.docker.io")  # what it is called; its registry is elsewhere
_ACCEPT = ", ".join(MANIFESTS + INDEXES)


def base_of(host: str, *, has_secret: bool = False) -> str:
    """The URL of a registry by its host and port: the scheme is told by where it is, and by whether what it is told is
    secret."""
    if host in _DOCKER_HUB:
        return "https://registry-1.docker.io"
    name, colon, port = host.rpartition(":")
    name = name if colon and not host.endswith("]") else host
    is_plain = port != "443" and (is_here(name) if has_secret else is_inside(name))
    return f"{'http' if is_plain else 'https'}://{host}"


class RegistryResolver:
    """What a tag consists of. One at a time; closing it frees its connections."""

    kind = "oci"

    def __init__(self, registry: Registry, repository: str, called: str, connector: Connector) -> None:
        self.name = registry.host
        self._base = registry.base
        self._repository = repository
        self._connector = connector.shared()
        self._access = Access(registry, repository, connector, called)

    def resolve(self, ref: Ref, abort: Abort) -> Manifest:
        named = f"sha256:{ref.version}" if ref.version else ref.alias
        manifest = self._document(ref, named, abort)
        version = hashlib.sha256(manifest).hexdigest()
        host = OLLAMA_REGISTRY if ref.scheme == "ollama" else self.name  # what is kept of a model names no mirror
        try:
            if is_index(manifest):
                manifest = self._document(ref, str(only_manifest_of(manifest)), abort)
            files = tuple(
                ModelFile(each.path, each.size, (each.sha256,), (f"oci://{host}/{self._repository}@{each.sha256}",))
                for each in contents_of(manifest)
            )
        except UsageError as error:
            message = f"its manifest cannot be used: {error.message}"
            raise SourceError(message, next_step=error.next_step) from error
        digest = Digest("sha256", hashlib.sha256(manifest).hexdigest())
        itself = ModelFile(MANIFEST, len(manifest), (digest,), (url_of(manifest),))
        return Manifest(ref.id, version, ref.base, (*files, itself))

    def close(self) -> None:
        self._connector.close()

    def _document(self, ref: Ref, named: str, abort: Abort) -> bytes:
        """The manifest behind a tag or a digest. VerificationError where its bytes are not what they should be."""

        def explain(head: Head) -> SourceError | None:
            if head.status == 404:
                missing = NotFoundError(
                    f"{ref.base} has no {named[:80]} at {self.name}", next_step="check the name and the tag"
                )
                missing.status = head.status
                return missing
            return self._access.refused() if head.status == 403 else challenge_of(head)

        url = f"{self._base}/v2/{self._repository}/manifests/{named}"
        document = self._access.run(
            lambda headers: get(
                self._connector, url, abort, secrets=headers, accept=_ACCEPT, explain=explain, most_bytes=MOST_BYTES
            ),
            abort,
        )
        found = "sha256:" + hashlib.sha256(document.content).hexdigest()
        said = document.head.text("docker-content-digest")
        for promised in (named, said):
            if promised.startswith("sha256:") and promised != found:
                raise VerificationError(f"the manifest that {self.name} sent has not the digest {promised[:80]!a}")
        return document.content


class RegistrySource:
    """One layer: `oci://host[:port]/repository@sha256:HEX`."""

    kind = "oci"

    def __init__(self, registry: Registry, repository: str, sha256: Digest, connector: Connector) -> None:
        self._url = f"{registry.base}/v2/{repository}/blobs/{sha256}"
        self._validator = f'"{sha256}"'
        self._connector = connector
        self._access = Access(registry, repository, connector, f"oci://{registry.host}/{repository}")
        self._guard = Lock()
        self._headers: Mapping[str, str] = {}
        self._http = self._made({})
        self._old: list[HttpSource] = []
        self.name = self._http.name

    def traits(self, file: ModelFile) -> Traits | None:
        return self._http.traits(file)

    def open(self, request: Request) -> Body:
        """Its digest says which content it is: what storage calls it may differ each time."""
        bare = replace(request, validator="")
        body = self._access.run(lambda headers: self._with(headers).open(bare), request.abort)
        body.validator = self._validator
        return body

    def close(self) -> None:
        for each in (self._http, *self._old):
            each.close()

    def _with(self, headers: Mapping[str, str]) -> HttpSource:
        """The same URL, asked with these headers."""
        with self._guard:
            if headers != self._headers:
                self._old.append(self._http)
                self._headers, self._http = headers, self._made(headers)
            return self._http

    def _made(self, headers: Mapping[str, str]) -> HttpSource:
        return HttpSource(self._url, headers=headers, connector=self._connector, explain=challenge_of)


def layer_of(url: str) -> tuple[str, str, Digest]:
    """Host, repository and digest of `oci://host[:port]/repository@sha256:HEX`. UsageError for anything else."""
    ref = Ref.parse(url)
    if ref.scheme != "oci" or not ref.version:
        raise UsageError(f"{ref.shown} names no layer by its digest")
    return *repository_of(ref), digest_of(f"sha256:{ref.version}")
