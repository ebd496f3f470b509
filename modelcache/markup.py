"""HTML that needs nothing but itself: escaped text, tables, and the page or the frame around them.

Responsible for: a page that works offline, in light and dark and on paper, without a script, and that asks nobody for
anything: its own policy forbids it; a frame for a notebook's output, in the colours of whatever shows it. Leaves to
others: what they say.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape

from modelcache.printing import printable

Shown = Callable[[str, object], str]  # (key, value) as people read it
MOST_CELL = 200  # characters of a cell, before the middle of it goes
MOST_IN_LINE = 40  # and of one that is not broken
MOST_TITLE = 1000  # and of what a browser shows to whoever points at it


def text(value: object) -> str:
    """What may be anything, as text of a page: no mark-up, and nothing that cannot be seen or turns it round."""
    return escape(printable(str(value)))


def name(value: object, most: int = 60) -> str:
    """A text of any length: where it is longer than so many characters, its two ends, and all of it as a title."""
    whole = str(value)
    if len(whole) <= most:
        return text(whole)
    return f'<span title="{title(whole)}">{text(_cut(whole, most))}</span>'


def title(value: object) -> str:
    """A text of any length, as the value of an attribute."""
    return text(_cut(str(value), MOST_TITLE))


def _cut(whole: str, most: int) -> str:
    """Without its middle: names differ at their ends."""
    ahead = (most - 1) // 2
    return whole if len(whole) <= most else f"{whole[:ahead]}…{whole[len(whole) - (most - 1 - ahead) :]}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], shown: Shown) -> str:
    """Columns are keys; those of numbers alone are set to the right, and short ones are not broken."""
    body = [list(row) for row in rows]
    cells = [[shown(*pair) for pair in zip(columns, row, strict=True)] for row in body]
    marks = [_mark([row[at] for row in body], [line[at] for line in cells]) for at in range(len(columns))]
    head = "".join(f"<th{mark}>{text(key.replace('_', ' '))}</th>" for key, mark in zip(columns, marks, strict=True))
    lines = "".join(f"<tr>{_line(line, marks)}</tr>" for line in cells)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _line(cells: Sequence[str], marks: Sequence[str]) -> str:
    return "".join(f"<td{mark}>{name(cell, MOST_CELL)}</td>" for cell, mark in zip(cells, marks, strict=True))


def _mark(values: Sequence[object], cells: Sequence[str]) -> str:
    if _is_number(values):
        return ' class="n"'
    return "" if any(len(cell) > MOST_IN_LINE for cell in cells) else ' class="s"'


def _is_number(values: Sequence[object]) -> bool:
    return any(value is not None for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    )


def page(title: str, body: str) -> str:
    """A whole document. `body` is mark-up already."""
    return _PAGE.format(title=text(title), style=_STYLE, body=body)


def framed(body: str) -> str:
    """What a notebook shows. `body` is mark-up already; its classes are those of a page, and it reads without them."""
    return f'<div class="modelcache"><style>{_FRAME}</style>{body}</div>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1c2126; --soft: #646c74; --faint: #e4e7ea; --paper: #ffffff; --panel: #f7f8f9; --good: #1a7f4b;
  --bad: #b3261e; --c0: #2f6db5; --c1: #d98324; --c2: #3c9a78; --c3: #8661b4; --c4: #b8527c; --c5: #7b8794; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #98a1aa; --faint: #30363c; --paper: #15181b;
  --panel: #1d2125; --good: #5cc491; --bad: #f28b82; --c0: #6ea8e6; --c1: #eba45a; --c2: #63bf9c; --c3: #b094db;
  --c4: #df82a8; --c5: #9aa5b1; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 2.75rem 0 0.75rem; }
h3 { font-size: 0.85rem; font-weight: 500; color: var(--soft); margin: 0 0 0.35rem; }
p { margin: 0.35rem 0; max-width: 46rem; }
.soft, figcaption, footer { color: var(--soft); font-size: 0.87rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.lead { font-size: 1.05rem; font-weight: 500; margin: 1.5rem 0 0; }
ul { margin: 0.35rem 0; padding-left: 1.2rem; } li { margin: 0.15rem 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.75rem;
  margin: 1.25rem 0 0; padding: 0; list-style: none; }
.tiles li { background: var(--panel); border-radius: 10px; padding: 0.85rem 1rem; margin: 0; }
.tiles b { display: block; font-size: 1.45rem; font-weight: 600; letter-spacing: -0.01em; line-height: 1.3; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
figure { margin: 0 0 1rem; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
svg.full { min-width: 40rem; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
.grid { stroke: var(--faint); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 0.15rem 1rem; margin: 0 0 0.4rem; padding: 0; list-style: none;
  font-size: 0.82rem; color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 0.65rem; height: 0.65rem; border-radius: 2px;
  margin-right: 0.4rem; background: var(--hue); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); border-bottom: 1px solid var(--faint); }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--faint); }
td:not(.n) { overflow-wrap: anywhere; min-width: 9rem; max-width: 30rem; }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); font-size: 0.87rem; margin-top: 0.75rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--faint); padding-top: 0.75rem; }
@media print { body { font-size: 11px; } main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  svg.full { min-width: 0; } figure, tr, .tiles { break-inside: avoid; } .tiles li { border: 1px solid var(--faint); } }
""".strip()

