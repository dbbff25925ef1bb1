"""Weights files: of this package, of a training run, released checkpoints, transformers. None of them is executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rtdetrv4.errors import WeightsError, did_you_mean, first_line, shown
from rtdetrv4.json_text import load_json
from rtdetrv4.ops.torch_files import disguise, load_torch_file
from rtdetrv4.outputs import write_whole
from rtdetrv4.types import ClassMap
from rtdetrv4.weights.catalog import (
    HUB_FILES,
    MODELS,
    RELEASED,
    RELEASED_CLASSES,
    TRANSFORMERS_MODELS,
    HubFile,
    classes_of,
    fitting_models,
)
from rtdetrv4.weights.convert import from_released, looks_released
from rtdetrv4.weights.hub import fetch_file
from rtdetrv4.weights.transformers import (
    CONFIG_FILE,
    TENSORS_FILE,
    from_transformers,
    looks_transformers,
    read_config,
)

WEIGHTS_FILE = "weights.safetensors"
"""The weights of a run, in its folder."""
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
#: The key under which weights.safetensors stores its metadata, as JSON.
METADATA_KEY = "rtdetrv4"
MAX_CLASSES = 100_000
MAX_SIDE = 16_384
"""Of images. A file that claims more would only have its reader run out of memory."""

Layout = Literal["ours", "released", "transformers"]


class WeightsMetadata(NamedTuple):
    """What a file says about its weights, or what their shapes tell."""

    source: str
    """The file."""
    models: tuple[str, ...]
    """The models that the weights are for. Files of this package name one; a released checkpoint may fit several, which
    differ in nothing that has tensors."""
    num_classes: int
    """K."""
    classes: ClassMap | None
    """None if the file does not tell. Released checkpoints of 80 classes are taken to be COCO's."""
    image_size: tuple[int, int] | None
    """(height, width) of training, if the file tells."""
    trained: bool
    """False if the file says that its weights are untrained."""
    layout: Layout
    """The naming and format of the file."""
    facts: Mapping[str, Any]
    """Everything that the file says, such as the teacher and its license; empty for checkpoints of the authors."""

    @property
    def is_pretrained(self) -> bool:
        """Whether the file holds a pretrained backbone and encoder only, from which a detector can be trained."""
        return bool(self.facts.get("pretrained"))

    @property
    def thresholds(self) -> Mapping[str, float] | None:
        """The confidence threshold of each class that was best in validation, by name; None if it is not known."""
        return self.facts.get("thresholds")

    def training_hw(self, size_hw: tuple[int, int]) -> tuple[float, float] | None:
        """The size of an image that an input of `size_hw` shows at the scale of training; None if it is not known.

        At the image size of training, it is the median height and width of the training images.
        """
        usual = self.facts.get("training_image_size")
        if usual is None or self.image_size is None:
            return None
        return usual[0] * size_hw[0] / self.image_size[0], usual[1] * size_hw[1] / self.image_size[1]

    @property
    def model(self) -> str:
        """The one model that the weights are for.

        Raises:
            WeightsError: there is none, or several fit.
        """
        if len(self.models) == 1:
            return self.models[0]
        if not self.models:
            raise WeightsError(f"{self.source} fits no model of this package; `rtdetrv4 models` lists them.")
        raise WeightsError(
            f"{self.source} fits {listing(self.models, 'or')}, which cannot be told apart by their tensors; "
            f'say which one it is, such as model="{self.models[0]}".'
        )


class Checkpoint(NamedTuple):
    """The content of a weights file."""

    metadata: WeightsMetadata
    tensors: dict[str, Tensor]
    """Tensors by this package's names, on the CPU; `injector.…` is the projector of DSI, if there is one."""


def read_metadata(weights: str | Path) -> WeightsMetadata:
    """The metadata of a weights file: enough to build the model and to name its classes.

    Raises:
        WeightsError: as `read_checkpoint`.
    """
    return read_checkpoint(weights).metadata


