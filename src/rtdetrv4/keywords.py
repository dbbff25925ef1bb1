"""Keyword arguments that a method does not have: what the user may have meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from rtdetrv4.errors import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

NAMES_ELSEWHERE: Mapping[str, str] = {
    "agnostic_nms": "duplicates",
    "batch_size": "batch",
    "confidence": "conf",
    "dataset": "data",
    "dataset_dir": "data",
    "image_size": "imgsz",
    "img_size": "imgsz",
    "learning_rate": "lr",
    "lr0": "lr",
    "max_detections": "max_det",
    "name": "out",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "output": "out",
    "output_dir": "out",
    "project": "out",
    "resolution": "imgsz",
    "save_dir": "out",
    "size": "imgsz",
    "threshold": "conf",
    "time": "budget",
    "vid_stride": "every",
}
"""What other packages call an argument of ours."""
SETTINGS_ELSEWHERE: Mapping[str, str] = {
    "accumulation": "run.accumulate",
    "close_mosaic": "schedule.mosaic_until",
    "early_stopping": "run.patience",
    "freeze": "model.frozen_stages",
    "grad_accum_steps": "run.accumulate",
    "gradient_checkpointing": "run.checkpoint_activations",
    "lr_encoder": "optimizer.backbone_lr",
    "warmup_epochs": "schedule.warmup_steps",
}
"""What other packages call a setting of ours."""
METHODS_ELSEWHERE: Mapping[str, str] = {
    "detect": "predict(…)",
    "evaluate": "val(…)",
    "fit": "train(…)",
    "infer": "predict(…)",
    "info": "model, names or metadata",
    "load": "Detector(PATH)",
    "test": "val(…)",
    "track": "predict(…, track=True)",
    "validate": "val(…)",
}
"""What to write in place of a method that other packages have."""


ANSWERS: Mapping[str, tuple[str, str]] = {
    "dynamic": ("opset", "Files take any batch size, unless batch gives the only one; imgsz gives height and width."),
    "half": ("precision", 'Give precision: "fp16" or "bf16".'),
    "int8": ("precision", 'Give precision="int8" and data, to measure ranges on.'),
    "iou": (
        "duplicates",
        'There is no NMS whose overlap could be set; duplicates="drop" leaves out what repeats a better detection.',
    ),
    "num_classes": ("weights", "Classes come from the data or the weights; there is no number to set."),
    "nms": (
        "duplicates",
        'Nothing has to be suppressed; duplicates="drop" leaves out what repeats a better detection.',
    ),
    "save": ("conf", "Results have save(PATH); rtdetrv4 predict writes pictures, videos and tables."),
    "show": ("conf", "Results have plot(), the picture as an array, and save(PATH)."),
    "simplify": ("opset", "ONNX files are always simplified."),
}
"""What to do where others have an argument, and there is none like it: an argument of the methods that are meant, and
the answer."""


def suggests(method: Callable[P, R]) -> Callable[P, R]:
    """Make the TypeError about an unknown keyword argument say what may have been meant."""
    known = tuple(inspect.signature(method).parameters)[1:]  # without self
    owner, _, shown = method.__qualname__.rpartition(".")
    if shown == "__new__":
        shown = owner

    @wraps(method)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in known:
                raise TypeError(f'{shown}() has no argument "{name}".{_suggestion(name, known)}')
        return method(*args, **options)

    return checked


def no_such_method(name: str, owner: type) -> str:
    """The message about an attribute that an object does not have."""
    message = f"{owner.__name__} has no {name!r}."
    if name.startswith("_"):
        return message
    if name in METHODS_ELSEWHERE:
        return f"{message} Use {METHODS_ELSEWHERE[name]}."
    return message + did_you_mean(name, [known for known in dir(owner) if not known.startswith("_")])


def _suggestion(name: str, known: Sequence[str]) -> str:
    if name in ANSWERS and ANSWERS[name][0] in known:
        return f" {ANSWERS[name][1]}"
    if NAMES_ELSEWHERE.get(name) in known:
        return f' Did you mean "{NAMES_ELSEWHERE[name]}"?'
    if "overrides" in known:
        from rtdetrv4.config import setting_names  # slow to import, and seldom needed

        by_leaf = {setting.rpartition(".")[2]: setting for setting in reversed(setting_names())}
        if setting := SETTINGS_ELSEWHERE.get(name, by_leaf.get(name)):
            return f' It is a setting: overrides={{"{setting}": …}}.'
    if name == "device":
        return " It belongs to the detector: Detector(…, device=…)."
    return did_you_mean(name, known) or f" Known: {', '.join(known)}."
