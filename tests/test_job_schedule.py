"""When jobs run, as crontab(5) and the settings say."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo

import pytest
from caches import run

from modelcache.errors import UsageError
from modelcache.jobs.cron import Cron
from modelcache.jobs.localtime import local_time
from modelcache.jobs.schedule import Schedule, schedule, schedules

BERLIN = ZoneInfo("Europe/Berlin")  # 02:00 became 03:00 on 2026-03-29, 03:00 becomes 02:00 on 2026-10-25
DAY_S = 86_400.0


def at(text: str) -> float:
    """Of a moment in UTC, as 2026-03-29T01:30."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def instants(line: str, start: str, count: int, zone: ZoneInfo = BERLIN) -> list[str]:
    cron, now, found = Cron(line, zone), at(start), []
    for _ in range(count):
        instant = cron.next(now)
        assert instant is not None and instant > now
        now = instant
        found.append(datetime.fromtimestamp(now, UTC).strftime("%a %d %H:%M"))
    return found


def settings(home: Path, text: str) -> dict[str, Schedule]:
    """All jobs under this configuration file."""
    home.mkdir(exist_ok=True)
    Path(home, "modelcache.toml").write_text(text)
    return {one.name: one for one in schedules(str(home), UTC)}


def test_a_line_is_meant_in_local_time() -> None:
    assert instants("0 3 * * *", "2026-01-10T00:00", 2) == ["Sat 10 02:00", "Sun 11 02:00"]
    assert instants("0 3 * * *", "2026-07-10T02:00", 2) == ["Sat 11 01:00", "Sun 12 01:00"]


def test_what_falls_into_the_hour_that_is_left_out_runs_after_it() -> None:
    assert instants("30 2 * * *", "2026-03-28T02:00", 3) == ["Sun 29 01:30", "Mon 30 00:30", "Tue 31 00:30"]


@pytest.mark.parametrize(
    ("line", "zone", "start", "found"),
    [
        ("0 0 * * *", "America/Havana", "2027-03-12T12:00", ["Sat 13 05:00", "Sun 14 05:00", "Mon 15 04:00"]),
        ("30 0 * * *", "Africa/Cairo", "2027-04-28T12:00", ["Wed 28 22:30", "Thu 29 22:30", "Fri 30 21:30"]),
        ("0 0 14 3 *", "America/Havana", "2027-03-12T12:00", ["Sun 14 05:00", "Tue 14 04:00"]),
        ("0 0 1 * sun", "America/Havana", "2027-03-12T12:00", ["Sun 14 05:00", "Sun 21 04:00"]),
    ],
)
def test_a_midnight_that_is_left_out_runs_after_it(line: str, zone: str, start: str, found: list[str]) -> None:
    assert instants(line, start, len(found), ZoneInfo(zone)) == found


def test_what_falls_into_the_hour_that_comes_twice_runs_once() -> None:
    assert instants("30 2 * * *", "2026-10-24T12:00", 2) == ["Sun 25 00:30", "Mon 26 01:30"]


def test_what_runs_every_hour_runs_in_the_hour_that_comes_twice_too() -> None:
    found = instants("30 * * * *", "2026-10-24T23:45", 3)
    assert found == ["Sun 25 00:30", "Sun 25 01:30", "Sun 25 02:30"]