def read_checkpoint(weights: str | Path, *, takes_pretrained: bool = False, trust: bool = False) -> Checkpoint:
    """Read weights.safetensors, last.pt or best.pt of this package, a released .pth, or weights of transformers.

    Averaged (EMA) weights are preferred where a file has them; optimizers are ignored.

    Args:
        weights: see `find_weights`.
        takes_pretrained: whether a file of `rtdetrv4 pretrain`, which has no detection heads, will do.
        trust: run the code in a pickle that holds more than tensors and plain values, instead of refusing it.

    Raises:
        WeightsError: the file is missing, damaged, unsafe, no checkpoint of a detector, or its training has diverged.
    """
    path = find_weights(weights)
    tensors, facts = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path, trust=trust)
    _check_facts(facts, path)
    _check_numbers(tensors, path)
    tensors = {name.removeprefix("module.").removeprefix("detector."): tensor for name, tensor in tensors.items()}
    layout: Layout = "ours"
    if looks_released(tensors):
        layout, tensors = "released", from_released(tensors)
    elif looks_transformers(tensors):
        layout, tensors = "transformers", from_transformers(tensors)
        facts = read_config(path.with_name(CONFIG_FILE))
        _check_facts(facts, path)
    if facts.get("pretrained"):
        if not takes_pretrained:
            raise detects_nothing_yet(path)
        metadata = WeightsMetadata(str(path), (str(facts["model"]),), 0, None, None, False, "ours", facts)
        return Checkpoint(metadata, tensors)
    if "query_selection.score_head.bias" not in tensors:
        some = f"its tensors are named {listing(tensors, limit=3)}" if tensors else "it has no tensors"
        raise WeightsError(
            f"{path} holds no weights of a detector: {some}. Expected a file of this package, "
            "a checkpoint of the released RT-DETRv4, DEIM, D-FINE or RT-DETRv2, or one of transformers."
        )
    bias = tensors["query_selection.score_head.bias"]
    num_classes = len(bias) if bias.ndim == 1 else 0
    if not 1 <= num_classes <= MAX_CLASSES:
        raise WeightsError(
            f"{path} is damaged: its head has a bias of shape {tuple(bias.shape)}, expected that of 1 to {MAX_CLASSES} "
            "classes."
        )
    classes = None if layout == "ours" else RELEASED_CLASSES.get(num_classes)
    if "names" in facts:
        classes = ClassMap(tuple(facts["names"]), tuple(facts.get("category_ids", range(len(facts["names"])))))
        if not classes.num_classes == len(classes.category_ids) == num_classes:
            raise WeightsError(f"{path} is damaged: it names {classes.num_classes} classes and predicts {num_classes}.")
    models = (str(facts["model"]),) if "model" in facts else fitting_models(shapes(tensors))
    if layout == "transformers":
        models = tuple(model for model in models if model in TRANSFORMERS_MODELS)
    image_size = tuple(facts["image_size"]) if "image_size" in facts else None
    trained = bool(facts.get("trained", True))
    metadata = WeightsMetadata(str(path), models, num_classes, classes, image_size, trained, layout, facts)
    return Checkpoint(metadata, tensors)


