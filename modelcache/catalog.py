"""Catalogs: short names for models of hubs, each with the files that are wanted of them.

    <root>/catalog/*.toml, *.json    the user's; the folders beside them are what hubs have said
    BUILT_IN                         what comes with this package; an entry of the user's of the same id replaces it

    [my-whisper]
    ref = "hf:onnx-community/whisper-base"     # or versions = {"1.0" = "hf:org/name@v1.0", …}, with a default_version
    files = ["*.json", "onnx/*"]               # patterns; none: all files
    optional = ["vocab.txt"]                   # files that the hub may lack
    sizes = {"onnx/model.onnx" = 80_000_000}   # in bytes, roughly: for files that no digest is known of
    task = "automatic-speech-recognition"
    languages = ["en"]

Responsible for: reading these strictly. Leaves to others: what a ref means (`resolving`), which files that makes
(`ordering`), what is here (`store`).
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

from modelcache.errors import UsageError
from modelcache.model import LEAST_SIZE_SHARE, ModelFile
from modelcache.names import check_conflicts, checked_path
from modelcache.refs import Ref

MOST_BYTES = 5_000_000  # of one file
KINDS = (".json", ".toml")
FIELDS = ("ref", "versions", "default_version", "files", "optional", "sizes", "task", "languages")
BUILT_IN: Mapping[str, Any] = {
    "whisper-base": {
        "ref": "hf:onnx-community/whisper-base",
        "files": [
            "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
            "merges.txt", "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx",
        ],
        "optional": ["onnx/decoder_model_merged_q4.onnx"],
        "task": "automatic-speech-recognition",
        "languages": ["multilingual"],
    },
    "tts-models": {
        "ref": "hf:datasets/AnEntrypoint/sttttsmodels",
        "files": [
            "tts/mimi_encoder.onnx", "tts/text_conditioner.onnx", "tts/flow_lm_main_int8.onnx",
            "tts/flow_lm_flow_int8.onnx", "tts/mimi_decoder_int8.onnx", "tts/tokenizer.model",
        ],
        "sizes": {
            "tts/mimi_encoder.onnx": 73_000_000, "tts/text_conditioner.onnx": 16_000_000,
            "tts/flow_lm_main_int8.onnx": 76_000_000, "tts/flow_lm_flow_int8.onnx": 10_000_000,
            "tts/mimi_decoder_int8.onnx": 23_000_000, "tts/tokenizer.model": 59_000,
        },
        "task": "text-to-speech",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """What a catalog says of one model.

    versions: refs of hubs by label, oldest first; an entry with one `ref` has it under the label "".
    files: patterns of those that are wanted, none for all; optional: such of which none need be there.
    sizes: of files, in bytes, roughly.
    """

    id: str
    versions: Mapping[str, Ref]
    default_version: str = ""
    files: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    task: str = ""
    languages: tuple[str, ...] = ()

    @classmethod
    def parse(cls, model_id: str, fields: object) -> Self:
        """UsageError says what is wrong with it."""
        if checked_path(model_id, parts=1) != model_id or "@" in model_id:
            raise UsageError(f"{model_id[:80]!r} cannot be an id")
        if not isinstance(fields, dict):
            raise UsageError(f"{model_id} is no table")
        if unknown := [name for name in fields if name not in FIELDS]:
            raise UsageError(f"{model_id}: unknown field {unknown[0][:40]!r}: one of {', '.join(FIELDS)}")
        try:
            return cls._of(model_id, fields)
        except UsageError as error:
            raise UsageError(f"{model_id}: {error.message}") from error

    @classmethod
    def _of(cls, model_id: str, fields: dict[str, Any]) -> Self:
        if ("ref" in fields) == ("versions" in fields):
            raise UsageError("either ref or versions is needed")
        refs = {"": fields["ref"]} if "ref" in fields else _table(fields["versions"], "versions")
        versions = {_label(label): _ref(model_id, text) for label, text in refs.items()}
        default = _text(fields, "default_version")
        if not versions or (default and default not in versions):
            raise UsageError(f"default_version {default!r} is not among its versions" if default else "no versions")
        files, optional = _texts(fields, "files"), _texts(fields, "optional")
        if (files or optional) and any(ref.path for ref in versions.values()):
            raise UsageError("files are chosen of a model; its ref names one file")
        if optional and not files:
            raise UsageError("optional files go with files: without these all are wanted")
        sizes = _table(fields.get("sizes", {}), "sizes")
        if bad := [path for path, size in sizes.items() if type(size) is not int or not 0 <= size < 2**63]:
            raise UsageError(f"the size of {bad[0][:80]!r} is not a number of bytes")
        return cls(
            model_id, versions, default, files, optional, sizes, _text(fields, "task"), _texts(fields, "languages")
        )

    def ref_of(self, version: str) -> Ref | None:
        """What a version stands for: one of its labels, or the immutable version of the hub itself."""
        if (ref := self.versions.get(version)) or not version:
            return ref
        latest = self.versions[self.latest]
        with suppress(UsageError):
            pinned = Ref.parse(f"{latest.base}@{'sha256:' * (latest.scheme != 'hf')}{version}")
            if pinned.version == version:
                return replace(pinned, id=self.id, path=latest.path)
        return None

    @property
    def latest(self) -> str:
        """The label of what is fetched where none is named and none is here."""
        return self.default_version or list(self.versions)[-1]

    @property
    def default_label(self) -> str | None:
        """The label that the id alone means; None where that is the newest that is here."""
        return self.default_version or ("" if "" in self.versions else None)

    def hinted(self, file: ModelFile) -> ModelFile:
        """With the least size that it can have, where nothing better is known to check it by (product B10)."""
        rough = 0 if file.digests or file.pieces else self.sizes.get(file.path, 0)
        return replace(file, least_size=max(file.least_size, int(LEAST_SIZE_SHARE * rough))) if rough else file


def find(folder: str, model_id: str) -> Entry | None:
    """UsageError where a catalog in the folder is wrong, whichever entry it is."""
    if entry := _users(folder).get(model_id):
        return entry
    return Entry.parse(model_id, BUILT_IN[model_id]) if model_id in BUILT_IN else None


def ids(folder: str) -> list[str]:
    """All that can be fetched by a name of its own. UsageError as in `find`."""
    return sorted({*BUILT_IN, *_users(folder)})


def _users(folder: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path in _files(folder):
        try:
            for model_id, fields in _read(path).items():
                if model_id in found:
                    raise UsageError(f"{model_id} is in two catalogs")
                found[model_id] = Entry.parse(model_id, fields)
            check_conflicts(found)
        except UsageError as error:
            raise UsageError(f"the catalog {path}: {error.message}", next_step="correct it, or move it away") from error
    return found


def _files(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(each.path for each in entries if each.name.endswith(KINDS) and each.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"the catalogs in {folder} cannot be read: {error.strerror}") from error


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise UsageError(f"it is larger than {MOST_BYTES:,} bytes")
    kind = path.rpartition(".")[2].upper()
    try:
        data = _json(content) if kind == "JSON" else _toml(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not {kind}: {error}") from error
    return _table(data, "it")


def _json(content: bytes) -> Any:
    import json

    return json.loads(content, object_pairs_hook=_distinct)


def _toml(content: bytes) -> Any:
    import tomllib

    return tomllib.loads(content.decode())


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """As TOML has it: of two that are called the same, none is right."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise UsageError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} is there twice")
    return table


def _ref(model_id: str, text: object) -> Ref:
    if not isinstance(text, str):
        raise UsageError("a ref is a text")
    ref = Ref.parse(text)
    if not ref.scheme:
        raise UsageError(f"{ref.shown[:80]!r} is no ref of a hub, as hf:org/name is")
    return replace(ref, id=model_id)


def _label(text: str) -> str:
    return checked_path(text, parts=1) if text else text


def _table(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is no table")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{name} is no text")
    return value


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise UsageError(f"{name} is no list of texts")
    return tuple(value)
