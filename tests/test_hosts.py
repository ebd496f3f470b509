"""Two hosts on one shared folder, with locks that work and with locks that lie (I12, A18).

Each has a name, a network, process ids and a server of its own; what they share is the disk.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash import check_store, eventually, leftovers, lines, run, sha256_of
from hosts import FILE, MIB, URL, Host, can_be_had

from modelcache.store.journal import read_facts

QUIET = ("--quiet", "--connections", "1")
HERE = Path(__file__).resolve().parent
Begin = Callable[..., Host]


@pytest.fixture
def host(home: Path) -> Iterator[Begin]:
    if not can_be_had():
        pytest.skip("no namespaces to be had here")
    with ExitStack() as running:
        yield lambda name, **more: running.enter_context(Host(name, home, **more))


def noted(folder: Path) -> int:
    """What is known to be written, by the journals of the partials below a folder."""
    found = [read_facts(str(path)) for path in folder.glob("*/journal")]
    return sum(facts.written.size for facts in found if facts)


def check_ended(home: Path, *ended: dict[str, object]) -> None:
    assert [end["code"] for end in ended] == [0] * len(ended), ended
    assert len({end["out"] for end in ended}) == 1
    assert sha256_of(Path(str(ended[0]["out"]))) == FILE.sha256
    check_store(home)
    assert run(home, "verify").returncode == 0
    assert not leftovers(home)


def test_where_locks_work_the_second_host_waits_and_uses_what_the_first_fetched(home: Path, host: Begin) -> None:
    first, second = host("first"), host("second")
    first.ask("hold", 4 * MIB)
    first.ask("fetch", *QUIET)
    assert first.ask("reached")
    second.ask("fetch")
    assert "waiting for process " in (said := second.ask("says")), said
    assert " on 'first' since " in said
    first.ask("release")
    ended = [first.ask("ended"), second.ask("ended")]
    check_ended(home, *ended)
    assert ended[1]["served"] == 0


def test_where_locks_work_a_host_that_dies_is_followed_at_its_last_byte(home: Path, host: Begin) -> None:
    first, second = host("first"), host("second")
    first.ask("hold", 4 * MIB)
    first.ask("fetch", *QUIET)
    assert first.ask("reached")
    assert eventually(lambda: noted(home / "partials") >= 3 * MIB)
    second.ask("fetch")
    assert " on 'first' since " in second.ask("says")
    first.kill()
    end = second.ask("ended")
    check_ended(home, end)
    assert end["served"] <= 5 * MIB


def disturbed(home: Path, host: Begin, shim: Path, base: Path, *more: str) -> tuple[Host, Host]:
    """The second host has taken over what the first was fetching; both are held before the end."""
    lies = {"SHIM": str(shim), "FLOCK_SHIM": "lies", "MODELCACHE_LOCK_TIMEOUT": "2"}
    first, second = host("first", **lies), host("second", **lies)
    for one, offset in ((first, 4 * MIB), (second, 6 * MIB)):
        one.ask("hold", offset)
        one.ask("fetch", *QUIET, *more)
        assert one.ask("reached")
        assert eventually(lambda offset=offset: noted(base) >= offset - MIB)  # type: ignore[misc]
    return first, second


@pytest.mark.parametrize("digest", ["given", "first use"])
def test_where_locks_lie_the_host_that_lost_its_download_uses_the_result(
    home: Path, host: Begin, shim: Path, digest: str
) -> None:
    more = ["--sha256", FILE.sha256] if digest == "given" else []
    first, second = disturbed(home, host, shim, home / "partials", *more)
    first.ask("release")  # it has every byte, and another has its partial
    first.begin("ended")
    second.ask("release")
    check_ended(home, second.ask("ended"), first.answer())


def test_where_locks_lie_an_output_on_the_shared_folder_is_right_for_both(
    home: Path, host: Begin, shim: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out/m.bin"
    base = output.parent / ".m.bin.modelcache"
    first, second = disturbed(home, host, shim, base, "--output", str(output), "--no-cache")
    first.ask("release")
    first.begin("ended")
    second.ask("release")
    ended = [second.ask("ended"), first.answer()]
    assert [(end["code"], end["out"]) for end in ended] == [(0, str(output))] * 2, ended
    assert sha256_of(output) == FILE.sha256
    assert [path.name for path in output.parent.iterdir()] == ["m.bin"]


def test_where_locks_lie_and_the_winner_dies_the_other_says_so_and_its_next_run_ends_well(
    home: Path, host: Begin, shim: Path
) -> None:
    first, second = disturbed(home, host, shim, home / "partials", "--sha256", FILE.sha256)
    second.kill()
    first.ask("release")
    end = first.ask("ended")
    assert (end["code"], len(lines(end["err"]))) == (6, 1), end
    assert "another process has taken this download over" in end["err"]
    check_store(home)
    first.ask("fetch", *QUIET, "--sha256", FILE.sha256)
    check_ended(home, first.ask("ended"))


@pytest.mark.parametrize("round_", range(3))
def test_two_hosts_that_begin_at_once_both_have_the_right_file_though_locks_lie(
    home: Path, host: Begin, shim: Path, round_: int
) -> None:
    lies = {"SHIM": str(shim), "FLOCK_SHIM": "lies"}
    hosts = [host("first", **lies), host("second", **lies)]
    for one in hosts:
        one.begin("fetch", *QUIET)
    assert [one.answer() for one in hosts] == [True, True]
    check_ended(home, *(one.ask("ended") for one in hosts))


def test_the_hosts_share_nothing_but_the_folder(host: Begin) -> None:
    """Else the tests above prove nothing: the server of one is not to be reached from the other, nor from here."""
    first, second = host("first"), host("second")
    first.ask("fetch", *QUIET)
    end = first.ask("ended")
    assert (end["code"], end["served"]) == (0, FILE.size)
    second.ask("fetch", *QUIET)
    assert second.ask("ended")["served"] == 0
    import requests

    with pytest.raises(requests.ConnectionError):
        requests.get(URL, timeout=5)
