"""What the stages of a run do to training images, on one picture: a row for each image, columns for the stages."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.batch import mix_up, multi_scales, pack, prepare_batch, split_images
from rtdetrv4.data.decode import read_image
from rtdetrv4.data.records import Record, Split
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.draw import contact_sheet, draw_boxes, draw_text
from rtdetrv4.runtime.preprocess import resize
from rtdetrv4.training.batch_sheets import draw_sample
from rtdetrv4.training.plan import Plan, Stage
from rtdetrv4.training.training_data import TrainingData
from rtdetrv4.types import Batch

logger: logging.Logger = logging.getLogger(__name__)

WIDTH = 400
"""Width of an image on the sheet, in pixels."""
MARGIN, TITLE_SIZE = 12, 26
MIN_COLUMNS = 3
"""Columns of augmented images; where a run has fewer stages, each shows several epochs."""
EFFECTS = {
    "mosaic": "mosaic",
    "mixup": "mixup",
    "photometric": "colors",
    "zoom_out": "zoom-out",
    "iou_crop": "crop",
    "flip": "flip",
}
"""Fields of `Augmentation`, as the sheet calls them."""


def draw_stage_sheet(
    split: Split, data: TrainingData, plan: Plan, path: Path, *, num_images: int, accumulate: int = 1
) -> None:
    """Draw some training images as annotated, and as each stage of a run shows them to the model.

    They are samples of the run itself: an image has the crop, colors, mosaic, size and mixup that it will have in the
    epoch that the sheet names.

    Args:
        split: the images that `data` loads.
        data: the training batches of a run on one device.
        plan: the plan of the run.
        path: the picture to write; its suffix says in which format.
        num_images: images to show.
        accumulate: batches per optimizer step.

    Raises:
        DatasetError: no image can be read.
    """
    stages = plan.stages
    repeats = -(-MIN_COLUMNS // len(stages))
    names = split.classes.names
    most_height = round(WIDTH * data.image_size[0] / data.image_size[1])
    rows: list[list[NDArray[np.uint8]]] = []
    for index, original in islice(_readable(split), num_images):
        rows.append([_draw_original(original, split.records[index], names, most_height)])
        for stage, epochs in stages:
            samples = samples_in_run(data, plan, index, stage, epochs, accumulate)
            for _ in range(min(repeats, len(epochs))):
                rows[-1].append(_draw_sample(next(samples, None), names))
    if not rows:
        raise DatasetError(f"None of the {len(split.records)} training images in {split.image_dir} can be read.")

    headers = [_draw_header("original", f"{len(rows)} of {len(split.records)} training images, as annotated")]
    for stage, epochs in stages:
        headers += [_draw_header(stage.name, describe_stage(stage, epochs, data))] * min(repeats, len(epochs))
    pictures = [*headers, *(picture for row in rows for picture in row)]
    contact_sheet(pictures, path, columns=len(headers), width=WIDTH, margin=MARGIN)


def describe_stage(stage: Stage, epochs: range, data: TrainingData) -> str:
    """The epochs of a stage, and what it does how often: "epochs 3–40: colors 50 %, flip 50 %; 320×320 px"."""
    numbers = f"epoch {epochs[0] + 1}" if len(epochs) == 1 else f"epochs {epochs[0] + 1}–{epochs[-1] + 1}"
    chances = data.allowed(stage)._asdict()
    effects = ", ".join(f"{word} {100 * chances[name]:g} %" for name, word in EFFECTS.items() if chances[name])
    height, width = data.image_size
    size = f"{width}×{height} px"
    if stage.multi_scale and data.multi_scale_repeat is not None:
        sides = multi_scales(max(height, width), data.multi_scale_repeat)
        size += f", scaled so that the longer side is {min(sides)}–{max(sides)} px"
    return f"{numbers}: {effects or 'as they are'}; {size}"


def _readable(split: Split) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Images from all over the split with their indices, those with boxes first."""
    order = np.random.default_rng(0).permutation(len(split.records)).tolist()
    for with_boxes in (True, False):
        for index in order:
            info, _, labels, *_ = split.records[index]
            if bool(len(labels)) != with_boxes:
                continue
            try:
                yield index, read_image(split.image_dir / info.file_name, (info.height, info.width))
            except DatasetError as error:
                logger.warning("%s; skipped", error)


def samples_in_run(
    data: TrainingData, plan: Plan, index: int, stage: Stage, epochs: range, accumulate: int
) -> Iterator[tuple[int, Batch]]:
    """Image `index` as the run sees it in those epochs that do not leave it out, as batches of one image."""
    loader = data.loader
    batch_size = loader.batch_size or 1
    num_used = plan.steps_per_epoch * accumulate * batch_size
    for epoch in epochs:
        data.batches(epoch, stage, 0)
        order = list(loader.sampler)[:num_used]
        if index not in order:
            continue
        number, place = divmod(order.index(index), batch_size)
        members = order[number * batch_size :][:batch_size]
        ratio = data.mixup(epoch, number, stage) if len(members) > 1 else None
        # MixUp blends an image with the previous one of its batch.
        chosen = [members[place]] if ratio is None else [members[place - 1], members[place]]
        size = data.size(epoch, number // accumulate, stage)
        batch = prepare_batch(pack([loader.dataset[each] for each in chosen]), size, "cpu")
        if ratio is not None:
            batch = split_images(mix_up(batch, ratio), 2)[1]
        yield epoch, batch


def _draw_header(title: str, text: str) -> NDArray[np.uint8]:
    return np.concatenate([draw_text(title, WIDTH, size=TITLE_SIZE), draw_text(text, WIDTH)])


def _draw_original(
    image: NDArray[np.uint8], record: Record, names: Sequence[str], most_height: int
) -> NDArray[np.uint8]:
    info = record.info
    scale = min(WIDTH / info.width, most_height / info.height)
    height, width = max(1, round(scale * info.height)), max(1, round(scale * info.width))
    boxes = record.boxes_xyxy_px * ((width / info.width, height / info.height) * 2)
    shown = draw_boxes(resize(image, (height, width)), boxes, record.labels, [names[int(i)] for i in record.labels])
    picture = np.full((height, WIDTH, 3), 255, np.uint8)
    picture[:, :width] = shown
    text = f"{Path(info.file_name).name}, {info.width}×{info.height} px, {_count(len(boxes))}"
    return np.concatenate([picture, draw_text(text, WIDTH)])


def _draw_sample(sample: tuple[int, Batch] | None, names: Sequence[str]) -> NDArray[np.uint8]:
    if sample is None:
        return draw_text("left out of these epochs, which are rounded to whole batches", WIDTH)
    epoch, batch = sample
    ((labels, boxes),) = batch.targets.split()
    height, width = batch.images.shape[2:]
    picture = draw_sample(batch.images[0], labels, boxes, names, WIDTH)
    return np.concatenate([picture, draw_text(f"epoch {epoch + 1}, {width}×{height} px, {_count(len(labels))}", WIDTH)])


def _count(num_boxes: int) -> str:
    return "1 box" if num_boxes == 1 else f"{num_boxes} boxes"
