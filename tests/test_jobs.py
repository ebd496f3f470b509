"""What jobs are given and give, whoever runs them."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from caches import rot

from modelcache.caching import Cache
from modelcache.errors import UsageError
from modelcache.jobs import clean, verify
from modelcache.jobs.job import Config, options_of
from modelcache.testing import Content, Origin


def config(cache: Cache, **options: object) -> Config:
    return Config(cache, options)


def add(cache: Cache, tmp_path: Path, model: str = "m", content: bytes = b"weights") -> Path:
    """A model of one file; where it is in the cache."""
    source = tmp_path / f"{model}.bin"
    source.write_bytes(content)
    return Path(cache.add(source, model).path, source.name)


def test_verify_counts_what_has_rotted_as_findings(cache: Cache, tmp_path: Path) -> None:
    add(cache, tmp_path, "right")
    rot(add(cache, tmp_path, "wrong", b"other weights"), 0)
    everything = config(cache, share="full", older_than=0)
    report = verify.run(everything, stop=threading.Event(), clock=lambda: time.time() + 1)
    assert (report.findings, report.title) == (1, "2 files verified, 20 B")
    assert {row["model"]: row["finding"] for row in report} == {"wrong": "corrupt"}
    assert report.notes == ("to mend it: modelcache repair wrong",)


def test_what_verify_mended_is_no_finding_and_is_said_all_the_same(cache: Cache) -> None:
    content = Content.generated(100_000)
    with Origin({"m.bin": content}) as origin:
        rot(cache.fetch(origin.url("m.bin"), sha256=content.sha256, progress=False).path, 0)
        everything = config(cache, share="full", older_than=0, repair=True)
        report = verify.run(everything, stop=threading.Event(), clock=lambda: time.time() + 1)
    assert (report.findings, report.notes) == (0, ("1 of what was wrong is mended: look after the disk",))


def test_verify_that_is_told_to_stop_gives_what_it_has(cache: Cache, tmp_path: Path) -> None:
    add(cache, tmp_path)
    stop = threading.Event()
    stop.set()
    report = verify.run(config(cache, share=1.0, older_than="0s"), stop=stop, clock=lambda: time.time() + 1)
    assert (report.rows, report.findings) == ((), 0)
    assert "it was ended before its time" in report.title


def test_clean_has_findings_only_where_something_could_not_be_removed(cache: Cache, tmp_path: Path) -> None:
    add(cache, tmp_path)
    cache.remove("m")
    report = clean.run(config(cache), stop=threading.Event(), clock=time.time)
    assert report.findings == 0


class AfterLooks(threading.Event):
    """Set when it has been looked at so often."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_clean_that_is_told_to_stop_gives_what_it_has_and_the_next_run_goes_on(cache: Cache, tmp_path: Path) -> None:
    quarantine = tmp_path / "home" / "quarantine"
    quarantine.mkdir(parents=True)
    assert quarantine.parent == Path(cache.root)
    for number in range(10):
        (quarantine / f"w{number}.1700000000000000000").touch()
    report = clean.run(config(cache), stop=AfterLooks(6), clock=time.time)
    assert 0 < len(report) < 6
    assert "it was ended before its time" in report.title
    assert len(list(quarantine.iterdir())) == 10 - len(report)
    rest = clean.run(config(cache), stop=threading.Event(), clock=time.time)
    assert (len(rest), rest.title) == (10 - len(report), "removed")


@dataclass(frozen=True, slots=True)
class Options:
    share: float = 1.0
    top: int = 3
    names: tuple[str, ...] = ()
    dry: bool = False


def test_options_are_checked_against_what_a_job_knows() -> None:
    given = {"share": 1, "top": 5, "names": ["a", "b"], "dry": True}
    assert options_of(Options, given) == Options(1.0, 5, ("a", "b"), True)
    assert options_of(Options, {}) == Options()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shar": 1.0}, "unknown option 'shar'"),
        ({"share": "1/30"}, "a number is expected"),
        ({"top": True}, "a whole number is expected"),
        ({"dry": 1}, "true or false is expected"),
        ({"names": "a"}, "a list of texts is expected"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options_of(Options, options)
