"""The hub that we test with is one to Hugging Face's own client, and what that client fetches is what we fetch.

MODELCACHE_HF_PYTHONS names interpreters that have huggingface_hub, separated by colons: the gate makes one for each
major version. Without it this is skipped.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.testing import Content, Hub

PYTHONS = [python for python in os.environ.get("MODELCACHE_HF_PYTHONS", "").split(":") if python]
FILES = {
    ".gitattributes": Content.of(b"*.safetensors filter=lfs\n"),
    "README.md": Content.of(b"# A model\n"),
    "config.json": Content.of(b'{"a": 1}'),
    "empty": Content.of(b""),
    "model.safetensors": Content.generated(6_000_000, seed=1),
    "onnx/model.onnx": Content.generated(2_000_000, seed=2),
    "onnx/deep/er/tokens é.txt": Content.of("é".encode()),
}
CLIENT = """
import json, sys
import huggingface_hub as client
arguments = json.loads(sys.argv[1])
try:
    print(client.snapshot_download(**arguments))
except Exception as error:
    print(type(error).__name__)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHONS, reason="MODELCACHE_HF_PYTHONS names no Python with huggingface_hub"),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(cdn=True, page=3) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture(params=PYTHONS, ids=lambda python: Path(python).parent.parent.name)
def python(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def snapshot(python: str, hub: Hub, home: Path, **arguments: Any) -> str:
    """What Hugging Face's client answers: a folder, or the name of its error."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [python, "-c", CLIENT, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def content_of(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder by its name, less our own record."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_it_fetches_what_we_fetch(python: str, hub: Hub, cache: Cache, tmp_path: Path, kind: str) -> None:
    name = "org/name" if kind == "model" else f"{kind}s/org/name"
    commit = hub.publish(name, FILES, "main", "v1.0")
    theirs = snapshot(python, hub, tmp_path / "theirs", repo_id="org/name", repo_type=kind, revision="v1.0")
    ours = cache.fetch(f"hf:{name}@v1.0")
    assert isinstance(ours, mc.Model)
    assert (Path(theirs).name, ours.version) == (commit, commit)
    assert content_of(ours.path) == content_of(theirs)
    assert set(content_of(theirs)) == set(FILES)


@pytest.mark.parametrize(
    "patterns", [["*.json"], ["*.onnx", "*.md"], ["onnx/*"], ["onnx/"], ["*/model.onnx"], ["[ce]*"], ["m?del*"], ["*"]]
)
def test_a_pattern_means_the_same_to_both(
    python: str, hub: Hub, cache: Cache, tmp_path: Path, patterns: list[str]
) -> None:
    hub.publish("org/name", FILES)
    theirs = snapshot(python, hub, tmp_path / "theirs", repo_id="org/name", allow_patterns=patterns)
    ours = cache.fetch("hf:org/name", files=patterns)
    assert content_of(ours.path) == content_of(theirs)


def test_what_the_hub_refuses_is_a_refusal_to_it(python: str, hub: Hub, tmp_path: Path) -> None:
    hub.publish("org/gated", FILES)
    hub.publish("org/own", FILES)
    hub.gate("org/gated", "hf_token")
    hub.hide("org/own", "hf_token")
    told = {
        (repository, revision, token): snapshot(
            python, hub, tmp_path / "theirs", repo_id=repository, revision=revision, token=token
        )
        for repository, revision, token in [
            ("org/gated", "main", False), ("org/own", "main", False), ("org/missing", "main", False),
            ("org/own", "v9", "hf_token"),
        ]
    }  # fmt: skip
    assert list(told.values()) == [
        "GatedRepoError", "RepositoryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError",
    ]  # fmt: skip
    assert os.path.isdir(snapshot(python, hub, tmp_path / "theirs", repo_id="org/gated", token="hf_token"))
