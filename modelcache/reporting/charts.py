"""Plots as SVG inside a page: lines, stacked bars, and how many values lie where.

Responsible for: scales, marks and labels, in the colours of the page (`markup`), so that they follow light and dark and
can be printed. Every mark says its number to whoever points at it: no script, no font, nothing from elsewhere.
Leaves to others: the numbers, and the tables that say them exactly.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from modelcache.markup import text

FULL, HALF = 950, 462  # widths: as wide as the page, and beside another
HEIGHT = 180
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 8, 22
COLOURS = 6  # c0 to c5 of the page; the last is for all the rest
LABEL = 82  # that wide is one below the axis
STEPS = 4

Shown = Callable[[float], str]
Series = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """Of the upright axis, with a line every `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def up_to(cls, most: float, base: int) -> Self:
        """From 0, in round steps of a unit: of 1, or of powers of `base`, as bytes are counted."""
        if most <= 0:
            return cls(0, STEPS, 1)
        unit = base ** math.floor(math.log(most, base)) if base > 1 and most >= 1 else 1
        least = most / STEPS / unit
        power = 10.0 ** math.floor(math.log10(least))
        step = unit * next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
        step = max(step, 1)
        return cls(0, step * math.ceil(most / step), step)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - self.low) / (self.high - self.low))

    def grid(self, width: int, shown: Shown) -> Iterator[str]:
        for number in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + number * self.step
            y = self.y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text(shown(value))}</text>'


def lines(title: str, labels: Sequence[str], series: Series, shown: Shown, scale: Scale, width: int = FULL) -> str:
    """A line for each series, over the labels for which it has a value."""
    marks = []
    for index, (name, values) in enumerate(series.items()):
        there = [(at, value) for at, value in enumerate(values) if value is not None]
        points = [f"{_x(at, len(labels), width):.1f},{scale.y(value):.1f}" for at, value in there]
        marks.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{_hue(index)}" stroke-width="1.75"/>')
        for (at, value), point in zip(there, points, strict=True):
            x, _, y = point.partition(",")
            told = text(f"{name}, {labels[at]}: {shown(value)}")
            marks.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{_hue(index)}"><title>{told}</title></circle>')
    return _figure(title, series, labels, [*scale.grid(width, shown), *marks], width)


def bars(title: str, labels: Sequence[str], series: Series, shown: Shown, base: int = 1) -> str:
    """A bar for each label, of what the series have there, on top of each other."""
    most = max((sum(values[at] or 0 for values in series.values()) for at in range(len(labels))), default=0)
    scale, broad = Scale.up_to(most, base), min(48.0, 0.72 * (HALF - LEFT - RIGHT) / max(1, len(labels)))
    marks = []
    for at, label in enumerate(labels):
        below, left = 0.0, _x(at, len(labels), HALF) - broad / 2
        for index, (name, values) in enumerate(series.items()):
            if value := values[at] or 0:
                top, told = scale.y(below + value), text(f"{name}, {label}: {shown(value)}")
                marks.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{broad:.1f}" height="{scale.y(below) - top:.1f}"'
                    f' fill="{_hue(index)}"><title>{told}</title></rect>'
                )
                below += value
    return _figure(title, series, labels, [*scale.grid(HALF, shown), *marks], HALF)


def distribution(title: str, what: str, counts: Mapping[float, int], shown: Shown) -> str:
    """How many values lie where, on an axis on which each step doubles."""
    doubled: dict[int, int] = {}
    for value, count in counts.items():
        place = math.floor(math.log2(value)) if value >= 1 else 0
        doubled[place] = doubled.get(place, 0) + count
    places = range(min(doubled, default=0), max(doubled, default=-1) + 1)
    labels = [shown(2.0**place) for place in places]
    return bars(title, labels, {what: [doubled.get(place, 0) for place in places]}, lambda count: f"{count:,.0f}")


def _figure(title: str, series: Series, labels: Sequence[str], drawing: Sequence[str], width: int) -> str:
    entries = "".join(f'<li style="--hue:{_hue(index)}">{text(name)}</li>' for index, name in enumerate(series))
    legend = f'<ul class="legend">{entries}</ul>' if len(series) > 1 else ""
    drawn = " ".join([*drawing, *_labels(labels, width)])  # where no SVG is shown its words are
    least = ' class="full"' if width == FULL else ""
    return (
        f"<figure><h3>{text(title)}</h3>{legend}"
        f'<div class="wide"><svg{least} viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{drawn}</svg></div></figure>"
    )


def _labels(labels: Sequence[str], width: int) -> Iterator[str]:
    """As many as there is room for, the last one always."""
    step = max(1, -(-len(labels) * LABEL // width))
    for at in range(len(labels) - 1, -1, -step):
        x = _x(at, len(labels), width)
        yield f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{text(labels[at])}</text>'


def _x(at: int, count: int, width: int) -> float:
    return LEFT + (width - LEFT - RIGHT) * (at + 0.5) / max(1, count)


def _hue(index: int) -> str:
    return f"var(--c{min(index, COLOURS - 1)})"
