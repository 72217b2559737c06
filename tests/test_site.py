"""The documentation as a site: it builds without a warning, and every link leads somewhere."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from documents import PAGES, ROOT, ROOT_PAGES, anchors_of, links_of, name_of
from test_layers import ROOMS
from test_layers import name_of as room_name

DOCUMENTS = sorted({*PAGES, *ROOT_PAGES})


# ---- as files, which is how GitHub shows them ----------------------------------------------------


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_between_files(page: Path) -> None:
    broken = []
    for line, link in links_of(page.read_text("utf8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, anchor = urldefrag(link)
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(f"{name_of(page)}:{line}: {link}: there is no {path}")
        elif anchor and anchor not in anchors_of(target.read_text("utf8")):
            broken.append(f"{name_of(page)}:{line}: {link}: there is no heading #{anchor}")
    assert broken == []


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("From C++", "from-c"),
        ("What is *not* `obvious`", "what-is-not-obvious"),
        ("The [map](x.md) of it", "the-map-of-it"),
        ("1×1, and more: how?", "11-and-more-how"),
    ],
)
def test_anchors_are_github_s(title: str, anchor: str) -> None:
    assert anchors_of(f"# {title}\n## {title}\n") == {anchor, f"{anchor}-1"}


def test_the_picture_of_the_house_and_its_page_name_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf8")
    assert [r.folder for r in ROOMS if f"`{room_name(r)}/`" not in text] == []
    drawn = set(
        re.findall(r'class="name"[^>]*>([^<]+)<', (ROOT / "docs/pictures/house.svg").read_text())
    )
    on_the_way = {"problem", "models", "kernels", "compute", "schedules", "tuning", "measure"}
    assert drawn >= on_the_way | {"logs", "library", "dispatch", "torch"}


# ---- as a site -----------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a page refers to, and what it can be referred to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == "href" and value:
                (self.loads if tag == "link" else self.links).append(value)
            elif name == "src" and value:
                self.loads.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"),
            *("-d", str(folder / "cache"), str(ROOT / "docs"), str(folder / "html")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {p: Page(p.read_text("utf8")) for p in site.rglob("*.html") if "_static" not in p.parts}


def test_links_of_the_site(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in (*page.links, *page.loads):
            if re.match(r"[a-z]+:", link):
                continue
            place, anchor = urldefrag(link.partition("?")[0] if "#" not in link else link)
            target = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            if not target.exists():
                broken.append(f"{path.name}: {link}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                broken.append(f"{path.name}: {link}: no such heading")
    assert broken == []
    assert len(pages) > len(DOCUMENTS)


def test_the_site_needs_no_network(pages: dict[Path, Page]) -> None:
    elsewhere = {link for page in pages.values() for link in page.loads if "//" in link}
    assert elsewhere == set()


def test_every_document_is_a_page(site: Path) -> None:
    names = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
    for document in DOCUMENTS:
        page = site / f"{names.get(document.name, document.stem)}.html"
        heading = document.read_text("utf8").partition("\n")[0].removeprefix("# ")
        first = re.search(r"<h1>(.*?)<a", page.read_text("utf8"), re.S)
        assert first and re.sub(r"<[^>]+>|&\w+;", "", first[1]) in heading.replace("`", "")


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium on PATH")
def test_search_finds_pages(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path}"),
            *("--virtual-time-budget=10000", "--dump-dom"),
            f"{(site / 'search.html').as_uri()}?q=winograd+tile",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    _, _, results = done.stdout.partition('class="search"')
    assert "accuracy.html" in results or "algorithms.html" in results, done.stderr[-500:]
