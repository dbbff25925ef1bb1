"""A keyword argument that a method does not have is answered with what may have been meant."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from rtdetrv4 import ConfigError, Detector, ExportedDetector, WeightsError
from rtdetrv4.config import setting_names
from rtdetrv4.keywords import NAMES_ELSEWHERE, SETTINGS_ELSEWHERE, suggests

METHODS = (Detector.train, Detector.augment, Detector.val, Detector.predict, Detector.export, ExportedDetector.predict)


@pytest.mark.parametrize(
    ("method", "name", "suggestion"),
    [
        (Detector.train, "epoch", 'Did you mean "epochs"?'),
        (Detector.train, "lr0", 'Did you mean "lr"?'),
        (Detector.train, "project", 'Did you mean "out"?'),
        (Detector.train, "patience", 'It is a setting: overrides={"run.patience": …}.'),
        (Detector.train, "grad_accum_steps", 'It is a setting: overrides={"run.accumulate": …}.'),
        (Detector.augment, "mosaic", 'It is a setting: overrides={"augment.mosaic": …}.'),
        (Detector.val, "batch_size", 'Did you mean "batch"?'),
        (Detector.val, "device", "It belongs to the detector: Detector(…, device=…)."),
        (Detector.predict, "threshold", 'Did you mean "conf"?'),
        (Detector.export, "output", 'Did you mean "out"?'),
        (Detector.export, "half", 'Give precision: "fp16" or "bf16".'),
        (
            Detector.predict,
            "nms",
            'Nothing has to be suppressed; duplicates="drop" leaves out what repeats a better detection.',
        ),
        (
            ExportedDetector.predict,
            "iou",
            'There is no NMS whose overlap could be set; duplicates="drop" leaves out what repeats a better detection.',
        ),
        (ExportedDetector.val, "batch_size", 'Did you mean "batch"?'),
    ],
)
def test_what_was_meant_is_said(method, name: str, suggestion: str) -> None:
    with pytest.raises(TypeError) as caught:
        method(object(), **{name: 1})
    assert str(caught.value) == f'{method.__name__}() has no argument "{name}". {suggestion}'


def test_a_detector_has_no_number_of_classes_to_set() -> None:
    with pytest.raises(TypeError, match=r'^Detector\(\) has no argument "num_classes"\. Classes come from the data'):
        Detector("rtdetrv4-n", num_classes=3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("fit", "Detector has no 'fit'. Use train(…)."),
        ("track", "Detector has no 'track'. Use predict(…, track=True)."),
        ("predct", "Detector has no 'predct'. Did you mean \"predict\"?"),
        ("_missing", "Detector has no '_missing'."),
    ],
)
def test_a_method_that_others_have(name: str, answer: str) -> None:
    detector = Detector("rtdetrv4-n", "none")
    with pytest.raises(AttributeError) as caught:
        getattr(detector, name)
    assert str(caught.value) == answer
    assert not hasattr(detector, name)


def test_a_detector_is_called_to_predict() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    detector = Detector("rtdetrv4-n", "none")
    with pytest.raises(WeightsError, match="Nothing to predict with"):
        detector(image)
    with pytest.raises(TypeError, match=r'predict\(\) has no argument "confidence". Did you mean "conf"'):
        detector(image, confidence=0.5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="teacher: got a Detector; give its file"):
        detector.train("data", teacher=detector)  # pyright: ignore[reportArgumentType]


def test_what_is_like_nothing_is_answered_with_all_there_is() -> None:
    class Door:
        @suggests
        def open(self, width: int = 1, *, speed: int = 2) -> int:
            """Open."""
            return width * speed

    with pytest.raises(TypeError, match=r'open\(\) has no argument "qqq"\. Known: width, speed\.$'):
        Door().open(qqq=1)
    with pytest.raises(TypeError, match=r'argument "half"\. Known: width, speed\.$'):
        Door().open(half=True)
    with pytest.raises(TypeError, match="multiple values"):
        Door().open(1, width=1)
    assert Door().open(3, speed=4) == 12
    assert list(inspect.signature(Door.open).parameters) == ["self", "width", "speed"]


def test_every_suggestion_exists() -> None:
    names = {name for method in METHODS for name in inspect.signature(method).parameters}
    assert set(NAMES_ELSEWHERE.values()) <= names
    assert not names.intersection(NAMES_ELSEWHERE)
    assert set(SETTINGS_ELSEWHERE.values()) <= set(setting_names())
