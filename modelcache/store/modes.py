"""Who may use what the store makes: its owner alone, or the group that shares the root (`shared = true`).

Responsible for: that decision, in one function. A root that is shared is marked by its own mode, and what is made in it
inherits that: no process has to be told, and none makes anything that the others cannot use, whatever its umask.
Leaves to others: making things; what holds secrets stays its owner's alone, wherever it lies.
"""

import os
import stat

FOLDER, FILE, READ_ONLY = 0o2775, 0o664, 0o444


def mode_in(folder: str, private: int) -> int:
    """The mode of what is made in a folder of ours, where it would have the mode `private` in one that nobody shares.

    Whatever is readable by others anyway keeps its mode.
    """
    if private & 0o077 or not is_shared(folder):
        return private
    if private & 0o100:
        return FOLDER
    return FILE if private & 0o200 else READ_ONLY


def is_shared(folder: str) -> bool:
    """Whether a group may write there, and has what is made there. False where there is no folder."""
    try:
        mode = os.lstat(folder).st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) and bool(mode & stat.S_ISGID) and bool(mode & stat.S_IWGRP)


def name_in(root: str, name: str, *, shared: bool = False) -> str:
    """What belongs to one account (its history, its queue, which may hold secrets) is called so in a shared root."""
    return f"{name}-{os.geteuid()}" if shared or is_shared(root) else name
