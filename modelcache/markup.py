"""HTML that needs nothing but itself: escaped text, tables, and the page around them.

Responsible for: a page that works offline, in light and dark and on paper, without a script, and that asks nobody for
anything: its own policy forbids it. Leaves to others: what it says.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape

Shown = Callable[[str, object], str]  # (key, value) as people read it


def text(value: object) -> str:
    """What may be anything, as text of a page: no mark-up, and nothing that cannot be seen or turns it round."""
    return escape("".join(each if each.isprintable() else " " for each in str(value)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], shown: Shown) -> str:
    """Columns are keys; one whose values are all numbers, or nothing, is set to the right."""
    body = [list(row) for row in rows]
    marks = [' class="n"' if _is_number([row[index] for row in body]) else "" for index in range(len(columns))]
    head = "".join(f"<th{mark}>{text(key.replace('_', ' '))}</th>" for key, mark in zip(columns, marks, strict=True))
    lines = (
        "".join(f"<td{mark}>{text(shown(*pair))}</td>" for pair, mark in zip(zip(columns, row), marks))  # noqa: B905
        for row in body
    )
    cells = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def _is_number(values: Sequence[object]) -> bool:
    return any(value is not None for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    )


def page(title: str, body: str) -> str:
    """A whole document. `body` is mark-up already."""
    return _PAGE.format(title=text(title), style=_STYLE, body=body)


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
