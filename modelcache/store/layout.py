"""Where everything lies under the root of a store. Content goes by hash, names through `names` (I18).

    blobs/sha256/<2 hex>/<hex>           proven, mode 0444; the name is the proof
    pieces/sha256/<2 hex>/<hex>.pieces   BLAKE3 of its pieces
    aliases/<algorithm>/<hex>            text: the sha256
    foreign/<hex>                        the blob is another tool's file as well: its inode
    partials/<key>.<token>/              on the way
    models/<id>/<version>/<path>         links to blobs, and the record `.manifest.json`
    catalog/<id>/                        what refs of hubs meant when they were last asked about
    jobs/<name>/<slot>.json              runs of jobs: each is the claim of its slot
    used/<id>/<version>                  when it was last asked for
    pins/                                what stays, whatever room it takes
    registry.json  queue.json  locks/  quarantine/  logs/  reports/

Responsible for: these paths, as text. Leaves to others: creating them.
"""

import os
from dataclasses import dataclass

from modelcache.model import Digest, ModelFile
from modelcache.names import checked_path, joined
from modelcache.store.modes import name_in
from modelcache.urls import identity_of


@dataclass(frozen=True, slots=True)
class Layout:
    root: str

    def blob(self, sha256: Digest) -> str:
        return os.path.join(self.root, "blobs", "sha256", sha256.hex[:2], sha256.hex)

    def pieces(self, sha256: Digest) -> str:
        return os.path.join(self.root, "pieces", "sha256", sha256.hex[:2], sha256.hex + ".pieces")

    def alias(self, digest: Digest) -> str:
        return os.path.join(self.root, "aliases", digest.algorithm, digest.hex)

    def foreign(self, sha256: Digest) -> str:
        return os.path.join(self.root, "foreign", sha256.hex)

    def model(self, model_id: str, version: str) -> str:
        return joined(os.path.join(self.models, checked_path(model_id, parts=1)), checked_path(version, parts=1))

    def lock(self, key: str) -> str:
        return os.path.join(self.root, "locks", key + ".lock")

    def catalog(self, model_id: str) -> str:
        return os.path.join(self.catalogs, checked_path(model_id, parts=1))

    @property
    def catalogs(self) -> str:
        """The folder of the user's catalogs."""
        return os.path.join(self.root, "catalog")

    def model_lock(self, model_id: str) -> str:
        return self.lock("model-" + checked_path(model_id, parts=1))

    @property
    def folders(self) -> list[str]:
        """Everything that lies in the root and is a folder."""
        names = (
            "blobs", "pieces", "aliases", "foreign", "partials", "models", "locks", "quarantine", "state", "catalog",
            "jobs", "used", "pins",
        )  # fmt: skip
        return [os.path.join(self.root, name) for name in names]

    @property
    def models(self) -> str:
        return os.path.join(self.root, "models")

    @property
    def used(self) -> str:
        return os.path.join(self.root, "used")

    @property
    def pins(self) -> str:
        return os.path.join(self.root, "pins")

    @property
    def partials(self) -> str:
        return os.path.join(self.root, "partials")

    @property
    def quarantine(self) -> str:
        return os.path.join(self.root, "quarantine")

    @property
    def logs(self) -> str:
        return os.path.join(self.root, "logs")

    @property
    def jobs(self) -> str:
        return os.path.join(self.root, "jobs")

    @property
    def reports(self) -> str:
        return os.path.join(self.root, "reports")

    @property
    def queue(self) -> str:
        return os.path.join(self.root, name_in(self.root, "queue") + ".json")

    @property
    def registry(self) -> str:
        return os.path.join(self.root, "registry.json")


def key_of(file: ModelFile) -> str:
    """What a partial of this file is called: its strongest digest, else a hash of where it comes from."""
    if file.strongest:
        return f"{file.strongest.algorithm}-{file.strongest.hex}"
    import hashlib

    where = identity_of(file.urls[0]) if file.urls else file.path
    return "url-" + hashlib.sha256(where.encode()).hexdigest()
