from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evaluated_run import SPEED, write_evaluation, write_run, write_split
from rtdetrv4.errors import ConfigError
from rtdetrv4.report.content import gather, write_files


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_run(folder / "run", write_split(folder / "images"))
    return folder / "run"


def test_curves_are_those_of_the_log(finished: Path) -> None:
    content = gather(finished)
    curves = content["curves"]
    assert curves["epoch"] == [1, 2, 3]
    assert curves["ap"] == pytest.approx([0.1, 0.2, 0.3])
    assert curves["ap50"] == pytest.approx([0.2, 0.4, 0.6])
    assert curves["losses"]["total, weighted"] == pytest.approx([30, 15, 10])
    assert set(curves["losses"]) == {"total, weighted", "mal", "giou", "bbox", "distill"} - {"bbox"}
    assert curves["distill_weight"] == [5.0, 5.0, 5.0]
    assert curves["aifi_share"] == [9.5, 9.5, 9.5]
    assert curves["aifi_band"] == [[10.0, 12.0]] * 3
    assert curves["time_shares"] == pytest.approx({"data": 0.25, "backward": 0.5, "the rest": 0.25})
    assert [stage["first"] for stage in curves["stages"]] == [1, 2, 3]
    # Two steps in an epoch: the rate of step 1 is that of half an epoch.
    assert curves["lr"]["epoch"] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert content["training"] == {
        "epochs": 3,
        "steps": 6,
        "seconds": 6.0,
        "images_per_second": 8.0,
        "best_epoch": 3,
        "num_skipped": 1,
        "num_unreadable": 2,
    }


def test_the_rest_is_what_the_files_say(finished: Path) -> None:
    content = gather(finished)
    assert content["kind"] == "run"
    assert content["name"] == "run"
    assert content["recipe"]["model"]["name"] == "test"
    assert content["record"]["seed"] == 7
    assert content["evaluation"]["speed"] == SPEED
    assert content["metrics"]["num_images"] == 8
    assert content["analysis"] == json.loads((finished / "val/analysis.json").read_text())
    assert content["left_out"] == []


def test_a_run_that_was_resumed_began_where_it_began(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    begun = gather(finished)["start_of_run"]
    assert begun["epoch"] == 0
    with (tmp_path / "run" / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({**begun, "epoch": 2, "step": 4}) + "\n")
    assert gather(tmp_path / "run")["start_of_run"] == begun


def test_an_evaluation_has_no_training(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "report", write_split(tmp_path / "images"))
    content = gather(tmp_path / "report")
    assert content["kind"] == "evaluation"
    assert content["curves"] is None
    assert content["recipe"] is None
    assert content["analysis"] is not None
    assert content["left_out"] == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", None, teacher=None)
    (tmp_path / "run/run.json").unlink()
    content = gather(tmp_path / "run")
    assert [line.partition(":")[0] for line in content["left_out"]] == [
        "Data, versions and seed",
        "Distillation",
        "Results on validation images",
    ]
    assert content["curves"]["ap"] is None
    (tmp_path / "run/log.jsonl").write_text("")
    assert gather(tmp_path / "run")["left_out"][1] == "Curves: no epoch is complete yet."
    (tmp_path / "run/val").mkdir()
    (tmp_path / "run/val/metrics.json").write_text("{}")
    left_out = gather(tmp_path / "run")["left_out"]
    assert "rtdetrv4 val --out" in left_out[-2]
    assert left_out[-1] == "Speed: it was not measured."


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds nothing to report on: expected the folder of a run"):
        gather(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"ap": 0.')
    with pytest.raises(ConfigError, match=r"metrics\.json is damaged"):
        gather(tmp_path)


def test_files_of_another_version_are_named_or_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", write_split(tmp_path / "images"))
    (tmp_path / "run/val/analysis.json").write_text('{"by_class": []}')
    content = gather(tmp_path / "run")
    assert content["analysis"] is None
    assert "of an earlier version" in content["left_out"][0]
    (tmp_path / "run/log.jsonl").write_text('{"type": "epoch", "epoch": 1}')
    with pytest.raises(ConfigError, match=r"log\.jsonl is damaged, or not a log of this version"):
        gather(tmp_path / "run")


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_files_of_others_are_not_replaced(name: str, finished: Path, tmp_path: Path) -> None:
    content = gather(finished)
    page = '<!doctype html>\n<meta name="generator" content="rtdetrv4">'
    assert write_files(tmp_path, content, page) == tmp_path / "report.html"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == content
    write_files(tmp_path, content, page + "again")
    assert (tmp_path / "report.html").read_text().endswith("again")
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name} is there already and was not written here"):
        write_files(tmp_path, content, page)
    assert (tmp_path / name).read_text() == "mine"
