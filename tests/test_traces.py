"""An error of ours below a cell: the user's own lines and one sentence; in a plain program a traceback as ever."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_magics import ran

from modelcache.testing import Origin

SENTENCE = "AllSourcesFailedError: m.bin could not be fetched ("


@pytest.fixture
def url() -> Iterator[str]:
    """Of what is not there."""
    with Origin({}) as origin:
        yield origin.url("m.bin")


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    home.mkdir()


def test_a_fetch_that_fails_shows_the_line_of_the_cell_and_one_sentence(url: str) -> None:
    _, blocking, later, awaited = ran(
        "%xmode Verbose\nimport modelcache as mc",
        f"token = 'hunter2'\nmc.fetch('{url}', headers={{'X-Key': token}})",
        f"mc.fetch('{url}', wait=False).result()",
        f"async def load():\n    return await mc.afetch('{url}')\nawait load()",
    )
    for each, lines in (
        (blocking, ["Cell, line 2"]),
        (later, ["Cell, line 1"]),
        (awaited, ["Cell, line 3", "Cell, line 2, in load"]),
    ):
        printed = each["printed"].strip().splitlines()
        assert each["error"] == "AllSourcesFailedError" and printed[-1].startswith(SENTENCE), printed
        assert printed[:-1:2] == lines and url in printed[-2] + printed[1]
        assert "modelcache/" not in each["printed"] and "During handling" not in each["printed"]
        assert "hunter2" not in each["printed"]


def test_the_user_s_own_modules_are_in_it_and_what_ran_them_is_not(url: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"import modelcache\n\ndef load():\n    return modelcache.fetch('{url}')\n")
    *_, failed = ran(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})",
        "import mine\nfrom concurrent.futures import ThreadPoolExecutor",
        "ThreadPoolExecutor().submit(mine.load).result()",
    )
    first, _, second, line, sentence = failed["printed"].strip().splitlines()
    assert first == "Cell, line 1" and second == f'File "{tmp_path}/mine.py", line 4, in load'
    assert line == f"    return modelcache.fetch('{url}')" and sentence.startswith(SENTENCE)


def test_what_cannot_be_seen_in_an_error_does_not_reach_the_screen() -> None:
    (failed,) = ran("from modelcache import NotFoundError\nraise NotFoundError('a\\x1b[2Jb')")
    assert failed["printed"].endswith("NotFoundError: a [2Jb\n")


def test_in_a_plain_program_the_traceback_is_whole(url: str) -> None:
    program = f"import modelcache\nmodelcache.fetch('{url}')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last)")
    assert "modelcache/caching.py" in done.stderr and f"modelcache.errors.{SENTENCE}" in done.stderr
