"""What a user has is still there after the next run, a wrong call, a failure or Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from rtdetrv4 import ConfigError, DatasetError, Detector, Observer
from rtdetrv4.appraisal import Appraisal
from rtdetrv4.config import load_recipe
from rtdetrv4.data.synthetic import ROBOFLOW_FILE, write_shapes
from rtdetrv4.training.observers import RunInfo, StepReport, read_log

IDS = (5, 17, 90, 91, 300)


def change(data: Path, split: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the annotations of a split."""
    file = data / split / ROBOFLOW_FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def number_anew(content: dict[str, Any]) -> None:
    new = dict(zip((category["id"] for category in content["categories"]), IDS, strict=True))
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_shapes(tmp_path_factory.mktemp("data"), num_train=4, num_val=2, image_size=64)
    for split in ("train", "valid"):
        change(folder, split, number_anew)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run."""
    return Detector("test").train(data, out=tmp_path_factory.mktemp("runs") / "mine", epochs=1).out


def resume(data: Path, run: Path) -> Any:
    return Detector("test").train(data, out=run, resume=True)


def without_report(run: Path) -> Path:
    """A run that has trained to its end, and of which only the report is missing."""
    (run / "report.html").unlink(missing_ok=True)
    return run


def test_a_run_is_written_over_only_if_asked(data: Path, finished: Path) -> None:
    before = contents(finished)
    for _ in range(2):
        result = Detector("test").train(data, out=finished, epochs=1, exist_ok=finished.with_name("mine-2").exists())
        if result.out == finished:
            break
        assert result.out == finished.with_name("mine-2")
        assert result.weights.parent == result.out
        assert load_recipe(result.out / "recipe.yaml").run.out == str(result.out)
        assert contents(finished) == before
    assert [record["type"] for record in read_log(finished / "log.jsonl")].count("run") == 1
    assert len(list(finished.glob("tensorboard/events*"))) == 1


def test_ids_of_the_annotations_come_back(data: Path, finished: Path) -> None:
    detector = Detector(finished / "weights.safetensors")
    (found,) = detector.predict(next((data / "valid").glob("*.jpg")), conf=0)
    assert found.category_id.tolist() == [IDS[k] for k in found.class_id]
    assert set(found.category_id.tolist()) <= set(IDS)


@pytest.mark.parametrize(
    ("split", "edit", "message"),
    [
        ("train", lambda c: c["annotations"].pop(), "boxes of its train part have changed"),
        ("valid", lambda c: c["annotations"][0].update(bbox=[1, 1, 9, 9]), "boxes of its val part have changed"),
        ("train", lambda c: c["categories"][0].update(name="ring"), "it now has the class ring too"),
    ],
)
def test_a_run_resumes_with_its_own_data_only(
    split: str, edit: Callable[[dict[str, Any]], None], message: str, data: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    change(tmp_path, split, edit)
    if "class" in message:
        change(tmp_path, "valid", edit)
    before = contents(without_report(finished))
    with pytest.raises(ConfigError, match=rf"{message}\. Restore the data, or start a new run from the weights"):
        resume(tmp_path, finished)
    assert contents(finished) == before


def test_a_run_that_was_moved_goes_on_where_it_is(data: Path, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    without_report(shutil.copytree(finished, tmp_path / "moved"))
    assert resume(data, tmp_path / "moved").out == tmp_path / "moved"
    assert load_recipe(tmp_path / "moved" / "recipe.yaml").run.out == str(tmp_path / "moved")
    assert contents(finished) == before


def test_a_finished_run_outlasts_a_failing_report(
    data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_images(*_: object, **__: object) -> None:
        raise DatasetError("valid/a.jpg cannot be read")

    def no_memory(*_: object) -> None:
        raise RuntimeError("no memory")

    weights = (finished / "weights.safetensors").read_bytes()
    monkeypatch.setattr(Appraisal, "evaluate", no_images)
    monkeypatch.setattr(Appraisal, "draw_predictions", no_memory)
    result = resume(data, without_report(finished))
    assert result.metrics is None
    assert result.problems == (
        "the final evaluation failed: valid/a.jpg cannot be read",
        "drawing predictions.jpg failed: no memory",
    )
    assert result.weights.read_bytes() == weights
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [bool(record.exc_info) for record in told] == [False, True], "only a bug needs its traceback"
    assert all(f"the weights in {result.weights}, but" in record.getMessage() for record in told)


def test_ctrl_c_tells_what_is_there(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    class Stop(Observer):
        def run_start(self, info: RunInfo) -> None:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"There is no training state in .*new to resume from yet; start the run"
    ):
        Detector("test").train(data, out=tmp_path / "new", epochs=1, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt, match=r"The latest training state is in .*last\.pt; the same command with"):
        Detector("test").train(data, out=without_report(finished), resume=True, callbacks=[Stop()])
    monkeypatch.setattr(Appraisal, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt, match=r"Training is complete, with the weights in .*weights\.safetensors"):
        resume(data, finished)


def test_a_complete_run_is_returned_as_it_is(
    data: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is read but the folder: the data may be gone."""
    caplog.set_level("INFO", "rtdetrv4")
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "report.html").touch()
    before = contents(folder)
    detector = Detector("test")
    result = detector.train(tmp_path / "nowhere", out=folder, resume=True)
    assert contents(folder) == before
    assert f"The run in {folder} is complete, and nothing is left to do. To train on, start" in caplog.text
    assert result.metrics is not None
    assert result.metrics.to_dict().items() <= json.loads((folder / "val/metrics.json").read_text()).items()
    assert detector.predict(np.zeros((64, 64, 3), np.uint8), conf=0.0)[0].names == detector.names
    assert (result.weights, result.problems) == (folder / "weights.safetensors", ())
    with pytest.raises(ConfigError, match=r"schedule\.epochs was 1, now 2.*start a new run from its weights"):
        detector.train(data, out=folder, resume=True, epochs=2)
    # Without its metrics, a run lacks its final evaluation, unless it had nothing to evaluate on.
    (folder / "val/metrics.json").write_text("{")
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        detector.train(tmp_path / "nowhere", out=folder, resume=True)
    record = json.loads((folder / "run.json").read_text())
    del record["data"]["val"]
    (folder / "run.json").write_text(json.dumps(record))
    assert detector.train(tmp_path / "nowhere", out=folder, resume=True).metrics is None


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 99, "meta"])
def test_devices_that_are_not_there_are_named(device: str | int, data: Path, finished: Path, tmp_path: Path) -> None:
    weights = finished / "weights.safetensors"
    with pytest.raises(ConfigError, match=r'device: got "|finds no device "cuda:99" here, only cpu'):
        Detector(weights, device=device)
    with pytest.raises(ConfigError, match=r"run\.device: got |finds no device"):
        Detector(weights, device="cpu").train(data, device=device, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_only_exports(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(finished / "weights.safetensors", device="cpu")
    (tmp_path / "theirs.onnx").write_text("of another tool")
    with pytest.raises(ConfigError, match=r"theirs\.onnx is there already and was not exported here"):
        detector.export(out=tmp_path / "theirs.onnx")
    with pytest.raises(ConfigError, match=r"expected a file name that ends in \.onnx"):
        detector.export(out=finished / "weights.safetensors")
    monkeypatch.setattr("rtdetrv4.export.export_model", lambda *_, **__: None)
    assert detector.export() == finished / "weights.onnx"
    assert detector.export(out=tmp_path / "mine") == tmp_path / "mine.onnx"
    assert detector.export(out=tmp_path / "mine", precision="fp16") == tmp_path / "mine-fp16.onnx"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(finished.parent))
    assert detector.export() == Path("test.onnx")


class Terminate(Observer):
    """Asks the data workers and this process to end, after the first step."""

    def step_end(self, report: StepReport) -> None:
        if report.step == 1:
            for worker in multiprocessing.active_children():
                os.kill(cast("int", worker.pid), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_sigterm_to_all_processes_saves_the_state(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="the same command with --resume continues"):
        Detector("test").train(data, out=run, epochs=2, batch=2, workers=1, callbacks=[Terminate()])
    assert (run / "last.pt").is_file()


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_worker_that_the_kernel_kills_is_told(data: Path, tmp_path: Path) -> None:
    # In a process of its own: PyTorch tells of a dead worker by an exception at any later moment, even between tests.
    script = f"""
import multiprocessing, os, signal
from rtdetrv4 import Detector, Observer

class Kill(Observer):
    def step_end(self, report):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

Detector("test").train({str(data)!r}, out={str(tmp_path)!r}, epochs=50, batch=2, workers=1, callbacks=[Kill()])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    told = r"ConfigError: A process that loads images was killed.*fewer workers than 1.*start the run"
    assert re.search(told, done.stderr), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_workers_end_with_the_process_though_something_refers_to_their_iterator(data: Path) -> None:
    # What PyTorch 2.11 does at exit where there is a GPU; a worker outlives its SIGTERM for a minute.
    script = f"""
import atexit
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Iterator
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.formats import read_splits

def clean_up(worker):
    worker.join(timeout=5)
    if worker.is_alive():
        worker.terminate()

reset = Iterator._reset

def registering(self, *args, **options):
    for worker in self._workers:
        atexit.register(clean_up, worker)
    reset(self, *args, **options)

Iterator._reset = registering
split = read_splits({str(data)!r}).train
loader = build_loader(DetectionDataset(split, (64, 64)), 2, workers=2, shuffle=False)
batches = iter(loader)
print(len(next(batches).images))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
