"""Who may pull from a registry: tokens, logins, when they end, and where they never go."""

import json
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import AbortedError, ModelCacheError, SourceError
from modelcache.refs import Ref
from modelcache.remotes.access import Access, ChallengedError, challenges, is_inside
from modelcache.remotes.access import Registry as Place
from modelcache.remotes.connection import Connector, Timeouts
from modelcache.remotes.oci import RegistryResolver, base_of
from modelcache.remotes.source import Abort
from modelcache.testing import Content, CutAt, Header, Origin, Redirect, Status, Wire, certificate
from modelcache.wiring import _registry
from tests.caches import run, written
from tests.registries import Registry

MODEL = Content.generated(3_000_000, seed=1)
CONFIG, LICENSE = Content.of(b"{}"), Content.of(b"MIT")
LAYERS = {"model": MODEL, "license": LICENSE}
BLOB = f"v2/library/tiny/blobs/sha256:{MODEL.sha256}"
LOGIN = b64encode(b"me:s3cret-word").decode()


def filled(registry: Registry) -> Registry:
    registry.push_model("library/tiny", "latest", LAYERS, CONFIG)
    return registry


@pytest.fixture
def registry() -> Iterator[Registry]:
    """One that gives tokens to everybody, and layers from another place."""
    with Registry(bearer=True, storage=True) as registry:
        yield filled(registry)


@pytest.fixture
def closed() -> Iterator[Registry]:
    """One that is for one login alone."""
    with Registry(open_to=(LOGIN,)) as registry:
        yield filled(registry)


def docker_login(folder: Path, *hosts: str, login: str = LOGIN) -> None:
    (folder / "docker").mkdir(exist_ok=True)
    config = {"auths": {host: {"auth": login} for host in hosts}}
    (folder / "docker" / "config.json").write_text(json.dumps(config))


def failure(cache: Cache, registry: Registry, **more: object) -> ModelCacheError:
    with pytest.raises(ModelCacheError) as error:
        cache.fetch(registry.ref(), **more)
    line = error.value.line()
    assert len(line.splitlines()) == 1 and "s3cret" not in line
    return error.value


# ---- tokens