@pytest.mark.parametrize(
    ("weekdays", "days"),
    [
        ("0", ["Sun"]), ("7", ["Sun"]), ("sun", ["Sun"]), ("1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("5-7", ["Fri", "Sat", "Sun"]), ("0-1", ["Sun", "Mon"]),
        ("MON,3", ["Mon", "Wed"]), ("fri-mon/2", ["Fri", "Sun"]),
        ("*/2", ["Sun", "Tue", "Thu", "Sat"]),
    ],
)  # fmt: skip
def test_numbers_of_weekdays_begin_with_sunday(weekdays: str, days: list[str]) -> None:
    found = {each[:3] for each in instants(f"0 12 * * {weekdays}", "2026-07-01T00:00", 7)}
    assert found == set(days)


def test_a_day_of_the_month_and_one_of_the_week_are_either() -> None:
    found = instants("0 12 1 * mon", "2026-07-01T00:00", 3)
    assert found == ["Wed 01 10:00", "Mon 06 10:00", "Mon 13 10:00"]


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "0 3 * *", "0 3 * * * *", "61 * * * *", "*/0 * * * *", "5-1 * * * *", "0 3 * * 8", "0 3 * * mo",
     "0 3 * * 1-", "0 3 * * 1/0", "0 3 * * -1", "0 3 * * ²", "0 3 31 2 *", "0 " * 3000, "0 3 * * 1/-1", "\0 3 * * *"],
)  # fmt: skip
def test_a_line_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="cron = "):
        Cron(line, BERLIN)


def test_the_latest_instant_is_not_older_than_that() -> None:
    cron = Cron("0 3 * * *", BERLIN)
    assert cron.latest(at("2026-01-10T02:00"), 3600) == at("2026-01-10T02:00")
    assert cron.latest(at("2026-01-10T03:00"), 3600) == at("2026-01-10T02:00")
    assert cron.latest(at("2026-01-10T03:01"), 3600) is None


def test_a_slot_is_what_the_line_means_however_late_it_begins() -> None:
    one = Schedule("verify", cron=Cron("0 3 * * *", BERLIN), enabled=True)
    assert one.due(at("2026-01-10T01:59")) == ""
    assert {one.due(at(f"2026-01-10T{clock}")) for clock in ("02:00", "02:00:30", "02:59")} == {"20260110T0200Z"}
    assert one.due(at("2026-01-10T03:01")) == ""


def test_jitter_delays_a_run_and_leaves_its_slot() -> None:
    one = Schedule("verify", cron=Cron("0 3 * * *", BERLIN), enabled=True, jitter=1800.0)
    plain, begins = at("2026-01-10T02:00"), one.next(at("2026-01-09T12:00"))
    assert begins is not None and plain < begins < plain + 1800
    assert one.due(begins) == "20260110T0200Z"
    assert one.due(begins - 1) == ""
    assert one.next(begins) == begins + DAY_S


def test_the_delay_is_the_same_after_a_restart_and_another_for_each_job() -> None:
    delays = [Schedule(name, jitter=1800.0).delay_s for name in ("verify", "verify", "clean")]
    assert delays[0] == delays[1] != delays[2]


def test_without_a_file_three_jobs_run_by_themselves(home: Path) -> None:
    found = {one.name: one for one in schedules(str(home))}
    assert [name for name, one in found.items() if one.runs_by_itself] == ["verify", "clean", "publish-metrics"]
    assert [one.cron.line for one in found.values() if one.cron and one.enabled] == [
        "0 3 * * *", "30 3 * * *", "0 6 * * *",
    ]  # fmt: skip
    assert not any(one.fault for one in found.values())


