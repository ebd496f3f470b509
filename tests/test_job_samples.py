"""What lies in jobs/ can be used as it is: programs run, and cron, systemd and Kubernetes understand the rest."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

from modelcache.cli import parser
from modelcache.jobs.cron import Cron
from modelcache.jobs.job import BUILT_IN
from modelcache.jobs.runner import PATIENCE_S

JOBS = Path(__file__).parent.parent / "jobs"
PROGRAMS = sorted(JOBS.glob("*.py"))
UNITS = sorted([*JOBS.glob("*.service"), *JOBS.glob("*.timer")])


def check_command(words: list[str]) -> None:
    """It can be typed, and names a job that there is."""
    assert words[0] == "modelcache"
    options = parser().parse_args(words[1:])
    assert options.action == "start" or options.name in BUILT_IN


def test_each_job_has_a_program_that_runs_it() -> None:
    assert {program.stem.replace("_", "-") for program in PROGRAMS} == set(BUILT_IN)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_runs_its_job_once(program: Path, home: Path) -> None:
    name = program.stem.replace("_", "-")
    command = [sys.executable, str(program), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=home.parent)
    assert (done.returncode, f'"job": "{name}"' in done.stdout) == (0, True), done.stderr
    assert [path.parent.name for path in home.glob("jobs/*/*.json")] == [name]


def test_cron_understands_each_line_of_the_crontab() -> None:
    lines = [line for line in (JOBS / "crontab.sample").read_text().splitlines() if line and line[0] != "#"]
    jobs = [line for line in lines if not re.match(r"[A-Z_]+=\S", line)]
    assert len(jobs) >= 4 and len(lines) > len(jobs)
    for line in jobs:
        *fields, command = line.split(None, 5)
        assert Cron(" ".join(fields)).next(0.0)
        assert "%" not in command  # which crontab(5) takes for the end of the line
        check_command(shlex.split(command))
        assert "--quiet" in shlex.split(command)  # whatever it prints is a mail, each night


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_one_and_runs_a_command_that_can_be_typed(unit: Path) -> None:
    sections = configparser.RawConfigParser(strict=True)
    sections.read(unit)
    assert sections.has_section("Unit")
    if unit.suffix == ".timer":
        assert unit.with_suffix(".service") in UNITS
        return
    interpreter, *words = shlex.split(sections["Service"]["ExecStart"])
    assert interpreter == "/usr/bin/env"
    check_command(words)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    command = ["systemd-analyze", "--user", "verify", "--man=no", *map(str, UNITS)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("no systemd can be had here")
    about_ours = [line for line in done.stderr.splitlines() if "modelcache" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_the_cron_job_of_kubernetes_runs_a_job_and_never_twice_at_a_time() -> None:
    (cron_job,) = yaml.safe_load_all((JOBS / "kubernetes-cronjob.yaml").read_text())
    assert (cron_job["apiVersion"], cron_job["kind"]) == ("batch/v1", "CronJob")
    spec = cron_job["spec"]
    assert Cron(spec["schedule"], ZoneInfo(spec["timeZone"])).next(0.0)
    assert (spec["concurrencyPolicy"], spec["jobTemplate"]["spec"]["backoffLimit"]) == ("Forbid", 0)
    template = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert template["restartPolicy"] == "Never" and template["terminationGracePeriodSeconds"] > PATIENCE_S
    (container,) = template["containers"]
    check_command(container["command"])
    (mount,), (volume,) = container["volumeMounts"], template["volumes"]
    assert mount["name"] == volume["name"]
    assert {"name": "MODELCACHE_HOME", "value": mount["mountPath"]} in container["env"]