def test_one_token_is_asked_for_and_goes_to_the_registry_alone(
    registry: Registry, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    assert isinstance(cache.fetch(registry.ref()), mc.Model)
    (asked,) = registry.asked("/token")
    assert asked == "/token?service=stub&scope=repository%3Alibrary%2Ftiny%3Apull"
    assert registry.storage is not None
    assert {seen.status for seen in registry.storage.requests} <= {200, 206}
    assert not any("authorization" in seen.headers for seen in registry.storage.requests)
    cache.close()
    assert not any(secret in written(cache) for secret in (b"s3cret", b"X-Amz-Signature"))
    assert "s3cret" not in caplog.text


def test_a_token_that_ends_in_mid_layer_is_renewed_and_the_layer_gone_on_with(
    cache: Cache, one_connection: None
) -> None:
    with Registry(bearer=True) as registry:
        filled(registry)
        registry.faults(CutAt(1_000_000, times=1), path=BLOB)
        registry._token_uses = 3
        model = cache.fetch(registry.ref())
        assert isinstance(model, mc.Model)
        assert model["model.gguf"].bytes_fetched == MODEL.size
        assert len(registry.asked("/token")) == 2
        assert [seen.range for seen in registry.requests if seen.path == f"/{BLOB}"][-1] == "bytes=1000000-"


def test_all_that_are_refused_at_the_same_time_share_one_new_token(registry: Registry) -> None:
    connector, refused = Connector(Timeouts()), threading.Barrier(8)
    challenge = {"bearer": {"realm": registry.url("token"), "service": "stub"}}
    got: list[str] = []

    def ask(headers: Mapping[str, str]) -> str:
        if "Authorization" not in headers:
            refused.wait(60)
            raise ChallengedError(challenge, is_inside=True)
        return headers["Authorization"]

    def work() -> None:
        access = Access(Place(registry.url().rstrip("/")), "library/tiny", connector, "m")
        got.append(access.run(ask, Abort()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 8 and len(set(got)) == 1
    assert len(registry.asked("/token")) == 1


def test_who_waits_for_the_token_of_another_can_be_stopped(registry: Registry) -> None:
    connector, abort = Connector(Timeouts()), Abort()
    access = Access(Place(registry.url().rstrip("/")), "library/tiny", connector, "m")

    def ask(headers: Mapping[str, str]) -> None:
        abort.fire()
        raise ChallengedError({"bearer": {}})

    with connector.tokens.asking, pytest.raises(AbortedError):
        access.run(ask, abort)


def test_a_token_that_says_it_is_short_lived_is_not_used_after_its_life(cache: Cache, one_connection: None) -> None:
    with Registry(bearer=True) as registry:
        filled(registry)
        registry.life_s = 1e-9
        assert isinstance(cache.fetch(registry.ref()), mc.Model)
        assert len(registry.asked("/token")) == 4  # the manifest and three contents


def test_a_registry_that_never_believes_its_tokens_is_asked_twice_and_not_for_ever(cache: Cache) -> None:
    with Registry(bearer=True) as registry:
        filled(registry)
        registry._token_uses = 0
        error = failure(cache, registry)
        assert error.exit_code == 4
        assert error.line() == (
            f"oci://{registry.host}/library/tiny is not to be had from {registry.host}: private, or not there; "
            f"check the name, or log in: `docker login {registry.host}`, or --header"
        )
        assert len(registry.asked("/manifests/")) == 2


@pytest.mark.parametrize(
    "reply",
    [b"{}", b"[]", b"", b"\xff", b'{"token": 7}', b'{"token": "a b"}', b'{"token": "a\\nX: y"}', b'{"token": ""}'],
)
def test_a_token_service_that_gives_none_is_told(cache: Cache, reply: bytes) -> None:
    with Registry(bearer=True) as registry, Origin({"t": reply}) as service:
        filled(registry)
        registry.realm = service.url("t")
        assert failure(cache, registry).exit_code == 5


@pytest.mark.parametrize("life", ["60", None, True, -1, 1e400, [], 10**30])
def test_whatever_a_token_says_of_its_life_it_is_used(cache: Cache, life: object) -> None:
    with Registry(bearer=True) as registry:
        filled(registry)
        registry.life_s = life
        assert isinstance(cache.fetch(registry.ref()), mc.Model)


@pytest.mark.parametrize("name", ["access_token", "token"])
def test_a_token_has_two_names(cache: Cache, name: str) -> None:
    with Registry(bearer=True) as registry, Origin({"t": json.dumps({name: "abc"}).encode()}) as service:
        filled(registry)
        registry._tokens["abc"] = 0
        registry.realm = service.url("t")
        assert isinstance(cache.fetch(registry.ref()), mc.Model)


# ---- logins


def test_what_docker_login_left_is_used_for_that_registry(closed: Registry, cache: Cache, tmp_path: Path) -> None:
    error = failure(cache, closed)
    assert (error.kind, error.exit_code) == ("not_found", 4)
    docker_login(tmp_path, "other.example", f"http://{closed.host}/v2/")
    assert isinstance(cache.fetch(closed.ref()), mc.Model)
    cache.close()
    assert LOGIN.encode() not in written(cache)


def test_the_login_of_docker_hub_is_found_under_its_other_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_login(tmp_path, "https://index.docker.io/v1/")
    for host in ("docker.io", "registry-1.docker.io"):
        assert _registry(host, {}) == Place("https://registry-1.docker.io", {}, f"Basic {LOGIN}")
    assert _registry("docker.example", {}).login == ""


def test_a_login_goes_along_to_the_token_service(cache: Cache, tmp_path: Path) -> None:
    with Registry(bearer=True, open_to=(LOGIN,), storage=True) as registry:
        filled(registry)
        assert failure(cache, registry).exit_code == 4
        docker_login(tmp_path, registry.host)
        assert isinstance(cache.fetch(registry.ref()), mc.Model)
        told = {seen.headers.get("authorization", "")[:7] for seen in registry.requests if "/v2/" in seen.path}
        assert told == {"", "Bearer "}
        assert registry.storage is not None
        assert not any("authorization" in seen.headers for seen in registry.storage.requests)


def test_a_header_of_the_caller_comes_first(closed: Registry, cache: Cache, tmp_path: Path) -> None:
    docker_login(tmp_path, closed.host, login=b64encode(b"me:wrong").decode())
    assert failure(cache, closed).message.endswith("your login has no access to it, or it is not there")
    model = cache.fetch(closed.ref(), headers={"authorization": f"Basic {LOGIN}", "X-Mine": "1"})
    assert isinstance(model, mc.Model)
    assert any("x-mine" in seen.headers for seen in closed.requests)


def test_what_is_forbidden_says_so(cache: Cache) -> None:
    with Registry(faults=[Status(403)]) as registry:
        assert "private, or not there" in failure(cache, registry).message


def test_a_token_of_the_caller_is_sent_as_it_is(cache: Cache) -> None:
    with Registry(bearer=True) as registry:
        filled(registry)
        registry._tokens["own"] = 0
        assert isinstance(cache.fetch(registry.ref(), headers={"Authorization": "Bearer own"}), mc.Model)
        registry.end_tokens()
        assert isinstance(Cache(cache.root).fetch(registry.ref()), mc.Model)
        assert registry.asked("/token") == []


def test_a_private_model_by_the_command(closed: Registry) -> None:
    done = run("fetch", closed.ref(), "--quiet")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1)
    done = run("fetch", closed.ref(), "--quiet", "--header", f"Authorization: Basic {LOGIN}")
    assert done.returncode == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"[]", b"{", b'{"auths": 7}', b'{"auths": {"HOST": {}}}', b'{"auths": {"HOST": {"auth": "a\\nb"}}}',
        b'{"auths": {"HOST": {"auth": 7}}}', b"\xff" * 100, b"[" * 100_000,
    ],
)  # fmt: skip
def test_garbage_where_logins_are_kept_is_no_login(
    closed: Registry, cache: Cache, tmp_path: Path, garbage: bytes
) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_bytes(garbage.replace(b"HOST", closed.host.encode()))
    assert failure(cache, closed).exit_code == 4


