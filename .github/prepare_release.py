"""Addresses for a package index: ``python .github/prepare_release.py URL TAG``.

In a checkout links are relative, and nothing states where the repository is. A page of
a package index needs absolute links. This writes them into README.md and setup.cfg
before a release is built; the changes are not committed.
"""

import re
import sys
from pathlib import Path

IMAGES = (".png", ".svg")


def absolute_links(text: str, url: str, tag: str) -> str:
    """Markdown whose relative links point into the repository at this tag."""

    def absolute(match: re.Match) -> str:
        target = match[1]
        if "://" in target or target.startswith("#"):
            return match[0]
        folder = "raw" if target.endswith(IMAGES) else "blob"
        return f"]({url}/{folder}/{tag}/{target})"

    return re.sub(r"\]\(([^)\s]+)\)", absolute, text)


def with_addresses(setup: str, url: str, tag: str) -> str:
    """The text of setup.cfg with the addresses of the project."""
    addresses = {
        "Source": url,
        "Documentation": f"{url}/blob/{tag}/docs/index.md",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    lines = "".join(f"    {name} = {address}\n" for name, address in addresses.items())
    if "\nproject_urls" in setup or "\nclassifiers =\n" not in setup:
        raise SystemExit("setup.cfg has addresses already, or no classifiers")
    return setup.replace("classifiers =\n", f"project_urls =\n{lines}classifiers =\n")


def main(url: str, tag: str, root: Path = Path()) -> None:
    """Change both files in place."""
    for name, change in (("README.md", absolute_links), ("setup.cfg", with_addresses)):
        file = root / name
        file.write_text(change(file.read_text(), url, tag))


if __name__ == "__main__":
    if len(sys.argv) != 3 or not all(sys.argv):
        raise SystemExit(__doc__)
    main(sys.argv[1].rstrip("/"), sys.argv[2])
