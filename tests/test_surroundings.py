"""What is wrong around a cache: other tools' caches, the network, tokens and the clock (product G9)."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from caches import rot, run

from modelcache import surroundings, wiring
from modelcache.caching import Cache
from modelcache.testing import Content, Hub, SilentAccept

DAY = 86_400
TOKEN = "hf_0123456789"
COMMIT = "1" * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as serving:
        serving.publish("org/name", {"a.bin": b"1"})
        serving.gate("org/name", TOKEN)
        monkeypatch.setenv("HF_ENDPOINT", serving.endpoint)
        yield serving


def found(cache: Cache, *checks: str) -> list[tuple[str, str, str]]:
    return [(row["level"], row["finding"], row["fix"]) for row in cache.doctor() if row["check"] in checks]


# -- the network ------------------------------------------------------------------------------------------------------


def test_a_hub_that_answers_is_nothing_to_tell(hub: Hub, cache: Cache) -> None:
    done = run("doctor")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing is wrong\n")
    assert [seen.path for seen in hub.requests] == ["/api/whoami-v2"]


def test_a_hub_that_is_gone_is_a_note(cache: Cache) -> None:
    ((level, finding, fix),) = found(cache, "network")
    assert (level, finding.startswith("Hugging Face cannot be asked: ")) == ("note", True)
    assert fix


def test_a_hub_that_is_silent_takes_no_longer_than_it_may(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "PATIENCE_S", 0.3)
    hub.faults(SilentAccept())
    began = time.monotonic()
    ((level, finding, _),) = found(cache, "network")
    assert (level, finding.startswith("Hugging Face cannot be asked: ")) == ("note", True), finding
    assert time.monotonic() - began < 5


def test_names_that_take_for_ever_to_resolve_take_no_longer_either(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(surroundings, "PATIENCE_S", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [][: over.wait(60)])
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    began = time.monotonic()
    ((level, finding, _),) = found(cache, "network")
    over.set()
    assert (level, "does not answer" in finding) == ("note", True), finding
    assert time.monotonic() - began < 5


def test_offline_nothing_is_asked(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found(cache, "network") == [
        ("note", "HF_HUB_OFFLINE is set: Hugging Face is not asked", "unset HF_HUB_OFFLINE")
    ]
    assert not hub.requests


def test_a_variable_that_can_be_no_hub_is_wrong(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://user:secret@host/")
    ((level, finding, _),) = found(cache, "network")
    assert (level, "secret" in finding) == ("wrong", False)


def test_certificates_that_are_not_there_are_wrong(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    assert (
        "wrong",
        "REQUESTS_CA_BUNDLE: /nowhere/ca.pem is not there: no https works",
        "unset REQUESTS_CA_BUNDLE",
    ) in (found(cache, "network"))


def test_a_clock_that_is_not_the_hubs_is_wrong(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wiring.ask_hub

    def later(*given: object) -> object:
        asked, head = real(*given)  # type: ignore[arg-type]
        head.fields["date"] = (formatdate(time.time() - 3600, usegmt=True),)  # type: ignore[index]
        return asked, head

    monkeypatch.setattr(surroundings, "ask_hub", later)
    ((level, finding, fix),) = found(cache, "clock")
    assert (level, fix) == ("wrong", "set the clock: timedatectl")
    assert finding.startswith("the clock differs by +36")


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_that_the_hub_does_not_know_is_wrong_and_never_shown(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert found(cache, "tokens") == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_before")
    ((level, finding, fix),) = found(cache, "tokens")
    assert (level, "hf auth login" in fix) == ("wrong", True)
    assert "hf_of_before" not in run("doctor", "--json").stdout + finding + fix
    assert run("doctor").returncode == 3


def test_a_token_that_others_may_read_is_a_note(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    token = tmp_path / "huggingface" / "token"
    token.parent.mkdir()
    token.write_text(TOKEN)
    token.chmod(0o644)
    login = tmp_path / "docker" / "config.json"
    login.parent.mkdir()
    login.write_text('{"auths": {"host": {"auth": "YTpi"}}}')
    login.chmod(0o640)
    assert [(level, fix) for level, _, fix in found(cache, "tokens")] == [
        ("note", f"chmod 600 {token}"), ("note", f"chmod 600 {login}"),
    ]  # fmt: skip
    token.chmod(0o600), login.chmod(0o600)
    assert found(cache, "tokens") == []


# -- other caches -----------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(hub: Hub, tmp_path: Path) -> Path:
    """A cache of Hugging Face with one file."""
    content = Content.generated(2 << 20, seed=3)
    repository = tmp_path / "huggingface" / "hub" / "models--org--name"
    blob = repository / "blobs" / content.sha256
    link = repository / "snapshots" / COMMIT / "a.bin"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(content.read())
    link.symlink_to(f"../../blobs/{content.sha256}")
    return repository


def test_what_nobody_goes_on_with_and_what_cannot_be_used_are_notes(theirs: Path, cache: Cache) -> None:
    assert found(cache, "other caches") == []
    begun = theirs / "blobs" / ("ab" * 32 + ".incomplete")
    begun.write_bytes(b"x" * 5000)
    os.utime(begun, (time.time() - 2 * DAY,) * 2)
    (theirs / "snapshots" / COMMIT / "gone.bin").symlink_to("../../blobs/" + "cd" * 32)
    lost, old = found(cache, "other caches")
    assert (lost[0], old[0], old[2]) == ("note", "note", "modelcache clean --foreign")
    assert "1 cannot be used, as gone.bin: it is no link to a blob of this cache, or the blob is not there" in lost[1]
    assert "bytes of downloads that nobody goes on with" in old[1]


def test_what_a_sweep_found_rotten_there_is_wrong_until_it_is_another_file(theirs: Path, cache: Cache) -> None:
    (blob,) = (theirs / "blobs").iterdir()
    rot(blob, 77)
    assert found(cache, "other caches") == []
    assert run("verify", "--also", "hf").returncode == 3
    ((level, finding, fix),) = found(cache, "other caches")
    assert (level, str(blob) in finding, fix.startswith(f"rm {blob}")) == ("wrong", True, True)
    blob.unlink()
    assert [level for level, _, _ in found(cache, "other caches")] == ["note"]
