"""Whether this process answers a notebook, and what it can show there.

Responsible for: looking, without importing anything: in a kernel IPython is there already. Leaves to `show`: what
follows from it.
"""

import os
import sys
from importlib.util import find_spec
from typing import Any


def is_here() -> bool:
    """Whether what this process displays comes out below a cell. A child that a kernel forked has no way there."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None
    kernel = getattr(shell, "kernel", None)
    session = getattr(kernel, "session", None)
    return kernel is not None and getattr(session, "pid", os.getpid()) == os.getpid()


def has_widgets() -> bool:
    return "ipywidgets" in sys.modules or find_spec("ipywidgets") is not None
