"""A registry that we did not write: Debian's docker-registry, open and behind a login, filled by us and by skopeo."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import RangeRefusedError
from modelcache.model import Digest, ModelFile
from modelcache.remotes.access import Registry
from modelcache.remotes.connection import Connector, Timeouts
from modelcache.remotes.oci import RegistrySource
from modelcache.remotes.source import Abort, Request
from modelcache.store.journal import read_facts
from modelcache.testing import Content
from tests.caches import partials, run, start, written
from tests.registries import DOCKER, descriptor, digest_of, manifest_of

SERVER, SKOPEO, HTPASSWD = (shutil.which(name) for name in ("docker-registry", "skopeo", "htpasswd"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SERVER is None, reason="docker-registry is not installed (apt-get install docker-registry)"),
]
MODEL = Content.generated(24_000_000, seed=3)
SMALL = {"template": Content.of(b"{{ .Prompt }}"), "license": Content.of(b"MIT")}
CONFIG = Content.of(b'{"model_format": "gguf", "rootfs": {"type": "layers", "diff_ids": []}}')
LAYERS = {"model": MODEL} | SMALL
ME = ("me", "s3cret")
CONFIGURATION = """
version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""


class DockerRegistry:
    """Behind `htpasswd`, where that is a file."""

    def __init__(self, folder: Path, htpasswd: Path | None = None) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self._login = ME if htpasswd else None
        self._log = folder / "registry.log"
        self._configuration = folder / "registry.yml"
        auth = f"auth: {{htpasswd: {{realm: tests, path: {htpasswd}}}}}" if htpasswd else ""
        self._configuration.write_text(CONFIGURATION.format(data=folder / "data", port=self.port, auth=auth))

    def __enter__(self) -> "DockerRegistry":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([SERVER, "serve", self._configuration], stdout=log, stderr=log)
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.05)
                continue
            return self
        raise RuntimeError(self._log.read_text())

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def push(self, repository: str, tag: str, manifest: bytes, *contents: Content) -> str:
        base = f"http://{self.host}/v2/{repository}"
        with requests.Session() as session:
            session.auth = self._login
            for content in contents:
                begun = session.post(f"{base}/blobs/uploads/")
                place = begun.headers["Location"] + f"&digest=sha256:{content.sha256}"
                assert session.put(place, data=content.read()).status_code == 201
            done = session.put(f"{base}/manifests/{tag}", data=manifest, headers={"Content-Type": DOCKER})
            assert done.status_code == 201, done.text
        return digest_of(manifest)

    def push_model(self, tag: str, layers: dict[str, Content]) -> str:
        listed = [descriptor(each, f"application/vnd.ollama.image.{kind}") for kind, each in layers.items()]
        return self.push("library/tiny", tag, manifest_of(listed, CONFIG), *layers.values(), CONFIG)

    def ref(self, name: str) -> str:
        return f"oci://{self.host}/{name}"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path) as server:
        monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", server.host)
        yield server


def test_a_model_of_ollama_comes_whole_and_its_folder_is_as_ollama_keeps_it(
    registry: DockerRegistry, cache: Cache, tmp_path: Path
) -> None:
    digest = registry.push_model("1b", LAYERS)
    model = cache.fetch("ollama:tiny:1b", layout="ollama", output=tmp_path / "o")
    assert isinstance(model, mc.Model)
    assert model.version == digest.removeprefix("sha256:")
    assert model["model.gguf"].sha256 == MODEL.sha256
    assert digest_of((tmp_path / "o/manifests/registry.ollama.ai/library/tiny/1b").read_bytes()) == digest
    assert digest_of((tmp_path / f"o/blobs/sha256-{MODEL.sha256}").read_bytes()) == f"sha256:{MODEL.sha256}"


def test_two_tags_that_share_a_layer_download_it_once(registry: DockerRegistry, cache: Cache) -> None:
    registry.push_model("1b", LAYERS)
    registry.push_model("new", LAYERS | {"license": Content.of(b"Apache-2.0")})
    cache.fetch("ollama:tiny:1b")
    model = cache.fetch("ollama:tiny:new")
    assert isinstance(model, mc.Model)
    assert {file.name for file in model.files if file.status == "fetched"} == {"license", "oci-manifest.json"}


def test_a_fetch_that_is_killed_in_mid_layer_goes_on_there(registry: DockerRegistry, cache: Cache) -> None:
    registry.push_model("1b", LAYERS)
    process = start("fetch", "ollama:tiny:1b", "--quiet", "--limit-rate", "4M")
    for _ in range(600):
        facts = [read_facts(f"{partial}/journal") for partial in partials(cache)]
        if max((one.written.size for one in facts if one), default=0) > 2_000_000:
            break
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    assert partials(cache)
    done = run("fetch", "ollama:tiny:1b", "--quiet", "--json")
    (told,) = json.loads(done.stdout)
    (file,) = (each for each in told["files"] if each["path"] == "model.gguf")
    assert (file["status"], file["sha256"]) == ("resumed", MODEL.sha256)
    assert file["bytes_fetched"] + file["bytes_resumed"] == MODEL.size
    assert file["bytes_resumed"] > 2_000_000


