"""A report as one HTML file: headings, text, tables and figures, with nothing to fetch from anywhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from unweave.figures import style
from unweave.files import replacing

_LAYOUT = """
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: var(--type) }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.015em }
h2 { font-size: 1.3rem; margin: 0 0 .5rem }
p { max-width: 46rem; margin: .4rem 0 .9rem }
section, dl div { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem }
section { padding: 1.5rem; margin-top: 1.5rem }
figure { margin: 1rem 0 0 } img { max-width: 100%; height: auto; display: block }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem; margin: 1.5rem 0 0 }
dl div { padding: .8rem 1rem }
dt { color: var(--faint); font-size: .85rem } dd { margin: 0; font-size: 1.45rem; font-weight: 600 }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th { color: var(--faint); font-weight: 500; text-align: left }
th, td { padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid var(--line) }
td + td { text-align: right } .wide { overflow-x: auto }
pre { background: var(--ground); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: .88rem }
footer { color: var(--faint); font-size: .88rem; margin-top: 2rem }
"""


class Page:
    """A report that is being written, from top to bottom.

    Args:
        title: Its heading.
        summary: What it says, in a sentence or two.
    """

    def __init__(self, title: str, summary: str) -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(summary)}</p>"]
        self._open = False

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Figures that are worth a look before anything else, each under its name."""
        cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
        self._parts.append(f"<dl>{''.join(cells)}</dl>")

    def section(self, title: str, text: str) -> None:
        """Begin a section."""
        self._close()
        self._parts.append(f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>")
        self._open = True

    def figure(self, picture: Figure | Image.Image, says: str) -> None:
        """A picture, and what it shows for those who cannot see it."""
        buffer = io.BytesIO()
        if isinstance(picture, Figure):
            picture.savefig(buffer, format="png")
        else:
            picture.save(buffer, format="png", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        self._parts.append(
            f'<figure><img alt="{escape(says, quote=True)}" src="data:image/png;base64,{data}"></figure>'
        )

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; cells of all columns but the first are numbers."""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        self._parts.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')

    def code(self, text: str) -> None:
        """Lines to type."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def html(self) -> str:
        """The whole file."""
        self._close()
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{style.PAGE}{_LAYOUT}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, which appears under its name only when it is whole.

        Raises:
            UnweaveError: The place cannot be written.
        """
        path = Path(path)
        with replacing(path, "report") as partial:
            partial.write_text(self.html(), encoding="utf-8")
        return path

    def _close(self) -> None:
        if self._open:
            self._parts.append("</section>")
        self._open = False
