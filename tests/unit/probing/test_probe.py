"""Probes of small teachers on colored rectangles, from the files to the table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import rtdetrv4
from local_hub import LocalHub
from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.recipes import without_pretrained
from rtdetrv4.assembly.training import weights_metadata
from rtdetrv4.cli import main
from rtdetrv4.config import load_recipe
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import Teacher, load_teacher
from rtdetrv4.errors import ConfigError, DatasetError, WeightsError
from rtdetrv4.probing import PROBE_FILES, Score, TeacherProbe, TeacherRow
from rtdetrv4.probing.features import pool_boxes
from rtdetrv4.types import ClassMap
from rtdetrv4.weights import save_weights

SIDE = 160
COLORS = ((0, 0, 220), (0, 200, 0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and green rectangles on gray noise, 15 images to train on and 3 to validate."""
    root = tmp_path_factory.mktemp("colors")
    for part, count in (("train", 15), ("valid", 3)):
        rng = np.random.default_rng(len(part))
        (root / part).mkdir()
        images, annotations = [], []
        for index in range(count):
            picture = np.repeat(rng.integers(90, 170, (SIDE, SIDE, 1), dtype=np.uint8), 3, axis=2)
            for label in range(2):
                left, top = (int(start) for start in rng.integers(0, 24, 2))
                top += 80 * label
                picture[top : top + 48, left : left + 64] = COLORS[label]
                annotations.append(
                    {"id": len(annotations), "image_id": index, "category_id": label, "bbox": [left, top, 64, 48]}
                )
            cv2.imwrite(str(root / part / f"{index}.png"), picture)
            images.append({"id": index, "file_name": f"{index}.png", "width": SIDE, "height": SIDE})
        categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / part / "_annotations.coco.json").write_text(json.dumps(document))
    return root


