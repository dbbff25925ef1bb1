"""What an exported file says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from rtdetrv4.errors import ExportError
from rtdetrv4.input_files import read_file
from rtdetrv4.json_text import load_json
from rtdetrv4.runtime.preprocess import ResizeMode

METADATA_KEY = "rtdetrv4"
MAX_BYTES = 64 << 20
MAX_CLASSES = 100_000
MAX_SIDE = 16_384
"""Of images; a file that claims more would only have its reader run out of memory."""


class ForeignFileError(ExportError):
    """A model that another program wrote."""


class ExportMetadata(NamedTuple):
    """The metadata of an exported file: everything needed to run it, in any language."""

    model: str
    names: tuple[str, ...]
    """K class names."""
    category_ids: tuple[int, ...]
    """Ids of the classes in the annotations."""
    image_size: tuple[int, int]
    """Height and width of the input."""
    outputs: Literal["postprocessed", "raw"]
    """"postprocessed": `scores` B×N, `labels` B×N, `boxes` B×N×4 xyxy in [0, 1] of the input, by descending score.
    "raw": `logits` B×Q×K and `boxes` B×Q×4 cxcywh in [0, 1]."""
    version: str
    """The version of rtdetrv4 that exported the file."""
    resize: ResizeMode = "stretch"
    """How images fill the input; `rtdetrv4.runtime.preprocess.view_of` maps boxes back."""
    scale: str = "1/255"
    channels: str = "RGB"
    thresholds: Mapping[str, float] | None = None
    """The best confidence threshold of each class in validation; absent if it is not known."""
    precision: str = "fp32"
    """In what the network computes: "fp32", "fp16", "bf16" or "int8"; whatever it is, the outputs are the same."""
    batch: int | None = None
    """The only batch size that the file accepts; None: any."""
    input: Literal["images", "frames"] = "images"
    """"images": B×3×H×W float32 in [0, 1]. "frames": B×H×W×3 uint8, as cameras and decoders give them."""
    duplicates: Literal["keep", "drop"] = "keep"
    """"drop": a query has one label, and what repeats a better detection has score 0 and is at the end."""
    training_hw: tuple[float, float] | None = None
    """Height and width of an image that the input shows at the scale of training; absent if it is not known."""

    left_out: tuple[str, ...] | None = None
    """The other classes of the model, which the file does not return; absent if it returns all."""

    def to_json(self) -> str:
        """Return the value to store under the key "rtdetrv4"."""
        fields = self._asdict()
        for name in ("thresholds", "training_hw", "left_out"):
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ExportMetadata:
        """Parse what `to_json` returned.

        Raises:
            ExportError: an entry is missing, or requires something that this version cannot do.
        """
        try:
            fields = load_json(text)
            _check_entries(fields)
            metadata = cls(**fields)._replace(
                **{
                    key: tuple(fields[key])
                    for key in ("names", "category_ids", "image_size", "training_hw", "left_out")
                    if fields.get(key) is not None
                }
            )
        except (ValueError, TypeError) as error:
            raise ExportError(f"the metadata of the exported model cannot be read: {error}; export it again") from error
        known = {
            "resize": {"stretch", "letterbox"},
            "scale": {"1/255"},
            "channels": {"RGB"},
            "outputs": {"postprocessed", "raw"},
            "input": {"images", "frames"},
            "duplicates": {"keep", "drop"},
        }
        for key, values in known.items():
            value = getattr(metadata, key)
            if not isinstance(value, str) or value not in values:
                raise ExportError(
                    f'the exported model has {key} "{value}", expected {" or ".join(sorted(values))}; '
                    f"it was written by rtdetrv4 {metadata.version}; install that version"
                )
        return metadata


def _check_entries(fields: object) -> None:
    """Check what was read from JSON.

    Raises:
        ValueError: an entry is missing, unknown, or of another type.
    """
    if not isinstance(fields, dict):
        raise ValueError("they are no mapping")
    known, defaults = ExportMetadata._fields, ExportMetadata._field_defaults
    if missing := [name for name in known if name not in fields and name not in defaults]:
        raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"this version knows no {', '.join(unknown)}")
    names, ids, size = (fields[key] for key in ("names", "category_ids", "image_size"))
    if not (isinstance(names, list) and 0 < len(names) <= MAX_CLASSES and all(isinstance(name, str) for name in names)):
        raise ValueError("names is no list of class names")
    if not (isinstance(ids, list) and all(type(number) is int for number in ids) and len(ids) == len(names)):
        raise ValueError(f"category_ids is no list of {len(names)} whole numbers, one for each of names")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
    ):
        raise ValueError(f"image_size is no height and width in pixels, of up to {MAX_SIDE}")
    if not all(isinstance(fields.get(key, ""), str) for key in ("model", "version", "precision")):
        raise ValueError("model, version and precision are no texts")
    others = fields.get("left_out")
    if others is not None and not (isinstance(others, list) and all(isinstance(name, str) for name in others)):
        raise ValueError("left_out is no list of class names")
    if (batch := fields.get("batch")) is not None and (type(batch) is not int or batch < 1):
        raise ValueError("batch is no number of images")
    thresholds, usual = fields.get("thresholds"), fields.get("training_hw")
    if thresholds is not None and not (isinstance(thresholds, dict) and all(map(_is_number, thresholds.values()))):
        raise ValueError("thresholds is no number for each class")
    if usual is not None and not (isinstance(usual, list) and len(usual) == 2 and all(map(_is_positive, usual))):
        raise ValueError("training_hw is no height and width in pixels")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def read_metadata(text: str | bytes | None, path: Path) -> ExportMetadata:
    """Parse the metadata found in or beside a file; None: there are none.

    Raises:
        ForeignFileError: there are none.
        ExportError: they cannot be used.
    """
    if text is None:
        raise ForeignFileError(f"{path} has no metadata of rtdetrv4; write it with Detector.export.")
    try:
        return ExportMetadata.from_json(text)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def read_metadata_file(path: Path) -> bytes:
    """The metadata beside a file.

    Raises:
        ExportError: they cannot be read.
    """
    try:
        return read_file(path, MAX_BYTES)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}; export it again") from error
