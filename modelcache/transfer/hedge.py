"""A second request for the last bytes of a slow one, into memory: the first copy that is whole is written.

Responsible for: looking to a worker like a writer of the partial, and becoming one at the end. Leaves to `transfer`:
whom to hedge, and when.
"""

from modelcache.model import Span
from modelcache.store.partial import Partial


class Shadow:
    """Keeps the bytes of one span in memory. Used by one thread at a time."""

    def __init__(self, span: Span) -> None:
        self.position = span.start
        self.stop = span.stop
        self.held = False
        self._start = span.start
        self._data = bytearray()

    @property
    def left(self) -> Span:
        return Span(self.position, self.stop)

    def write(self, data: bytes | memoryview) -> None:
        """Keeps what belongs to the span."""
        kept = memoryview(data)[: self.stop - self.position]
        self._data += kept
        self.position += len(kept)

    def shorten(self, stop: int) -> bool:  # noqa: ARG002  as of a writer
        """What is asked for twice is not divided as well."""
        return False

    def close(self) -> None:
        """There is nothing to give back."""

    def copy_to(self, partial: Partial, source: str) -> int:
        """Writes what is absent by now, and returns how many bytes that was.

        Raises VerificationError where a piece proves wrong (its bytes are absent again), and StoreError.
        """
        copied = 0
        for gap in partial.unclaimed():
            span = Span(max(gap.start, self._start), min(gap.stop, self.position))
            if span.start < span.stop:
                writer = partial.writer(span, source)
                try:
                    data = memoryview(self._data)[span.start - self._start : span.stop - self._start]
                    writer.write(data, wait=False)  # the thread that writes is the one that enforces deadlines
                finally:
                    writer.close()
                copied += span.size
        return copied
