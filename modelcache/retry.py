"""When to try the same source again, and when to stop: rules on plain values.

Responsible for: how long to wait (`Backoff`, `retry_after_s`), how often (`Budget`) and for which status at all.
Leaves to `transfer`: clocks, sleeping, random numbers and which source comes next.
"""

import re
from dataclasses import dataclass, field

MOST_WAIT_S = 1e9
_OVERFLOWN = 1e300
_LONGEST_DATE = 64
_PARAMETER = re.compile(r";[ \t]*([rt])=([0-9]{1,9})(?![0-9])")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that grow by `factor` from `base_s` to `most_s`."""

    base_s: float = 1.0
    factor: float = 2.0
    most_s: float = 60.0

    def delay_s(self, failures: int, jitter: float) -> float:
        """Seconds to wait after so many failures in a row (1 or more).

        `jitter` in [0, 1) spreads clients that failed together over the second half of the wait.
        """
        try:
            growth = self.factor ** max(failures - 1, 0)
        except OverflowError:
            growth = _OVERFLOWN
        whole = min(self.base_s * growth, self.most_s)
        return whole / 2 + whole / 2 * jitter


@dataclass(slots=True)
class Budget:
    """How often one source may fail within one transfer (A3, I24).

    - A failed attempt that moved no byte uses up one of `attempts`; one that moved bytes gives them all back.
    - A source that gives a byte a request ends too: at most `requests` failures in a row without `gain` bytes in all.
    """

    attempts: int = 3
    requests: int = 20
    gain: int = 1 << 20
    _failures: int = field(default=0, init=False)
    _requests: int = field(default=0, init=False)
    _moved: int = field(default=0, init=False)

    @property
    def failures(self) -> int:
        """Failed attempts in a row that moved no byte: what the backoff grows with."""
        return self._failures

    def failed(self, moved_bytes: int) -> bool:
        """Counts a failed attempt; True while another one is allowed."""
        self._moved += moved_bytes
        self._requests += 1
        self._failures = 0 if moved_bytes > 0 else self._failures + 1
        if self._moved >= self.gain:
            self._requests = self._moved = 0
        return self._failures < self.attempts and self._requests < self.requests

    def succeeded(self) -> None:
        """An attempt brought all it was to bring: nothing before it counts any more."""
        self._failures = self._requests = self._moved = 0


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later. 501 and 505 say that it never will."""
    return status in (408, 425, 429) or (500 <= status <= 599 and status not in (501, 505))


def retry_after_s(value: str | None, date: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3); None if it says nothing that can be read.

    A time of day is relative to the server's own `date` header where there is one: its clock may differ from ours.
    """
    wish = (value or "").strip()
    if wish.isascii() and wish.isdigit():
        return min(float(wish), MOST_WAIT_S)
    until_s = _http_date_s(wish)
    if until_s is None:
        return None
    since_s = _http_date_s((date or "").strip())
    return min(max(until_s - (now_s if since_s is None else since_s), 0.0), MOST_WAIT_S)


def rate_limit_s(value: str) -> float | None:
    """Seconds until a RateLimit header (draft-ietf-httpapi-ratelimit-headers) gives quota again: `"api";r=0;t=42`.

    The longest of those that are used up; None if it says nothing that can be read.
    """
    waits = [
        float(parameters["t"])
        for policy in value.split(",")
        if (parameters := dict(_PARAMETER.findall(policy))).get("r") == "0" and "t" in parameters
    ]
    return min(max(waits), MOST_WAIT_S) if waits else None


def _http_date_s(text: str) -> float | None:
    """An HTTP-date in any of its three forms as Unix time."""
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    if not text[:1].isalpha() or len(text) > _LONGEST_DATE:  # all three start with the day of the week
        return None
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
