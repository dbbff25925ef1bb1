"""What is imported is declared, and the base install is enough to run exported models."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rtdetrv4

PACKAGE = Path(next(iter(rtdetrv4.__path__)))
OWNERS = importlib.metadata.packages_distributions()


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(module: str) -> str:
    """What to install to import `module`: cv2 → opencv-python-headless."""
    return normalized(OWNERS.get(module, [module])[0])


def requirements() -> dict[str | None, set[str]]:
    """Distributions by the extra that asks for them, extras of extras included; None is the base install."""
    direct: dict[str | None, set[str]] = {None: set()}
    nested: dict[str | None, set[str]] = {}
    for line in importlib.metadata.requires("rtdetrv4") or []:
        requirement, _, marker = line.partition(";")
        found = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        extra = found[1] if found else None
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        if name[0] == "rtdetrv4":
            extras = re.search(r"\[(.*)]", requirement)
            assert extras is not None
            nested.setdefault(extra, set()).update(part.strip() for part in extras[1].split(","))
        else:
            direct.setdefault(extra, set()).add(normalized(name[0]))

    def everything(extra: str | None) -> set[str]:
        inner = (everything(part) for part in nested.get(extra, ()))
        return direct.get(extra, set()).union(*inner)

    return {extra: everything(extra) | direct[None] for extra in {*direct, *nested}}


def third_party_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [node.module]
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "rtdetrv4":
                yield top


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_declared(path: Path) -> None:
    by_extra = requirements()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {distribution(module) for module in third_party_imports(tree)}
    assert imported <= by_extra["all"]


def literal(argument: ast.expr) -> str | None:
    """The text of an argument, with `*` for what an f-string fills in; None if it is no text."""
    if isinstance(argument, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "*" for part in argument.values)
    return argument.value if isinstance(argument, ast.Constant) else None


def test_required_modules_are_in_the_extra_that_the_message_names() -> None:
    by_extra = requirements()
    calls = [
        (path.name, *map(literal, node.args))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"
    ]
    assert calls
    assert [call for call in calls if len(call) == 2] == [("detections.py", "supervision")]
    for where, module, extra in (call for call in calls if len(call) == 3 and None not in call):
        found = fnmatch.filter(OWNERS, module.partition(".")[0])
        assert found, f"{where}: {module} is not installed"
        assert {distribution(each) for each in found} <= by_extra[extra], f"{where}: {module} is not in [{extra}]"


def test_base_install_imports_without_extras() -> None:
    """In a process where nothing outside the base install can be imported."""
    by_extra = requirements()
    optional = {d for needed in by_extra.values() for d in needed} - by_extra[None]
    blocked = sorted(module for module in OWNERS if distribution(module) in optional)
    assert {"torch", "timm", "scipy", "matplotlib"} <= set(blocked)
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None: importing it raises ModuleNotFoundError
import rtdetrv4, rtdetrv4.cli, rtdetrv4.config, rtdetrv4.runtime
from rtdetrv4.errors import MissingDependencyError
try:
    rtdetrv4.Detector("rtdetrv4-s")
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'pip install "rtdetrv4[torch]"' in done.stdout
