"""Runs commands of modelcache in forks of itself, each with one fault of the shim (faultshim.c): for test_faults.py.

A fork spares each case the start of an interpreter and its imports. Reads one request a line from stdin and answers
with one line on stdout, both JSON. The shim has to be preloaded; its path is the first argument.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from typing import Any

CLASSES, MOST_NOTES = 3, 8192
LONGEST_RUN_S = 30  # then the kernel ends it: a hang is a finding


class Note(ctypes.Structure):
    _fields_ = (
        ("kind_class", ctypes.c_int),
        ("kind", ctypes.c_char * 12),
        ("path", ctypes.c_char * 244),
        ("from_path", ctypes.c_char * 244),
    )


class Shared(ctypes.Structure):
    _fields_ = (
        ("counts", ctypes.c_long * CLASSES),
        ("fired", ctypes.c_long),
        ("at", ctypes.c_long),
        ("noted", ctypes.c_long),
        ("notes", Note * MOST_NOTES),
    )


def run(shim: ctypes.CDLL, request: dict[str, Any]) -> int:
    """In the fork: becomes the command. Returns its exit code."""
    from modelcache.cli import main

    signal.alarm(LONGEST_RUN_S)
    os.environ.update(request["environment"])
    for fd, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    for root in request["roots"]:
        shim.shim_add_root(os.fsencode(root))
    shim.shim_arm(request["class"], ctypes.c_long(request["n"]), request["mode"], request["errno"])
    return main(request["arguments"])


def answer(shared: Shared, status: int) -> dict[str, Any]:
    noted = [shared.notes[index] for index in range(min(shared.noted, MOST_NOTES))]
    notes = [(note.kind.decode(), os.fsdecode(note.path), os.fsdecode(note.from_path)) for note in noted]
    return {
        "code": os.waitstatus_to_exitcode(status),
        "counts": list(shared.counts),
        "fired": shared.fired,
        "at": shared.at,
        "notes": notes,
    }


def serve(library: str) -> int | None:
    """Returns the exit code of a command, in its fork; None in the server at the end of its requests."""
    shim = ctypes.CDLL(library)
    shim.shim_shared.restype = ctypes.POINTER(Shared)
    shared = shim.shim_shared().contents
    for line in sys.stdin:
        shim.shim_reset()
        pid = os.fork()
        if pid == 0:
            return run(shim, json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(json.dumps(answer(shared, status)), flush=True)
    return None


def import_all() -> None:
    """What a command imports on its way."""
    import filelock  # noqa: F401
    import requests  # noqa: F401

    import modelcache.adopt
    import modelcache.audit
    import modelcache.caching
    import modelcache.check
    import modelcache.cli
    import modelcache.download
    import modelcache.progress.show
    import modelcache.remotes.http
    import modelcache.store.removal  # noqa: F401


if __name__ == "__main__":
    import_all()
    gc.freeze()  # else each fork looks through all of it when it ends
    sys.exit(serve(sys.argv[1]))
