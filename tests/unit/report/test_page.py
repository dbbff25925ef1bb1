from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from evaluated_run import NAMES, write_evaluation, write_run, write_split
from made_up_export import REPORT
from rtdetrv4.config import load_recipe, override, to_yaml
from rtdetrv4.distillation.similarity import Similarity, save_similarity
from rtdetrv4.pages import MAX_BYTES
from rtdetrv4.report import write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects the elements of a page, and checks that they are closed in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_run(folder / "run", write_split(folder / "images"))
    grid = np.zeros((2, 2, 3, 3), dtype=np.uint8)
    found = Similarity(np.full((2, 2, 3), 0.25, dtype=np.float32), grid, grid)
    save_similarity(folder / "run/val/similarity.npz", found, [np.zeros((64, 96, 3), np.uint8)] * 2, ["0.png", "1.png"])
    assert write_report(folder / "run") == folder / "run/report.html"
    return folder / "run"


def test_the_page_stands_alone(run: Path) -> None:
    page = Page(run / "report.html")
    assert (run / "report.html").stat().st_size < MAX_BYTES
    assert not page.all("script")
    assert not page.all("link")
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in page.all("img"))
    links = [str(link["href"]) for link in page.all("a")]
    assert {link.partition(":")[0] for link in links if not link.startswith("#")} == {"file"}
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= ids


def test_pictures_and_charts_say_what_they_show(run: Path) -> None:
    page = Page(run / "report.html")
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["aria-label"] for chart in page.all("svg"))
    assert len(page.all("h1")) == 1
    assert "truth in 0.png" in [image["alt"] for image in page.all("img")]


def test_the_page_shows_the_numbers_of_the_files(run: Path) -> None:
    text = " ".join(Page(run / "report.html").text.split())
    metrics = json.loads((run / "val/metrics.json").read_text())
    for shown in (
        f"{100 * metrics['ap']:.1f} AP ",
        "41.4 ms for one image",
        "A processor, 2 cores",
        "datasets/mine; 8 images in train",
        "a file of weights: my weights.safetensors (SHA-256 abababababab…)",
        "dino, mode fixed",
        "3 of 3 epochs",
        "rtdetrv4 train --model runs/test/recipe.yaml --weights 'my weights.safetensors' --out runs/again",
        "Seed 7.",
        "python 3.11.7, rtdetrv4 0.1.0.",
        "optimizer.lr 0.001 a short run",
        "train: a.jpg: a box has no <area>",
        "mean 0.25",
    ):
        assert shown in text
    for title in ("Where AP is lost", "Calibration", "Confusion matrix", "Confused", "Worst images", "L_DSI"):
        assert title in text
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert content["similarity"] == [{"file": f"{i}.png", "mean_cosine": 0.25} for i in range(2)]
    assert content["left_out"] == []


def test_class_names_are_no_markup(run: Path) -> None:
    page = Page(run / "report.html")
    assert NAMES[1] in page.text
    html = (run / "report.html").read_text(encoding="utf-8")
    assert NAMES[1] not in html
    assert "&lt;b&gt;" in html


def test_without_its_images_a_report_has_no_examples(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    facts = tmp_path / "run/val/evaluation.json"
    facts.write_text(facts.read_text().replace("/images", "/elsewhere"))
    (tmp_path / "run/val/similarity.npz").write_bytes(b"damaged")
    page = Page(write_report(tmp_path / "run"))
    assert not page.all("img")
    assert "Example images: none of them could be read" in page.text
    assert "similarity.npz is damaged" in page.text


def test_a_run_of_an_earlier_version_has_its_curves(tmp_path: Path) -> None:
    write_run(tmp_path / "run", None, teacher=None)
    (tmp_path / "run/run.json").unlink()
    page = Page(write_report(tmp_path / "run"))
    assert "Training losses" in page.text
    assert "Not in this report" in page.text
    assert "Where AP is lost" not in page.text


@pytest.mark.parametrize("has_objects", [True, False])
def test_a_model_that_finds_nothing_has_a_report(has_objects: bool, tmp_path: Path) -> None:
    split = write_split(tmp_path / "images")
    if not has_objects:
        records = [
            record._replace(
                boxes_xyxy_px=record.boxes_xyxy_px[:0],
                labels=record.labels[:0],
                is_crowd=record.is_crowd[:0],
                areas=record.areas[:0],
            )
            for record in split.records
        ]
        split = split._replace(records=records)
    write_evaluation(tmp_path / "report", split, finds=False)
    page = Page(write_report(tmp_path / "report"))
    assert ("0.0 AP " if has_objects else "– AP ") in page.text
    assert "Missed" in page.text or not has_objects


def test_an_evaluation_tells_its_command(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "report", write_split(tmp_path / "images"))
    page = Page(write_report(tmp_path / "report"))
    command = "rtdetrv4 val --model runs/mine/weights.safetensors --data datasets/mine --split val"
    assert command in page.text
    assert "What was evaluated" in page.text
    assert re.search(r"Image size\s*64 × 96", page.text)


def test_exported_files_are_shown_while_they_are_there(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("w.onnx", "w_openvino", "damaged.pt2", "deleted.onnx"):
        (folder / f"{name}.report.json").write_text(REPORT._replace(file=name, precision="fp32").to_json())
    (folder / "w.onnx").touch()
    (folder / "w_openvino").mkdir()
    (folder / "damaged.pt2").touch()
    (folder / "damaged.pt2.report.json").write_text("{")
    page = Page(write_report(folder))
    words = " ".join(page.text.split())
    assert "Exported files" in words
    row = "w.onnx ONNX Runtime 1.30 on CPU fp32 0.01 px, 1e-05 97.5 53.0 / 53.2 12.5 ms (14 ms) 25 ms (26 ms) 20.0"
    assert row in words
    assert row.replace("w.onnx", "w_openvino") in words
    assert "damaged.pt2.report.json is damaged" in words
    assert "deleted.onnx" not in words
    assert {"href": "#exports"} in page.all("a")
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [each["file"] for each in content["exports"]] == ["w.onnx", "w_openvino"]
    assert "expected" not in content["exports"][0]


def test_without_exports_there_is_no_section(run: Path) -> None:
    assert "Exported files" not in Page(run / "report.html").text


def test_the_page_of_a_pretraining_run_has_words_of_its_own(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "val")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["kind"], record["start"] = "pretraining", {"kind": "imagenet", "source": "hgnetv2_b0"}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    changes = {"data.path": None, "data.unlabeled": ["photos", "more photos"], "run.out": "runs/pretrain"}
    recipe = override(load_recipe(folder / "recipe.yaml"), changes)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    text = Page(write_report(folder)).text
    assert "A pretraining run of test on photos, more photos, without labels." in text
    assert "pretraining, 3 epochs" in text
    assert (
        "rtdetrv4 pretrain --data photos --data 'more photos' --model runs/pretrain/recipe.yaml --weights imagenet "
        "--out runs/again"
    ) in text
    assert "images in train" not in text