def test_a_table_changes_what_it_names_and_leaves_the_rest(home: Path) -> None:
    found = settings(
        home,
        '[jobs.verify]\ncron = "15 1 * * *"\nshare = 0.5\njitter = 60\nmax_runtime = 10\n'
        "[jobs.clean]\nenabled = false\n"
        '[jobs.refresh]\nenabled = true\n[jobs.mirror]\ncron = "0 1 * * *"\ntop = 3\n'
        '[jobs.mine]\nrun = "ownjobs:count"\n',
    )
    verify = found["verify"]
    assert verify.cron and verify.cron.line == "15 1 * * *"
    assert (verify.options, verify.jitter, verify.max_runtime) == ({"share": 0.5}, 60.0, 10.0)
    on = [name for name, one in found.items() if one.runs_by_itself]
    assert on == ["verify", "publish-metrics", "refresh", "mirror"]
    assert found["mirror"].options == {"top": 3}
    assert found["mine"].target == "ownjobs:count" and not found["mine"].fault


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('[jobs.verify]\ncron = "nonsense"', "minute, hour, day, month and weekday"),
        ("[jobs.verify]\ncron = 3", "a line of a crontab is expected"),
        ('[jobs.verify]\nenabled = "no"', "true or false is expected"),
        ("[jobs.verify]\njitter = -1", "a number of seconds up to 3600 is expected"),
        ("[jobs.verify]\nmax_runtime = nan", "a number of seconds"),
        ("[jobs.verify]\nmax_runtime = true", "a number of seconds"),
        ('[jobs.verify]\nrun = "os:getcwd"', "it comes with modelcache"),
        ('[jobs]\nverify = "0 3 * * *"', "a table is expected"),
        ('[jobs.mine]\ncron = "0 3 * * *"', "there is no such job"),
        ('[jobs.mine]\nrun = "job"', '"package.module:function" is expected'),
        ('[jobs.mine]\nrun = "../evil:job"', '"package.module:function" is expected'),
        ('[jobs.verify]\nshare = "abc"', "abc"),
        ("[jobs.verify]\nshare = nan", "nan"),
        ("[jobs.verify]\nnope = 1", "unknown option 'nope'"),
        ('[jobs.verify]\nalso = "hf"', "a list of texts is expected"),
        ('[jobs.verify]\nrate_limit = "fast"', "'fast'"),
        ("[jobs.mirror]\ntop = -1", "top = -1: a whole number from 0 is expected"),
        ('[jobs.refresh]\ntop = "1"', "unknown option 'top'"),
        ('[jobs.mine]\nrun = "no.such:thing"', "there is no such module"),
        ('[jobs."../../mine"]\nrun = "a:b"', "small letters"),
    ],
)
def test_what_is_wrong_with_one_job_is_told_with_the_file_and_the_job_and_the_others_run(
    home: Path, table: str, words: str
) -> None:
    found = settings(home, table)
    (fault,) = [one.fault for one in found.values() if one.fault]
    assert fault.startswith(f"{home}/modelcache.toml: [jobs.")
    assert words in fault
    assert found["clean"].runs_by_itself and found["publish-metrics"].runs_by_itself
    assert not any(one.runs_by_itself for one in found.values() if one.fault)


@pytest.mark.parametrize(("name", "option"), [("clean", "dry_run = 1"), ("publish-metrics", 'since = "soon"')])
def test_a_wrong_option_is_a_fault_of_its_job(home: Path, name: str, option: str) -> None:
    one = settings(home, f"[jobs.{name}]\n{option}")[name]
    assert option.split()[0] in one.fault and not one.runs_by_itself


def test_a_module_of_somebody_elses_is_looked_for_and_not_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "theirjobs"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    assert settings(home, '[jobs.mine]\nrun = "theirjobs.night:job"')["mine"].fault == ""
    assert "theirjobs" not in sys.modules


def test_a_wrong_ping_is_told_without_the_secret_that_it_may_be(home: Path) -> None:
    one = settings(home, '[jobs.verify]\nping = "hc-ping.com/SECRET"')["verify"]
    assert "ping: a URL of http or https is expected" in one.fault
    assert "SECRET" not in one.fault
    misplaced = settings(home, '[jobs]\nping = "https://hc-ping.com/SECRET"')["ping"]
    assert "a table is expected" in misplaced.fault and "SECRET" not in misplaced.fault
    Path(home, "modelcache.toml").write_text('jobs = "https://hc-ping.com/SECRET"')
    with pytest.raises(UsageError, match="are expected") as caught:
        schedules(str(home))
    assert "SECRET" not in caught.value.line()
    right = settings(home, '[jobs.verify]\nping = "https://hc-ping.com/SECRET"')["verify"]
    assert right.ping.endswith("SECRET") and "SECRET" not in repr(right)


