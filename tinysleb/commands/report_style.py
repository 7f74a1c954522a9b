"""How a report looks, light and dark, on a telephone and on a wide screen; and tables and figures in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --card: #f2f1ed; --ink: #1f1f1d; --soft: #65635d;
  --line: #d8d6d0; --blue: #2462a9; --orange: #b9480a; --green: #27734a }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #212429; --ink: #e9e7e3;
  --soft: #a4a29c; --line: #3b3e44; --blue: #76aeea; --orange: #f3925a; --green: #6cc493 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 76rem;
  background: var(--paper); color: var(--ink); overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem }
h4, h5 { font-size: .85rem; margin: 0; color: var(--soft); overflow-wrap: anywhere }
p { max-width: 46rem; margin: .4rem 0 .8rem }
.soft { color: var(--soft) }
.tiles { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  margin: 1rem 0 }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3 }
.tiles span { color: var(--soft); font-size: .85rem }
.wide { overflow-x: auto; margin: .6rem 0 1rem }
.pair { display: grid; gap: 0 2.5rem }
@media (min-width: 60rem) { .pair { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr) } }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
td, th { padding: .22rem .7rem; text-align: right; white-space: nowrap }
td.word, th.word { text-align: left }
td.word { white-space: normal; min-width: 7.5rem }
td.word:first-child, th.word:first-child { padding-left: 0 }
th { border-bottom: 1px solid var(--soft); font-weight: 600 }
tr + tr td { border-top: 1px solid var(--line) }
summary { cursor: pointer; color: var(--blue); margin: .3rem 0 }
pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
.texts { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)) }
.texts pre { margin: .2rem 0 0 }
svg { display: block; font-family: inherit }
svg.fluid { width: 100%; max-width: 40rem; height: auto }
svg text { fill: var(--soft); font-size: 14px }
svg.small text { font-size: 11px }
svg text.ink { fill: var(--ink) }
svg .grid { stroke: var(--line) }
svg .blue { fill: var(--blue) }
svg .green { fill: var(--green) }
svg .orange { fill: var(--orange) }
svg .curve { fill: none; stroke: var(--blue); stroke-width: 2.5 }
svg .heals { fill: none; stroke: var(--green); stroke-width: 1.5; stroke-dasharray: 4 3 }
svg .open { fill: var(--paper); stroke: var(--orange); stroke-width: 2 }
"""


def page(title: str, body: str) -> str:
    """A whole page, which needs nothing else."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A table, which scrolls by itself if it is too wide. The first `words` columns are aligned like text."""

    def cells(tag: str, row: Sequence[object]) -> str:
        kinds = (" class='word'" if place < words else "" for place in range(len(row)))
        return "".join(f"<{tag}{kind}>{escape(str(cell))}" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}" for row in rows)
    return f"<div class='wide'><table><thead><tr>{cells('th', head)}<tbody>{body}</table></div>"


def folded(title: str, inside: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Figures that stand out, each with what it is."""
    each = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in facts)
    return f"<div class='tiles'>{each}</div>"


def figure(size: tuple[float, float], label: str, inside: str, fluid: bool = True) -> str:
    """A picture of so many pixels: `fluid`, it is as wide as there is room; else it scrolls by itself."""
    width, height = size
    fixed = "class='fluid'" if fluid else f"class='small' width='{width:g}' height='{height:g}'"
    return (
        f"<div class='wide'><svg {fixed} viewBox='0 0 {width:g} {height:g}' role='img' "
        f"aria-label='{escape(label)}'>{inside}</svg></div>"
    )


def words_at(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    """A text in a picture."""
    named = f" class='{kind}'" if kind else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{named}>{escape(text)}</text>"
