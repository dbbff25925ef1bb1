from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from made_up_set import Shown, inspected
from rtdetrv4.doctor import set_checks
from rtdetrv4.doctor.finding import Example
from rtdetrv4.doctor.inspection import Inspection

CAT, DOG = 0, 1
BIG = (CAT, 0.0, 0.0, 320.0, 320.0)
LOOK = 0x0F0F_F0F0_3C3C_C3C3  # 32 of 64 bits are set
Check = Callable[[Inspection], Iterator[tuple[str, Example]]]


def found(check: Check, inspection: Inspection) -> list[tuple[str, str, str, str]]:
    return [(code, each.part, each.file, each.detail) for code, each in check(inspection)]


def several(number: int, *boxes: tuple[int, float, float, float, float], **given: object) -> list[Shown]:
    return [Shown(f"{index:02d}.jpg", boxes or (BIG,), **given) for index in range(number)]  # type: ignore[arg-type]


def test_a_rare_class_is_named_with_its_first_image() -> None:
    dog = (DOG, 10.0, 20.0, 30.0, 40.0)
    images = [*several(20), Shown("dog.jpg", (BIG, dog)), Shown("dogs.jpg", (dog, dog))]
    inspection = inspected({"train": images, "val": [Shown("0.jpg", (dog,))]})
    detail = '"dog": 3 boxes in 2 images; the most frequent class has 21'
    assert found(set_checks.rare_classes, inspection) == [("D301", "train", "train/dog.jpg", detail)]
    [(_, example)] = set_checks.rare_classes(inspection)
    assert example.boxes_xyxy_px == ((10, 20, 30, 40),)
    assert example.image is not None
    assert example.image.endswith("/set/train/dog.jpg")


def test_crowds_do_not_count_as_objects() -> None:
    four = (BIG,) * 4
    images = [Shown("a.jpg", four), Shown("b.jpg", four, is_crowd=True), Shown("c.jpg", four[1:])]
    inspection = inspected({"train": images}, num_queries=3)
    assert found(set_checks.crowded_images, inspection) == [("D302", "train", "train/a.jpg", "4 objects, 3 queries")]


def test_the_input_size_that_cures_tiny_boxes_is_named() -> None:
    # Stretched from 1280×640 to 640×640, 16×8 pixels become 8×8, which is not tiny, and 8×8 become 4×8: a side of √32.
    tiny, enough = (CAT, 0.0, 0.0, 8.0, 8.0), (CAT, 0.0, 0.0, 16.0, 8.0)
    images = [Shown("a.jpg", (tiny, enough), (640, 1280)), Shown("b.jpg", (enough, tiny, tiny), (640, 1280))]
    # 8 / √32 · 640 = 905, rounded up to a multiple of 32.
    details = [
        "2 of 3 boxes under 8 px at 640×640; 60% of all boxes in train; 928×928 leaves 5 %",
        "1 of 2 boxes under 8 px at 640×640",
    ]
    inspection = inspected({"train": images})
    assert [detail for *_, detail in found(set_checks.tiny_boxes, inspection)] == details
    worst = next(set_checks.tiny_boxes(inspection))[1]
    assert worst.file == "train/b.jpg"
    assert worst.boxes_xyxy_px == ((0, 0, 8, 8), (0, 0, 8, 8))
    assert not found(set_checks.tiny_boxes, inspected({"train": images}, input_hw=(928, 928)))


def test_a_few_tiny_boxes_are_no_finding() -> None:
    images = [Shown("a.jpg", (BIG,) * 24 + ((CAT, 0.0, 0.0, 2.0, 2.0),))]  # 4 %
    assert not found(set_checks.tiny_boxes, inspected({"train": images}))


def test_the_shape_that_fits_the_images_is_named() -> None:
    images = [*several(3, size_hw=(720, 1280)), Shown("square.jpg", (BIG,), (640, 640))]
    # 640 · √(9 / 16) = 480 and 640 · √(16 / 9) = 853, of which 864 is the nearest multiple of 32.
    detail = "usually 1280×720, the input is 640×640; imgsz 480x864 fits"
    assert found(set_checks.stretched_images, inspected({"train": images})) == [
        ("D304", "train", "train/01.jpg", detail)
    ]
    assert not found(set_checks.stretched_images, inspected({"train": images}, input_hw=(480, 864)))
    assert not found(set_checks.stretched_images, inspected({"train": several(3, size_hw=(480, 640))}))


def test_a_part_of_mostly_background_is_told() -> None:
    empty = [Shown("e.jpg"), Shown("f.jpg"), Shown("g.jpg")]
    inspection = inspected({"train": [*several(2), *empty], "val": several(1)})
    assert found(set_checks.background, inspection) == [
        ("D305", "train", "train/e.jpg", "3 of 5 images have no box (60%)")
    ]


def test_strong_outliers_in_light_and_sharpness_are_told() -> None:
    brightness = np.linspace(90, 110, 30)
    images = [Shown(f"{i:02d}.jpg", (BIG,), brightness=value, blur=400 + i) for i, value in enumerate(brightness)]
    images += [
        Shown("night.jpg", (BIG,), brightness=5, blur=415),
        Shown("dim.jpg", (BIG,), brightness=65, blur=415),  # less than 40 gray levels
        Shown("shaken.jpg", (BIG,), brightness=100, blur=4),
        Shown("sharp.jpg", (BIG,), brightness=100, blur=9000),  # no fault
    ]
    inspection = inspected({"train": images})
    assert found(set_checks.unusual_light, inspection) == [
        ("D306", "train", "train/night.jpg", "mean gray value 5, half of the images are below 100")
    ]
    assert found(set_checks.unusual_blur, inspection) == [
        ("D307", "train", "train/shaken.jpg", "sharpness 4, the median is 415")
    ]