# In a notebook. Colours are JupyterLab's, else VS Code's, else those of the text around, for light and dark at once;
# Jupyter's own rules for tables are outdone by naming the class twice.
_FRAME = """
.modelcache { --ink: var(--jp-ui-font-color1, inherit); --faint: var(--jp-border-color2, #8885); --hint: #8882;
  --soft: var(--jp-ui-font-color2, var(--vscode-descriptionForeground, #808080));
  --good: var(--jp-success-color1, #2e9e5b); --bad: var(--jp-error-color1, #d64541);
  --c0: #4385d1; --c1: #dd8a2e; --c2: #3ea57e; --c3: #946bc4; --c4: #c75f8b; --c5: #8893a0;
  color: var(--ink); font: 13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif); max-width: 62rem; }
.modelcache h3 { font-size: 14px; font-weight: 600; margin: 6px 0 2px; }
.modelcache figure h3 { font-size: 12px; font-weight: 500; color: var(--soft); }
.modelcache p { margin: 2px 0; } .modelcache figure { margin: 8px 0; min-width: 0; }
.modelcache .soft { color: var(--soft); } .modelcache .good { color: var(--good); }
.modelcache .bad { color: var(--bad); }
.modelcache .wide { overflow-x: auto; }
.modelcache progress { appearance: none; width: 12rem; height: 8px; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--faint); vertical-align: middle; --bar: var(--jp-brand-color1, #3b82c4); }
.modelcache [data-state=ready] progress { --bar: var(--good); }
.modelcache [data-state=failed] progress { --bar: var(--bad); }
.modelcache [data-state=paused] progress { --bar: var(--soft); }
.modelcache progress::-webkit-progress-bar { background: var(--faint); }
.modelcache progress::-webkit-progress-value { background: var(--bar); }
.modelcache progress::-moz-progress-bar { background: var(--bar); }
.modelcache.modelcache table { border-collapse: collapse; margin: 4px 0; font-size: 12px; table-layout: auto;
  font-variant-numeric: tabular-nums; border: 0; color: inherit; }
.modelcache.modelcache tr { background: none; }
.modelcache.modelcache tbody tr:hover { background: var(--hint); }
.modelcache.modelcache :is(th, td) { padding: 3px 16px 3px 0; text-align: left; vertical-align: top; max-width: 28rem;
  border: 0; border-bottom: 1px solid var(--faint); }
.modelcache.modelcache th { font-weight: 500; color: var(--soft); white-space: nowrap; background: none; }
.modelcache.modelcache td { overflow-wrap: anywhere; min-width: 12rem; white-space: normal; }
.modelcache.modelcache :is(.n, .s) { white-space: nowrap; min-width: 0; }
.modelcache.modelcache .n { text-align: right; }
.modelcache.modelcache tbody tr:last-child td { border-bottom: 0; }
.modelcache svg { display: block; width: 100%; height: auto; } .modelcache .grid { stroke: var(--faint); }
.modelcache svg text { fill: var(--soft); font-size: 11px; }
.modelcache .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 16px; }
.modelcache.modelcache .legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0; padding: 0; list-style: none;
  color: var(--soft); }
.modelcache .legend li::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 6px; background: var(--hue); }
""".strip()
