"""Jobs as a user writes them; tests name them as `run = "ownjobs:…"`."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import requests

from modelcache.jobs.job import Clock, Config
from modelcache.rows import Report


def count(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One line more in the file that the option names."""
    path = Path(str(config.options["file"]))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{os.getpid()} {clock():.0f}\n".encode())
    os.close(fd)
    return Report("counted", ({"pid": os.getpid()},))


def finds(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    return Report("found", ({"what": "rot"}, {"what": "whole"}), findings=1)


def leaves_out(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    return Report("looked", (), notes=("left out: a model",))


def raises(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    _opened("https://host/model?token=" + "".join(("SEC", "RET")), "PASSPHRASE")


def _opened(url: str, _phrase: str) -> None:
    raise ValueError(f"no model at {url}")


def refuses(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    raise PermissionError("401 for the token " + "".join(("SEC", "RET")))


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("SECRET")


def mute(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    raise MuteError


def recurses(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    return recurses(config, stop=stop, clock=clock)


def leaves(config: Config, *, stop: threading.Event, clock: Clock) -> None:
    raise SystemExit(7)


def returns(config: Config, *, stop: threading.Event, clock: Clock) -> object:
    return config.options["report"]


def odd(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    loop: dict[str, object] = {}
    loop["self"] = loop
    cells = ({"size": "12 MB", ("a",): Path("b")}, {"nested": {("a",): 1}}, loop, {"escape": Path("\x1b[31m")})  # type: ignore
    return Report("odd", cells, columns=("size", "nested", "self", "escape"))


def asks(config: Config, *, stop: threading.Event, clock: Clock) -> None:
    requests.get(str(config.options["url"]), timeout=60)


def fills(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """The disk of the folder that its option names, before it ends."""
    fill(Path(str(config.options["folder"])))
    return Report("filled", ({"text": "x" * 3000},) * 10, findings=1)


def fill(folder: Path) -> None:
    for size in (1 << 16, 1 << 8):
        with suppress(OSError), open(folder / f"ballast-{size}", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(size))


def works(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """Until it is told to stop; the file of its option says that it has begun."""
    Path(str(config.options["file"])).write_text(str(os.getpid()))
    steps = 0
    while not stop.wait(0.01) and steps < 12_000:
        steps += 1
    return Report("worked", ({"steps": "some"},))


def hangs(config: Config, *, stop: threading.Event, clock: Clock) -> None:
    """Until there is a file that its option names, whoever tells it to stop."""
    Path(str(config.options["file"])).write_text(str(os.getpid()))
    end = time.monotonic() + 100
    while not Path(str(config.options["until"])).exists() and time.monotonic() < end:
        if stop.is_set():
            Path(str(config.options["file"]) + ".told").touch()
        time.sleep(0.01)


def dies(config: Config, *, stop: threading.Event, clock: Clock) -> None:
    os._exit(9)