def _check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise if a tensor has NaN. Infinity is no error: released files have it where an image has no anchor."""
    if wrong := [name for name, each in tensors.items() if each.is_floating_point() and each.isnan().any()]:
        raise WeightsError(
            f"{path}: {len(wrong)} of its {len(tensors)} tensors hold NaN ({listing(wrong, limit=3)}), with which a "
            "detector finds nothing. Its training has diverged; take weights from before that, or train again with a "
            "lower learning rate."
        )


def detects_nothing_yet(path: str | Path) -> WeightsError:
    """The error of using a pretrained backbone and encoder as a detector."""
    return WeightsError(
        f"{path} holds a backbone and encoder that were pretrained on images without labels, and detects nothing yet. "
        f"Train a detector from it: rtdetrv4 train --data DATA --weights {path}"
    )


def names_weights(model: object) -> bool:
    """Whether what is given as a model or a teacher stands for weights: a file of them, or the folder of a run.

    So does a folder that transformers wrote. A model's name is no folder, even if there is one.
    """
    if not isinstance(model, str | Path) or str(model) in MODELS:
        return False
    path = Path(model)
    if path.suffix in WEIGHTS_SUFFIXES:
        return True
    return str(model) != "" and path.is_dir() and (_is_run(path) or _is_of_transformers(path))


def find_weights(weights: str | Path) -> Path:
    """The file that `weights` refers to.

    It is the file itself; for the folder of a run, its weights.safetensors; for one that transformers wrote, its
    model.safetensors; for `hf://owner/repo/file`, that file of the Hugging Face Hub. A revision may be given as in
    `hf://owner/repo@revision/file`.

    Raises:
        WeightsError: there is no such file.
    """
    text = str(weights)
    if text.startswith("hf://"):
        return _fetch(text)
    if "://" in text:
        raise WeightsError(f"{text} is not fetched; download it and give the path, or use hf://owner/repo/file.")
    path = Path(weights)
    if path.is_dir():
        if _is_of_transformers(path):
            return path / TENSORS_FILE
        if (weights := path / WEIGHTS_FILE).is_file():
            return weights
        if _is_run(path):
            raise WeightsError(f"The run in {path} has saved no weights yet: there is no {WEIGHTS_FILE}.")
        raise WeightsError(f"{path} is a folder without weights; give a file of weights, or the folder of a run.")
    if path.is_file():
        return path
    if text in MODELS or text in RELEASED:
        raise WeightsError(_where_to_get(text))
    neighbors = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    raise WeightsError(f"There is no file {path}.{did_you_mean(path.name, neighbors)}")


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, "recipe.yaml"))


def _is_of_transformers(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (TENSORS_FILE, CONFIG_FILE))


def save_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights in our format.

    Args:
        state: tensors by this package's names.
        path: safetensors file to write.
        metadata: any JSON: what one needs to build and use the model. Stored as one string under "rtdetrv4".
    """
    # safetensors refuses tensors that share memory or are channels-last, so each gets its own.
    kept = torch.contiguous_format
    tensors = {name: tensor.detach().cpu().clone(memory_format=kept) for name, tensor in state.items()}
    header = {"format": "pt", METADATA_KEY: json.dumps(dict(metadata), ensure_ascii=False)}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
        except safetensors.SafetensorError as error:  # how its writer says that a file could not be written to
            raise OSError(first_line(error)) from error

    write_whole(path, write, durable=True)