def test_a_wrong_tag_and_a_missing_repository_are_exit_4(registry: DockerRegistry) -> None:
    registry.push_model("1b", SMALL)
    for ref in ("ollama:tiny:2b", "ollama:none:1b"):
        done = run("fetch", ref, "--quiet")
        assert (done.returncode, done.stdout) == (4, "")
        base, tag = ref.rsplit(":", 1)
        assert done.stderr == f"modelcache: {base} has no {tag} at {registry.host}; check the name and the tag\n"


def test_a_range_past_the_end_is_refused_at_once_though_the_reply_lies_about_its_length(
    registry: DockerRegistry,
) -> None:
    """docker-registry says 416 with the length of the whole blob, and sends 33 bytes."""
    content = Content.generated(12_000, seed=9)
    registry.push("a/b", "1", manifest_of([descriptor(content, "x/y")], CONFIG), content, CONFIG)
    source = RegistrySource(
        Registry(f"http://{registry.host}"), "a/b", Digest("sha256", content.sha256), Connector(Timeouts())
    )
    file = ModelFile("m", content.size + 10, (Digest("sha256", content.sha256),))
    began = time.monotonic()
    with pytest.raises(RangeRefusedError, match="416"):
        source.open(Request(file, content.size, content.size + 10, "", Abort()))
    assert time.monotonic() - began < 10
    file = ModelFile("m", content.size, file.digests)
    with source.open(Request(file, 11_000, None, "", Abort())) as body:
        assert b"".join(bytes(chunk.data) for chunk in body) == content.read(11_000, 12_000)
    source.close()


@pytest.mark.skipif(HTPASSWD is None, reason="htpasswd is not installed (apt-get install apache2-utils)")
def test_a_private_registry_wants_the_login_that_docker_left(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins = tmp_path / "htpasswd"
    logins.write_bytes(subprocess.run([HTPASSWD, "-Bbn", *ME], capture_output=True, check=True).stdout)
    with DockerRegistry(tmp_path, logins) as registry:
        registry.push_model("1b", LAYERS)
        done = run("fetch", registry.ref("library/tiny:1b"), "--quiet")
        assert done.returncode == 4
        assert f"private, or not there; check the name, or log in: `docker login {registry.host}`" in done.stderr
        login = b64encode(":".join(ME).encode()).decode()
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
        model = cache.fetch(registry.ref("library/tiny:1b"))
        assert isinstance(model, mc.Model) and model["model.gguf"].sha256 == MODEL.sha256
        cache.close()
        assert login.encode() not in written(cache)


@pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed (apt-get install skopeo)")
def test_what_skopeo_pushed_is_what_skopeo_pulls(registry: DockerRegistry, cache: Cache, tmp_path: Path) -> None:
    pushed, pulled = tmp_path / "pushed", tmp_path / "pulled"
    pushed.mkdir()
    kinds = {"mediaType": "application/vnd.oci.image.manifest.v1+json"}
    config = {"config": descriptor(CONFIG, "application/vnd.oci.image.config.v1+json")}
    listed = [descriptor(each, f"application/vnd.ollama.image.{kind}") for kind, each in LAYERS.items()]
    (pushed / "manifest.json").write_bytes(manifest_of(listed, CONFIG, **kinds, **config))
    (pushed / "version").write_text("Directory Transport Version: 1.1\n")
    for content in (*LAYERS.values(), CONFIG):
        (pushed / content.sha256).write_bytes(content.read())
    there = f"docker://{registry.host}/library/tiny:1b"
    plain = ["--insecure-policy", "--quiet"]
    subprocess.run([SKOPEO, "copy", *plain, "--dest-tls-verify=false", f"dir:{pushed}", there], check=True)
    subprocess.run([SKOPEO, "copy", *plain, "--src-tls-verify=false", there, f"dir:{pulled}"], check=True)
    model = cache.fetch("ollama:tiny:1b")
    assert isinstance(model, mc.Model)
    manifest = (pulled / "manifest.json").read_bytes()
    assert Path(model["oci-manifest.json"].path).read_bytes() == manifest
    assert {file.sha256 for file in model.files} == {
        digest_of(manifest).removeprefix("sha256:"),
        *(name for name in os.listdir(pulled) if len(name) == 64),
    }
