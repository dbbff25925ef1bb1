"""Weights files: of this package, of a training run, released checkpoints, transformers. None of them is executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rtdetrv4.errors import WeightsError, did_you_mean, first_line
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

#: The key under which weights.safetensors stores its metadata, as JSON.
METADATA_KEY = "rtdetrv4"

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


def read_checkpoint(weights: str | Path, *, takes_pretrained: bool = False) -> Checkpoint:
    """Read weights.safetensors, last.pt or best.pt of this package, a released .pth, or weights of transformers.

    Averaged (EMA) weights are preferred where a file has them; optimizers are ignored.

    Args:
        weights: see `find_weights`.
        takes_pretrained: whether a file of `rtdetrv4 pretrain`, which has no detection heads, will do.

    Raises:
        WeightsError: the file is missing, damaged, unsafe, or no checkpoint of a detector.
    """
    path = find_weights(weights)
    tensors, facts = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors = {name.removeprefix("module.").removeprefix("detector."): tensor for name, tensor in tensors.items()}
    layout: Layout = "ours"
    if looks_released(tensors):
        layout, tensors = "released", from_released(tensors)
    elif looks_transformers(tensors):
        layout, tensors = "transformers", from_transformers(tensors)
        facts = read_config(path.with_name(CONFIG_FILE))
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
    num_classes = len(tensors["query_selection.score_head.bias"])
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


def detects_nothing_yet(path: str | Path) -> WeightsError:
    """The error of using a pretrained backbone and encoder as a detector."""
    return WeightsError(
        f"{path} holds a backbone and encoder that were pretrained on images without labels, and detects nothing yet. "
        f"Train a detector from it: rtdetrv4 train --data DATA --weights {path}"
    )


def find_weights(weights: str | Path) -> Path:
    """The file that `weights` refers to.

    It is the file itself; for a folder that transformers wrote, its model.safetensors; for `hf://owner/repo/file`, that
    file of the Hugging Face Hub. A revision may be given as in `hf://owner/repo@revision/file`.

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
        if (path / TENSORS_FILE).is_file() and (path / CONFIG_FILE).is_file():
            return path / TENSORS_FILE
        raise WeightsError(f"{path} is a folder; give a file, such as {path / 'weights.safetensors'}.")
    if path.is_file():
        return path
    if text in MODELS or text in RELEASED:
        raise WeightsError(_where_to_get(text))
    neighbors = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    raise WeightsError(f"There is no file {path}.{did_you_mean(path.name, neighbors)}")


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
            facts = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 — not a mapping
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is damaged ({first_line(error)}){_disguise(path)}.") from error


def _read_pickle(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    if path.suffix == ".onnx":
        raise WeightsError(
            f"{path} is an exported model, which can predict but not be trained or exported again; "
            "use the weights it was made from."
        )
    try:
        # Mapped, not read: a released checkpoint holds three more copies of the weights, for its optimizer and EMA.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path)) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise WeightsError(f"{path} is damaged ({first_line(error)}){_disguise(path)}.") from error
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


def _refusal(path: Path) -> str:
    """Why a pickle was not read."""
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        needed = []
    if not needed:
        return f"{path} is damaged or not a checkpoint{_disguise(path)}."
    return (
        f"{path} was not loaded: it holds Python objects ({listing(needed, limit=3)}), and reading these can run any "
        "code that the file brings along. If you trust it, load it yourself with torch.load(..., weights_only=False), "
        'save only its tensors with torch.save({"model": model.state_dict()}, ...), and give that file.'
    )


def _disguise(path: Path) -> str:
    """Say what a file that is not a checkpoint is, if it is one of the usual mistakes."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        return ": it is empty"
    if start.startswith(b"<"):
        return ": it is a web page, so its download failed"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    return ""


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