def add_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Add entries to the metadata of a file that `save_weights` wrote; its tensors stay as they are.

    Raises:
        WeightsError: the file is damaged.
    """
    tensors, known = _read_safetensors(path)
    save_weights(tensors, path, {**known, **facts})


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """The shape of every tensor."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def listing(items: Iterable[str], last: str = "and", limit: int = 8) -> str:
    """Names for a message: "a, b and c"."""
    names = list(items)
    if len(names) > limit:
        names = [*names[:limit], f"{len(names) - limit} more"]
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = load_json((file.metadata() or {}).get(METADATA_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 — not a mapping
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is damaged ({first_line(error)}){disguise(path)}.") from error


def _read_pickle(path: Path, *, trust: bool) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    if path.suffix == ".onnx":
        raise WeightsError(
            f"{path} is an exported model, which can predict but not be trained or exported again; "
            "use the weights it was made from."
        )
    content = load_torch_file(path, trust=trust)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, expected a dictionary.")
    ema = content.get("ema")
    candidates = (ema.get("module") if isinstance(ema, Mapping) else None, content.get("model"), content)
    state = next(candidate for candidate in candidates if isinstance(candidate, Mapping))
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    return tensors, content.get("metadata") or _facts_beside(content, path)


def _facts_beside(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What LibreYOLO's files say besides their weights, under the keys of our metadata."""
    facts: dict[str, Any] = {}
    if (model := f"{content.get('model_family')}-{content.get('size')}") in MODELS:
        facts["model"] = model
    if names := content.get("names"):
        try:
            ordered = [names[index] for index in range(len(names))]
        except (LookupError, TypeError) as error:
            raise WeightsError(f"{path} is damaged: its class names are not numbered from 0.") from error
        facts |= {key: list(value) for key, value in classes_of([str(name) for name in ordered])._asdict().items()}
    return facts


def _check_facts(facts: Any, path: Path) -> None:
    """Check what a file says of itself, where something is made of it.

    Raises:
        WeightsError: an entry is of another type, or impossible.
    """
    if not isinstance(facts, Mapping):
        raise WeightsError(f"{path} is damaged: its metadata is {shown(facts)}, expected a mapping.")
    for name, (is_right, expected) in _FACTS.items():
        value = facts.get(name)
        if name in facts and not (is_right(value) or (value is None and name in _MAY_BE_NULL)):
            raise WeightsError(f"{path} is damaged: in its metadata, {name} is {shown(value)}, expected {expected}.")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(each) is kind for each in value)


def _is_size(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and all(type(side) in (int, float) for side in value)
    return numbers and len(value) == 2 and all(1 <= side <= MAX_SIDE for side in value)


def _are_thresholds(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and type(each) in (int, float) and math.isfinite(each) for name, each in value.items()
    )


_FACTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda value: isinstance(value, str) and value in MODELS, "a model that `rtdetrv4 models` lists"),
    "backbone": (
        lambda value: isinstance(value, str) and re.fullmatch(r"[\w.]+", value) is not None,
        "a network of timm's own",  # others are addresses, of which timm gets their code's settings
    ),
    "resize": (lambda value: isinstance(value, str), "a name"),
    "names": (lambda value: _is_list(value, str), "a list of class names"),
    "category_ids": (lambda value: _is_list(value, int), "a list of whole numbers"),
    "image_size": (lambda value: _is_size(value) and _is_list(value, int), f"height and width up to {MAX_SIDE}"),
    "num_queries": (lambda value: type(value) is int and value >= 1, "a whole number from 1"),
    "training_image_size": (_is_size, f"height and width up to {MAX_SIDE}"),
    "thresholds": (_are_thresholds, "a number for each class"),
    "teacher": (lambda value: isinstance(value, Mapping), "a mapping"),
    "start": (lambda value: isinstance(value, Mapping), "a mapping"),
}
"""Entries of metadata: what is right, in code and in words."""
_MAY_BE_NULL = ("backbone", "resize", "num_queries", "training_image_size", "thresholds", "teacher", "start")


def _fetch(url: str) -> Path:
    owner, _, rest = url.removeprefix("hf://").partition("/")
    repo, _, file = rest.partition("/")
    repo, _, revision = repo.partition("@")
    if not (owner and repo and file):
        raise WeightsError(f"{url} is incomplete; expected hf://owner/repo/file.")
    try:
        return fetch_file(HubFile(f"{owner}/{repo}", file, license=None), revision or None)
    except ValueError as error:
        raise WeightsError(f"{url} cannot be fetched: {error}. A file downloaded by hand works as well.") from error


def _where_to_get(name: str) -> str:
    problem = f'"{name}" is a model, not a file of weights'
    model, url = RELEASED.get(name, (name, None))
    dataset = "coco" if name == model else name.removeprefix(f"{model}-")
    ways = [
        f"give hf://{source.repository}/{source.file}"
        for known, sources in HUB_FILES.get(model, {}).items()
        for source in sources[:1]
        if known == dataset
    ]
    if url is not None:
        ways.append(f'download {url} and give the path of that file, with model="{model}"')
    return f"{problem}: {listing(ways, 'or')}." if ways else f"{problem}, and no release of its weights is known."
