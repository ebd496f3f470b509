"""Every number a user may turn, with its default, once.

Responsible for: names, types, defaults and bounds. Leaves to `configuration`: reading them from arguments,
environment and configuration file.
"""

import os
from dataclasses import dataclass, fields

from modelcache.errors import UsageError
from modelcache.units import DAY_S

MIB = 1 << 20
MOST, MOST_S = 10**18, 10**9  # what system calls take; 30 years are for ever
KINDS = ("cache", "ipfs", "huggingface", "http", "oci", "peer", "object")  # of sources
HUGGING_FACE, OLLAMA = "hf", "ollama"  # what tiers may be called besides their folders
MAY_BE_ZERO = (
    "resume_threshold", "clean_restarts", "slow_rate", "backoff", "stale_partial_age", "quarantine_age", "log_age",
    "temporary_age", "limit_rate", "manifest_ttl", "disk_budget", "unused_age",
)  # fmt: skip
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """Times end in _s (seconds), sizes in bytes, `resume_threshold` is a share from 0 to 1."""

    connect_timeout: float = 10.0  # resolve and connect together
    header_timeout: float = 30.0  # the whole header phase, also when it dribbles
    stall_timeout: float = 30.0  # no byte for that long
    resolve_timeout: float = 600.0  # until a hub has said all that a model consists of: 100 pages, 6 s each
    slow_rate: int = 1024  # bytes/s; less than that over slow_window counts as a stall
    slow_window: float = 60.0
    attempts_per_source: int = 3  # without progress
    requests_for_nothing: int = 20  # in a row, with less than 1 MiB gained between them
    backoff: float = 1.0
    backoff_factor: float = 2.0
    retry_after_most: float = 60.0  # a source that asks for more is left
    clean_restarts: int = 2  # after bytes proved wrong and no piece tells which
    resume_threshold: float = 0.0  # below this share of the file, start again instead of resuming
    parallel_files: int = 3
    parallel_models: int = 2  # of the queue, in all processes together
    connections: int = 8  # per file, at most: more only while it gets faster; with piece digests one per source
    grow_every: float = 0.25  # how long, at least, a number of connections is watched before it changes
    limit_rate: int = 0  # bytes/s of all downloads together; 0: as fast as it goes
    piece_size: int = 4 * MIB
    window: int = 256 * MIB  # how far ahead of the hash bytes are fetched
    shared: bool = False  # whether the root is a group's: folders 2775, files 664, whatever the umask
    lock_timeout: float = 600.0  # waiting for another process that makes no progress
    stale_partial_age: float = 7 * DAY_S  # `clean` removes what is older and nobody's: what was begun,
    quarantine_age: float = 7 * DAY_S  # what had rotted,
    log_age: float = 30 * DAY_S  # what was logged,
    temporary_age: float = 3600.0  # what a kill left of a moment's work
    disk_budget: int = 0  # bytes that the cache may take; `clean` removes what was not asked for longest; 0: any number
    unused_age: float = 0.0  # what was not asked for in so long; 0: never
    manifest_ttl: float = 3600.0  # how long a tag or branch of a hub is taken to mean what it meant
    metrics_age: float = 90 * DAY_S  # what is older: of attempts only the sums of a day, of records none
    tiers: tuple[str, ...] = (HUGGING_FACE, OLLAMA)  # where a file is looked for before the network is asked
    reports_dir: str = ""  # where reports of the metrics are put, an absolute folder; empty: `reports` in the root
    prefer: str = ""  # the kind of source that is asked first, one of KINDS; empty: the healthiest
    unpack_most: int = 1 << 40
    unpack_entries: int = 100_000

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type is str:
                if not isinstance(value, str):
                    raise UsageError(f"{setting.name} = {value!r}: a text is expected")
                continue
            if setting.name == "tiers":
                object.__setattr__(self, "tiers", _folders(value))
                continue
            if setting.type is bool:
                if not isinstance(value, bool):
                    raise UsageError(f"{setting.name} = {value!r}: true or false is expected")
                continue
            is_whole = setting.type is int
            if not isinstance(value, int if is_whole else (int, float)) or isinstance(value, bool):
                raise UsageError(f"{setting.name} = {value!r}: a {'whole ' if is_whole else ''}number is expected")
            most = MOST if is_whole else MOST_S
            if not 0 <= value <= most or (value == 0 and setting.name not in MAY_BE_ZERO):
                raise UsageError(f"{setting.name} = {value!r}: a positive number up to {most:.0e} is expected")
        if self.prefer not in ("", *KINDS):
            raise UsageError(f"prefer = {self.prefer!r}: one of {', '.join(KINDS)} is expected")
        if self.reports_dir and not os.path.isabs(os.path.expanduser(self.reports_dir)):
            raise UsageError(f"reports_dir = {self.reports_dir!r}: an absolute folder is expected")
        if self.resume_threshold > 1:
            raise UsageError(f"resume_threshold = {self.resume_threshold!r}: a share from 0 to 1 is expected")

    @classmethod
    def parsed(cls, name: str, text: str) -> bool | int | float | str | tuple[str, ...]:
        """One setting from text, by the type of its default. UsageError names the setting."""
        setting = next((field for field in fields(cls) if field.name == name), None)
        if setting is None:
            raise UsageError(f"unknown setting {name!r}")
        if setting.type is str:
            return text
        if name == "tiers":
            return tuple(filter(None, text.split(os.pathsep)))
        if setting.type is bool:
            if text not in _TRUTHS:
                raise UsageError(f"{name} = {text!r}: true or false is expected")
            return _TRUTHS[text]
        try:
            return int(text) if setting.type is int else float(text)
        except ValueError:
            raise UsageError(f"{name} = {text!r}: a number is expected") from None


def _folders(value: object) -> tuple[str, ...]:
    """Of tiers: absolute, so that the working directory chooses none."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"tiers = {value!r}: a list of folders is expected")
    for each in value:
        if each not in (HUGGING_FACE, OLLAMA) and not os.path.isabs(os.path.expanduser(each)):
            raise UsageError(f"tiers: {each!r} is neither an absolute folder nor {HUGGING_FACE} or {OLLAMA}")
    return tuple(value)
