"""The page in a real browser: it loads without a complaint, asks nobody for anything, and runs nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from modelcache.caching import Cache
from modelcache.events import now_ms
from modelcache.history import Attempt
from modelcache.reporting.window import DAY_MS
from modelcache.state.hauls import Size
from modelcache.state.state import State
from modelcache.state.uses import Uses
from modelcache.testing import Origin

HOSTILE = [
    "<script>console.error('run')</script>", "</title><script>console.error('run')</script>", "</style><b>bold",
    '"><img src=http://127.0.0.1:PORT/asked onerror=console.error(1)>', "' onmouseover='x", "&lt;twice&gt;", "{body}",
    "javascript:alert(1)", "a\u202eb\x00c\nd", "]]>", "<!--", "%s%n", "\U0001f600" * 60, "x" * 5000,
]  # fmt: skip
VOID = {"meta", "link", "br"}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({}) as origin:
        yield origin


def page_of(home: Path, words: list[str]) -> str:
    """Of a cache to which everything is called so."""
    now, state = now_ms(), State(str(home), Uses(), 90 * 86400.0)
    good = Attempt("http", "host", "success", "f", "m", latency_ms=30, duration_ms=900, bytes=3 << 20, resumed_bytes=9)
    for day in range(3):
        at = now - day * DAY_MS
        state.keep_size(Size(f"2026-05-0{day + 1}", 10**9 * day, day))
        for word in words:
            bad = replace(good, status="error", error_type=word, error_message=word, gateway=word, timestamp=at)
            state([replace(good, timestamp=at, gateway=word, model=word), replace(good, timestamp=at, layer=word), bad])
            state([Attempt("cache", word, "hit", word, word, bytes=5, timestamp=at)])
    state.close()
    cache = Cache(home)
    cache.report("7d").to_html(home / "page.html")
    cache.close()
    return (home / "page.html").read_text("utf-8")


class Balance(HTMLParser):
    """That every element that is opened is closed, in the right order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"@{name}" for name, _ in attrs)}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"@{name}" for name, _ in attrs)}


@pytest.mark.parametrize("words", [["quiet.example", "other"], HOSTILE, []], ids=["plain", "hostile", "nothing"])
def test_the_page_is_sound_and_names_nothing_to_load(home: Path, words: list[str]) -> None:
    text = page_of(home, words)
    balance = Balance()
    balance.feed(text)
    balance.close()
    assert balance.open == []
    assert balance.seen.isdisjoint({"script", "img", "iframe", "object", "b>bold", "@onerror", "@onmouseover", "@src"})
    assert re.findall(r"""(?:href|src)=["']?([^"' >]+)""", re.sub(r"&[a-z#0-9]+;", "", text))[:1] == ["data:,"]
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    assert "\x00" not in text and "\u202e" not in text
    if words:
        assert all(title in text for title in ("Success rate", "Fetched, by source", "Not fetched again", "Integrity"))
        assert text.count("<svg") == 6


def test_a_page_about_more_days_than_a_plot_has_room_for_is_made_of_what_is_older_alone(home: Path) -> None:
    state = State(str(home), Uses(), 900 * 86400.0)
    state([Attempt("http", "host", "success", "f", "m", latency_ms=30, timestamp=now_ms() - 500 * DAY_MS)])
    state.close()
    cache = Cache(home, metrics_age=900 * 86400.0)
    cache.report("600d").to_html(home / "page.html")
    cache.close()
    assert '<td class="s">host' in (home / "page.html").read_text("utf-8")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("words", [["quiet.example", "other"], HOSTILE], ids=["plain", "hostile"])
def test_a_browser_has_nothing_to_complain_of_and_asks_for_nothing_else(
    home: Path, origin: Origin, page: Any, words: list[str]
) -> None:
    page_of(home, [word.replace("PORT", str(origin.port)) for word in words])
    heard, shown = complaints(page, home / "page.html"), page.content()
    assert heard == [] and origin.requests == []
    assert "</html>" in shown and "<svg" in shown and "<script" not in shown


@pytest.mark.browser
@pytest.mark.slow
def test_the_browser_test_would_see_a_complaint_and_a_request(tmp_path: Path, origin: Origin, page: Any) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<html><script>console.error('seen')</script><img src={origin.url('more.png')}></html>")
    assert "seen" in complaints(page, path)
    assert [seen.path for seen in origin.requests] == ["/more.png"]


def complaints(page: Any, path: Path) -> list[str]:
    """What the console says about the page at the path, which stays open."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.goto(path.as_uri())
    return heard
