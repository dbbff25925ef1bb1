"""DSI and GAM for any detector and training loop, given the name of the layer that outputs F5."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rtdetrv4.distillation.injector import Injector, alignment_loss
from rtdetrv4.distillation.modulation import Modulation, ModulationReport
from rtdetrv4.distillation.teacher import Teacher
from rtdetrv4.errors import ConfigError, did_you_mean
from rtdetrv4.ops.collectives import world_size

NAME = "tap"
"""Name of the tap within the model."""
IMAGE_RANGE = (-0.1, 1.1)
"""Augmentations may overshoot [0, 1] slightly; bytes and normalized images exceed this range."""


class _Beside(NamedTuple):
    """What a tap needs but does not contain: a tuple keeps modules out of `parameters` and `state_dict`."""

    model: nn.Module
    layer: nn.Module
    teacher: Teacher


class _Kept(NamedTuple):
    """What the layer returned, and the autocast it ran under."""

    output: Any
    autocast: bool
    dtype: torch.dtype


class Tap(nn.Module):
    """Aligns the output of one layer with a teacher, and adapts λ to that layer's share of the gradient.

    Until `close`, the tap is part of the model, as `model.tap`, so everything that iterates over the model's parameters
    (optimizer, clipping, DDP) includes the projector, and checkpoints of the model contain the projector and λ. Create
    the tap after loading weights, but before the optimizer and any wrapper.

    ```python
    tap = Tap(model, "model.encoder.aifi.0", load_teacher(), Modulation(5.0), dim=256)
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch in range(epochs):
        for images, targets in batches:
            loss = detection_loss(model(images), targets) + tap.loss(images)
            optimizer.zero_grad()
            loss.backward()
            tap.observe()
            optimizer.step()
        tap.end_epoch()
    tap.close()
    ```

    Args:
        model: the detector.
        layer: name of the layer that outputs F5, as in `model.named_modules()`.
        teacher: what F5 is aligned with; follows F5 to its device.
        modulation: owner of λ.
        dim: C, the channels of F5.
        select: extracts F5 from the layer's output; needed if that has several tensors with C channels, or none.
        batch_first: whether tokens are B×N×C; otherwise, they are N×B×C.

    Raises:
        ConfigError: the model has no such layer, the layer has no parameters, or the model already has a tap or DDP.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        teacher: Teacher,
        modulation: Modulation,
        *,
        dim: int,
        select: Callable[[Any], Tensor] | None = None,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            raise ConfigError("DDP would not reduce the projector's gradient. Make the tap first, then wrap the model.")
        if hasattr(model, NAME):
            raise ConfigError(f'The model has a part called "{NAME}". Close an earlier tap with model.{NAME}.close().')
        tapped = _find(model, layer)
        self.injector = Injector(dim, teacher.dim).to(next(tapped.parameters()))
        self.modulation = modulation
        self._beside = _Beside(model, tapped, teacher)
        self._layer, self._dim, self._select, self._batch_first = layer, dim, select, batch_first
        self._images = ""
        self._kept: _Kept | None = None
        self._is_checked = self._is_observed = False
        self._hooks = [
            tapped.register_forward_pre_hook(self._reach, with_kwargs=True),
            tapped.register_forward_hook(self._keep),
        ]
        model.add_module(NAME, self)

    def forward(self, output: Any) -> Any:
        """Return the input: in a model that is an `nn.Sequential`, the tap runs as its last part."""
        return output

    def loss(self, images: Tensor, *, grid_hw: tuple[int, int] | None = None) -> Tensor:
        """λ · L_DSI of the model's last forward pass: a scalar to add to the detection loss.

        Projector and teacher run under the autocast settings that the layer ran under.

        Args:
            images: B×3×H×W in [0, 1]: what the model saw, before any normalization with mean and std.
            grid_hw: h and w of F5 if it comes as tokens; needed unless N square cells tile the image.

        Raises:
            ConfigError: the layer has not run, its output cannot be read as F5, or images are not in [0, 1].
        """
        kept, self._kept = self._kept, None
        if kept is None:
            raise ConfigError(
                f'Layer "{self._layer}" has not run since the last loss. Call `loss` once after each forward pass of '
                "the tapped model, with gradients enabled."
            )
        if not self._is_checked:
            _check_range(images)
            self._is_checked = True
        f5 = self._read(kept.output, images, grid_hw)
        weight, teacher = self.modulation.weight, self._beside.teacher
        with torch.autocast(f5.device.type, kept.dtype, enabled=kept.autocast):
            projected = self.injector(f5.to(self.injector.projector.weight.dtype))
            if weight == 0:  # no need to run the teacher
                return 0 * projected.sum()
            if teacher.mean.device != f5.device:
                teacher.to(f5.device)
            teacher_map = teacher(images.to(teacher.mean), (f5.shape[-2], f5.shape[-1]))
            return weight * alignment_loss(projected, teacher_map)

    def add_to_loss(self, images: str = "pixel_values") -> Tap:
        """Make the model add λ · L_DSI to the `loss` in its output, which is where transformers' models have theirs.

        For trainers that own the training step: do not call `loss` yourself then. Returns the tap.

        Args:
            images: name of the model's argument for images, B×3×H×W in [0, 1].
        """
        self._images = images
        self._hooks.append(self._beside.model.register_forward_hook(self._add, with_kwargs=True))
        return self

    @torch.no_grad()
    def observe(self) -> None:
        """Measure the layer's share of the gradient; call between a step's last backward and clearing gradients."""
        self.modulation.observe(self._beside.layer, self._beside.model)
        self._is_observed = True

    def end_epoch(self, *, refinement: bool = False) -> ModulationReport:
        """Adapt λ to the mean share of the epoch; with several ranks a collective call.

        Args:
            refinement: whether the next epoch belongs to the refinement stage, in which λ is the default weight.

        Raises:
            ConfigError: λ is to be adapted, but nothing was observed.
        """
        if not self._is_observed and self.modulation.rule != "fixed":
            raise ConfigError("No gradient was observed in this epoch. Call `observe` after each step's last backward.")
        self._is_observed = False
        return self.modulation.end_epoch(refinement=refinement)

    def close(self) -> None:
        """Remove the tap; the model keeps its current weights."""
        for hook in self._hooks:
            hook.remove()
        model = self._beside.model
        if getattr(model, NAME, None) is self:
            delattr(model, NAME)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def get_extra_state(self) -> Tensor:
        """λ and the running mean; a tensor, because safetensors files hold nothing else."""
        return torch.tensor(list(self.modulation.state_dict().values()), dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        self.modulation.load_state_dict(dict(zip(self.modulation.state_dict(), state.tolist(), strict=True)))
        self._is_observed = True  # perhaps: the epoch may have begun before the state was saved

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        """Support copies of the model, such as its EMA; they share the teacher, which is frozen."""
        memo[id(self._beside.teacher)] = self._beside.teacher
        memo[id(self)] = other = Tap.__new__(Tap)
        other.__dict__.update(copy.deepcopy({**self.__dict__, "_kept": None}, memo))
        return other

    def _keep(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Run after the layer's forward: keep its output, unless this is validation."""
        del layer, args
        if torch.is_grad_enabled():
            device = self.injector.projector.weight.device.type
            self._kept = _Kept(output, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def _reach(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run before the layer's forward: with several ranks, apply `_Reach` to its input."""
        del layer
        if world_size() == 1 or not torch.is_grad_enabled():
            return None
        values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        keys = [key for key, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()]
        if not keys:
            return None
        values[keys[0]] = _Reach.apply(values[keys[0]], *self.injector.parameters())
        return tuple(values.pop(index) for index in range(len(args))), values

    def _add(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Run after the model's forward, for `add_to_loss`."""
        del model
        if self._kept is None:
            return
        if not isinstance(output, MutableMapping):
            raise ConfigError(
                f"The model's output is a {type(output).__name__}, which has no `loss` by name. Let the model return a "
                "mapping (return_dict=True), or call `loss` yourself."
            )
        if output.get("loss") is None:  # no labels
            self._kept = None
        else:
            output["loss"] = output["loss"] + self.loss(kwargs[self._images] if self._images in kwargs else args[0])

    def _read(self, output: Any, images: Tensor, grid_hw: tuple[int, int] | None) -> Tensor:
        """What the layer returned → F5, B×C×h×w."""
        found = _tensors(output) if self._select is None else [self._select(output)]
        fitting = [
            tensor
            for tensor in found
            if tensor.ndim in (3, 4) and tensor.shape[1 if tensor.ndim == 4 else 2] == self._dim
        ]
        if len(fitting) != 1:
            raise ConfigError(
                f'Layer "{self._layer}" returns {_shapes(found)}, of which {len(fitting)} can be F5: B×{self._dim}×h×w '
                f"or tokens with {self._dim} channels last. Choose one with `select`, or correct `dim`."
            )
        (f5,) = fitting
        is_map = f5.ndim == 4
        if not is_map and not self._batch_first:
            f5 = f5.transpose(0, 1)
        if len(f5) != len(images):
            hint = "" if is_map else " Tokens are read as B×N×C, or as N×B×C with batch_first=False."
            raise ConfigError(
                f'Layer "{self._layer}" returns {_shapes(fitting)} for {len(images)} images. Give `loss` the images '
                f"that the model saw last.{hint}"
            )
        if is_map:
            return f5
        tokens, (height, width) = f5.shape[1], images.shape[-2:]
        grid = grid_hw or _grid(tokens, height, width)
        if grid is None or math.prod(grid) != tokens:
            wanted = f"images of {height}×{width} in squares" if grid is None else f"a grid of {grid[0]}×{grid[1]}"
            raise ConfigError(
                f'Layer "{self._layer}" returns {tokens} tokens, which do not fill {wanted}. Give `loss` the grid_hw, '
                "and drop tokens that are not part of the map with `select`."
            )
        return f5.transpose(1, 2).unflatten(2, grid)


class _Reach(torch.autograd.Function):
    """Passes a tensor through, and makes parameters reachable from whatever is computed from it.

    With `find_unused_parameters`, DDP searches the graph of the model's output for the parameters that a step uses. The
    distillation loss is not part of that output, so DDP would consider the projector unused.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.num_parameters = len(parameters)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients, *([None] * ctx.num_parameters)


def _find(model: nn.Module, name: str) -> nn.Module:
    modules = {known: module for known, module in model.named_modules() if known}
    if name not in modules:
        raise ConfigError(
            f'The model has no layer "{name}".{did_you_mean(name, modules)} '
            "See `[name for name, _ in model.named_modules()]`."
        )
    if next(modules[name].parameters(), None) is None:
        raise ConfigError(
            f'Layer "{name}" ({type(modules[name]).__name__}) has no parameters, and so no share of the gradient. Name '
            "the module that computes F5: the transformer layer of the encoder."
        )
    return modules[name]


def _check_range(images: Tensor) -> None:
    """Check once per tap only, because this synchronizes with the device."""
    low, high = (float(bound) for bound in images.aminmax())
    if low < IMAGE_RANGE[0] or high > IMAGE_RANGE[1]:
        raise ConfigError(
            f"The teacher takes images in [0, 1] and got values from {low:.4g} to {high:.4g}. Give images without "
            "normalization by mean and std, and divide bytes by 255."
        )


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join("×".join(map(str, tensor.shape)) for tensor in tensors) or "no tensor"


def _grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """The grid (h, w) of `tokens` square cells that tile an image, or None. There is at most one."""
    stride = math.isqrt(height * width // max(tokens, 1))
    if stride == 0 or height % stride or width % stride:
        return None
    grid = height // stride, width // stride
    return grid if math.prod(grid) == tokens else None
