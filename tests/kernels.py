"""A real kernel as a process: cells are run in it, and what it tells the front end is kept.

Responsible for: starting, interrupting and ending it, and its messages. Leaves to the tests: what is in the cells.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = [python for python in os.environ.get("MODELCACHE_IPYKERNELS", "").split(":") if python] or [sys.executable]
WAIT_S = 100  # a bound for a machine that is busy with everything else
WIDGET = "application/vnd.jupyter.widget-view+json"
Message = dict[str, Any]


@dataclass(slots=True)
class Told:
    """What a cell had told by its end: the messages, and what is displayed below it, by display id, as it is now."""

    messages: list[Message] = field(default_factory=list)
    displayed: dict[str, Message] = field(default_factory=dict)
    text: str = ""  # what it printed
    error: str = ""  # the name of what it raised

    def hear(self, message: Message) -> None:
        kind, content = message["msg_type"], message["content"]
        self.messages.append(message)
        if kind in ("display_data", "update_display_data"):
            self.displayed[content["transient"].get("display_id", "")] = content["data"]
        elif kind == "stream" and content["name"] == "stdout":
            self.text += content["text"]
        elif kind == "error":
            self.error = content["ename"]

    def count(self, *kinds: str) -> int:
        return sum(message["msg_type"] in kinds for message in self.messages)

    @property
    def widgets(self) -> dict[str, Message]:
        """The state that each was made with."""
        opened = (each["content"] for each in self.messages if each["msg_type"] == "comm_open")
        return {content["comm_id"]: content["data"]["state"] for content in opened}

    @property
    def panels(self) -> list[Message]:
        """By media type."""
        return list(self.displayed.values())


class Kernel:
    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str, seen: Callable[[Told], None] = lambda told: None) -> Told:
        """To the end of the cell; `seen` is called with each message."""
        told = Told()

        def hear(message: Message) -> None:
            told.hear(message)
            seen(told)

        self._client.execute_interactive(code, output_hook=hear, timeout=WAIT_S)
        return told

    def interrupt(self) -> None:
        """What the stop button does."""
        self._manager.interrupt_kernel()

    def press(self, told: Told, word: str) -> None:
        """A button of a panel that this cell showed; the kernel hears of it before it runs the next cell."""
        (button,) = (comm for comm, state in told.widgets.items() if state.get("description") == word)
        content = {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}
        self._client.shell_channel.send(self._client.session.msg("comm_msg", content))


@contextmanager
def kernel(folder: Path, python: str = sys.executable, **environment: str) -> Iterator[Kernel]:
    """With modelcache of this tree, and the helpers of its tests."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    manager = KernelManager(transport="ipc", connection_file=str(folder / "kernel.json"), ip=str(folder / "kernel"))
    manager._kernel_spec = KernelSpec(argv=[python, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "IPYTHONDIR": str(folder / "ipython")}
    manager.start_kernel(env={**os.environ, **path, **environment}, cwd=str(folder))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=WAIT_S)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
