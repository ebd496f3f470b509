"""Whom to ask first next time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.health import HALF_LIFE_S, Health, body_of, order
from modelcache.history import Attempt
from modelcache.settings import KINDS

NOW = 1_000_000_000
FAST = Attempt("http", "h", "success", latency_ms=50, duration_ms=1050, bytes=100 << 20, timestamp=NOW)
SLOW = replace(FAST, duration_ms=20_050)
FAILED = Attempt("http", "h", "error", error_type="network", error_message="reset", timestamp=NOW)
WRONG = replace(FAILED, error_type="integrity")


def health(*attempts: Attempt) -> Health:
    """After these, one after another."""
    found = Health()
    for attempt in attempts:
        found = found.after(attempt)
    return found


def rate_of(*spells: tuple[int, int, int]) -> float:
    """Bytes/s of a gateway whose connections brought (from, to, bytes), in seconds, as they ended."""
    found, before = Health(), list[tuple[int, int]]()
    for start, stop, count in sorted(spells, key=lambda each: each[1]):
        body_ms = 1000 * (stop - start)
        attempt = replace(FAST, timestamp=NOW + 1000 * stop, latency_ms=50, duration_ms=50 + body_ms, bytes=count)
        found = found.after(attempt, before)
        before.append(body_of(attempt))
    return found.throughput


def ordered(given: str, scores: dict[str, Health], now: int = NOW) -> str:
    by_gateway = {("http", name): score for name, score in scores.items()}
    return "".join(order(given, lambda name: ("http", name), by_gateway, now))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, "abc"),
        ({"a": health(FAST)}, "abc"),
        ({"a": health(SLOW)}, "abc"),  # of the others nothing is known
        ({"b": health(FAST)}, "abc"),
        ({"a": health(FAILED), "b": health(FAST)}, "bca"),
        ({"a": health(FAILED)}, "bca"),
        ({"a": health(SLOW), "b": health(FAST)}, "bca"),
        ({"a": health(FAST), "b": health(replace(FAST, duration_ms=1500))}, "abc"),  # about as good: as given
        ({"b": health(FAST), "a": health(replace(FAST, duration_ms=1500))}, "abc"),
        ({"a": health(FAST, FAST, FAST, FAILED), "b": health(FAST)}, "abc"),  # one fault in four is forgiven
        ({"a": health(FAST, FAILED, FAILED, FAILED), "b": health(FAST)}, "bca"),
        ({"a": health(*[FAST] * 9, WRONG), "b": health(FAILED)}, "cba"),  # whoever lies comes last
        ({"a": health(FAST, FAILED, FAILED), "b": health(SLOW)}, "cba"),  # slow and sure is better than fast and lost
        ({"a": health(FAILED), "b": health(FAILED), "c": health(FAILED)}, "abc"),
    ],
)
def test_the_order_of_the_next_fetch(scores: dict[str, Health], expected: str) -> None:
    assert ordered("abc", scores) == expected


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [("", "hop"), ("http", "hop"), ("oci", "oph"), ("peer", "hop"), ("ipfs", "hop")],
)
def test_the_preferred_kind_comes_first_whatever_its_health(prefer: str, expected: str) -> None:
    """h is http; o and p are oci, of which p has sent wrong bytes."""
    layers = {"h": "http", "o": "oci", "p": "oci"}
    scores = {("oci", "o"): health(FAILED), ("oci", "p"): health(WRONG)}
    assert "".join(order("pho", lambda name: (layers[name], name), scores, NOW, prefer)) == expected


KINDS_BY_NAME = {
    "c": "cache", "i": "ipfs", "h": "huggingface", "w": "http", "o": "oci", "p": "peer", "s": "object",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given_order", "prefer", "scores", "expected"),
    [
        ("ihwopsc", "", {}, "cihwops"),  # what is on this machine, then as given
        ("ihwops", "", {}, "ihwops"),
        ("ihwopsc", "ipfs", {}, "cihwops"),
        ("ihwopsc", "huggingface", {}, "chiwops"),
        ("ihwopsc", "http", {}, "cwihops"),
        ("ihwopsc", "oci", {}, "coihwps"),
        ("ihwopsc", "peer", {}, "cpihwos"),
        ("ihwopsc", "object", {}, "csihwop"),
        ("ihwopsc", "cache", {}, "cihwops"),
        ("hw", "oci", {}, "hw"),  # there is none of that kind
        ("hwo", "", {"h": health(FAILED), "w": health(SLOW), "o": health(FAST)}, "owh"),
        ("hwo", "huggingface", {"h": health(FAILED), "w": health(SLOW), "o": health(FAST)}, "how"),
        ("hwoc", "huggingface", {"c": health(WRONG), "h": health(WRONG), "o": health(FAST)}, "chwo"),
        ("hw", "", {"h": health(FAST, FAST, FAST, FAILED), "w": health(FAST)}, "hw"),
        ("hw", "", {"h": health(WRONG), "w": health(FAILED)}, "wh"),
        ("pio", "", {"p": health(replace(FAST, duration_ms=3000)), "i": health(FAST)}, "iop"),
    ],
)
def test_the_order_is_this_machine_then_what_is_preferred_then_by_health(
    given_order: str, prefer: str, scores: dict[str, Health], expected: str
) -> None:
    def gateway(name: str) -> tuple[str, str]:
        return KINDS_BY_NAME[name], name

    known = {gateway(name): score for name, score in scores.items()}
    assert "".join(order(given_order, gateway, known, NOW, prefer)) == expected


def test_the_table_of_orders_has_every_kind() -> None:
    assert set(KINDS_BY_NAME.values()) == set(KINDS)


@pytest.mark.parametrize(
    ("spells", "rate"),
    [
        ([(0, 10, 100)], 10),
        ([(0, 10, 100)] * 8, 80),  # side by side
        ([(0, 10, 100), (10, 20, 100)], 10),  # one after another
        ([(0, 10, 100), (1000, 1010, 100)], 10),  # with a pause, which says nothing
        ([(0, 10, 100), (5, 15, 100)], 200 / 15),
        ([(0, 1, 10), (4, 5, 10), (0, 10, 100)], 12),  # a long one over short ones: none of its time counts twice
        ([(2, 4, 10), (0, 10, 100), (8, 12, 10)], 10),
        ([(0, 10, 10), (0, 10, 190)], 20),
        ([(5, 5, 10)], 0),  # too short to be measured
    ],
)
def test_a_gateway_is_as_fast_as_all_its_connections_together(spells: list[tuple[int, int, int]], rate: float) -> None:
    assert rate_of(*spells) == pytest.approx(rate, rel=0.001)


def test_eight_connections_make_a_gateway_no_slower_than_one() -> None:
    """Each of the eight brings an eighth of what the only one of another gateway brings."""
    eighth = replace(FAST, bytes=FAST.bytes // 8)
    shared = Health()
    for index in range(8):
        shared = shared.after(eighth, [body_of(eighth)] * index)
    assert ordered("ab", {"a": shared, "b": health(FAST)}) == "ab"
    assert ordered("ab", {"a": health(*[eighth] * 8), "b": health(FAST)}) == "ba"  # one after another


def test_old_news_fades_until_nothing_is_known() -> None:
    scores = {"a": health(FAILED)}
    assert ordered("ab", scores) == "ba"
    assert ordered("ab", scores, NOW + int(2000 * HALF_LIFE_S)) == "ab"


def test_a_clock_that_goes_back_fades_nothing() -> None:
    before = health(FAST, FAILED)
    assert before.faded(NOW - 10**9) == before


@pytest.mark.parametrize("kind", ["not_found", "local", "interrupted"])
def test_what_is_not_the_gateways_fault_does_not_count(kind: str) -> None:
    assert health(replace(FAILED, error_type=kind)) == Health()


@given(
    st.lists(st.integers(0, 5), unique=True),
    st.dictionaries(st.integers(0, 5), st.lists(st.sampled_from([FAST, SLOW, FAILED]), max_size=5)),
)
def test_every_source_keeps_a_place_and_nothing_known_changes_nothing(
    sources: list[int], attempts: dict[int, list[Attempt]]
) -> None:
    scores = {("http", str(each)): health(*tries) for each, tries in attempts.items()}
    found = order(sources, lambda each: ("http", str(each)), scores, NOW)
    assert sorted(found) == sorted(sources)
    assert order(sources, lambda each: ("http", str(each)), {}, NOW) == sources
    assert order(sources, lambda each: ("http", "same"), scores, NOW) == sources
