"""Convert weights between formats: ours, the released code's, and transformers'."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rtdetrv4.assembly.models import create_model, find_variant
from rtdetrv4.distillation import Injector
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.ops.hub import file_sha256
from rtdetrv4.outputs import write_whole
from rtdetrv4.weights import WeightsMetadata, load_weights, to_released
from rtdetrv4.weights.files import listing, read_checkpoint, save_weights
from rtdetrv4.weights.transformers import TRANSFORMERS_FILES, save_transformers

logger: logging.Logger = logging.getLogger(__name__)

Format = Literal["ours", "released", "transformers"]

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "ours": (".safetensors",),
    "released": (".pth", ".pt"),
    "transformers": ("",),
}
_FAMILIES = {
    "rtdetrv4": "RT-DETRv4",
    "deim-rtdetrv2": "DEIM-RT-DETRv2",
    "deim": "DEIM",
    "deimv2": "DEIMv2",
    "dfine": "D-FINE",
    "rtdetrv2": "RT-DETRv2",
}


def convert_weights(
    source: str | Path, out: str | Path, *, model: str | None = None, to: Format = "ours", trust: bool = False
) -> WeightsMetadata:
    """Write weights in another format.

    Averaged (EMA) weights are used if the source has them. Everything must fit the model, and every tensor that the
    target format can hold is written, including the projector of DSI.

    Args:
        source: a released .pth, a folder or file of transformers weights, or a file of this package; see
            `find_weights`.
        out: a .safetensors file for "ours", a .pth for "released", a folder for "transformers". Nothing is written
            over.
        model: the model's name; needed if the tensors fit several models, which those of this package's files never do.
        to: "ours" also records where the weights come from; "released" is for the released code; "transformers" is for
            `from_pretrained`.
        trust: run the code that the source brings along, if it is a pickle of more than tensors and plain values.

    Returns:
        The metadata of the source, with `models` reduced to the one that it was converted as.

    Raises:
        ConfigError: there is no such model or format, or `out` does not suit the format or is there already.
        WeightsError: the source cannot be read, is of another model, or cannot be represented in the target format.
    """
    out = Path(out)
    _require_place(out, to)
    checkpoint = read_checkpoint(source, trust=trust)
    metadata, tensors = checkpoint
    name = _chosen(metadata, model)
    path = Path(metadata.source)
    if out.resolve() == path.resolve():
        raise ConfigError(f"{out} is the source itself; give --out another name.")
    files = [out / name for name in TRANSFORMERS_FILES] if to == "transformers" else [out]
    if earlier := next((file for file in files if file.exists()), None):
        raise ConfigError(f"{earlier} is there already, and nothing is written over; give --out another name.")
    backbone = metadata.facts.get("backbone")
    if backbone is not None and to != "ours":
        raise WeightsError(f"{path} has the backbone {backbone}, which {to} weights cannot represent.")
    if metadata.facts.get("resize", "stretch") != "stretch" and to != "ours":
        raise WeightsError(
            f"{path} was trained with model.resize={metadata.facts['resize']}, which {to} weights cannot represent."
        )
    num_queries = metadata.facts.get("num_queries")
    network = create_model(
        name,
        metadata.num_classes,
        num_denoising=100 if "denoising.class_embedding.weight" in tensors else 0,
        **({} if backbone is None else {"backbone": backbone}),
        **({} if num_queries is None else {"num_queries": num_queries}),
    )
    load_weights(network, checkpoint)

    image_size = metadata.image_size or find_variant(name).image_size
    projector = {key: tensor for key, tensor in tensors.items() if key.startswith("injector.")}
    if projector and to != "transformers":
        logger.info("Also written: %s", listing(projector))
    if to == "transformers":
        classes = [f"class {index}" for index in range(metadata.num_classes)]
        save_transformers(network, out, metadata.classes.names if metadata.classes else classes, image_size)
    elif to == "released":
        state = to_released(network, image_size, _injector(projector))
        write_whole(out, lambda file: torch.save({"model": state, "ema": {"module": state}}, file))
    else:
        save_weights(network.state_dict() | projector, out, _facts(metadata, name, image_size))
    return metadata._replace(models=(name,))


def _require_place(out: Path, to: str) -> None:
    if to not in _SUFFIXES:
        raise ConfigError(f'There is no format "{to}"; expected {listing(_SUFFIXES, "or")}.')
    if to == "transformers" and (out.suffix in (".safetensors", ".pth", ".pt") or out.is_file()):
        raise ConfigError(f"{out} is a file; transformers weights need a folder, such as {out.with_suffix('')}.")
    if to != "transformers" and out.suffix not in _SUFFIXES[to]:
        example = (out if out.name else out / "weights").with_suffix(_SUFFIXES[to][0])
        raise ConfigError(f"{out} must end in {_SUFFIXES[to][0]}, such as {example}.")


def _chosen(metadata: WeightsMetadata, model: str | None) -> str:
    if model is not None:
        find_variant(model)
        if model in metadata.models:
            return model
        raise WeightsError(f"{metadata.source} holds {listing(metadata.models, 'or') or 'another model'}, not {model}.")
    if len(metadata.models) > 1:
        raise WeightsError(
            f"{metadata.source} fits {listing(metadata.models, 'or')}, which cannot be told apart by their tensors; "
            f"say which one it is, such as --model {metadata.models[0]}."
        )
    return metadata.model


def _injector(projector: Mapping[str, Tensor]) -> Injector | None:
    if not projector:
        return None
    state = {name.removeprefix("injector."): tensor for name, tensor in projector.items()}
    teacher_dim, dim = state["projector.weight"].shape
    injector = Injector(dim, teacher_dim)
    injector.load_state_dict(state)
    return injector


def _facts(metadata: WeightsMetadata, name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """The metadata of the new file: the source's own, and where it came from."""
    path = Path(metadata.source)
    family = next((label for prefix, label in _FAMILIES.items() if name.startswith(f"{prefix}-")), None)
    classes = {} if metadata.classes is None else metadata.classes._asdict()
    return {
        "teacher": None,
        "version": importlib.metadata.version("rtdetrv4"),
        **metadata.facts,
        "model": name,
        **{key: list(value) for key, value in classes.items()},
        "image_size": list(image_size),
        "converted": {
            "file": path.name,
            "sha256": file_sha256(path),
            "format": metadata.layout,
            "family": family,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    }
