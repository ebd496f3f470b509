"""Where a download stands, and what each interface calls that (product A9, D3, H).

Responsible for: the one enum, and the tables that turn it into the words that clients know.
"""

import enum


class State(enum.StrEnum):
    """The lifecycle."""

    PENDING = "pending"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    RESUMING = "resuming"
    VERIFYING = "verifying"
    INSTALLING = "installing"
    READY = "ready"
    PAUSED = "paused"
    FAILED = "failed"


RECORD_STATUS = {
    State.PENDING: "pending", State.RESOLVING: "in_progress", State.DOWNLOADING: "in_progress",
    State.RESUMING: "resuming", State.VERIFYING: "in_progress", State.INSTALLING: "in_progress",
    State.READY: "success", State.PAUSED: "paused", State.FAILED: "failed",
}  # fmt: skip
REST_STATUS = {
    **dict.fromkeys(State, "downloading"), State.READY: "completed", State.PAUSED: "failed", State.FAILED: "failed",
}  # fmt: skip
STAGE = {
    State.PENDING: "starting", State.RESOLVING: "pulling_manifest", State.DOWNLOADING: "downloading",
    State.RESUMING: "downloading", State.VERIFYING: "verifying", State.INSTALLING: "writing_manifest",
    State.READY: "completed", State.PAUSED: "error", State.FAILED: "error",
}  # fmt: skip
EVENT_STATUS = {
    State.PENDING: "attempting", State.RESOLVING: "attempting", State.DOWNLOADING: "downloading",
    State.RESUMING: "downloading", State.VERIFYING: "downloading", State.INSTALLING: "downloading",
    State.READY: "completed", State.PAUSED: "paused", State.FAILED: "error",
}  # fmt: skip
_TEXT = {
    State.PENDING: "Waiting for manifest...", State.RESOLVING: "Pulling manifest from {where}...",
    State.DOWNLOADING: "Downloading {what}...", State.RESUMING: "Downloading {what}...",
    State.VERIFYING: "Verifying download integrity...", State.INSTALLING: "Writing model manifest...",
    State.READY: "Completed", State.PAUSED: "Paused", State.FAILED: "Failed",
}  # fmt: skip


def stage_text(state: State, where: str, what: str = "model layers") -> str:
    """A stage in words for people. `where` is the registry or host that was asked."""
    return _TEXT[state].format(where=where or "the cache", what=what)
