"""Self-contained HTML page: images as data URIs, no external resources, no scripts, all text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

__all__ = ["Page"]


_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; background: #fff }
h1 { margin-bottom: 0 }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
figure { display: inline-block; margin: 8px }
figcaption { color: #555 }
img { max-width: 100%; image-rendering: pixelated }
svg { max-width: 100%; height: auto }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { padding: 2px 10px; text-align: right }
th { border-bottom: 1px solid #888 }
td:first-child, th:first-child { text-align: left }
tr:nth-child(even) { background: #f4f4f4 }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px }
summary { cursor: pointer }
"""


# No external resource is loaded and no script runs, even if a name in a run contains HTML.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page:
    """HTML page built section by section; `html` is the complete page."""

    def __init__(self, title: str) -> None:
        """Start a page with `title`."""
        self.title = title
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Add a section heading."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Add a table whose first row is the header; nothing without rows."""
        if rows:
            head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
            body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
            self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def image(self, png: bytes, caption: str) -> None:
        """Add an image with its caption."""
        data = base64.b64encode(png).decode()
        self._parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def chart(self, svg: str) -> None:
        """Add an SVG of `charts.line_chart`, whose text is escaped already."""
        self._parts.append(f"<figure>{svg}</figure>")

    def folded(self, summary: str, text: str) -> None:
        """Add preformatted text, collapsed by default."""
        self._parts.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")

    @property
    def html(self) -> str:
        """The complete page."""
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}</style>"
        )
        body = "\n".join(self._parts)
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
