"""A chart of ratios, as SVG, readable on light and dark pages."""

import math
from html import escape

COLOURS = {"plain": ("#8a8a8a", "#9a9a9a"), "fuse": ("#c9652b", "#e08a4f"), "envfs": ("#2f7d46", "#5cb877")}
#: Place of the scale, its width, height of a bar with the space below, space below a workload.
LEFT, WIDTH, BAR, GAP = 370, 420, 11, 12

STYLE = """text { font: 12px sans-serif; fill: #222 } .faint { fill: #666 } line { stroke: #ccc } .one { stroke: #222 }
%s
@media (prefers-color-scheme: dark) { text { fill: #ddd } .faint { fill: #999 } line { stroke: #444 } .one { stroke: #ddd }
%s }"""


def draw(results, names, base="kernel"):
    """Horizontal bars on a logarithmic scale: each competitor's figure as a multiple of the base's."""
    names = [name for name in names if name != base and name in COLOURS]
    rows = []
    for key, row in results.rows.items():
        ratios = {name: results.ratio(key, base, name) for name in names}
        ratios = {name: ratio for name, ratio in ratios.items() if ratio and ratio[0] > 0}
        if "envfs" in ratios:
            rows.append((row["title"], ratios))
    middles = [ratio[0] for _, ratios in rows for ratio in ratios.values()]
    low = math.floor(math.log10(min([0.5, *middles])))
    high = math.ceil(math.log10(max([2.0, *middles])))

    def x(ratio):
        return LEFT + WIDTH * (math.log10(ratio) - low) / (high - low)

    light, dark = ("\n".join(f".{name} {{ fill: {COLOURS[name][n]} }}" for name in names) for n in (0, 1))
    top, parts = 56, []
    y = top
    for title, ratios in rows:
        middle = y + len(ratios) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 40}" y="{middle:.0f}" text-anchor="end">{escape(title)}</text>')
        for name, (ratio, least, greatest) in ratios.items():
            # From 1, to the left where it is faster and to the right where it is slower.
            a, b = sorted((x(1), x(ratio)))
            parts.append(f'<rect class="{name}" x="{a:.1f}" y="{y}" width="{max(b - a, 1):.1f}" height="{BAR - 2}">'
                         f"<title>{name}: {ratio:.3f} ({least:.3f} to {greatest:.3f})</title></rect>")
            place = f'x="{b + 4:.1f}"' if ratio >= 1 else f'x="{a - 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="faint" {place} y="{y + 9}" style="font-size:10px">{ratio:.2g}</text>')
            y += BAR
        y += GAP
    grid = []
    for power in range(low, high + 1):
        at = x(10**power)
        grid.append(f'<line class="{"one" if power == 0 else "ten"}" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 8}" y2="{y}"/>')
        grid.append(f'<text class="faint" x="{at:.1f}" y="{top - 14}" text-anchor="middle">{10**power:g}</text>')
    legend, at = [], LEFT
    for name in names:
        legend.append(f'<rect class="{name}" x="{at}" y="8" width="10" height="10"/><text x="{at + 15}" y="17">{name}</text>')
        at += 80
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 60}" height="{y + 10}" '
            f'viewBox="0 0 {LEFT + WIDTH + 60} {y + 10}">')
    note = f'<text x="10" y="17">multiples of {base}; less is better</text>'
    return "\n".join([head, f"<style>{STYLE % (light, dark)}</style>", note, *legend, *grid, *parts, "</svg>", ""])