class Colors(torch.nn.Module):
    """Sees the mean color of each cell, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        cells = torch.nn.functional.avg_pool2d(images, 16)
        return torch.cat([self.factor * cells, torch.ones_like(cells[:, :1])], dim=1)


def seeing(factor: float, name: str) -> Teacher:
    return Teacher(Colors(factor), name=name, dim=4, stride=16, license="ours")


def test_a_map_is_averaged_by_the_area_of_the_box_in_each_cell() -> None:
    cells = torch.arange(8.0).reshape(1, 2, 4)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], [0.125, 0.0, 0.5, 0.5], [0.3, 0.1, 0.31, 0.9]])
    wanted = [3.5, 5.0, (0.5 * 0 + 1) / 1.5, 3.0]
    torch.testing.assert_close(pool_boxes(cells, boxes)[:, 0], torch.tensor(wanted))


def test_who_sees_colors_tells_them_and_who_sees_nothing_guesses(data: Path) -> None:
    found = rtdetrv4.probe_teachers(data, [seeing(0.0, "blind"), seeing(1.0, "seeing")], imgsz=SIDE)
    assert [row.teacher for row in found.rows] == ["seeing", "blind", "majority"]
    seen, blind, majority = found.rows
    assert seen.balanced.mean > 0.95
    assert seen.objectness.mean > 0.9
    assert min(score.mean for score in seen.recall.values()) > 0.9
    assert blind.balanced.mean == pytest.approx(1 / 3, abs=0.01)
    assert blind.objectness.mean == pytest.approx(1 / 2, abs=0.01)
    assert (majority.balanced.mean, majority.objectness.mean) == (pytest.approx(1 / 3), 0.5)
    assert (seen.dim, seen.stride, seen.license, seen.name) == (4, 16, "ours", "seeing")
    assert seen.ms_per_image is not None
    assert seen.ms_per_image > 0
    assert (found.num_images, dict(found.num_boxes)) == (15, {"red": 15, "green": 15, "background": 30})
    assert len(seen.balanced.by_fold) == found.num_folds == 5


def test_the_same_twice_but_for_times(data: Path) -> None:
    first, second = (rtdetrv4.probe_teachers(data, seeing(1.0, "seeing"), imgsz=SIDE) for _ in range(2))
    rows = [[row._replace(ms_per_image=None) for row in each.rows] for each in (first, second)]
    assert rows[0] == rows[1]


def test_random_weights_and_earlier_blocks(data: Path) -> None:
    names = ["efficientnet_lite2@1", "random:efficientnet_lite2@1", "random:test_vit@-2"]
    found = rtdetrv4.probe_teachers(data, names, imgsz=64)
    rows = {row.teacher: row for row in found.rows}
    assert (rows[names[0]].dim, rows[names[0]].stride, rows[names[0]].license) == (24, 4, "apache-2.0")
    assert (rows[names[1]].dim, rows[names[1]].stride, rows[names[1]].license) == (24, 4, "")
    assert (rows[names[2]].dim, rows[names[2]].stride) == (64, 16)
    assert rows[names[0]].balanced != rows[names[1]].balanced


def test_random_weights_are_not_those_of_pip() -> None:
    first, second = (load_teacher("efficientnet_lite2", pretrained=False) for _ in range(2))
    trained = load_teacher("efficientnet_lite2")
    states = [each.network.body.conv_stem.weight for each in (first, second, trained)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_detector_of_ones_own(data: Path, tmp_path: Path) -> None:
    recipe = without_pretrained(load_recipe("test"))
    path = tmp_path / "weights.safetensors"
    classes = ClassMap(("red", "green"), (0, 1))
    save_weights(build_detector(recipe, 2).state_dict(), path, weights_metadata(recipe, classes, None))
    weights = str(path)
    found = rtdetrv4.probe_teachers(data, weights, imgsz=64)
    assert found.rows[0].teacher == weights
    assert (found.rows[0].dim, found.rows[0].stride) == (32, 32)
    assert found.notes == (f"{weights} may have learned from these very images, which flatters it.",)
    with pytest.raises(ConfigError, match="random weights are for networks of timm"):
        rtdetrv4.probe_teachers(data, f"random:{weights}")


def test_who_cannot_be_had_is_named_and_the_others_go_on(data: Path, hub: LocalHub, tmp_path: Path) -> None:
    wrong = Teacher(Colors(1.0), name="wrong", dim=5, stride=16)
    gone = str(tmp_path / "gone.safetensors")
    found = rtdetrv4.probe_teachers(
        data, [seeing(1.0, "seeing"), "dinov2-s", gone, "efficientnet_lite2@9", wrong], imgsz=SIDE
    )
    assert [row.teacher for row in found.rows] == ["seeing", "majority"]
    assert [note.partition(":")[2].split(":")[0].strip() for note in found.notes] == [
        "dinov2-s",
        gone,
        "efficientnet_lite2@9",
        "wrong",
    ]
    assert "cannot be fetched" in found.notes[0]
    assert "There is no file" in found.notes[1]
    assert "no block 9" in found.notes[2]
    assert "its dim is 5" in found.notes[3]
    with pytest.raises(WeightsError, match=r"no teacher left to probe\. dinov2-s: its weights cannot be fetched"):
        rtdetrv4.probe_teachers(data, "dinov2-s", imgsz=SIDE)


def test_images_that_cannot_be_read_are_left_out(data: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(data), str(tmp_path / "copy")], check=True)
    (tmp_path / "copy/train/3.png").write_bytes(b"no image")
    found = rtdetrv4.probe_teachers(tmp_path / "copy", seeing(1.0, "seeing"), imgsz=SIDE)
    assert found.rows[0].balanced.mean > 0.95
    assert any("cannot be read" in note for note in found.notes)


def test_mistakes_are_told_before_anything_is_computed(data: Path, tmp_path: Path) -> None:
    loaded = []

    def network(images: Tensor) -> Tensor:
        loaded.append(images)
        return images

    with pytest.raises(ConfigError, match=r'Did you mean "dinov2-s"'):
        rtdetrv4.probe_teachers(data, [network, "dinov2s"])
    with pytest.raises(ConfigError, match="no teachers to probe"):
        rtdetrv4.probe_teachers(data, [])
    with pytest.raises(ConfigError, match="imgsz: got 100, expected multiples of 32"):
        rtdetrv4.probe_teachers(data, network, imgsz=100)
    with pytest.raises(ConfigError, match="num_images: got 4, expected at least 5"):
        rtdetrv4.probe_teachers(data, network, num_images=4)
    with pytest.raises(DatasetError, match="does not exist"):
        rtdetrv4.probe_teachers(tmp_path / "nowhere", network)
    assert loaded == []


def test_scores_of_folds_without_a_value() -> None:
    score = Score.of([0.5, float("nan"), 1.0])
    assert score.mean == 0.75
    assert score.sd == pytest.approx(0.3535534)
    assert score.by_fold == (0.5, None, 1.0)


def made_up(num_teachers: int, num_classes: int) -> TeacherProbe:
    """Numbers that nobody measured."""
    names = [*(f"class {label}" for label in range(num_classes)), "background"]
    score = Score.of([0.5, 0.7])
    row = TeacherRow(
        "", "", "taught by what has a-long-license", 1024, 14, 123.4, score, score, dict.fromkeys(names, score)
    )
    labels = [f"teacher [{number}] in a folder/of/some/length.safetensors" for number in range(num_teachers)]
    rows = tuple(row._replace(teacher=label) for label in [*labels, "majority"])
    counts = {name: 10 + number for number, name in enumerate(names)}
    return TeacherProbe(rows, "data [1]", 7, counts, 2, (64, 96), 0, "a processor", {}, ("What was left out.",))


def test_tables_in_80_columns_and_files(tmp_path: Path) -> None:
    found = made_up(num_teachers=12, num_classes=25)
    text = str(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "teacher [11] in a" in text
    assert text.count("60.0 ±14.1") == 2 * 13
    assert text.count("class 24 ") == 2  # of ten teachers, then of three
    assert not any(line.startswith("class 4 ") for line in lines)  # the rarest are in the JSON
    assert "The 20 most frequent of 25 classes." in " ".join(text.split())
    assert lines[-1] == "What was left out."
    words = " ".join(text.split())  # nothing is cut off
    assert "7 training images, for a detector that sees 64×96" in words
    assert (
        "on a processor. The order is a guess at what helps a detector: only training with a teacher can tell." in words
    )
    assert sum(line.split()[-1] == "a-long-license" for line in lines if line.strip()) == 13
    folder = found.save(tmp_path / "probe")
    assert folder == tmp_path / "probe"
    assert sorted(path.name for path in folder.iterdir()) == sorted(PROBE_FILES)
    assert (folder / "probe.txt").read_text(encoding="utf-8") == f"{found}\n"
    read = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    assert [row["teacher"] for row in read["rows"]] == [row.teacher for row in found.rows]
    assert read["rows"][0]["recall"]["class 4"] == {"mean": 0.6, "sd": pytest.approx(0.1414214), "by_fold": [0.5, 0.7]}
    picture = cv2.imread(str(folder / "probe.png"))
    assert picture is not None
    assert picture.std() > 10
    assert found.save(tmp_path / "probe") == tmp_path / "probe-2"


def test_on_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["teachers", "--probe", str(data), "--of", "random:test_vit@1, random:test_vit", "--size", "64"]
    assert main([*command, "--images", "10", "--json", "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_images"], printed["image_size"]) == (10, [64, 64])
    assert {row["teacher"] for row in printed["rows"]} == {"random:test_vit@1", "random:test_vit", "majority"}
    assert json.loads((tmp_path / "out/probe.json").read_text(encoding="utf-8")) == printed
    assert main([*command[:4], "random:test_vit", *command[5:], "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "random:test_vit" in text
    assert text.rstrip().endswith(f"Results: {tmp_path / 'out-2'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--of", "dinov2-s"], "give a data set, --probe DATA"),
        (["--json"], "give a data set, --probe DATA"),
        (["--probe", "here"], "Missing option --of"),
        (["--probe", "here", "--of", "dinov2-s", "--size", "100"], "expected multiples of 32"),
        (["--probe", "nowhere", "--of", "dinov2-s"], "nowhere does not exist"),
    ],
)
def test_mistakes_on_the_command_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ctrl_c_ends_it(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtdetrv4.probing.run.cross_validate", interrupt)
    assert main(["teachers", "--probe", str(data), "--of", "random:test_vit", "--size", "64"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted. Nothing was written."


def test_validation_images_are_not_looked_at(tmp_path: Path) -> None:
    """Training would set a fifth aside, and these are not probed on either."""
    root = write_shapes(tmp_path / "shapes", num_train=40, num_val=1, image_size=64, num_classes=1)
    subprocess.run(["rm", "-r", str(root / "valid")], check=True)
    found = rtdetrv4.probe_teachers(root, seeing(1.0, "seeing"), imgsz=64)
    assert found.num_images <= 32
