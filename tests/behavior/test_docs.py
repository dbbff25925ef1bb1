"""What the documentation shows works: commands parse, code names things that exist, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from rtdetrv4.cli import app
from rtdetrv4.comparison.runs import ARMS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")])


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        return [text] if language == "python" else []
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The ids that mkdocs gives the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


COMMANDS = [
    pytest.param(shlex.split(line, comments=True), id=f"{named(page)}: {line}")
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.splitlines()
    if re.search(r"^rtdetrv4 |-m(odule)? rtdetrv4\.cli ", line)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words: list[str]) -> None:
    start = next(index for index, word in enumerate(words) if word in ("rtdetrv4", "rtdetrv4.cli"))
    name, *arguments = words[start + 1 :]
    group = typer.main.get_command(app)
    command = group.get_command(group.make_context("rtdetrv4", [], resilient_parsing=True), name)
    assert command is not None, f"there is no command {name}"
    context = command.make_context(name, arguments)  # raises on an unknown option or a wrong value
    assert set((context.params.get("arms") or "off").split(",")) <= set(ARMS)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_code_names_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rtdetrv4"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for link in [link for link in links if "://" not in link]:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES if (ROOT / "docs") in page.parents}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_of_the_package_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = "assembly|config|data|distillation|evaluation|export|losses|models|ops|pages|report|runtime"
    parts += "|training|weights"
    files = set(re.findall(rf"`((?:{parts})(?:/\w+)*\.py)`", text))
    assert [file for file in sorted(files) if not (ROOT / "src/rtdetrv4" / file).is_file()] == []
    names = re.findall(rf"`((?:{parts})(?:/\w+)*\.py)` `([\w.]+)`", text)
    for file, name in names:
        last = name.rpartition(".")[2]
        assert re.search(rf"\b{last}\b", (ROOT / "src/rtdetrv4" / file).read_text(encoding="utf-8")), f"{file} {name}"
