"""A server that we did not write: Debian's nginx, with and without ranges, and over TLS under a private CA."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.testing import certificate

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
pytestmark = [pytest.mark.nginx, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

CONFIGURATION = """
worker_processes 1; daemon off; pid {run}/pid; error_log {run}/error.log; {user}
events {{ worker_connections 64; }}
http {{
  access_log {run}/access.log combined; sendfile on;
  client_body_temp_path {run}/b; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f;
  uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;
  log_format short '$request_method $uri $status $body_bytes_sent "$http_range"';
  access_log {run}/access.log short;
  server {{
    listen unix:{run}/ready; listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl; root {data};
    ssl_certificate {cert}; ssl_certificate_key {key};
    location /norange/ {{ alias {data}/; max_ranges 0; }}
    location /slow/ {{ alias {data}/; limit_rate 4m; }}
    location /moved/ {{ return 302 /$arg_to; }}
    location /gzip/ {{ alias {data}/; gzip on; gzip_types *; gzip_min_length 1; }}
  }}
}}
"""


class Nginx:
    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir()
        self._run = folder / "run"
        self._run.mkdir()
        self.certificate = certificate(folder)
        self._port, self._tls = (_free_port() for _ in range(2))
        configuration = CONFIGURATION.format(
            run=self._run, data=self.data, port=self._port, tls=self._tls, cert=self.certificate.cert,
            key=self.certificate.key, user="user root;" if os.geteuid() == 0 else "",
        )  # fmt: skip
        (self._run / "nginx.conf").write_text(configuration)

    def __enter__(self) -> "Nginx":
        self._process = subprocess.Popen([NGINX, "-c", self._run / "nginx.conf", "-p", self._run])
        for _ in range(200):  # it listens when the pid file has a pid; each try waits for the process to end
            if (self._run / "pid").exists() and (self._run / "pid").read_text().strip():
                return self
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        raise RuntimeError((self._run / "error.log").read_text())

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def put(self, name: str, content: bytes) -> str:
        (self.data / name).write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}/{path}"

    def tls_url(self, path: str) -> str:
        return f"https://127.0.0.1:{self._tls}/{path}"

    def log(self) -> list[str]:
        return (self._run / "access.log").read_text().splitlines()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    with Nginx(tmp_path) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> mc.Cache:
    return mc.Cache(tmp_path / "cache")


def _pause_at(cache: mc.Cache, url: str, sha256: str, least: int) -> mc.Download:
    """Starts a fetch and pauses it once at least so many bytes are here."""
    import threading

    reached = threading.Event()

    def look(event: dict) -> None:
        if event["type"] == "model_download_progress" and event["bytesDownloaded"] >= least:
            reached.set()

    download = cache.fetch(url, sha256=sha256, wait=False, progress=look)
    assert reached.wait(30)
    download.pause()
    with pytest.raises(mc.PausedError):
        download.result(60)
    return download


def test_a_paused_fetch_asks_nginx_for_the_rest_alone(nginx: Nginx, cache: mc.Cache) -> None:
    sha256 = nginx.put("m.bin", os.urandom(12 << 20))
    download = _pause_at(cache, nginx.url("slow/m.bin"), sha256, 2 << 20)
    download.resume()
    file = download.result(60)
    assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == sha256
    assert file.status == "resumed" and file.bytes_resumed >= 2 << 20
    assert nginx.log()[-1].split()[2] == "206" and '"bytes=' in nginx.log()[-1]
    assert file.bytes_fetched <= (12 << 20) - file.bytes_resumed


def test_without_ranges_what_is_here_is_skipped(nginx: Nginx, cache: mc.Cache) -> None:
    content = os.urandom(12 << 20)
    sha256 = nginx.put("m.bin", content)
    _pause_at(cache, nginx.url("slow/m.bin"), sha256, 2 << 20)
    file = cache.fetch(nginx.url("norange/m.bin"), sha256=sha256)
    assert Path(file).read_bytes() == content and file.bytes_resumed > 0
    assert nginx.log()[-1].split()[2:4] == ["200", str(12 << 20)]


def test_tls_under_a_private_authority(nginx: Nginx, cache: mc.Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = nginx.put("m.bin", os.urandom(3 << 20))
    with pytest.raises(mc.AllSourcesFailedError, match="certificate"):
        cache.fetch(nginx.tls_url("m.bin"), sha256=sha256)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(nginx.certificate.ca))
    assert cache.fetch(nginx.tls_url("m.bin"), sha256=sha256).sha256 == sha256


def test_several_connections_to_one_file(nginx: Nginx, tmp_path: Path) -> None:
    sha256 = nginx.put("m.bin", os.urandom(16 << 20))
    file = mc.Cache(tmp_path / "cache", connections=4).fetch(nginx.url("slow/m.bin"), sha256=sha256)
    assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == sha256
    assert sum(" 206 " in line for line in nginx.log()) >= 2


@pytest.mark.parametrize("connections", [1, 4])
def test_an_empty_file(nginx: Nginx, tmp_path: Path, connections: int) -> None:
    empty = nginx.put("empty.bin", b"")
    cache = mc.Cache(tmp_path / "cache", connections=connections)
    assert cache.fetch(nginx.url("empty.bin"), sha256=empty).size == 0


def test_a_redirect(nginx: Nginx, cache: mc.Cache) -> None:
    sha256 = nginx.put("m.bin", b"model" * 1000)
    assert cache.fetch(nginx.url("moved/m.bin?to=m.bin"), sha256=sha256).size == 5000


def test_model_bytes_are_never_coded_in_transit(nginx: Nginx, cache: mc.Cache) -> None:
    sha256 = nginx.put("m.txt", b"model " * 100_000)
    assert cache.fetch(nginx.url("gzip/m.txt"), sha256=sha256).bytes_fetched == 600_000
