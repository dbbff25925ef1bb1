from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rtdetrv4.report import write_comparison_report

SUMMARY = {
    "reference": "off",
    "confidence": 0.95,
    "arms": [{"name": "off", "settings": {"distillation.mode": "off"}}, {"name": "<gam>", "settings": {}}],
    "differences": [
        {"arm": "<gam>", "reference": "off", "metric": metric, "by_seed": {"0": 0.01, "1": 0.03}, "mean": 0.02,
         "sd": 0.014, "n": 2, "interval": [-0.107, 0.147], "conclusion": "no difference that these seeds could show"}
        for metric in ("last_ap", "best_ap")
    ],
    "class_differences": [],
    "unfinished": ["off-seed2"],
    "warnings": ["Two seeds <only>."],
}  # fmt: skip


def log(*scores: float) -> list[dict]:
    return [
        {"epoch": epoch, "metrics": {"ap": score}, "distill_weight": None, "modulation": None}
        for epoch, score in enumerate(scores, start=1)
    ]


def test_of_many_classes_those_that_differ_most_are_drawn(tmp_path: Path) -> None:
    difference = {**SUMMARY["differences"][0], "interval": None}
    by_class = [{**difference, "class": f"class{number}", "mean": number / 100} for number in range(30)]
    page = write_comparison_report(tmp_path, SUMMARY | {"class_differences": by_class}, [], {"off": {}, "<gam>": {}})
    html = page.read_text(encoding="utf-8")
    shown = [number for number in range(30) if f">class{number}, &lt;gam&gt;<" in html]
    assert shown == list(range(10, 30))


def test_a_comparison_on_one_page(tmp_path: Path) -> None:
    logs = {"off": {0: log(0.1, 0.2), 1: log(0.1, 0.4)}, "<gam>": {0: log(0.2, 0.3), 1: log(0.2, 0.5)}}
    (tmp_path / "off-seed0").mkdir()
    (tmp_path / "off-seed0/report.html").touch()
    table = ("Arms", ("arm", "AP"), (("off", "30.00"), ("<gam>", "40.00")), "A note.")
    page = write_comparison_report(tmp_path, SUMMARY, [table], logs)
    html = page.read_text(encoding="utf-8")
    assert '<a href="off-seed0/report.html">seed 0</a>' in html
    assert html.count("<a href") == 1
    assert "<gam>" not in html
    assert "Unfinished and left out: off-seed2." in html
    assert "A note." in html
    assert '<p class="warning">Two seeds &lt;only&gt;.</p>' in html
    difference, ap = [f"<svg{part.partition('</svg>')[0]}</svg>" for part in html.split("<svg")[1:]]
    assert "+2.00" in "".join(ElementTree.fromstring(difference).itertext())
    lines = [each for each in ElementTree.fromstring(ap).iter("path") if "line" in each.get("class", "").split()]
    assert sum("thin" in each.get("class", "") for each in lines) == 4
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["kind"] == "comparison"
    assert content["differences"][0]["mean"] == pytest.approx(0.02)