def test_one_job_is_named_or_refused(home: Path) -> None:
    settings(home, '[jobs.clean]\ncron = "x"')
    assert schedule(str(home), "verify").name == "verify"
    with pytest.raises(UsageError, match="no job 'verfy'"):
        schedule(str(home), "verfy")
    with pytest.raises(UsageError, match=r"\[jobs.clean\]"):
        schedule(str(home), "clean")


def test_a_fetch_does_not_mind_what_jobs_are_told(home: Path) -> None:
    from modelcache.caching import Cache

    settings(home, 'log_age = 5.0\n[jobs.verify]\ncron = "nonsense"')
    assert Cache(home).settings.log_age == 5.0
    Path(home, "modelcache.toml").write_text("jobs = 5")
    with pytest.raises(UsageError, match="tables"):
        schedules(str(home))


def test_in_a_root_of_a_group_nobody_else_chooses_what_runs(home: Path) -> None:
    home.mkdir()
    home.chmod(0o2775)
    text = '[jobs.mine]\nrun = "ownjobs:count"\n'
    settings(home, text)
    Path(home, "modelcache.toml").chmod(0o644)
    assert {one.name: one.fault for one in schedules(str(home))}["mine"] == ""
    Path(home, "modelcache.toml").chmod(0o664)
    assert "others can write" in {one.name: one.fault for one in schedules(str(home))}["mine"]


@pytest.mark.parametrize("zone", ["Nonsense", "/nonexistent", "../../etc/passwd", "/etc/passwd", "Europe"])
@pytest.mark.parametrize("action", ["list", "start"])
def test_a_zone_that_there_is_not_is_said_once(home: Path, zone: str, action: str) -> None:
    done = run("jobs", action, TZ=zone)
    assert (done.returncode, done.stdout, done.stderr.count("TZ=")) == (2, "", 1)
    assert f"TZ={zone!r} names no time zone" in done.stderr


@pytest.mark.parametrize(
    ("zone", "found"),
    [
        ("Asia/Tokyo", "2026-01-10T18:00"), (":Asia/Tokyo", "2026-01-10T18:00"), ("JST-9", "2026-01-10T18:00"),
        ("<+09>-9", "2026-01-10T18:00"),
        ("EST5EDT", "2026-01-10T08:00"), ("", "2026-01-10T03:00"),
    ],
)  # fmt: skip
def test_the_zone_is_what_tz_says_in_whatever_form(zone: str, found: str) -> None:
    program = f"from modelcache.jobs.cron import Cron; print(Cron('0 3 * * *').next({at('2026-01-10T00:00')}))"
    environment = os.environ | {"TZ": zone}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == at(found)


def test_a_zone_may_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for folder in TZPATH if (path := Path(folder, "Asia", "Tokyo")).exists()]
    if not files:
        pytest.skip("this machine has no files of zones")
    monkeypatch.setenv("TZ", str(files[0]))
    assert Cron("0 3 * * *").next(at("2026-01-10T00:00")) == at("2026-01-10T18:00")


def test_the_time_of_the_c_library_is_that_of_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half hour of a year, in both senses of those that come twice, and those that clocks leave out."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        here, begin = local_time(), at("2026-01-01T00:00")
        for number in range(2 * 24 * 365):
            moment = begin + 1800 * number
            mine, there = datetime.fromtimestamp(moment, here), datetime.fromtimestamp(moment, BERLIN)
            assert (mine.replace(tzinfo=None), mine.fold, mine.timestamp()) == (
                there.replace(tzinfo=None), there.fold, moment,
            )  # fmt: skip
        for fold in (0, 1):
            left_out = datetime(2026, 3, 29, 2, 30, fold=fold)
            assert left_out.replace(tzinfo=here).timestamp() == left_out.replace(tzinfo=BERLIN).timestamp()
    time.tzset()
