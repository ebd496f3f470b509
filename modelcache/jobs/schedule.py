"""Which jobs there are, and when they run: tables [jobs.NAME] of the configuration file over the defaults.

Responsible for: reading them strictly; what is wrong with one job is kept with that job, so that the others run; and
which run is due. A run is called by its slot: the instant its cron line means, in UTC, however late it begins.
Leaves to others: reading the file (`configuration`), waking up (`daemon`), and whether a slot has been run (`ledger`).
"""

import hashlib
import importlib
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from importlib.util import find_spec
from typing import Any

from modelcache.configuration import job_tables
from modelcache.errors import UsageError
from modelcache.jobs.cron import Cron
from modelcache.jobs.job import BUILT_IN
from modelcache.jobs.localtime import local_time
from modelcache.printing import printable
from modelcache.store.modes import is_shared
from modelcache.urls import checked_url

GRACE_S = 3600.0  # what begins later than that is left out
MAX_RUNTIME_S = 6 * 3600.0
MOST_S = 1e9
DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "verify": {"cron": "0 3 * * *", "enabled": True},
    "clean": {"cron": "30 3 * * *", "enabled": True},
    "publish-metrics": {"cron": "0 6 * * *", "enabled": True},
    "refresh": {"cron": "0 4 * * *", "enabled": False},
    "mirror": {"cron": "0 5 * * *", "enabled": False},
}
_NAME = re.compile("[a-z0-9][a-z0-9_-]{0,63}")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One job. `target` is `package.module:function`; without a `cron` line, or while not `enabled`, it runs only when
    somebody runs it.

    jitter: seconds; each host begins later by a part of it that is always the same. max_runtime: seconds; a run that
    takes longer is told to stop. ping: a URL that is asked after a run that was well; it may hold a secret.
    fault: what is wrong with its table, in words; then it does not run, and nothing else here counts.
    """

    name: str
    target: str = ""
    cron: Cron | None = None
    enabled: bool = False
    jitter: float = 0.0
    max_runtime: float = MAX_RUNTIME_S
    ping: str = field(default="", repr=False)
    options: Mapping[str, object] = field(default_factory=dict)
    fault: str = ""

    @property
    def runs_by_itself(self) -> bool:
        return self.enabled and self.cron is not None and not self.fault

    @property
    def delay_s(self) -> float:
        """Of this host, so that not all of them begin at once."""
        digest = hashlib.sha256(f"{socket.gethostname()}\0{self.name}".encode()).digest()
        return self.jitter * int.from_bytes(digest[:4]) / 2**32

    def next(self, now: float) -> float | None:
        """When it begins next, in seconds since 1970; never at `now`."""
        if self.cron is None or not self.runs_by_itself:
            return None
        instant = self.cron.next(now - self.delay_s)
        return None if instant is None else instant + self.delay_s

    def due(self, now: float) -> str:
        """The slot that should have begun by now and is not too old; empty if there is none."""
        if self.cron is None or not self.runs_by_itself:
            return ""
        instant = self.cron.latest(now - self.delay_s, GRACE_S)
        return "" if instant is None else slot_of(instant)


SLOT, SLOT_NOW = "%Y%m%dT%H%MZ", "%Y%m%dT%H%M%SZ"  # of a cron line; of somebody who runs it now


def slot_of(instant: float, form: str = SLOT) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime(form)


def schedules(root: str, zone: tzinfo | None = None) -> tuple[Schedule, ...]:
    """All jobs, those that are off or wrong included. UsageError where the file itself cannot be read, or TZ means
    nothing."""
    path, tables = job_tables(root)
    zone, found = zone or local_time(), []
    for name in dict.fromkeys([*DEFAULTS, *tables]):
        try:
            found.append(_schedule(path, name, tables.get(name, {}), zone))
        except UsageError as error:
            found.append(Schedule(_shown(name), fault=f"{path}: [jobs.{_shown(name)}]: {error.line()}"))
    return tuple(found)


def schedule(root: str, name: str) -> Schedule:
    """UsageError for a job that there is not, or whose table is wrong."""
    found = {one.name: one for one in schedules(root)}
    if name not in found:
        raise UsageError(f"no job {_shown(name)!r}", next_step=f"there are {', '.join(found)}")
    if found[name].fault:
        raise UsageError(found[name].fault)
    return found[name]


def _schedule(path: str, name: str, table: object, zone: tzinfo | None) -> Schedule:
    if not _NAME.fullmatch(name):
        raise UsageError("a name of a job has small letters, digits, - and _")
    if not isinstance(table, dict):
        raise UsageError("a table is expected")  # what is there may be a ping, which is a secret
    options = dict(table)
    taken = {key: _checked(key, options.pop(key)) for key in KEYS if key in table}
    target = _target(path, name, taken)
    is_said = {"enabled": True} if "cron" in taken else {}  # whoever says when means that it is to run
    values: dict[str, Any] = {"enabled": False, **DEFAULTS.get(name, {}), **is_said, **taken}
    line = values.get("cron")
    cron = Cron(line, zone) if line else None
    _check_runs(name, target, options)
    return Schedule(
        name, target, cron, values["enabled"], float(values.get("jitter", 0.0)),
        float(values.get("max_runtime", MAX_RUNTIME_S)), values.get("ping", ""), options,
    )  # fmt: skip


def _target(path: str, name: str, taken: Mapping[str, Any]) -> str:
    """What runs. In a root that a group shares only what nobody else could have written there (cf. decision 0014)."""
    target = taken.get("run")
    if target is None:
        if name not in BUILT_IN:
            raise UsageError("there is no such job", next_step='name your function: run = "package.module:function"')
        return BUILT_IN[name]
    if name in BUILT_IN:
        raise UsageError("it comes with modelcache", next_step="give your own job another name")
    status = os.stat(path)
    if is_shared(os.path.dirname(path)) and (status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022):
        raise UsageError("others can write to that file, and would choose what runs here", next_step="chmod 644")
    return str(target)


def _check_runs(name: str, target: str, options: Mapping[str, object]) -> None:
    """As far as can be told without running anything of somebody else's: what a package holds is seen when it runs."""
    module = target.partition(":")[0]
    if name in BUILT_IN:
        importlib.import_module(module).checked(options)
    elif module.partition(".")[0] not in sys.modules and find_spec(module.partition(".")[0]) is None:
        raise UsageError(f'run = "{target}": there is no such module', next_step="install it, or set PYTHONPATH")


def _is_function(value: object) -> bool:
    return isinstance(value, str) and bool(_TARGET.fullmatch(value))


def _is_url(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(checked_url(value))
    except UsageError:
        return False


def _is_seconds(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


KEYS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "run": (_is_function, '"package.module:function"'),
    "cron": (lambda value: isinstance(value, str), "a line of a crontab"),
    "enabled": (lambda value: isinstance(value, bool), "true or false"),
    "jitter": (lambda value: _is_seconds(value, 0.0, GRACE_S), f"a number of seconds up to {GRACE_S:g}"),
    "max_runtime": (lambda value: _is_seconds(value, 0.1, MOST_S), f"a number of seconds up to {MOST_S:g}"),
    "ping": (_is_url, "a URL of http or https"),
}


def _checked(name: str, value: object) -> Any:
    is_right, expected = KEYS[name]
    if not is_right(value):
        shown = "" if name == "ping" else f" = {value!r}"  # that may be a secret
        raise UsageError(f"{name}{shown}: {expected} is expected")
    return value


def _shown(name: str) -> str:
    return printable(name[:64])
