"""A process is dead only where that is proven (I13)."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.store.owner import UNKNOWN, Owner

TELL = "import json; from modelcache.store.owner import Owner; print(json.dumps(Owner.mine().to_json()), flush=True)"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def child(then: str) -> tuple[Owner, "subprocess.Popen[str]"]:
    """A process that names itself and then does what it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{TELL}; {then}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return Owner.from_json(json.loads(process.stdout.readline())), process


def test_whoever_asks_is_alive() -> None:
    assert not Owner.mine().is_proven_dead()


def test_a_process_is_dead_once_it_is_gone() -> None:
    owner, process = child("input()")
    with process:
        assert owner.pid == process.pid
        assert not owner.is_proven_dead()
        process.communicate("\n")
    assert owner.is_proven_dead()


def test_a_process_that_waits_for_its_parent_is_no_longer_reached_by_a_kill() -> None:
    """A zombie still has its pid; nothing is lost by waiting until it is gone."""
    owner, process = child("pass")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not owner.is_proven_dead()
    with process:
        process.communicate()
    assert owner.is_proven_dead()


def test_another_process_with_the_pid_of_the_owner_is_not_the_owner() -> None:
    mine = Owner.mine()
    assert mine.start != UNKNOWN
    assert dataclasses.replace(mine, start=mine.start + 1).is_proven_dead()


def test_a_process_whose_start_is_unknown_is_not_proven_dead() -> None:
    assert not dataclasses.replace(Owner.mine(), start=UNKNOWN).is_proven_dead()


def test_a_start_of_the_machine_ends_all_its_processes(monkeypatch) -> None:
    monkeypatch.setattr("modelcache.store.owner._machine", lambda: "this")
    assert dataclasses.replace(Owner.mine(), boot="another").is_proven_dead()


@pytest.mark.parametrize("machine", ["", "this", "another"])
@pytest.mark.parametrize("here", ["", "this"])
def test_another_host_of_the_same_name_is_not_this_one_started_anew(monkeypatch, machine, here) -> None:
    monkeypatch.setattr("modelcache.store.owner._machine", lambda: here)
    owner = dataclasses.replace(Owner.mine(), boot="another", machine=machine)
    assert owner.is_proven_dead() == (machine == here == "this")


def test_an_owner_of_an_earlier_version_has_no_machine() -> None:
    fields = Owner.mine().to_json()
    del fields["machine"]
    assert Owner.from_json(fields) == dataclasses.replace(Owner.mine(), machine="")


@pytest.mark.parametrize(
    "other", [{"host": "elsewhere", "boot": "another"}, {"host": "elsewhere"}, {"space": 1}, {"boot": ""}]
)
def test_a_process_that_cannot_be_seen_from_here_is_not_proven_dead(other) -> None:
    assert not dataclasses.replace(Owner.mine(), pid=2**31 - 1, **other).is_proven_dead()


def test_an_owner_is_read_as_it_was_written() -> None:
    assert Owner.from_json(json.loads(json.dumps(Owner.mine().to_json()))) == Owner.mine()


@given(json_values)
def test_anything_else_is_a_value_error(value) -> None:
    with pytest.raises(ValueError, match="not an owner"):
        Owner.from_json(value)


@pytest.mark.parametrize(
    "other", [{"pid": 0}, {"pid": -1}, {"pid": 2**31}, {"pid": "1"}, {"pid": 1.5}, {"start": -1}, {"host": None}]
)
def test_a_pid_that_no_process_can_have_is_no_owner(other) -> None:
    with pytest.raises(ValueError, match="not an owner"):
        Owner.from_json(Owner.mine().to_json() | other)
