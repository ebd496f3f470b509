"""How many connections one file should have: more only while it gets faster.

Responsible for: the rule, on plain values. Leaves to `transfer`: counting bytes, opening and ending connections.
"""

import math

GAIN = 1.2  # what doubling must bring
WORTH = 6.0  # what would be here within so many looks is not worth another connection
ROUND_TRIPS = 10  # of a look at least: a new connection starts slowly
LONGEST_LOOK_S = 2.0
FAST = 64 << 20  # bytes/s of one connection: what is slower waits for the network, and hardly for this machine


class Crew:
    """Starts with one connection, and doubles as long as the total rises by a fifth; else goes back, for good.

    Where connections wait for the network it leaps once to as many as may be, for each look costs time there, and
    losses make looks too noisy to tell a doubling. Where that does not bring a fifth for each doubling, it doubles.

    `most` bounds it; each number is watched for `look_s`, or longer where replies take their time. All times are of
    the caller's monotonic clock.
    """

    def __init__(self, most: int, look_s: float) -> None:
        self.wanted = 1
        self._most = most
        self._look_s = look_s
        self._before, self._best = 1, 0.0  # the number before, and the bytes/s that it brought
        self._settled = most <= 1
        self._may_leap = True
        self._since: tuple[float, int] | None = None

    def look(self, now: float, received: int, delivering: int, absent: int, reply_s: float = 0.0) -> bool:
        """Judges what `delivering` connections have brought (`received` bytes since the beginning), while `absent`
        bytes are still to be fetched. Returns whether more are wanted now. `reply_s`: how long a reply takes."""
        if self._settled or delivering < self.wanted or (delivering > self.wanted and not self._may_leap):
            return False
        if self._since is None:
            self._since = (now, received)
        since, before = self._since
        if now - since < max(self._look_s, min(LONGEST_LOOK_S, ROUND_TRIPS * reply_s)):
            return False
        rate = (received - before) / (now - since)
        self._since = None
        if rate < self._best * GAIN ** math.log2(self.wanted / self._before):
            self._go_back()
        elif self.wanted == self._most:
            self.settle(self.wanted)
        elif absent > rate * self._look_s * WORTH:
            self._best, self._before = rate, self.wanted
            leaps = self._may_leap and rate < FAST * self.wanted
            self.wanted = self._most if leaps else min(self._most, 2 * self.wanted)
            return True
        return False

    def _go_back(self) -> None:
        if self.wanted > 2 * self._before:  # that was a leap: those too many go as their spans end
            self.wanted, self._may_leap = 2 * self._before, False
        else:
            self.settle(self._before)

    def wait(self) -> None:
        """The network is not what it waits for now: watching begins anew."""
        self._since = None

    def settle(self, number: int) -> None:
        """So many, and no more: a source refused, or more did not help."""
        self.wanted, self._settled = number, True
