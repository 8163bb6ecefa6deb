"""The style of the page: light and dark, from a telephone's width on, and for paper."""

from __future__ import annotations

SHADES = 10

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #111; --quiet: #595959; --line: #aaa; --grid: #ddd; --bar: #9a9a9a;
  --kept: #ffe08a; --kept-text: #000; --shade: 6%; --link: #0645ad; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --text: #e8e8e8; --quiet: #a2a2a2; --line: #666;
  --grid: #33363b; --bar: #8a8a8a; --kept: #6b5200; --kept-text: #fff; --shade: 5%; --link: #8ab4f8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0 .6rem; } .why, small { color: var(--quiet); } small { display: block; font-size: .85rem; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1rem; } dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.answer { font: 1.05rem/1.5 system-ui, sans-serif; border-left: 4px solid var(--kept); padding: .4rem .8rem; margin: .5rem 0; }
.map { width: 100%; height: 4.5rem; display: block; border: 1px solid var(--line); box-sizing: border-box; }
.map .here { fill: var(--kept); stroke: var(--text); stroke-width: .5; vector-effect: non-scaling-stroke; }
.map a:hover .here, .map a:focus .here { fill: var(--link); }
.ends { display: flex; justify-content: space-between; color: var(--quiet); font-size: .85rem; }
.passages { columns: 18rem; padding-left: 2.6rem; } .passages li { break-inside: avoid; overflow-wrap: anywhere; }
.prompt { border: 1px solid var(--line); padding: .8rem; max-height: 40rem; overflow: auto; color: var(--quiet); }
.kept { background: var(--kept); color: var(--kept-text); font-weight: 600; border-bottom: 2px solid currentColor; }
.fixed { outline: 1px dashed currentColor; outline-offset: -1px; }
.jump { font: 11px/1 system-ui, sans-serif; text-decoration: none; border: 1px solid var(--line); border-radius: .6rem;
  padding: .1rem .35rem; margin: 0 .15rem; user-select: none; white-space: nowrap; scroll-margin: 6rem; }
.jump:target { background: var(--link); color: var(--page); }
.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart text { fill: var(--text); paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
.axis { stroke: var(--text); } .grid { stroke: var(--grid); }
.trace { fill: none; stroke: var(--text); stroke-width: 1.5; }
circle.mark { fill: var(--text); } rect.mark { fill: var(--bar); stroke: var(--text); stroke-width: .5; }
.tau { stroke: var(--text); stroke-dasharray: 7 4; }
.selection { stroke: var(--text); stroke-width: 1.5; stroke-dasharray: 2 3; }
@media (max-width: 36rem) { body { margin: 1rem auto; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  .chart { font-size: 17px; } }
@media print { .prompt { max-height: none; } .jump { display: none; } }
"""


def shade_styles() -> str:
    """Backgrounds from the page's own to mid-grey, under text that stays legible on each."""
    return "".join(
        f".s{i} {{ background: rgb(128 128 128 / calc(var(--shade) * {i})); color: var(--text); }}\n"
        for i in range(1, SHADES + 1)
    )
