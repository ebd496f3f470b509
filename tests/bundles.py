"""What the tests of bundles share: models to export, and bundles made by hand."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcache.caching import Cache
from modelcache.testing import Content

MIB = 1 << 20
SMALL, LARGE = Content.generated(5_000, seed=41).read(), Content.generated(9 * MIB + 77, seed=42).read()
ONE = {"config.json": SMALL, "onnx/model.bin": LARGE, "empty": b""}
TWO = {"config.json": b"{}", "weights/model.bin": LARGE}  # shares its weights with ONE


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def add(cache: Cache, folder: Path, model: str, files: Mapping[str, bytes], version: str = "1") -> None:
    for name, content in files.items():
        place = folder / model / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    cache.add(folder / model, model, version)


def files_of(cache: Cache, model: str) -> dict[str, bytes]:
    """What is installed under a name, as a user would read it."""
    folder = Path(cache.path(model))
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".manifest.json"}


def listing(
    files: Mapping[str, bytes], model: str = "m", version: str = "1", **more: Any
) -> dict[str, Any]:  # what a manifest says
    entries = [{"path": name, "size": len(content), "sha256": sha256_of(content)} for name, content in files.items()]
    return {"format": 1, "id": model, "version": version, "ref": "", "files": entries, **more}


Member = tuple[str, bytes] | tarfile.TarInfo


def manifest(fields: object) -> Member:
    content = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return f"manifests/sha256/{sha256_of(content)}.json", content


def blob(content: bytes, name: str = "") -> Member:
    return name or f"blobs/sha256/{sha256_of(content)}", content


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar_of(*members: Member, form: int = tarfile.USTAR_FORMAT) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for member in members:
            name, content = (member, b"") if isinstance(member, tarfile.TarInfo) else member
            if isinstance(name, str):
                name = header(name, size=len(content))
            archive.addfile(name, io.BytesIO(content))
    return written.getvalue()


def bundle_of(files: Mapping[str, bytes], model: str = "m", **more: Any) -> bytes:
    """A right one, by any other program than ours."""
    return tar_of(manifest(listing(files, model, **more)), *map(blob, dict.fromkeys(files.values())))
