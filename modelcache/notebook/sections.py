"""How the sections of a dashboard look, as HTML for a notebook and as text for a terminal.

Responsible for: which numbers a section shows, in which words; at most so many rows, and how many more there are. Every
name is escaped, whoever gave it. Leaves to others: the numbers (`overview`), colours and tables (`markup`), buttons
(`controls`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import shorten
from typing import Generic, TypeVar

from modelcache.events import now_ms
from modelcache.markup import framed, name, table, text, title
from modelcache.notebook.overview import (
    Disk,
    Held,
    Interrupted,
    Job,
    Overview,
    Queued,
    Requested,
    Running,
    Source,
    Told,
)
from modelcache.printing import printable
from modelcache.progress.lines import host
from modelcache.rows import Report
from modelcache.units import as_age, as_clock, as_percent, in_units, moment, part_of, short_version

MOST_ROWS = 20  # of a table
MOST_LINES = 8  # of what has buttons
MOST_WORRIES = 5
MOST_WORDS = 320  # characters of a line that says what is wrong
T = TypeVar("T")
PROOFS = {"given": "digest given", "listed": "listed by its hub", "cid": "its CID", "first_use": "none: first use"}

_STYLE = """
.modelcache .line { display: grid; grid-template-columns: minmax(9rem, 1fr) minmax(0, 17rem); gap: 0 20px;
  align-items: center; min-height: 42px; line-height: 1.45; font-variant-numeric: tabular-nums; }
.modelcache .line b { font-weight: 600; }
.modelcache .line > span { min-width: 0; }
.modelcache .line :is(b, .soft) { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.modelcache .line .soft { font-size: 12px; }
.modelcache .line .why { white-space: normal; overflow-wrap: anywhere; }
.modelcache .pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.modelcache :is(.x2, .x4, .x6) { container-type: inline-size; }
@container (max-width: 46rem) { .modelcache :is(.x2 :is(th, td):nth-child(2), .x4 :is(th, td):nth-child(4),
  .x6 :is(th, td):nth-child(6)) { display: none; } }
.modelcache .line progress { margin: 6px 0 5px; }
.modelcache progress { appearance: none; -webkit-appearance: none; display: block; width: 100%; height: 6px; border: 0;
  border-radius: 3px; overflow: hidden; background: var(--hint); color: var(--hue); --hue: var(--c0); }
.modelcache progress::-webkit-progress-bar { background: var(--hint); }
.modelcache progress::-webkit-progress-value { background: var(--hue); border-radius: 3px; }
.modelcache progress::-moz-progress-bar { background: var(--hue); border-radius: 3px; }
.modelcache [data-state=failed] progress { --hue: var(--bad); }
.modelcache [data-state=paused] progress { --hue: var(--soft); }
.modelcache .head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 12px; }
.modelcache .head h3 { font-size: 16px; }
.modelcache .section { margin-top: 14px; }
.modelcache ul.worries { margin: 2px 0; padding-left: 18px; list-style: disc; }
.modelcache .worries li { overflow-wrap: anywhere; }
.modelcache .disk { display: grid; grid-template-columns: 20rem auto; gap: 16px; align-items: center;
  justify-content: start; }
