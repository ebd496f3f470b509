"""How many values lay where, in so few numbers that percentiles exist over millions of rows.

Responsible for: buckets that grow by a fourth root of two (within 10 % of the value), counting, percentiles.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping

PER_DOUBLING = 4
LARGEST = 4 * 64


def bucket_of(value: float) -> int:
    """0 for what is below 1."""
    return min(LARGEST, 1 + math.floor(PER_DOUBLING * math.log2(value))) if value >= 1 else 0


def middle_of(bucket: int) -> float:
    return 2 ** ((bucket - 0.5) / PER_DOUBLING) if bucket else 0.0


def middles(counts: Mapping[int, int]) -> dict[float, int]:
    """How many values there are of each, by buckets: as if each lay in the middle of its own."""
    return {middle_of(bucket): count for bucket, count in counts.items()}


def percentile(values: Mapping[float, int], percent: int) -> float | None:
    """The smallest value that so many percent of all do not exceed; None where there is none. `values` counts each."""
    left = -(-percent * sum(values.values()) // 100)
    for value in sorted(values):
        left -= values[value]
        if left <= 0:
            return value
    return None


def to_text(counts: Mapping[int, int]) -> str:
    return json.dumps({str(bucket): count for bucket, count in sorted(counts.items()) if count})


def parsed(text: object) -> Counter[int]:
    """Empty where it is not what `to_text` writes."""
    try:
        counts = json.loads(text) if isinstance(text, str) else {}
        return Counter({int(bucket): int(count) for bucket, count in counts.items() if int(count) > 0})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Counter()
