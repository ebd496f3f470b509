"""A process that fetches, verifies, cleans and removes at random in one store: for test_together.py.

    python steps.py SEED STEPS BASE_URL DIGESTS     (DIGESTS: JSON, sha256 by name)

Prints how often it did what, as JSON. Ends with a traceback at the first result that is wrong.
"""

import hashlib
import json
import random
import sys
from collections import Counter
from contextlib import suppress

from modelcache.caching import Cache
from modelcache.errors import LockedError, ModelNotAvailableError, UsageError


def fetch(cache: Cache, url: str, sha256: str) -> str:
    got = cache.fetch(url, sha256=sha256, progress=False)
    assert got.sha256 == sha256
    with suppress(FileNotFoundError), open(got.path, "rb") as file:  # the other may have removed it by now
        assert hashlib.file_digest(file, "sha256").hexdigest() == sha256, f"{got.path} is not what was promised"
    return got.status


def verify(cache: Cache, url: str) -> str:
    """All of it, or one model, which the other may have removed."""
    try:
        found = {row["finding"] for row in cache.verify(progress=False)}
    except ModelNotAvailableError:
        return "gone"
    assert found <= {"whole", "missing"}, found
    return "verified"


def remove(cache: Cache, url: str) -> str:
    try:
        cache.remove(url)
    except (ModelNotAvailableError, UsageError):
        return "nothing to remove"
    except LockedError:
        return "in use"
    return "removed"


def clean(cache: Cache) -> str:
    report = cache.clean()
    assert all(row["removed"] for row in report), list(report)
    return "cleaned"


def main(seed: str, steps: str, base: str, digests: str) -> None:
    dice, done, known = random.Random(int(seed)), Counter[str](), json.loads(digests)
    with_ages = {f"{name}_age": 0 for name in ("stale_partial", "quarantine", "log")}
    cache = Cache(**with_ages)
    for _ in range(int(steps)):
        name = dice.choice(list(known))
        match dice.randrange(10):
            case 0 | 1:
                done[verify(cache, base + name)] += 1
            case 2 | 3:
                done[remove(cache, base + name)] += 1
            case 4 | 5:
                done[clean(cache)] += 1
            case _:
                done[fetch(cache, base + name, known[name])] += 1
    cache.close()
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
