"""What a worker's end means for the metrics: one attempt a file, source and tenure of a worker.

Responsible for: telling what its source has done from what we have done to it. Leaves to others: keeping it (`state`).
"""

import time

from modelcache.errors import SourceError, VerificationError
from modelcache.health import gateway_of
from modelcache.history import Attempt
from modelcache.model import ModelFile
from modelcache.remotes.source import Source
from modelcache.transfer.worker import Worker


def attempt_of(worker: Worker, source: Source, file: ModelFile, resumed_bytes: int) -> Attempt | None:
    """None where we ended it before it brought anything: that says nothing about its source."""
    error = worker.abort.cause if worker.abandoned else worker.error
    fault = error if isinstance(error, SourceError | VerificationError) else None
    if error is not None and fault is None and not worker.received:
        return None
    layer, gateway = gateway_of(source.kind, source.name)
    return Attempt(
        layer, gateway, "error" if fault else "success",
        file=file.path, latency_ms=round(1000 * worker.reply_s),
        duration_ms=round(1000 * (time.monotonic() - worker.started)), bytes=worker.received,
        resumed_bytes=resumed_bytes, attempt=worker.number, error_type=fault.kind if fault else "",
        error_message=fault.message if fault else "",
        http_status=worker.status or (fault.status if isinstance(fault, SourceError) else 0),
    )  # fmt: skip


def wrong_file_of(source: Source, file: ModelFile, message: str) -> Attempt:
    """All its bytes came, and the whole is wrong."""
    layer, gateway = gateway_of(source.kind, source.name)
    kind = VerificationError.kind
    return Attempt(layer, gateway, "error", file=file.path, error_type=kind, error_message=message)