def test_a_ref_holds_no_login(cache: Cache) -> None:
    with pytest.raises(mc.UsageError) as error:
        cache.fetch("oci://me:s3cret@host/m")
    assert "s3cret" not in error.value.line()


# ---- where secrets never go


def test_a_challenge_of_storage_is_not_answered(cache: Cache, tmp_path: Path) -> None:
    with Registry(storage=True) as registry, Origin() as thief:
        filled(registry)
        docker_login(tmp_path, registry.host)
        assert registry.storage is not None
        asks = Header("WWW-Authenticate", f'Bearer realm="{thief.url("t")}",service="x"')
        registry.storage.faults(Status(401), asks)
        assert failure(cache, registry).exit_code == 4
        assert thief.requests == []
        assert not any("authorization" in seen.headers for seen in registry.storage.requests)


@pytest.mark.parametrize(
    ("base", "realm", "told"),
    [
        ("https://registry.example", "http://auth.example/t", "without https"),
        ("https://registry.example", "http://registry.example/t", "without https"),
        ("http://127.0.0.1:5000", "http://auth.example/t", "without https"),
        ("https://registry.example", "http://127.0.0.1/t", "without https"),
        ("http://127.0.0.1:5000", "http://10.0.0.7/t", "without https"),
        ("https://registry.example", "https://127.0.0.1/t", "in a private network"),
        ("https://registry.example", "https://[::1]/t", "in a private network"),
        ("https://registry.example", "https://localhost/t", "in a private network"),
        ("https://registry.example", "https://u:s3cret@auth.example/t", "without https"),
        ("https://registry.example", "ftp://auth.example/t", "is no URL"),
        ("https://registry.example", "", "is no URL"),
    ],
)
def test_a_token_service_that_could_take_secrets_away_is_not_asked(base: str, realm: str, told: str) -> None:
    access = Access(Place(base, {}, f"Basic {LOGIN}"), "a/b", Connector(Timeouts()), "oci://h/a/b")
    with pytest.raises(SourceError, match=told) as error:
        access._token_url({"realm": realm}, from_inside=base.startswith("http:"))
    assert "s3cret" not in error.value.message


@pytest.mark.parametrize("name", ["127.1", "2130706433", "0x7f.1", "0", "auth.example"])
def test_a_token_service_in_a_private_network_is_not_connected_to_whatever_it_is_called(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A registry on the public internet: who is reached through a proxy is taken for that."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **most: resolve(host.replace("auth.example", "::1"), *more, **most)
    )
    with Origin() as inside:
        realm = f'Bearer realm="https://{name}:{inside.port}/t"'
        with Wire(f"HTTP/1.1 401 Who\r\nWWW-Authenticate: {realm}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url())
            place = Place("http://registry.example", {}, f"Basic {LOGIN}")
            resolver = RegistryResolver(place, "a/b", "oci://registry.example/a/b", Connector(Timeouts()))
            with pytest.raises(SourceError, match="sends us to a private address, which is not asked"):
                resolver.resolve(Ref.parse("oci://registry.example/a/b"), Abort())
            resolver.close()
        assert inside.connections == 0


def test_a_registry_inside_may_have_its_token_service_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own.ca))
    with Registry(bearer=True, tls=own) as registry:
        filled(registry)
        by_name = f"https://localhost:{registry.port}"
        registry.realm = f"{by_name}/token"
        resolver = RegistryResolver(Place(by_name), "library/tiny", registry.ref(), Connector(Timeouts()))
        assert len(resolver.resolve(Ref.parse(registry.ref()), Abort()).files) == 4
        resolver.close()


