"""Every Python block of docs/ runs, page by page, in order."""

import re
from pathlib import Path

import pytest
from conftest import native

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGES = [page for page in sorted(DOCS.glob("*.md")) if BLOCKS.search(page.read_text())] if DOCS.is_dir() else []


@native
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks(page, tmp_path, monkeypatch, capsys):
    if page.stem == "drop-ins":
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, block in enumerate(BLOCKS.findall(page.read_text()), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    capsys.readouterr()
