"""The notebook runs from top to bottom, with less of everything that takes time."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rtdetrv4.cli import main

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
SMALLER = (
    ("num_train=120, num_val=24, image_size=128", "num_train=8, num_val=4, image_size=64"),
    ("epochs=4", "epochs=1"),
)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Image.open keeps a file open until its picture is gone
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "outputs are of one machine; clear them"
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for usual, small in SMALLER:
        assert usual in text
        text = text.replace(usual, small)
    for line in re.split(r"(?m)^(!.*)$", text):
        if line.startswith("!"):  # a command, as notebooks run them, with values in braces
            arguments = shlex.split(line[1:].format(**names))
            assert arguments[0] == "rtdetrv4"
            assert main(arguments[1:]) in (0, 1)  # 1: findings
        else:
            exec(compile(line, str(NOTEBOOK), "exec"), names)
    assert (tmp_path / "runs/notebook/detector.onnx").is_file()
    assert re.search(r"^AP \d+\.\d, AP50 \d+\.\d$", capsys.readouterr().out, re.MULTILINE)
