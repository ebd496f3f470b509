"""What several test modules need of the machine."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import compiled
from hypothesis import settings
from lab import chromium, lab, notebook, page, python, themed  # noqa: F401  fixtures

from modelcache.caching import Cache
from modelcache.testing import Hub

settings.register_profile("untimed", deadline=None)  # a busy machine makes no test wrong
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for each test, also for the processes it starts; nothing of this machine's settings."""
    for name in list(os.environ):
        if name.startswith(("MODELCACHE_", "HF_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MODELCACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELCACHE_BACKOFF", "0.01")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes a file system lie about locks, or have none."""
    return compiled("flockshim.c", tmp_path_factory.mktemp("shim"))


@pytest.fixture
def cache_root(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def cache(cache_root: Path) -> Iterator[Cache]:
    """The default cache of this test, and of the processes it starts."""
    cache = Cache(cache_root)
    yield cache
    cache.close()


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub with one model, org/name: the FILES of the module that asks, as its COMMIT."""
    with Hub() as hub:
        hub.publish("org/name", request.module.FILES, commit=request.module.COMMIT)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 4 MiB of its own."""
    place = tmp_path_factory.mktemp("small_disk")
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that requests can be counted: a connection that is held is overtaken by another."""
    monkeypatch.setenv("MODELCACHE_CONNECTIONS", "1")
