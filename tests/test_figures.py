"""Every script that makes figures names the documents that quote them, and they name it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [p for p in (ROOT / "scripts" / "figures").glob("*.py") if "__main__" in p.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_documents_and_scripts_name_each_other(script: Path) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text("utf8"))) or ""
    quoted = re.search(r"Quoted by (.+)\.$", docstring, re.S)
    assert quoted, "its docstring ends with the documents: Quoted by docs/x.md and README.md."
    for document in re.split(r",\s+|\s+and\s+", quoted[1]):
        assert f"scripts/figures/{script.name}" in (ROOT / document).read_text("utf8"), document
