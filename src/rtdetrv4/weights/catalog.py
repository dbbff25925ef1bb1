"""What is known about weights that others released: the classes they know, and which models their tensors fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rtdetrv4.types import ClassMap

#: The 80 classes of COCO, in the order of the released checkpoints, and their ids in its annotations.
COCO = ClassMap(
    names=(
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
        *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
        *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
        *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
        *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
        *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
        *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
        *("scissors", "teddy bear", "hair drier", "toothbrush"),
    ),
    category_ids=(
        *range(1, 12),
        *range(13, 26),
        *(27, 28),
        *range(31, 45),
        *range(46, 66),
        *(67, 70),
        *range(72, 83),
        *range(84, 91),
    ),
)

#: Tensors with one row per class.
CLASS_ROWS = re.compile(
    r"(query_selection\.score_head|decoder\.score_heads\.\d+)\.(weight|bias)|denoising\.class_embedding\.weight"
)

_ARCHITECTURES: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        3_747_307: ("rtdetrv4-n", "deim-n", "dfine-n"),
        10_247_043: ("rtdetrv4-s", "deim-s", "dfine-s"),
        19_518_310: ("rtdetrv4-m", "deim-m", "dfine-m"),
        31_200_070: ("rtdetrv4-l", "deim-l", "dfine-l"),
        62_690_054: ("rtdetrv4-x", "deim-x", "dfine-x"),
        20_106_704: ("rtdetrv2-r18",),
        31_350_772: ("rtdetrv2-r34",),
        36_550_972: ("rtdetrv2-r50m",),
        42_854_716: ("rtdetrv2-r50",),
        76_634_044: ("rtdetrv2-r101",),
        20_105_680: ("deim-rtdetrv2-r18",),
        42_853_692: ("deim-rtdetrv2-r50",),
        2_044_414: ("test",),
    }
)
"""Models by how many numbers their tensors hold, leaving out what depends on the classes. Those of one row differ in
nothing that a checkpoint shows: activations and losses have no tensors."""

MODELS = frozenset(name for names in _ARCHITECTURES.values() for name in names)


def fitting_models(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The models with tensors like these.

    Args:
        shapes: by our names; a projector of DSI and counters of batches may be among them.
    """
    count = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if not (CLASS_ROWS.fullmatch(name) or name.startswith("injector.") or name.endswith("num_batches_tracked"))
    )
    names = _ARCHITECTURES.get(count, ())
    if any(name.startswith("injector.") for name in shapes):
        return tuple(name for name in names if name.startswith("rtdetrv4"))
    return names
