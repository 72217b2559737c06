"""README and docs as tests read them: blocks, sections, links, anchors."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ROOT_PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
STUBS = {"index.md", "contributing.md", "changelog.md"}  # those of the root, in the site
PAGES = [README, *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in STUBS)]

_FENCE = re.compile(r"^(`{3,})(\S*)\s*$")
_HEADING = re.compile(r"^(#{1,6}) (.+?)\s*$")
_INLINE_CODE = re.compile(r"`[^`]+`")
_LINK = re.compile(r"!?\[(?:[^\]]|\](?=\())*?\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `not_run` is why no test runs it, `given` the code that runs before it."""

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""
    given: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Section:
    """The text under a heading, and how deep it stands; fenced text is in `code`."""

    page: str
    line: int
    title: str
    level: int
    prose: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.title!r}"


@dataclass(frozen=True)
class Line:
    """A line of a page, and the fence it stands in: its language, None outside of any."""

    number: int
    text: str
    fence: str | None
    is_mark: bool = False  # opens or closes the fence


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(text: str) -> Iterator[Line]:
    mark, language = "", None
    for number, line in enumerate(text.splitlines(), 1):
        found = _FENCE.match(line.strip())
        if found and language is None:
            mark, language = found[1], found[2]
            yield Line(number, line, language, True)
        elif found and line.strip() == mark:
            yield Line(number, line, language, True)
            language = None
        else:
            yield Line(number, line, language)


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks, each with the comment that stands right before it."""
    found: list[Block] = []
    comment, inside, start, body = "", False, 0, []
    for line in lines_of(text):
        if line.fence is None:
            if line.text.lstrip().startswith("<!--"):
                comment, inside = "", True
            if inside:
                comment += line.text + "\n"
                inside = "-->" not in line.text
            elif line.text.strip():
                comment = ""
        elif line.is_mark and not start:
            start, body = line.number, []
        elif line.is_mark:
            said = comment.strip().removeprefix("<!--").removesuffix("-->").strip()
            kinds = {k: said.removeprefix(f"{k}:").strip() for k in ("not run", "given")}
            about = {k.replace(" ", "_"): v for k, v in kinds.items() if said.startswith(f"{k}:")}
            found.append(Block(page, start, line.fence, "\n".join(body) + "\n", **about))
            start, comment = 0, ""
        else:
            body.append(line.text)
    return found


def sections_of(page: str, text: str) -> list[Section]:
    sections = [Section(page, 1, "", 0)]
    for line in lines_of(text):
        heading = _HEADING.match(line.text) if line.fence is None else None
        if heading:
            sections.append(Section(page, line.number, heading[2], len(heading[1])))
        elif line.fence is None:
            sections[-1].prose.append(line.text)
        elif not line.is_mark:
            sections[-1].code.append(line.text)
    return sections


def enclosing(sections: list[Section], index: int) -> list[Section]:
    """The section, those it is part of, and what stands before all of them."""
    found, level = [sections[index]], sections[index].level
    for section in reversed(sections[:index]):
        if section.level < level:
            found.append(section)
            level = section.level
    return found


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    anchors = set()
    for section in sections_of("", text)[1:]:
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", section.title).lower()
        kept = [c for c in plain if c in " -_" or unicodedata.category(c)[0] in "LN"]
        anchor = "".join(kept).replace(" ", "-")
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return anchors


def links_of(text: str) -> Iterator[tuple[int, str]]:
    """(line, target) of each link and picture; code holds none."""
    for line in lines_of(text):
        if line.fence is None:
            for found in _LINK.finditer(_INLINE_CODE.sub("`code`", line.text)):
                yield line.number, found[1]
