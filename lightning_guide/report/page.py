"""Self-contained HTML page: images as data URIs, no external resources, all text escaped; one script at most."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from lightning_guide.report.comparison import SCRIPT, SCRIPT_SOURCE, STYLE, comparison
from lightning_guide.report.results import Cell

__all__ = ["Page"]


_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1900px; padding: 0 2em; color: #222; background: #fff }
h1 { margin-bottom: 0; overflow-wrap: anywhere }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px 24px }
.flow { display: flex; flex-wrap: wrap; gap: 16px 24px }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)) }
figure { margin: 0 }
figcaption { color: #555 }
img { display: block; max-width: 100%; image-rendering: pixelated }
.grid img { width: 100%; max-width: 900px }
svg { display: block; width: 100%; max-width: 1000px; height: auto }
.table { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
td, th { padding: 2px 10px; text-align: right; white-space: nowrap }
th { border-bottom: 1px solid #888 }
td:first-child, th:first-child { text-align: left }
tbody tr:nth-child(even) { background: #f4f4f4 }
tr.baseline { border: 1px solid #888 }
small { color: #555 }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px }
summary { cursor: pointer }
"""


# No external resource is loaded and no script runs but that of a comparison, even if a name in a run contains HTML.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page:
    """HTML page built section by section; `html` is the complete page."""

    def __init__(self, title: str) -> None:
        """Start a page with `title`."""
        self.title = title
        self._compares = False
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Add a section heading."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, rows: Sequence[Sequence[str | Cell]], *, folded: str = "") -> None:
        """Add a table whose first row is the header, collapsed under `folded` if given; nothing without rows."""
        if rows:
            head = "".join(f"<th>{_cell(cell)}</th>" for cell in rows[0])
            body = "".join(map(_row, rows[1:]))
            table = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            self._parts.append(f"<details><summary>{escape(folded)}</summary>{table}</details>" if folded else table)

    def images(
        self, images: Sequence[tuple[bytes, str]], *, scaled: bool = False, ids: Sequence[str] | None = None
    ) -> None:
        """Add PNG images with captions, side by side in their own size, or `scaled` to equal columns, with `ids`."""
        names = [""] * len(images) if ids is None else [f'id="{escape(each)}" ' for each in ids]
        figures = [
            f'<figure><img {name}alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for name, (png, caption) in zip(names, images, strict=True)
        ]
        self._parts.append(f'<div class="{"grid" if scaled else "flow"}">{"".join(figures)}</div>')

    def comparison(self, choices: Sequence[tuple[str, str]]) -> None:
        """Add a comparison of any two images of the page: (id of `images`, name)."""
        self._compares = True
        self._parts.append(comparison(choices))

    def charts(self, svgs: Sequence[str]) -> None:
        """Add SVGs of `charts.line_chart`, whose text is escaped already, side by side."""
        self._parts.append('<div class="grid wide">' + "".join(f"<figure>{svg}</figure>" for svg in svgs) + "</div>")

    def folded(self, summary: str, text: str) -> None:
        """Add preformatted text, collapsed by default."""
        self._parts.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")

    @property
    def html(self) -> str:
        """The complete page."""
        policy = f"{_POLICY}; script-src {SCRIPT_SOURCE}" if self._compares else _POLICY
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}{STYLE if self._compares else ''}</style>"
        )
        body = "\n".join([*self._parts, f"<script>{SCRIPT}</script>"] if self._compares else self._parts)
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _row(cells: Sequence[str | Cell]) -> str:
    baseline = any(isinstance(cell, Cell) and cell.mark == "baseline" for cell in cells)
    start = '<tr class="baseline">' if baseline else "<tr>"
    return start + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>"


def _cell(cell: str | Cell) -> str:
    """Return the HTML inside a cell; only relative links are made."""
    if isinstance(cell, str):
        return escape(cell)
    text = escape(cell.text)
    if cell.link:
        text = f'<a href="./{escape(quote(cell.link))}">{text}</a>'
    if cell.mark == "best":
        return f"<strong>{text}</strong>"
    return f"{text} <small>(baseline)</small>" if cell.mark == "baseline" else text