def test_copies_are_told_apart_by_what_they_teach() -> None:
    images = [
        Shown("a.jpg", (BIG,), digest="1"),
        Shown("b.jpg", (BIG,), digest="1"),
        Shown("c.jpg", (), digest="1"),
        Shown("d.jpg", (BIG,), digest="2"),
    ]
    inspection = inspected({"train": images, "val": [Shown("a.jpg", (BIG,), digest="2")]})
    assert found(set_checks.copies_in_part, inspection) == [
        ("D308", "train", "train/b.jpg", "the same bytes as train/a.jpg"),
        ("D309", "train", "train/c.jpg", "the same bytes as train/a.jpg, other labels"),
    ]


def test_images_that_look_alike_are_told_once() -> None:
    images = [
        Shown("a.jpg", (BIG,), dhash=LOOK, digest="1"),
        Shown("b.jpg", (BIG,), dhash=LOOK, digest="1"),  # a copy, which is another finding
        Shown("c.jpg", (BIG,), dhash=LOOK ^ 0b1111),
        Shown("d.jpg", (BIG,), dhash=LOOK ^ 0b11111 << 8),  # five bits
        Shown("e.jpg", (BIG,), dhash=0),  # shows nothing
        Shown("f.jpg", (BIG,), dhash=0),
    ]
    assert found(set_checks.lookalikes_in_part, inspected({"train": images})) == [
        ("D310", "train", "train/c.jpg", "looks like train/a.jpg")
    ]


def test_leaks_name_the_original_and_the_share() -> None:
    train = [Shown("a.jpg", (BIG,), digest="1", dhash=LOOK), Shown("b.jpg", (BIG,), digest="2", dhash=~LOOK % 2**64)]
    val = [
        Shown("c.jpg", (BIG,), digest="2", dhash=~LOOK % 2**64),
        Shown("d.jpg", (BIG,), digest="1", dhash=LOOK),
        Shown("e.jpg", (BIG,), dhash=LOOK ^ 1),
        Shown("f.jpg", (BIG,)),
    ]
    assert found(set_checks.leaks, inspected({"train": train, "val": val})) == [
        ("D311", "val", "val/c.jpg", "the same bytes as train/b.jpg; so 2 of 4 val images (50%)"),
        ("D311", "val", "val/d.jpg", "the same bytes as train/a.jpg"),
        ("D312", "val", "val/e.jpg", "looks like train/a.jpg; so 1 of 4 val images (25%)"),
    ]


def test_parts_of_different_origin_are_told_by_what_differs() -> None:
    rng = np.random.default_rng(0)
    train = [Shown(f"{i}.jpg", (BIG,), brightness=value) for i, value in enumerate(rng.normal(100, 10, 60))]
    same = [Shown(f"{i}.jpg", (BIG,), brightness=value) for i, value in enumerate(rng.normal(100, 10, 40))]
    other = [
        Shown(f"{i}.jpg", ((DOG, 0.0, 0.0, 320.0, 320.0),), brightness=value)
        for i, value in enumerate(rng.normal(140, 10, 40))
    ]
    assert not found(set_checks.differing_parts, inspected({"train": train, "val": same}))
    told = found(set_checks.differing_parts, inspected({"train": train, "test": other}))
    assert [(code, part, file) for code, part, file, _ in told] == [("D313", "test", "")] * 3
    reference = [np.median([image.brightness for image in part]) for part in (other, train)]
    start = f"mean gray value: median {reference[0]:.3g} in test, {reference[1]:.3g} in train (KS distance "
    assert told[0][3].startswith(start)
    assert {detail for *_, detail in told[1:]} == {
        'images that show "cat": 0% in test, 100% in train',
        'images that show "dog": 100% in test, 0% in train',
    }


@pytest.mark.parametrize(
    ("num_train", "num_val", "expected"),
    [
        (400, 0, ("D314", "val", "", "400 training images, of which a fifth would be 80")),
        (400, 19, ("D315", "val", "", "19 of 419 images; a fifth would be 84")),
        (400, 20, ("D315", "val", "", "20 of 420 images; a fifth would be 84")),
        (24, 6, ("D315", "val", "", "6 of 30 images; 20%, but few")),
        (20, 10, ("D315", "val", "", "10 of 30 images; 33%, but few")),
        (400, 22, None),
        (9000, 100, None),
    ],
)
def test_a_missing_or_small_validation_part_is_told(
    num_train: int, num_val: int, expected: tuple[str, str, str, str] | None
) -> None:
    parts = {"train": several(num_train)} | ({"val": several(num_val)} if num_val else {})
    assert found(set_checks.validation_part, inspected(parts)) == ([expected] if expected else [])


def test_a_quick_look_into_no_file_finds_what_annotations_tell() -> None:
    inspection = inspected({"train": [Shown("a.jpg", (BIG,)), Shown("b.jpg", (BIG,))]})._replace(facts={})
    codes = {code for check in (*set_checks.QUICK_CHECKS, *set_checks.CHECKS) for code, *_ in found(check, inspection)}
    assert codes == {"D301", "D314"}
