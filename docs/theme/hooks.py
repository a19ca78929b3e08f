"""Hooks of MkDocs: notebooks, figures on a phone, and the version on the home page."""

import json
import re
import runpy
import struct
from pathlib import Path

from mkdocs.plugins import event_priority

DOCS = Path(__file__).parents[1]
# Figures of two columns of equal width, which a phone shows one below the other.
TWO_COLUMNS = re.compile(
    r'<img alt="[^"]*" src="('
    r"(?:gallery/(?!\w+_epochs)|assets/"
    r"|(?=accuracy|layers|methods|points_lost|surrogates))\w+\.png"
    r')" />'
)
VERSION = runpy.run_path(str(Path(__file__).parents[2] / "snnjax" / "_version.py"))


def on_page_content(html: str, page, **_) -> str:
    """Change the HTML of a page before it is put into the frame of the site."""
    if page.file.src_path.endswith(".ipynb"):
        html = with_built_links(html)
    html = TWO_COLUMNS.sub(lambda match: with_halves(*match.group(0, 1)), html)
    if page.is_homepage:
        number = VERSION["__version__"]
        version = f'<small class="version" data-search-exclude>{number}</small>'
        html = html.replace("<a class", f"{version}<a class", 1)  # of the first heading
    return html


def with_built_links(html: str) -> str:
    """The HTML of a notebook with links to built pages; MkDocs changes only Markdown.

    >>> with_built_links('<a href="../a.md#b">a</a> <a href="https://c.org/d.md">c</a>')
    '<a href="../a.html#b">a</a> <a href="https://c.org/d.md">c</a>'
    """
    return re.sub(r'(href="[^":]+)\.(?:md|ipynb)(?=[#"])', r"\1.html", html)


def with_halves(image: str, file: str) -> str:
    """A figure in parts: a page shows the first one whole, and a phone all of them.

    A part is the left or the right half of a group of panels. A figure of the gallery
    has a group for every 0.7 times its width; others have one group.

    Args:
        image: element of the figure.
        file: of the figure, a PNG in docs.
    """
    header = (DOCS / file).read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    groups = max(1, round(height / width / 0.7)) if "gallery" in file else 1
    parts = []
    for group in range(groups):
        # In percent of the width of a phone, which shows the figure twice as wide.
        top = 200 * height / width * group / groups
        style = f"--shape: {width / 2} / {height / groups}; --top: -{top:.3f}%"
        for side in ("left", "right"):
            parts.append(f'<span class="half {side}" style="{style}">{image}</span>')
            image = re.sub('alt="[^"]*"', 'alt=""', image)  # it is read aloud once
    return f'<span class="halves">{"".join(parts)}</span>'


@event_priority(-50)  # behind `search`, and before `offline`, which copies its index
def on_post_build(config, **_) -> None:
    """Change the entries of notebooks in the search index."""
    file = Path(config.site_dir, "search", "search_index.json")
    index = json.loads(file.read_text())
    for entry in index["docs"]:
        if entry["location"].startswith("tutorials/"):
            entry.update(without_cells(entry))
    file.write_text(json.dumps(index, separators=(",", ":")))


def without_cells(entry: dict) -> dict:
    """A search entry of a notebook without prompts, code and outputs of its cells.

    `search` puts the cells of a whole notebook into the entry of the page. The text
    between them has entries of its own, one for each heading.

    >>> without_cells({"location": "a.html#b", "title": "B¶", "text": "c"})
    {'location': 'a.html#b', 'title': 'B', 'text': 'c'}
    >>> without_cells({"location": "a.html", "title": "A", "text": "In [1]: Copied!"})
    {'location': 'a.html', 'title': 'A', 'text': ''}
    """
    is_of_heading = "#" in entry["location"]
    return entry | {
        "title": entry["title"].removesuffix("¶"),
        "text": entry["text"] if is_of_heading else "",
    }
