"""A line of a crontab, and the instants that it means.

Responsible for: what cron means by it where APScheduler means something else: numbers of weekdays begin with Sunday, a
day of the month and one of the week are either, and an hour that the clocks go through twice counts once. Local time.
Leaves to others: what runs then (`schedule`), and waking up (`daemon`).
"""

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

from modelcache.errors import UsageError
from modelcache.jobs.localtime import local_time

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MOST_CHARACTERS = 200
A_LITTLE_S = 1e-3


class Cron:
    """UsageError for a line that cannot be meant, or that never comes. `zone` is the machine's if none is given."""

    def __init__(self, line: str, zone: tzinfo | None = None) -> None:
        self.line = line
        fields, zone = line.split(), zone or local_time()
        if len(fields) != 5 or len(line) > MOST_CHARACTERS:
            raise UsageError(f"cron = {line[:MOST_CHARACTERS]!r}: minute, hour, day, month and weekday are expected")
        try:
            self._triggers = [CronTrigger.from_crontab(each, timezone=zone) for each in _split(fields)]
        except ValueError as error:
            raise UsageError(f"cron = {line!r}: {error}") from error
        self._walls = [CronTrigger.from_crontab(each, timezone=UTC) for each in _split(fields)]
        self._is_hourly = fields[1].startswith("*")
        if self.next(0.0) is None:
            raise UsageError(f"cron = {line!r}: there is no such day")

    @property
    def zone(self) -> tzinfo:
        zone: tzinfo = self._triggers[0].timezone
        return zone

    def next(self, after: float) -> float | None:
        """The first instant after a moment; both in seconds since 1970."""
        return next(self._after(after), None)

    def latest(self, until: float, within_s: float) -> float | None:
        """The last instant up to a moment, if it is not older than that."""
        latest = None
        for instant in self._after(until - within_s - 2 * A_LITTLE_S):
            if instant > until:
                break
            latest = instant
        return latest

    def _after(self, moment: float) -> Iterator[float]:
        while True:
            now = datetime.fromtimestamp(moment + A_LITTLE_S, self.zone)
            found = [one for trigger in self._triggers if (one := trigger.get_next_fire_time(None, now))]
            found += [] if self._is_hourly else self._left_out(now)
            if not found:
                return
            first = min(found, key=datetime.timestamp)
            moment = first.timestamp()
            if not first.fold or self._is_hourly:
                yield moment

    def _left_out(self, now: datetime) -> Iterator[datetime]:
        """What comes next on the wall, where clocks leave that out: it is meant as much later.

        APScheduler passes over it where clocks leave out midnight.
        """
        for trigger in self._walls:
            wall = trigger.get_next_fire_time(None, now.replace(tzinfo=UTC, fold=0))
            if wall is not None:
                instant = wall.replace(tzinfo=self.zone).timestamp()
                meant = datetime.fromtimestamp(instant, self.zone)
                if meant.replace(tzinfo=None) != wall.replace(tzinfo=None) and instant > now.timestamp():
                    yield meant


def _split(fields: list[str]) -> list[str]:
    """One line, or two where either day will do (crontab(5)), with the names of weekdays."""
    minute, hour, day, month, weekday = fields
    named = _named(weekday)
    if day.startswith("*") or weekday.startswith("*"):
        return [" ".join((minute, hour, day, month, named))]
    return [" ".join((minute, hour, day, month, "*")), " ".join((minute, hour, "*", month, named))]


def _named(weekdays: str) -> str:
    """Numbers and ranges as a list of names. ValueError."""
    if weekdays == "*":
        return weekdays
    days: list[str] = []
    for part in weekdays.lower().split(","):
        span, _, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        start = _number(first)
        stop = _number(last) if dash else 6 if step else start
        if stop < start:
            stop += 7  # fri-mon; and 0 is the 7 that a week ends with
        days += [DAYS[number % 7] for number in range(start, stop + 1, int(step or 1))]
    return ",".join(dict.fromkeys(days))


def _number(weekday: str) -> int:
    if weekday in DAYS:
        return DAYS.index(weekday)
    if weekday.isdecimal() and weekday.isascii() and len(weekday) == 1 and int(weekday) <= 7:
        return int(weekday)
    raise ValueError(f"{weekday!r} is no weekday")
