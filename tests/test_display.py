"""What objects show of themselves in a notebook, and what can be typed there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from caches import manifest_of, rot
from test_markup import HOSTILE, Seen

from modelcache.caching import Cache
from modelcache.errors import ModelNotAvailableError, UsageError
from modelcache.outcome import File, Model
from modelcache.queueing import Queue
from modelcache.rows import MOST_ROWS, Report
from modelcache.testing import Content, Origin, Stall

FILES = {"config.json": Content.generated(300), "model.bin": Content.generated(200_000)}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(FILES) as origin:
        yield origin


def seen(shown: object) -> Seen:
    return Seen(shown._repr_html_())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_mark_up_is_shown_as_text(name: str) -> None:
    file = File(f"/x/{name}", name, 3, "ab" * 32, "fetched", name, name)
    model = Model(name, name, name, f"/x/{name}", (file,), (name,), (name,))
    for shown in (model, file, Report(name, ({"file": name},)), Cache("/nowhere/<b>")):
        page = seen(shown)
        assert not {"script", "img", "b"} & set(page.tags) and "onerror" not in page.attributes
        assert all(each.isprintable() or each == "\n" for each in page.text)
        assert len(page.text) < 6_000


def test_a_model_shows_its_files_and_what_vouched_for_them(cache: Cache, origin: Origin) -> None:
    model = cache.fetch(manifest_of(origin, FILES), progress=False)
    page = seen(model)
    assert "m@1" in page.text and "2 files, 195.6 KiB, verified" in page.text and model.path in page.text
    assert "config.json" in page.text and "fetched, verified by sha256" in page.text
    assert repr(model) == f"<Model m@1, 2 files, 195.6 KiB, verified: '{model.path}'>"
    assert "config.json" in repr(model["config.json"]) and "\n" not in repr(model["config.json"])
    assert "fetched, verified by sha256" in seen(model["config.json"]).text


def test_a_doubt_is_no_check_mark(cache: Cache, origin: Origin) -> None:
    file = cache.fetch(origin.url("model.bin"), progress=False)
    assert "✓" not in seen(file).text and "unverified" in seen(file).text


def test_a_cache_shows_what_is_installed(cache: Cache, origin: Origin) -> None:
    assert "0 models" in seen(cache).text
    cache.fetch(manifest_of(origin, FILES), progress=False)
    page = seen(cache)
    assert "1 model, 195.6 KiB" in page.text and cache.root in page.text and "ready" in page.text
    assert "task" not in page.text  # a column in which nothing stands


def test_a_cache_that_cannot_be_read_says_so_where_it_is_shown(home: Path) -> None:
    home.mkdir()
    (home / "models").write_text("no folder")
    page = seen(Cache(home))
    assert "models" in page.text and "table" not in page.tags
    assert Cache(home)._ipython_key_completions_() == []


def test_a_download_shows_how_far_it_is_and_what_went_wrong(cache: Cache, origin: Origin) -> None:
    origin.faults(Stall(100_000), path="model.bin")
    download = cache.fetch(manifest_of(origin, FILES), wait=False, progress=False)
    page = seen(download)
    assert "progress" in page.tags and "aria-label" in page.attributes and "of 2 files" in page.text
    download.cancel()
    assert download.wait_stopped(10)
    assert "cancelled" in seen(download).text


def test_a_queue_shows_what_waits(cache: Cache, origin: Origin) -> None:
    queue = Queue(cache)
    assert "nothing" in seen(queue).text and cache.root in repr(queue)
    queue.add(origin.url("model.bin") + "?<script>")
    assert "model.bin" in seen(queue).text and "script" not in seen(queue).tags
    Path(cache.queue_paths[0]).write_text("garbage")
    assert "table" not in seen(queue).tags


def test_a_cache_gives_what_is_installed_by_its_name(cache: Cache, origin: Origin) -> None:
    assert "m" not in cache
    fetched = cache.fetch(manifest_of(origin, FILES), progress=False)
    found = cache["m"]
    assert found == cache["m@1"] and found.path == fetched.path and "m" in cache
    assert [(file.name, file.path, file.status) for file in found.files] == [
        (name, os.path.join(fetched.path, name), "hit") for name in sorted(FILES)
    ]
    cache.fetch(origin.url("model.bin"), progress=False)
    (url,) = set(cache) - {"m"} - {name for name in cache if name.startswith("url--")}
    assert cache[url].files[0].name == "model.bin" and cache._ipython_key_completions_() == [*cache]


def test_what_is_not_installed_is_a_key_error_that_says_what_is(cache: Cache, origin: Origin) -> None:
    cache.fetch(manifest_of(origin, FILES), progress=False)
    with pytest.raises(KeyError, match="here are: m"):
        cache["unknown"]
    with pytest.raises(KeyError, match="run `modelcache fetch hf:org/name`; here are: m"):
        cache["hf:org/name"]
    with pytest.raises(UsageError):
        cache["hf:org/name/config.json"]


def test_what_is_installed_and_wrong_says_so(cache: Cache, origin: Origin) -> None:
    model = cache.fetch(manifest_of(origin, FILES), progress=False)
    rot(model["model.bin"], 5)
    cache.verify(progress=False)
    with pytest.raises(ModelNotAvailableError):
        cache["m"]
    assert "m" not in cache and "m" in [*cache]


def test_many_rows_are_cut_where_they_are_shown() -> None:
    from IPython.lib.pretty import pretty

    report = Report("many", tuple({"n": number} for number in range(MOST_ROWS + 5)))
    assert pretty(report).splitlines()[-1].startswith("and 5 more rows")
    assert len(pretty(report).splitlines()) == MOST_ROWS + 3 and len(str(report).splitlines()) == MOST_ROWS + 7
