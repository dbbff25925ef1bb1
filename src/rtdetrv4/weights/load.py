"""Load weights into a model, with a report.

Rows of the class heads are matched by class name, so that a new detector keeps what was learned about shared classes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.weights.catalog import CLASS_ROWS, fitting_models
from rtdetrv4.weights.files import Checkpoint, WeightsMetadata, listing, read_checkpoint, shapes

logger: logging.Logger = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """The outcome of loading a file's tensors; `str()` summarizes it."""

    source: str
    """The file."""
    loaded: tuple[str, ...]
    """Tensors loaded; for those with a row per class, at least one row."""
    moved: tuple[str, ...]
    """Classes whose rows were matched by name, if the file has other classes or another order."""
    newly_initialized: tuple[str, ...]
    """Classes that the file lacks, and training-only tensors that it lacks."""
    ignored: tuple[str, ...]
    """Tensors of the file that the model does not have."""
    known_rows: tuple[int, int]
    """For how many of the model's classes the file has a row, and how many classes the model has."""
    trained: bool
    """Whether the model can predict without training: all rows of its class heads are trained."""
    knows_classes: bool
    """Whether some rows of its class heads are trained."""

    @property
    def details(self) -> str:
        """What was taken over, without the file's name."""
        parts = {
            "classes moved by name": self.moved,
            "newly initialized": self.newly_initialized,
            "ignored": self.ignored,
        }
        return "; ".join(
            [
                f"{len(self.loaded)} tensors loaded",
                *(f"{what}: {listing(names)}" for what, names in parts.items() if names),
            ]
        )

    def __str__(self) -> str:
        return f"{self.source}: {self.details}"


def load_weights(
    model: DetectionModel, weights: str | Path | Checkpoint, *, names: Sequence[str] | None = None
) -> LoadReport:
    """Load weights into a model; on an error, leave it unchanged.

    Args:
        model: must not be fused. Rows of classes that the file lacks keep their values.
        weights: a file of this package, a released .pth, `hf://owner/repo/file`, or what `read_checkpoint` returned.
        names: the model's classes; None: those of the file.

    Raises:
        WeightsError: the file is missing, damaged, unsafe, not a checkpoint, or for another model.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else read_checkpoint(weights, takes_pretrained=True)
    metadata, theirs = checkpoint
    own = model.state_dict()
    if metadata.is_pretrained:
        return _load_part(model, checkpoint)
    _require_same_model(checkpoint, own)
    num_classes = model.query_selection.score_head.out_features
    if names is not None and len(names) != num_classes:
        raise WeightsError(f"{len(names)} class names were given for a model of {num_classes} classes.")

    rows = _known_rows(metadata, names, num_classes)
    is_as_in_file = metadata.num_classes == num_classes and rows == {index: index for index in range(num_classes)}
    merged = dict(own)
    for name in own.keys() & theirs.keys():
        partly = CLASS_ROWS.fullmatch(name) and not is_as_in_file
        merged[name] = _with_rows(own[name], theirs[name], rows) if partly else theirs[name]
    model.load_state_dict(merged)

    classes = [f"class {index}" for index in range(num_classes)] if names is None else names
    new = [name for index, name in enumerate(classes) if index not in rows]
    return LoadReport(
        source=metadata.source,
        loaded=tuple(name for name in own if name in theirs and (rows or not CLASS_ROWS.fullmatch(name))),
        moved=() if is_as_in_file else tuple(classes[index] for index in sorted(rows)),
        newly_initialized=(*new, *(name for name in own if name not in theirs and not _is_counter(name))),
        ignored=tuple(name for name in theirs if name not in own),
        known_rows=(len(rows), num_classes),
        trained=metadata.trained and not new,
        knows_classes=metadata.trained and bool(rows),
    )


def _load_part(model: DetectionModel, checkpoint: Checkpoint) -> LoadReport:
    """Load a pretrained backbone and encoder; the rest of the model keeps its values."""
    metadata, theirs = checkpoint
    own = model.state_dict()
    part = {name: tensor for name, tensor in own.items() if name in theirs}
    _require_same_model(checkpoint, part)
    model.load_state_dict(own | {name: theirs[name] for name in part})
    return LoadReport(
        source=metadata.source,
        loaded=tuple(part),
        moved=(),
        newly_initialized=("all other parts",),
        ignored=(),
        known_rows=(0, model.query_selection.score_head.out_features),
        trained=False,
        knows_classes=False,
    )


def _known_rows(metadata: WeightsMetadata, names: Sequence[str] | None, num_classes: int) -> dict[int, int]:
    """Map each class of the model that the file has to its row there."""
    if names is not None and metadata.classes is not None:
        exact = {name: index for index, name in enumerate(metadata.classes.names)}
        alike: defaultdict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(metadata.classes.names):
            alike[_plain(name)].append(index)
        # "cat" and "Cat" may both be there; then only the same spelling tells which is meant.
        found = {index: [exact[name]] if name in exact else alike[_plain(name)] for index, name in enumerate(names)}
        return {index: rows[0] for index, rows in found.items() if len(rows) == 1}
    if metadata.num_classes != num_classes:
        return {}
    if names is not None:
        logger.warning("%s does not name its classes; assuming yours, in your order.", metadata.source)
    return {index: index for index in range(num_classes)}


def _with_rows(own: Tensor, theirs: Tensor, rows: Mapping[int, int]) -> Tensor:
    merged = own.clone()
    if rows:
        merged[list(rows)] = theirs[list(rows.values())].to(merged)
    return merged


def _require_same_model(checkpoint: Checkpoint, own: Mapping[str, Tensor]) -> None:
    """Raise unless everything fits, except for the number of classes and tensors that only training needs."""
    metadata, theirs = checkpoint
    differences = [
        *(
            f"{name} is {_size(theirs[name])} in the file and {_size(own[name])} in the model"
            for name in own
            if name in theirs and _fixed_shape(name, theirs[name]) != _fixed_shape(name, own[name])
        ),
        *(
            f"the file has no {name}"
            for name in own
            if name not in theirs and not (_is_counter(name) or name.startswith("denoising."))
        ),
        *(
            f"the model has no {name}"
            for name in theirs
            if name not in own and not name.startswith(("injector.", "denoising."))
        ),
    ]
    if not differences:
        return
    model = fitting_models(shapes(own))
    file = (
        f"The file seems to be for {listing(metadata.models, 'or')}; build that model, or give other weights."
        if metadata.models
        else "The file fits no model of this package: it may be incomplete, or for a model with other settings."
    )
    raise WeightsError(
        f"{metadata.source} does not fit {listing(model, 'or') or 'this model'}: {len(differences)} tensors differ, "
        f"the first: {differences[0]}. {file}"
    )


def _fixed_shape(name: str, tensor: Tensor) -> Sequence[int]:
    """Return the part of a tensor's shape that does not depend on the number of classes."""
    return tensor.shape[1:] if CLASS_ROWS.fullmatch(name) else tensor.shape


def _is_counter(name: str) -> bool:
    """Whether a tensor only counts batches; released checkpoints do not always have it."""
    return name.endswith("num_batches_tracked")


def _plain(name: str) -> str:
    """Normalize the case, underscores, hyphens and spaces of a class name."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))
