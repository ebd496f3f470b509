"""Two processes fetch, verify, clean and remove in one store at once; ages are 0: nothing is spared (I30)."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from crash import MIB, check_store, environment, files_below, leftovers, locks_held

from modelcache.caching import Cache
from modelcache.testing import Content, Origin, Slow

PROGRAM = Path(__file__).resolve().parent / "steps.py"
FILES = {f"{name}.bin": Content.generated(size, seed=size) for name, size in {"a": 1, "b": 700_000, "c": MIB}.items()}
FILES["same.bin"] = FILES["a.bin"]  # two models with one content
NIGHTLY = [pytest.param(seed, 250, marks=pytest.mark.nightly) for seed in range(1, 5)]


@pytest.mark.parametrize(("seed", "steps"), [(0, 40), *NIGHTLY])
def test_two_processes_that_do_everything_at_once_leave_a_store_that_is_whole(
    cache_root: Path, seed: int, steps: int
) -> None:
    with Origin(FILES, faults=[Slow(20_000_000)]) as origin:
        digests = json.dumps({name: content.sha256 for name, content in FILES.items()})
        both = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(2 * seed + number), str(steps), origin.url(), digests],
                env=environment(cache_root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        ended = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors for _, errors in ended)
    done = sum((Counter(json.loads(output)) for output, _ in ended), Counter[str]())
    assert done["fetched"] and done["removed"] and done["cleaned"] and done["verified"], done
    check_left(cache_root)


def check_left(root: Path) -> None:
    """What is listed is whole, and nothing is left but what a clean removes."""
    check_store(root)
    assert not locks_held(root)
    cache = Cache(root, stale_partial_age=0, quarantine_age=0, log_age=0, temporary_age=0)
    listed = {row["model"] for row in cache.models()}
    found = cache.verify(progress=False) if listed else ()
    assert all(row["finding"] == "whole" for row in found), list(found)
    cache.clean()
    assert {row["path"].rpartition("/")[2] for row in cache.clean()} <= {"sweep.lock"}  # its own, of a moment ago
    assert not leftovers(root)
    wanted = {row["sha256"] for model in listed for row in cache.info(model)}
    assert {path.name for path in files_below(root / "blobs")} == wanted
    cache.close()
