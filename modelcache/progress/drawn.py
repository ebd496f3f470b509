"""A panel as HTML and as text: what is under way, and what is left of it at the end.

Responsible for: the mark-up of rows, of the line that says what is going on, and of the summary; every name is escaped.
Leaves to others: what they say (`board`, `panel`), the frame and its colours (`markup`).
"""

from dataclasses import dataclass
from typing import Literal

from modelcache.markup import framed, name, text, title
from modelcache.progress.board import Row, View
from modelcache.units import short

Phase = Literal["running", "paused", "failed", "cancelled", "done"]
MARK = {"running": "…", "paused": "‖", "failed": "✗", "cancelled": "✗", "done": "✓"}
MOST_NAME = 34
MOST_WORDS = 240


@dataclass(frozen=True, slots=True)
class Line:
    """What is going on, or how it ended: what it is about, then words; `more` stands below it."""

    title: str
    words: str
    phase: Phase
    more: tuple[str, ...] = ()


def status(line: Line) -> str:
    """The one line that is read aloud when it changes; it holds no number that changes all the time."""
    return (
        f'<style>{_STYLE}</style><p class="status" data-state="{line.phase}"><b>{name(line.title)}</b> '
        f'<span role="status" aria-live="polite" data-state="{line.phase}">{name(line.words, MOST_WORDS)}</span></p>'
    )


def files(view: View) -> str:
    """A row a file, and one for all of them where there are several."""
    rows = [_row(row) for row in view.rows]
    if view.hidden:
        rows.append(f'<tr class="more"><td colspan="3">and {text(_hidden(view))}</td></tr>')
    if view.files > 1 or len(view.rows) > 1:
        rows.append(_row(view.whole, "whole"))
    columns = "".join(f'<col class="{each}">' for each in _COLUMNS)
    note = f'<p class="soft">{text(short(view.note, 160))}</p>' if view.note else ""
    table = f'<table class="files"><colgroup>{columns}</colgroup><tbody>{"".join(rows)}</tbody></table>' if rows else ""
    return f'<div class="wide">{table}</div>{note}'


def summary(line: Line) -> str:
    """What stays: it needs no script and reads without a style."""
    more = "".join(f'<p class="soft">{text(each)}</p>' for each in line.more)
    mark = f'<span class="mark">{MARK[line.phase]}</span>'
    return framed(
        f'<style>{_SUMMARY}</style><div class="summary" data-state="{line.phase}"><p>{mark} <b>{name(line.title)}</b> '
        f"{name(line.words, MOST_WORDS)}</p>{more}</div>"
    )


def plain(line: Line) -> str:
    """The summary as text."""
    return "\n".join([f"{MARK[line.phase]} {line.title}: {line.words}", *(f"  {each}" for each in line.more)])


def plain_files(line: Line, view: View) -> str:
    """What is under way as text."""
    rows = [*view.rows, view.whole] if len(view.rows) > 1 else view.rows
    width = max((len(row.name) for row in rows), default=0)
    told = (f"  {row.name:{width}}  {row.percent:>5}  {row.amount:>18}  {row.state}" for row in rows)
    return "\n".join([f"{line.title}: {line.words}", *told])


def _hidden(view: View) -> str:
    return f"{view.hidden:,} more" + (f": {view.hidden_done:,} done" if view.hidden_done else "")


_COLUMNS = ("name", "bar", "amount", "percent", "speed", "left", "host", "state")


def _row(row: Row, kind: str = "file") -> str:
    """A bar without a value is one of which nobody knows how long it is."""
    known = f' max="{row.size}" value="{min(row.here, row.size)}"' if row.size else ""
    if not row.size and row.state in ("waiting", "done"):
        known = f' max="1" value="{int(row.state == "done")}"'
    bar = f'<progress data-state="{row.state}" aria-label="{title(row.name)}"{known}></progress>'
    numbers = (row.amount, row.percent, row.speed, row.left)
    cells = "".join(f'<td class="n">{text(each)}</td>' for each in numbers)
    return (
        f'<tr class="{kind}" data-state="{row.state}"><td class="name">{name(row.name, MOST_NAME)}</td><td>{bar}</td>'
        f'{cells}<td class="host">{name(row.host, 22)}</td><td class="state">{row.state}</td></tr>'
    )


# The columns have widths of their own, so that nothing jumps when a number gets a digit more.
_STYLE = """
.modelcache .wide { container-type: inline-size; }
.modelcache.modelcache table.files { table-layout: fixed; width: 100%; min-width: 30rem; margin: 2px 0; }
.modelcache .files col.name { width: 30%; } .modelcache .files col.amount { width: 122px; }
.modelcache .files col.percent { width: 58px; } .modelcache .files col.speed { width: 86px; }
.modelcache .files col.left { width: 82px; } .modelcache .files col.host { width: 132px; }
.modelcache .files col.state { width: 90px; }
.modelcache.modelcache .files td { padding: 2px 12px 2px 0; border: 0; vertical-align: middle; min-width: 0;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.modelcache.modelcache .files td.state { padding-right: 0; }
.modelcache.modelcache .files tbody tr:hover { background: none; }
.modelcache.modelcache .files tr.whole td { border-top: 1px solid var(--faint); padding-top: 5px; font-weight: 500; }
.modelcache .files :is(.host, .more) td, .modelcache .files :is(td.host, tr.more), .modelcache .files td.n,
.modelcache .files td.state { color: var(--soft); }
.modelcache .files tr.whole td.n { color: inherit; }
.modelcache tr[data-state=done] td.state { color: var(--good); }
.modelcache tr[data-state=failed] td.state { color: var(--bad); }
.modelcache tr[data-state=paused] td.state { color: var(--late, #b7791f); }
.modelcache tr[data-state=waiting] td.name { color: var(--soft); }
.modelcache .files progress { appearance: none; -webkit-appearance: none; display: block; width: 100%; height: 6px;
  border: 0; border-radius: 3px; overflow: hidden; background: var(--hint, #8883); color: var(--hue);
  --hue: var(--c0, #4385d1); }
.modelcache .files progress::-webkit-progress-bar { background: var(--hint, #8883); border-radius: 3px; }
.modelcache .files progress::-webkit-progress-value { background: var(--hue); border-radius: 3px; }
.modelcache .files progress::-moz-progress-bar { background: var(--hue); border-radius: 3px; }
.modelcache .files progress:indeterminate::-moz-progress-bar { width: 0; }
.modelcache .files progress[data-state=done] { --hue: var(--good, #2e9e5b); }
.modelcache .files progress[data-state=failed] { --hue: var(--bad, #d64541); }
.modelcache .files progress[data-state=paused] { --hue: #b7791f; }
.modelcache .files progress[data-state=waiting] { --hue: #8885; }
.modelcache .status[data-state=failed] [role=status] { color: var(--bad); }
@container (max-width: 900px) { .modelcache .files :is(col.host, td.host) { display: none; } }
@container (max-width: 700px) { .modelcache .files :is(tr > :nth-child(6), col.left) { display: none; } }
@container (max-width: 600px) { .modelcache .files :is(tr > :nth-child(5), col.speed) { display: none; } }
""".strip()

_SUMMARY = """
.modelcache .summary { border-left: 3px solid var(--hue); padding: 1px 0 1px 10px; margin: 4px 0; --hue: var(--good); }
.modelcache .summary:is([data-state=failed], [data-state=cancelled]) { --hue: var(--bad); }
.modelcache .summary[data-state=paused] { --hue: #b7791f; }
.modelcache .summary .mark { color: var(--hue); font-weight: 600; }
""".strip()
