"""A set of spans is a set of integers, told in runs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from modelcache.model import Span
from modelcache.spans import SpanSet

MOST = 30
bounds = st.integers(0, MOST)
changes = st.lists(st.tuples(st.sampled_from(["add", "remove"]), bounds, bounds), max_size=25)


def built(steps: list[tuple[str, int, int]]) -> tuple[SpanSet, set[int]]:
    spans, model = SpanSet(), set[int]()
    for kind, start, stop in steps:
        if kind == "add":
            spans.add(start, stop)
            model |= set(range(start, stop))
        else:
            spans.remove(start, stop)
            model -= set(range(start, stop))
    return spans, model


@given(changes)
def test_it_holds_what_was_added_and_not_removed(steps) -> None:
    spans, model = built(steps)
    assert [byte for span in spans for byte in range(*span)] == sorted(model)
    assert spans.size == len(model)


@given(changes)
def test_its_spans_are_sorted_and_neither_overlap_nor_touch(steps) -> None:
    listed = list(built(steps)[0])
    assert all(span.start < span.stop for span in listed)
    assert all(one.stop < other.start for one, other in pairwise(listed))


@given(changes, bounds, bounds)
def test_gaps_are_what_is_not_in_as_the_longest_runs(steps, start, stop) -> None:
    spans, model = built(steps)
    gaps = list(spans.gaps(start, stop))
    assert [byte for gap in gaps for byte in range(*gap)] == [byte for byte in range(start, stop) if byte not in model]
    assert all(one.stop < other.start for one, other in pairwise(gaps))


@given(changes, bounds, bounds)
def test_covers_and_overlaps_ask_for_all_and_for_any(steps, start, stop) -> None:
    spans, model = built(steps)
    wanted = set(range(start, stop))
    assert spans.covers(start, stop) == (wanted <= model)
    assert spans.overlaps(start, stop) == bool(wanted & model)


@given(changes, bounds)
def test_a_run_ends_at_the_first_byte_that_is_not_in(steps, offset) -> None:
    spans, model = built(steps)
    assert spans.run_end(offset) == next(byte for byte in range(offset, MOST + 2) if byte not in model)


def test_bounds_may_be_as_large_as_a_file_of_unknown_size() -> None:
    spans = SpanSet()
    spans.add(5, 10)
    assert list(spans.gaps(0, 2**63 - 1)) == [Span(0, 5), Span(10, 2**63 - 1)]
    spans.remove(0, 2**63 - 1)
    assert spans.size == 0
