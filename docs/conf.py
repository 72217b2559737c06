"""The documentation as a site: `scripts/docs` builds it, warnings are errors.

README.md, CONTRIBUTING.md and CHANGELOG.md lie at the root, where people look for them, and are
pages of the site too: their stubs here are replaced by them when they are read.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convtvm import __version__  # noqa: E402
from convtvm.version import checked_out  # noqa: E402

project = "convtvm"
copyright = "the convtvm authors"
version = __version__
release = " ".join(filter(None, (version, checked_out(ROOT))))
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"convtvm {version}"
html_show_sourcelink = False
html_theme_options = {"footer_icons": []}
html_last_updated_fmt = release and f"{release}"
# Headings have the anchors that GitHub gives them, so that links work in both places.
myst_heading_anchors = 4
pygments_style = "default"
pygments_dark_style = "monokai"

# Pages of the site that lie at the root.
AT_ROOT = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s]+)")


def relocated(text: str) -> str:
    """A document with its links as they lead from docs/ to where their targets are in the site."""
    pages = {file: f"{page}.md" for page, file in AT_ROOT.items()}

    def moved(found: re.Match[str]) -> str:
        path, mark, anchor = found[1].partition("#")
        page = pages.get(path.removeprefix("../"), path.removeprefix("docs/"))
        return page + mark + anchor

    return _LINK.sub(moved, text)


def _read(app: Any, page: str, source: list[str]) -> None:
    if page in AT_ROOT:
        path = ROOT / AT_ROOT[page]
        _, _, rest = source[0].partition("<!-- here -->")
        source[0] = path.read_text("utf8") + rest
        app.env.note_dependency(str(path))
    source[0] = relocated(source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _read)
