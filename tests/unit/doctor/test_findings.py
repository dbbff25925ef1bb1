"""What the doctor reports: counts, examples from every part, exit codes, JSON; and what training shows of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rtdetrv4.doctor
from clean_data import coco_file, edit_coco, write_coco, write_yolo
from rtdetrv4.cli import main
from rtdetrv4.data import faults
from rtdetrv4.data.formats import load_data
from rtdetrv4.doctor import CODES, Example, Inspection, doctor, quick_findings
from rtdetrv4.doctor.finding import MAX_EXAMPLES, Finding, Findings, Severity
from rtdetrv4.doctor.lines import line_of
from rtdetrv4.doctor.summary import summarize
from rtdetrv4.errors import DatasetError
from rtdetrv4.run_folder import log_findings


def finding(code: str, severity: Severity, count: int = 1) -> Finding:
    examples = tuple(Example("train", "a.txt", number, f"fault {number}") for number in range(1, count + 1))
    return Finding(code, f"Faults {code}", severity, count, examples, "It is dropped.", "Correct it.")


def findings(*given: Finding, is_readable: bool = True) -> Findings:
    return Findings("mine", is_readable, given, (), {})


@pytest.mark.parametrize(
    ("given", "usual", "strict"),
    [
        (findings(), 0, 0),
        (findings(finding("D109", "info")), 0, 1),
        (findings(finding("D101", "warning")), 1, 1),
        (findings(finding("D208", "error")), 1, 1),
        (findings(finding("D001", "error"), is_readable=False), 2, 2),
    ],
)
def test_exit_codes(given: Findings, usual: int, strict: int) -> None:
    assert (given.exit_code(), given.exit_code(strict=True)) == (usual, strict)


def test_examples_come_from_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(inspection: Inspection) -> Iterator[tuple[str, Example]]:
        yield "D109", Example("", "z.jpg", None, "gray")
        for number in range(300):
            yield "D109", Example("train", f"{number}.jpg", None, "gray")
        for number in range(5):
            yield "D109", Example("val", f"{number}.jpg", None, "gray")
        yield "D208", Example("val", "a.txt", 3, "class 7")

    monkeypatch.setattr(rtdetrv4.doctor, "CHECKS", (check,))
    error, info = doctor(write_coco(tmp_path / "data")).findings
    assert (error.code, error.severity, error.count) == ("D208", "error", 1)
    assert (info.code, info.severity, info.count) == ("D109", "info", 306)
    assert len(info.examples) == MAX_EXAMPLES == 200
    by_part = [example.part for example in info.examples]
    assert (by_part.count(""), by_part.count("train"), by_part.count("val")) == (1, 194, 5)
    assert [example.file for example in info.examples[:5]] == ["z.jpg", "0.jpg", "0.jpg", "1.jpg", "1.jpg"]
    assert info.title == CODES["D109"].title


def test_codes_are_in_order_and_say_what_to_do() -> None:
    assert list(CODES) == sorted(CODES)
    for code in CODES.values():
        assert code.effect.endswith(".")
        assert code.remedy.endswith(".")
        assert not code.title.endswith(".")


def test_the_guide_lists_every_code(pytestconfig: pytest.Config) -> None:
    guide = (pytestconfig.rootpath / "docs/guides/doctor.md").read_text(encoding="utf-8")
    for code, (title, severity, effect, remedy) in CODES.items():
        assert f"| {code} | {severity} | {title} | {effect} | {remedy} |" in guide


def test_json_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "data")
    edit_coco(folder, lambda content: content["annotations"][3].update(bbox=[80, 20, 30, 20]))
    assert main(["doctor", str(folder), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 1
    assert printed["data"] == str(folder)
    assert printed["readable"] is True
    assert printed["notes"][0].startswith("Data read as COCO")
    assert printed["parts"]["train"] == {"images": 4, "boxes": 8, "classes": 2}
    (found,) = (each for each in printed["findings"] if each["code"] == "D218")
    assert {key: found[key] for key in ("title", "severity", "count")} == {
        "title": "Boxes that reach beyond the image",
        "severity": "warning",
        "count": 1,
    }
    assert found["effect"] == "They are clipped to the image."
    assert found["remedy"] == "Correct them."
    assert found["examples"] == [
        {
            "part": "train",
            "file": "train/_annotations.coco.json",
            "line": 12,
            "detail": "annotation 3 of b.jpg: (80, 20) to (110, 40) in 96×64",
            "image": str(folder / "train/b.jpg"),
            "boxes_xyxy_px": [[80, 20, 110, 40]],
            "beside": None,
        }
    ]


def test_the_table_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 [/b]\n")
    assert main(["doctor", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "D207 Malformed boxes (1)" in shown
    assert '[train] labels/train/a.txt:2  "1 0.5 0.5 [/b]"' in shown
    assert "Training: They are dropped." in shown


def test_the_table_shows_a_few_of_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_yolo(tmp_path / "data")
    for part in ("train", "val"):
        for file in (folder / "labels" / part).glob("*.txt"):
            file.write_text(file.read_text() + "1 0.5 0.5\n1 0.5\n")
    assert main(["doctor", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "D207 Malformed boxes (12)" in shown
    assert (shown.count("[train] labels"), shown.count("[val] labels")) == (3, 2)
    assert "and 7 more" in shown


def test_strict_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "data")
    edit_coco(folder, lambda content: content["annotations"][0].update(iscrowd=1))
    assert main(["doctor", str(folder)]) == 0
    assert main(["doctor", str(folder), "--strict"]) == 1
    assert "D227" in capsys.readouterr().out


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path)]) == 2
    assert "holds no annotations that are known" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(DatasetError, match="does not exist"):
        doctor(tmp_path / "none")


def test_training_shows_what_is_severe_and_counts_the_rest() -> None:
    given = findings(
        finding("D215", "error", 5),
        finding("D218", "warning"),  # told by reading
        finding("D201", "warning"),
        finding("D212", "warning"),
        finding("D109", "info"),
    )
    assert summarize(given) == [
        "Faults D215 (train fault 1, train fault 2, train fault 3 and 2 more). It is dropped. Correct it.",
        "2 more kinds of faults in the data: rtdetrv4 doctor mine shows them",
    ]
    assert summarize(findings(finding("D218", "warning"), finding("D109", "info"))) == []


UNLEARNED = (
    'Classes that are not in the training part (val "dog" with 2 boxes). They cannot be learned: their boxes are '
    "dropped or count as missed, and beyond 5 % training stops. Move some of their images to the training part, or "
    "correct the name."
)


def unlearned(folder: Path) -> None:
    lines = (folder / "labels/train/a.txt").read_text().splitlines(keepends=True)
    for file in (folder / "labels/train").glob("*.txt"):
        file.write_text(lines[0])


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(lambda folder: None, [], id="clean"),
        pytest.param(
            lambda folder: (folder / "labels/train/a.txt").unlink(),
            ["1 more kind of fault in the data: rtdetrv4 doctor {} shows them"],
            id="a warning",
        ),
        pytest.param(
            unlearned,
            [
                "train: 1 of 2 classes without a box: dog",
                UNLEARNED,
            ],
            id="an error",
        ),
    ],
)
def test_the_quick_check_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: Callable[[Path], object], expected: list[str]
) -> None:
    folder = write_yolo(tmp_path / "data")
    plant(folder)
    loaded = load_data(folder, parts=("train", "val"), make_val=True)
    with caplog.at_level(logging.WARNING):
        log_findings(loaded.splits, quick_findings(folder, loaded))
    assert caplog.messages == [line.format(folder) for line in expected]


def test_the_quick_check_opens_no_image(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    edit_coco(folder, lambda content: content["annotations"][3].update(bbox=[80, 20, 30, 20]))
    loaded = load_data(folder)
    for image in folder.rglob("*.jpg"):
        image.unlink()
    found = quick_findings(folder, loaded)
    (beyond,) = (each for each in found.findings if each.code == "D218")
    assert beyond.examples[0].boxes_xyxy_px == ((80, 20, 110, 40),)
    assert not any(each.code.startswith("D1") for each in found.findings)


def test_lines_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"info": {"annotations": [1,\n2]},\n "annotations":\n [{"id": 1},\n\n {"id":\n 2}], "images": []}')
    assert [line_of(path, "annotations", number) for number in (1, 2, 3)] == [4, 6, None]
    assert line_of(path, "images", 1) is None
    assert line_of(path, "file", 0) is None
    assert line_of(path, "line", 3) == 3
    one_line = tmp_path / "b.json"
    one_line.write_text('{"annotations": [{}, {}]}')
    assert line_of(one_line, "annotations", 1) is None
    damaged = tmp_path / "c.json"
    damaged.write_text('{"annotations": [{},\n {')
    assert line_of(damaged, "annotations", 1) is None
    assert line_of(tmp_path / "none.json", "annotations", 1) is None


def test_a_quick_look(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "images/train/a.jpg").write_bytes((folder / "images/train/a.jpg").read_bytes()[:-200])
    (folder / "labels/train/b.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    assert {"D101", "D208"} <= {each.code for each in doctor(folder).findings}
    found = {each.code for each in doctor(folder, quick=True).findings}
    assert "D208" in found
    assert "D101" not in found


def test_where_every_line_is_wrong_all_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_KEPT", 210)
    folder = write_yolo(tmp_path / "data")
    (folder / "labels/train/a.txt").write_text("7 0.5 0.5 0.2 0.2\n" * 400)
    (unknown,) = (each for each in doctor(folder).findings if each.code == "D208")
    assert unknown.count == 400
    assert [example.line for example in unknown.examples] == list(range(1, MAX_EXAMPLES + 1))


def test_nothing_is_written(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    coco_file(folder).write_text(coco_file(folder).read_text())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    doctor(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