""".strip()
STYLE = f"<style>{_STYLE}</style>"


def page(now: Overview) -> str:
    """All of it, for an output that stays as it is."""
    parts = [
        head(now), running(now), queued(now), interrupted(now), INSTALLED.html(now.store.installed),
        disk(now.store.disk), rest(now),
    ]  # fmt: skip
    return framed(STYLE + "".join(parts))


def rest(now: Overview) -> str:
    """What nothing can be done about here."""
    lists = now.lists
    beside = f'<div class="pair"><div>{REQUESTED.html(lists.requested)}</div><div>{JOBS.html(lists.jobs)}</div></div>'
    return beside + SOURCES.html(lists.sources) + plots(now.store.plots)


def head(now: Overview) -> str:
    worries = now.worries
    what = "thing needs attention" if len(worries) == 1 else "things need attention"
    lead = f'<span class="bad">{len(worries)} {what}</span>' if worries else '<span class="good">All is well</span>'
    rows = "".join(f"<li>{_in_words(worry)}</li>" for worry in worries[:MOST_WORRIES])
    more = len(worries) - MOST_WORRIES
    rest = f"<li>and {more:,} more</li>" if more > 0 else ""
    where = f'<span class="soft">{name(now.place)} on {text(now.host)}</span>'
    listed = f'<ul class="worries">{rows}{rest}</ul>' if worries else ""
    return f'<div class="head"><h3>Model cache</h3>{where} {lead}</div>{listed}'


def _in_words(line: str) -> str:
    """Where it is long, its beginning, cut between words."""
    cut = shorten(line, MOST_WORDS, placeholder=" …")
    return f'<span title="{title(line)}">{text(cut)}</span>' if len(cut) > MOST_WORDS // 2 else name(line, MOST_WORDS)


# -- downloads: a line each, beside which a dashboard has buttons -----------------------------------------------------


def running(now: Overview) -> str:
    return running_title(now) + _lines(all_running(now), running_line)


def queued(now: Overview) -> str:
    return queued_title(now) + _lines(now.lists.queued, queued_line)


def interrupted(now: Overview) -> str:
    return interrupted_title(now) + _lines(now.lists.interrupted, interrupted_line)


def running_title(now: Overview) -> str:
    return _title("Running", all_running(now)) or heading("Running") + '<p class="soft">Nothing is being fetched.</p>'


def queued_title(now: Overview) -> str:
    return _title("Queued, paused" if now.lists.is_queue_paused else "Queued", now.lists.queued)


def interrupted_title(now: Overview) -> str:
    return _title("Interrupted", now.lists.interrupted)


def _title(title: str, told: Told[T]) -> str:
    """Empty where there is nothing to tell."""
    if told.fault:
        return heading(title) + fault(told.fault)
    count = len(told.rows)
    some = f", the first {MOST_LINES} of {count:,}" if count > MOST_LINES else ""
    return heading(title + some) if count else ""


def _lines(told: Told[T], line: Callable[[T], str]) -> str:
    return "".join(map(line, told.rows[:MOST_LINES]))


def all_running(now: Overview) -> Told[Running]:
    """In this process and in others."""
    ours, others = now.running, now.lists.running
    return Told((*ours.rows, *others.rows), ours.fault or others.fault)


def running_line(one: Running) -> str:
    speed = f"{in_units(one.speed)}/s" if one.speed else ""
    left = as_clock(one.eta_s) + " left" if one.eta_s else ""
    beside = _bar(one.name, one.here, one.total, speed, left)
    return _line("running", one.name, _note_of_running(one), beside)


def _note_of_running(one: Running) -> str:
    where = f" from {host(one.gateway)}" if one.gateway else ""
    files = f", {one.files_done} of {one.files} files" if one.files > 1 else ""
    return f"{one.stage}{where}{files}"


def interrupted_line(one: Interrupted) -> str:
    is_begun = one.here or one.total
    beside = _bar(one.name, one.here, one.total, _can(one)) if is_begun else f'<span class="soft">{_can(one)}</span>'
    return _line(one.status, one.name, _note_of_interrupted(one), beside)


def _note_of_interrupted(one: Interrupted) -> str:
    why = f": {one.error}" if one.error and not one.error.endswith(" was paused") else ""
    return f"{one.status.capitalize()} {ago(one.ended_at)}{why}"


def _can(one: Interrupted) -> str:
    if not one.here:
        return "nothing of it is here"
    return "can resume" if one.can_resume else "cannot resume"


def queued_line(one: Queued) -> str:
    return _line(one.status, one.name, _note_of_queued(one), f'<span class="soft">priority {one.priority:,}</span>')


def _note_of_queued(one: Queued) -> str:
    by = f" by {one.by}" if one.by else ""
    why = f": {one.error}" if one.error else f", added {ago(one.added_at)}"
    where = f" · {one.gateway}" if one.gateway else ""
    return f"{one.status.capitalize()}{by}{why}{where}"


def _bar(label: str, here: int, total: int, *more: str) -> str:
    """Without a value where nobody knows how much there is to come: then it moves to and fro."""
    value = f' value="{min(here, total)}" max="{total}"' if total else ""
    words = " · ".join(filter(None, (part_of(here, total), *more)))
    return f'<progress{value} aria-label="{title(label)}"></progress><span class="soft">{text(words)}</span>'


def _line(state: str, what: str, note: str, beside: str) -> str:
    about = f'<b>{name(what)}</b> <span class="soft why">{_in_words(note)}</span>'
    return f'<div class="line" data-state="{text(state)}"><span>{about}</span> <span>{beside}</span></div>'


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """One kind of rows as cells: a number stays one, so that it is set to the right."""

    title: str
    columns: tuple[str, ...]
    cells: Callable[[T], Sequence[object]]
    empty: str = ""  # what is said where there are none; else the whole section is left out
    most: int = MOST_ROWS
    spare: str = ""  # the columns that are left out where it is narrow, as classes

    def html(self, told: Told[T]) -> str:
        if told.fault:
            return heading(self.title) + fault(told.fault)
        if not told.rows:
            return heading(self.title) + f'<p class="soft">{self.empty}</p>' if self.empty else ""
        drawn = table(self.columns, map(self.cells, told.rows[: self.most]), _shown)
        drawn = f'<div class="{self.spare}">{drawn}</div>' if self.spare else drawn
        return heading(self.title) + drawn + more(len(told.rows), self.most)

    def plain(self, told: Told[T]) -> str:
        if told.fault or not told.rows:
            return f"{self.title}: {told.fault}" if told.fault else ""
        rows = ([_shown(*pair) for pair in zip(self.columns, self.cells(row), strict=True)] for row in told.rows)
        drawn = Report(self.title, tuple(dict(zip(self.columns, row, strict=True)) for row in islice(rows, self.most)))
        rest = len(told.rows) - self.most
        return f"{drawn}\nand {rest:,} more" if rest > 0 else str(drawn)


def _shown(column: str, value: object) -> str:
    if value is None or not isinstance(value, int | float):
        return "" if value is None else str(value)
    forms: dict[str, Callable[[float], str]] = {
        "size": in_units, "succeeded": as_percent, "speed": lambda speed: f"{in_units(speed)}/s",
    }  # fmt: skip
    return forms.get(column, "{:,}".format)(value)


def _of_installed(one: Held) -> Sequence[object]:
    return (
        one.model, short_version(one.version), max(0, one.size), ago(one.used_at), ago(one.verified_at),
        PROOFS.get(one.proof, one.proof), one.status, "pinned" if one.is_pinned else "",
    )  # fmt: skip


def _of_job(one: Job) -> Sequence[object]:
    findings = f"{one.findings:,} finding{'' if one.findings == 1 else 's'}" if one.findings else ""
    ended = ": ".join(filter(None, (findings or one.status, one.error)))
    return one.name, one.cron, ago(one.last_at), one.wrong or ended, moment(one.next_at) if one.next_at else ""


INSTALLED: Table[Held] = Table(
    "Installed", ("model", "version", "size", "last used", "last verified", "proof", "status", "pin"), _of_installed,
    "Nothing is installed yet.", spare="x2 x4 x6",
)  # fmt: skip
REQUESTED: Table[Requested] = Table(
    "Most requested", ("rank", "model", "requests", "last"),
    lambda one: (one.rank, one.model, one.requests, ago(one.last_at)), "Nothing was asked for yet.", most=8,
)  # fmt: skip
SOURCES: Table[Source] = Table(
    "Sources", ("source", "kind", "succeeded", "speed", "last success", "last error"),
    lambda one: (
        one.gateway, one.layer, one.success_rate, one.throughput or None, ago(one.last_success), one.last_error,
    ),
)  # fmt: skip
JOBS: Table[Job] = Table("Jobs", ("job", "when", "last run", "ended", "next run"), _of_job, spare="x2")
RUNNING: Table[Running] = Table(
    "Running", ("name", "here", "state"), lambda one: (one.name, part_of(one.here, one.total), _note_of_running(one))
)
QUEUED: Table[Queued] = Table(
    "Queued", ("name", "priority", "state"), lambda one: (one.name, one.priority, _note_of_queued(one))
)
INTERRUPTED: Table[Interrupted] = Table(
    "Interrupted", ("name", "here", "resume", "state"),
    lambda one: (one.name, part_of(one.here, one.total), _can(one), _note_of_interrupted(one)),
)  # fmt: skip


def disk(told: Told[Disk]) -> str:
    if told.fault:
        return heading("Disk") + fault(told.fault)
    return heading("Disk") + "".join(map(_disk, told.rows))


def _disk(one: Disk) -> str:
    free = f"{in_units(one.free)} free"
    if not one.budget:
        return f"<p>{in_units(one.taken)} used <span class='soft'>· no budget is set · {free}</span></p>"
    share, state = as_percent(one.taken / one.budget), "failed" if one.taken > one.budget else "right"
    bar = f'<progress value="{min(one.taken, one.budget)}" max="{one.budget}" aria-label="disk budget"></progress>'
    told = f"{in_units(one.taken)} of {in_units(one.budget)} <span class='soft'>· {share} · {free}</span>"
    return f'<div class="disk" data-state="{state}">{bar}<span>{told}</span></div>'


def plots(told: Told[str]) -> str:
    if told.fault:
        return heading("The last days") + fault(told.fault)
    return f'{heading("The last days")}<div class="pair">{"".join(told.rows)}</div>' if told.rows else ""


def heading(title: str) -> str:
    return f'<h3 class="section">{text(title)}</h3>'


def fault(line: str) -> str:
    return f'<p class="bad">{name(line, 300)}</p>'


def more(count: int, most: int) -> str:
    return f'<p class="soft">and {count - most:,} more</p>' if count > most else ""


def ago(at_ms: int | None) -> str:
    if not at_ms:
        return "never"
    seconds = (now_ms() - at_ms) / 1000
    return "just now" if seconds < 60 else f"{as_age(seconds)} ago"


# -- text -------------------------------------------------------------------------------------------------------------


def plain(now: Overview) -> str:
    """The same for a terminal."""
    parts = [
        "\n".join((f"Model cache {now.place} on {now.host}", *(f"! {worry}" for worry in now.worries))),
        RUNNING.plain(all_running(now)), QUEUED.plain(now.lists.queued), INTERRUPTED.plain(now.lists.interrupted),
        INSTALLED.plain(now.store.installed), *map(_plain_disk, now.store.disk.rows),
        REQUESTED.plain(now.lists.requested), SOURCES.plain(now.lists.sources), JOBS.plain(now.lists.jobs),
    ]  # fmt: skip
    return "\n".join(map(printable, "\n\n".join(filter(None, parts)).split("\n")))


def _plain_disk(one: Disk) -> str:
    budget = f" of {in_units(one.budget)}" if one.budget else ""
    return f"Disk: {in_units(one.taken)} used{budget}, {in_units(one.free)} free"