def test_over_tls_nothing_leads_back_to_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own.ca))
    with Registry(bearer=True, tls=own) as registry, Origin() as plain:
        filled(registry)
        ref = Ref.parse(registry.ref())
        resolver = RegistryResolver(Place(registry.url().rstrip("/")), "library/tiny", ref.base, Connector(Timeouts()))
        assert len(resolver.resolve(ref, Abort()).files) == 4
        registry.end_tokens()
        registry.realm = plain.url("token")
        with pytest.raises(SourceError, match="without https"):
            resolver.resolve(ref, Abort())
        registry.faults(Redirect(plain.url("manifest")))
        with pytest.raises(SourceError, match="leads from https to http"):
            resolver.resolve(ref, Abort())
        resolver.close()
        assert plain.requests == []


def test_a_token_service_may_be_elsewhere_and_have_a_query() -> None:
    access = Access(Place("https://registry.example"), "a/b", Connector(Timeouts()), "oci://h/a/b")
    url = access._token_url({"realm": "https://auth.example/t?x=1#y", "service": "s p"}, from_inside=False)
    assert url == "https://auth.example/t?x=1&service=s+p&scope=repository%3Aa%2Fb%3Apull"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ('Bearer realm="https://h/t",service="s",scope="a:b:pull,push"',
         {"bearer": {"realm": "https://h/t", "service": "s", "scope": "a:b:pull,push"}}),
        ('Basic realm="x", Bearer realm=y', {"basic": {"realm": "x"}, "bearer": {"realm": "y"}}),
        ("bearer  realm = \"a\" ,SERVICE=b", {"bearer": {"realm": "a", "service": "b"}}),
        ("Negotiate", {"negotiate": {}}),
        ("", {}), ('="', {}), ("realm=x", {}),
    ],
)  # fmt: skip
def test_challenges_are_read_as_they_are_written(text: str, parsed: dict[str, dict[str, str]]) -> None:
    assert challenges(text) == parsed
    assert len(challenges('Bearer a="' * 100_000)) <= 1


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("registry.ollama.ai", "https://registry.ollama.ai"), ("registry.lan:5000", "https://registry.lan:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"), ("localhost", "http://localhost"),
        ("10.0.0.7:5000", "http://10.0.0.7:5000"), ("[::1]:5000", "http://[::1]:5000"), ("[::1]", "http://[::1]"),
        ("127.0.0.1:443", "https://127.0.0.1:443"), ("8.8.8.8:5000", "https://8.8.8.8:5000"),
        ("docker.io", "https://registry-1.docker.io"), ("1.1", "https://1.1"), ("2130706433", "https://2130706433"),
    ],
)  # fmt: skip
def test_http_is_for_this_machine_and_private_addresses_alone(host: str, base: str) -> None:
    assert base_of(host) == base
    assert is_inside("sub.localhost") and not is_inside("localhost.example")


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("127.0.0.1:5000", True), ("127.9.9.9:5000", True), ("localhost:5000", True), ("[::1]:5000", True),
        ("10.0.0.7:5000", False), ("192.168.1.2", False), ("[fd00::1]:5000", False), ("169.254.1.1", False),
        ("0.0.0.0:5000", False), ("127.0.0.1:443", False), ("[::ffff:10.0.0.7]:5000", False),
    ],
)  # fmt: skip
def test_what_is_secret_goes_over_http_to_this_machine_alone(tmp_path: Path, host: str, plain: bool) -> None:
    docker_login(tmp_path, host)
    assert _registry(host, {}) == Place(f"{'http' if plain else 'https'}://{host}", {}, f"Basic {LOGIN}")
    docker_login(tmp_path, "other.example")
    assert _registry(host, {"X-Mine": "1"}).base == f"{'http' if plain else 'https'}://{host}"
