"""Figures in the documents: each has its command and its commit beside it, and every script that
makes figures names the documents that quote them, which name it."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from documents import PAGES, Section, enclosing, name_of, sections_of

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [p for p in (ROOT / "scripts" / "figures").glob("*.py") if "__main__" in p.read_text()]

# 1.2 ms, 3 µs, 40 s, 94 %, 1.3×, 270 GFLOP/s; not 3×3 or 56².
FIGURE = re.compile(
    r"(?<![\w.,×/²^-])\d[\d,]*(?:\.\d+)?(?:\s?(?:ms|µs|s|GFLOP/s)\b|\s?%|×(?![\w×]))"
)
MEASURED_CELL = re.compile(r"\|[^|]*\d\.\d[^|]*(?=\|)")
COMMIT = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7}\b")
COMMAND = re.compile(r"(?:^|`)(?:python )?(?:scripts/\S+|convtvm \w+)", re.M)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*pictures/(?!house)\S+\)")
SETTINGS = re.compile(r"<!-- settings:")  # a section whose numbers are chosen, not measured


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_documents_and_scripts_name_each_other(script: Path) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text("utf8"))) or ""
    quoted = re.search(r"Quoted by (.+)\.$", docstring, re.S)
    assert quoted, "its docstring ends with the documents: Quoted by docs/x.md and README.md."
    for document in re.split(r",\s+|\s+and\s+", quoted[1]):
        assert f"scripts/figures/{script.name}" in (ROOT / document).read_text("utf8"), document


def figures_in(section: Section) -> list[str]:
    """The measured numbers of a section's own text."""
    text = "\n".join(section.prose)
    pictures = PICTURE.findall(text)
    if SETTINGS.search(text):
        return []
    return [*FIGURE.findall(text), *MEASURED_CELL.findall(text), *pictures]


def lacking(sections: list[Section]) -> list[str]:
    """What figures lack: in their section, one around it, or the page's beginning."""
    found = []
    for index, section in enumerate(sections):
        figures = figures_in(section)
        around = "\n".join(
            "\n".join((*each.prose, *each.code)) for each in enclosing(sections, index)
        )
        absent = [
            what
            for what, kind in (("command", COMMAND), ("commit", COMMIT))
            if not kind.search(around)
        ]
        if figures and absent:
            found.append(f"{section}: {figures[0]!r} and others have no {' and no '.join(absent)}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_figures_have_their_command_and_commit(page: Path) -> None:
    assert lacking(sections_of(name_of(page), page.read_text("utf8"))) == []


@cache
def history() -> frozenset[str] | None:
    """The short hashes of all commits; None without a whole history."""
    shallow = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--is-shallow-repository"],
        capture_output=True,
        text=True,
    )
    if shallow.returncode or shallow.stdout.strip() != "false":
        return None
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "log", "--format=%H"], capture_output=True, text=True, check=True
    )
    return frozenset(line[:7] for line in listed.stdout.split())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commits_exist(page: Path) -> None:
    """History that was reworded leaves names behind that nobody can look up."""
    known = history()
    if known is None:
        pytest.skip("no whole history of git here")
    prose = "\n".join(
        "\n".join(s.prose) for s in sections_of(name_of(page), page.read_text("utf8"))
    )
    others = re.compile(r"oneDNN [0-9a-f]{7}")  # another project's
    named = set(COMMIT.findall(others.sub("", prose)))
    assert named <= known, f"not in the history: {sorted(named - known)}"


# ---- the rules themselves ------------------------------------------------------------------------

NUMBERS = [
    "takes 1.2 ms",
    "1.3× as fast",
    "94 % of the peak",
    "from 4.1 µs on",
    "270 GFLOP/s",
    "0.24 to 0.32 s",
    "| conv1 | 1.25 | 3 |",
    "![layers](docs/pictures/resnet18.svg)",
]
NO_NUMBERS = ["a 3×3 kernel", "56² pixels", "8 lanes", "2 threads", "F(4×4, 3×3)", "sm_90", "1×1"]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_figure_without_command_and_commit_is_found(text: str) -> None:
    page = f"# Page\n\n## Speed\n\n{text}\n"
    (said,) = lacking(sections_of("x.md", page))
    assert "x.md:3 'Speed'" in said and "command and no commit" in said
    assert "commit" in lacking(sections_of("x.md", f"{page}\n```sh\nconvtvm bench x\n```\n"))[0]
    assert "command" in lacking(sections_of("x.md", f"{page}\nat 1a2b3c4\n"))[0]
    whole = f"{page}\nat 1a2b3c4 by `scripts/figures/x.py`\n"
    assert lacking(sections_of("x.md", whole)) == []
    elsewhere = f"{page}\n## Other\n\nat 1a2b3c4 by `convtvm bench x`\n"
    assert len(lacking(sections_of("x.md", elsewhere))) == 1
    above = f"# Page\n\nAt 1a2b3c4 by `convtvm bench x`.\n\n## Speed\n\n### Part\n\n{text}\n"
    assert lacking(sections_of("x.md", above)) == []


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_sizes_are_no_figures(text: str) -> None:
    assert lacking(sections_of("x.md", f"# Page\n\n{text}\n")) == []
