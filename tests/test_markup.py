"""What is shown of names that anybody may have given."""

from html.parser import HTMLParser

import pytest

from modelcache import markup
from modelcache.rows import MOST_ROWS, Report

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><b>",
    "\u202egnp.exe",
    "a\x00b\ud800c",
    "x" * 10_000,
]


class Seen(HTMLParser):
    """What a browser would make of it: tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_stands(name: str) -> None:
    page = Report(name, ({"file": name, name: name},), notes=(name,))._repr_html_() + markup.name(name)
    seen = Seen(page)
    assert set(seen.tags) <= {"div", "style", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert set(seen.attributes) <= {"class", "title"}
    assert all(each.isprintable() or each == "\n" for each in seen.text)


def test_what_is_too_long_keeps_its_ends_and_has_the_rest_as_a_title() -> None:
    long = "org/" + "x" * 300 + "-00001-of-00009.safetensors"
    seen = Seen(markup.name(long, 40))
    assert len(seen.text) == 40 and seen.text.startswith("org/") and seen.text.endswith(".safetensors")
    assert f'title="{long}"' in markup.name(long, 40)
    assert markup.name("short", 40) == "short"


def test_a_notebook_gets_the_first_rows_of_many_and_a_page_all_of_them() -> None:
    report = Report("many", tuple({"file": f"f{number}"} for number in range(3 * MOST_ROWS)))
    shown = Seen(report._repr_html_())
    assert shown.tags.count("td") == MOST_ROWS and f"and {2 * MOST_ROWS} more rows" in shown.text
    assert Seen(report.to_markup()).tags.count("td") == 3 * MOST_ROWS
