"""What the demo plays on: real servers on this machine that break, lie and crawl, a made-up model, an empty cache.

Responsible for: the servers and the folder that is removed at the end; noting what is told in each scene, and the
table of it. Leaves to others: the story and what has to be true in it (`demo`), the faults (`testing`).
"""

import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelcache.caching import Cache
from modelcache.manifests import make
from modelcache.model import Manifest
from modelcache.outcome import Model
from modelcache.progress.show import subscriber_for
from modelcache.settings import Settings
from modelcache.testing import Corrupt, CutAt, Origin, Slow
from modelcache.units import in_units

MIB = 1 << 20
MODEL, WEIGHTS = "demo-model", "model.safetensors"
SIZE, PIECE = 48 * MIB, MIB
CUT = SIZE * 3 // 5 + 4_321  # in the middle of a piece
STEADY, SLOW = 9 * MIB, 3 * MIB  # bytes/s
# All of them are passed, so that nobody's environment changes the story; one connection, so that it can be told.
SETTINGS = Settings(backoff=0.25, connections=1)


@dataclass(slots=True)
class Stage:
    """The servers, the cache, and what was told and done so far."""

    originals: str
    cache: Cache
    servers: dict[str, Origin]
    manifest: Manifest
    events: list[dict[str, Any]] = field(default_factory=list)  # of the scene
    rows: list[dict[str, Any]] = field(default_factory=list)
    scene: int = 0

    def begin(self) -> None:
        """The next scene: what was told before does not count in it."""
        self.events.clear()
        self.scene += 1

    def named(self, text: str) -> str:
        """The servers by their names instead of their addresses."""
        for name, server in self.servers.items():
            text = re.sub(re.escape(server.url()) + r"[\w.-]*", name, text)
        return text

    def requests(self, *names: str) -> int:
        return sum(len(self.servers[name].requests) for name in names or self.servers)

    def progress(self) -> Callable[[dict[str, Any]], None] | bool:
        """Bars as everywhere else, or lines for all that happens, only with the servers by name."""
        show = subscriber_for(True, "", {file.path: file.size for file in self.manifest.files}, facts=True)
        return (lambda event: show({**event, "gateway": self.named(event.get("gateway", ""))})) if show else False

    def fetch(self, *others: str) -> Model:
        mirrors = [self.servers[name].url() for name in others]
        model = self.cache.fetch(self.manifest, mirrors=mirrors, progress=self.progress())
        assert isinstance(model, Model)
        return model

    def told(self, kind: str, file: str, source: str = "") -> list[dict[str, Any]]:
        """The events of one kind in this scene."""
        found = [each for each in self.events if (each["type"], each.get("file")) == (kind, file)]
        return [each for each in found if source in ("", self.named(each["gateway"]))]

    def row(self, files: Sequence[str], result: str, fetched: int, here: int, seconds: float | None = None) -> None:
        """A row of the table. Who was asked is told by the events, and the time too where it was not measured."""
        if seconds is None:
            times = [event["timestamp"] for event in self.events if event.get("file") in files]
            seconds = (max(times) - min(times)) / 1000
        liars = {self.named(event["gateway"]) for file in files for event in self.told("piece_failed", file)}
        asked = [self.named(event["gateway"]) for file in files for event in self.told("source_tried", file)]
        shown = ", ".join(f"{name}!" if name in liars else name for name in dict.fromkeys(asked))
        name = files[0] if len(files) == 1 else f"{len(files)} files"
        row = {"#": self.scene, "file": name, "what happened": result, "servers (! lied)": shown or "none"}
        self.rows.append({**row, "fetched": fetched, "was here": here, "time": seconds})

    def table(self) -> str:
        """A DataFrame of all rows, as text, in 80 columns."""
        import pandas as pd

        table = pd.DataFrame(self.rows)
        for name in ("file", "what happened", "servers (! lied)"):  # text to the left, its heading too
            width = max(len(name), *map(len, table[name]))
            table = table.assign(**{name: table[name].str.ljust(width)}).rename(columns={name: name.ljust(width)})
        shown = {"fetched": _size, "was here": _size, "time": _time}
        return table.to_string(index=False, formatters=shown)


@contextmanager
def staged() -> Iterator[Stage]:
    """Three servers that have a model, and an empty cache, in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="modelcache-demo-") as folder, _without_proxy():
        originals = os.path.join(folder, "originals")
        _make_model(Path(originals))
        files = {name: Path(originals, name) for name in os.listdir(originals)}
        wrong = range(PIECE // 2, SIZE, PIECE)  # a byte in each piece
        with (
            Origin(files, faults=[Slow(STEADY)]) as cutter,
            Origin(files, faults=[Corrupt(wrong)]) as liar,
            Origin(files, faults=[Slow(SLOW)]) as slow,
        ):
            cutter.faults(CutAt(CUT), path=WEIGHTS)
            manifest = make(originals, MODEL, cutter.url(), PIECE)
            cache = Cache(os.path.join(folder, "cache"), **asdict(SETTINGS))
            stage = Stage(originals, cache, {"cutter": cutter, "liar": liar, "slow": slow}, manifest)
            cache.on_event(stage.events.append)
            try:
                yield stage
            finally:
                cache.close()


@contextmanager
def _without_proxy() -> Iterator[None]:
    """A proxy of the environment cannot reach servers on our loopback."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    os.environ.update(dict.fromkeys(before, "127.0.0.1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def _make_model(folder: Path) -> None:
    """Weights in the safetensors format (random numbers), and the files that come with such."""
    chance = random.Random(2025)  # noqa: S311  the same model every time
    folder.mkdir()
    room = SIZE - 8 - 128
    tensor = {"dtype": "F16", "shape": [room // 2], "data_offsets": [0, room]}
    header = json.dumps({"weight": tensor}).ljust(128).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + chance.randbytes(room))
    words = [f"{chance.randrange(10**9):x}" for _ in range(150_000)]
    (folder / "tokenizer.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (folder / "vocab.txt").write_text("\n".join(words[:30_000]))
    (folder / "config.json").write_text(json.dumps({"model_type": "demo", "hidden_size": 512}))


def _size(size: int) -> str:
    return in_units(size) if size else "-"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
