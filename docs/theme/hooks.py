"""Hooks of MkDocs: links and search entries of notebooks, and the version at home."""

import json
import re
import runpy
from pathlib import Path

from mkdocs.plugins import event_priority

VERSION = runpy.run_path(str(Path(__file__).parents[2] / "snnjax" / "_version.py"))


def on_page_content(html: str, page, **_) -> str:
    """Change the HTML of a page before it is put into the frame of the site."""
    if page.file.src_path.endswith(".ipynb"):
        html = with_built_links(html)
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
