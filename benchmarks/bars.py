"""A bar chart as SVG text: groups of bars, one colour for each name, the figure at each bar's end."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

WIDTH, NAMES, FIGURES = 760, 250, 60
BAR, GAP, TITLE = 16, 4, 26
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
STYLE = "text{font:12px system-ui,sans-serif;fill:#333}@media(prefers-color-scheme:dark){text{fill:#ddd}}"


def bars(groups: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Each group with its own scale, as groups are not compared with each other; `unit` stands behind the figures."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    parts, y = [], 0
    for title, group in groups.items():
        parts.append(f'<text x="0" y="{y + 17}" font-weight="600">{escape(title)}, {escape(unit)}</text>')
        y += TITLE
        most = max(group.values(), default=1.0)
        for name, value in group.items():
            length = (WIDTH - NAMES - FIGURES) * value / most
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts.append(f'<text x="{NAMES - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{NAMES}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{NAMES + length + 6:.1f}" y="{y + 12}">{value:.3g}</text>')
            y += BAR + GAP
        y += BAR
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</svg>\n"
