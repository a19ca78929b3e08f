"""Hooks of MkDocs: links from notebooks to pages, and the version on the home page."""

import re
import runpy
from pathlib import Path

VERSION = runpy.run_path(str(Path(__file__).parents[2] / "snnjax" / "_version.py"))


def on_page_content(html: str, page, **_) -> str:
    """Change the HTML of a page before it is put into the frame of the site."""
    if page.file.src_path.endswith(".ipynb"):
        html = with_built_links(html)
    if page.is_homepage:
        version = f'<small class="version">{VERSION["__version__"]}</small>'
        html = html.replace("<a class", f"{version}<a class", 1)  # of the first heading
    return html


def with_built_links(html: str) -> str:
    """The HTML of a notebook with links to built pages; MkDocs changes only Markdown.

    >>> with_built_links('<a href="../a.md#b">a</a> <a href="https://c.org/d.md">c</a>')
    '<a href="../a.html#b">a</a> <a href="https://c.org/d.md">c</a>'
    """
    return re.sub(r'(href="[^":]+)\.(?:md|ipynb)(?=[#"])', r"\1.html", html)
