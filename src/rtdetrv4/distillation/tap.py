"""DSI and GAM for any detector and training loop, given the name of the layer that outputs F5."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from rtdetrv4.distillation.f5 import F5Reader, Select, Size, in_whole_cells, tensors_in, valid_cells
from rtdetrv4.distillation.injector import Injector, alignment_terms
from rtdetrv4.distillation.modulation import Modulation, ModulationReport
from rtdetrv4.distillation.teacher import Teacher, check_normalization
from rtdetrv4.distillation.watch import Watch, require_trained
from rtdetrv4.errors import ConfigError, did_you_mean
from rtdetrv4.ops.collectives import world_size

NAME = "tap"
"""Name of the tap within the model."""
IMAGES, MASK = "pixel_values", "pixel_mask"
"""What transformers' detectors call their images and the mask of what is not padding."""


class _Beside(NamedTuple):
    """What a tap needs but does not contain: a tuple keeps modules out of `parameters` and `state_dict`."""

    model: nn.Module
    layer: nn.Module
    teacher: Teacher


class _Kept(NamedTuple):
    """What the layer returned, the autocast it ran under, and the model's arguments by name."""

    output: Any
    autocast: bool
    dtype: torch.dtype
    arguments: Mapping[str, Any]


class _Inputs(NamedTuple):
    """How `add_to_loss` finds what `loss` takes among the model's arguments."""

    images: str
    mask: str
    grid_hw: Size | Callable[[Size], Size] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


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
        select: from the layer's output and the images' (height, width) in pixels to F5; needed if the output has
            several tensors with C channels, or none. See `tokens_of_stride`.
        batch_first: whether tokens are B×N×C; otherwise, they are N×B×C.

    Raises:
        ConfigError: the model has no such layer, the layer has no parameters, the model already has a tap or DDP, or
            the teacher is no `Teacher` or the modulation no `Modulation`.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        teacher: Teacher,
        modulation: Modulation,
        *,
        dim: int,
        select: Select | None = None,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        _check_kinds(model, teacher, modulation, select)
        if hasattr(model, NAME):
            raise ConfigError(f'The model has a part called "{NAME}". Close an earlier tap with model.{NAME}.close().')
        tapped = _find(model, layer)
        self.injector: Injector = Injector(dim, teacher.dim).to(next(tapped.parameters()))
        self.modulation = modulation
        self._beside = _Beside(model, tapped, teacher)
        self._layer = layer
        self._reader = F5Reader(layer, dim, select, batch_first)
        self._watch = Watch(self.injector, tapped, layer)
        self._parameters_of_model = _names_of_arguments(model)
        self._inputs = _Inputs(IMAGES, MASK, None, None, None)
        self._arguments: Mapping[str, Any] = {}
        self._kept: _Kept | None = None
        self._alignment: Tensor | None = None
        self._is_observed = False
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            tapped.register_forward_pre_hook(self._reach, with_kwargs=True),
            tapped.register_forward_hook(self._keep),
        ]
        model.add_module(NAME, self)

    def forward(self, output: Any) -> Any:
        """Return the input: in a model that is an `nn.Sequential`, the tap runs as its last part."""
        return output

    def loss(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        grid_hw: Size | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Tensor:
        """λ · L_DSI of the model's last forward pass: a scalar to add to the detection loss.

        Projector and teacher run under the autocast settings that the layer ran under.

        Args:
            images: B×3×H×W, what the model saw: in [0, 1], or normalized with `mean` and `std`.
            mask: B×H×W, nonzero where there is image and 0 where there is padding, which then does not count. None
                takes the `pixel_mask` that the model was called with, if it was.
            grid_hw: h and w of F5 if it comes as tokens; needed unless N square cells cover the image.
            mean: per channel, if the images are normalized: the mean of images in [0, 1].
            std: per channel, of images in [0, 1].

        Raises:
            ConfigError: the layer has not run, nothing that computes its output is trained, the output cannot be read
                as F5, or the images are not those that the model saw or not in [0, 1].
        """
        kept = self._take()
        if mean is not None or std is not None:
            images = _as_they_were(images, mean, std)
        mask = kept.arguments.get(self._inputs.mask) if mask is None else mask
        f5 = self._reader.read(kept.output, images, grid_hw)
        require_trained(f5, self.injector, self._layer)
        grid = f5.shape[-2], f5.shape[-1]
        valid = None if mask is None else valid_cells(mask, grid, images)
        self._watch.images(images, _pictures(kept.arguments), valid)
        weight, teacher = self.modulation.weight, self._beside.teacher
        with torch.autocast(f5.device.type, kept.dtype, enabled=kept.autocast):
            projected = self.injector(f5.to(self.injector.projector.weight.dtype))
            if weight == 0:  # no need to run the teacher
                self._alignment = None
                return 0 * projected.sum()
            if teacher.mean.device != f5.device:
                teacher.to(f5.device)
            teacher_map = teacher(in_whole_cells(images.to(teacher.mean), grid), grid)
            known = None if valid is None else valid.to(f5.device)
            terms = alignment_terms(projected, teacher_map, teacher.parts, known)
            alignment = torch.stack(list(terms.values())).mean()
        self._alignment = alignment.detach()
        return weight * alignment

    def add_to_loss(
        self,
        images: str = IMAGES,
        *,
        mask: str = MASK,
        grid_hw: Size | Callable[[Size], Size] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Tap:
        """Make the model add λ · L_DSI to the `loss` in its output, which is where transformers' models have theirs.

        For trainers that own the training step: do not call `loss` yourself then. Returns the tap.

        Args:
            images: name of the model's argument for images, B×3×H×W in [0, 1] or normalized with `mean` and `std`.
            mask: name of the model's argument for the padding mask, B×H×W, nonzero where there is image. A model
                without it, or called without it, has no padding.
            grid_hw: h and w of F5 if it comes as tokens that are not square cells which cover the image; or a function
                from the images' (height, width) to it.
            mean: per channel, if the images are normalized: the mean of images in [0, 1], such as `image_mean` of
                transformers' processors.
            std: per channel, such as their `image_std`.

        Raises:
            ConfigError: the model has no such arguments, or no mean and std are like that.
        """
        known = inspect.signature(self._beside.model.forward).parameters
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values()):
            for name in [name for name in (images, mask) if name not in (*known, MASK)]:
                raise ConfigError(
                    f'The model has no argument "{name}".{did_you_mean(name, known)} It has {", ".join(known)}.'
                )
        if mean is not None or std is not None:
            check_normalization(mean, std)
        self._inputs = _Inputs(images, mask, grid_hw, mean, std)
        self._hooks.append(self._beside.model.register_forward_hook(self._add))
        return self

    def values(self) -> dict[str, float]:
        """What to log: `lambda`, and `distill`: L_DSI of the last loss, without λ, unless λ was 0.

        Waits for the device, so call it as rarely as you log.
        """
        values = {"lambda": self.modulation.weight}
        return values if self._alignment is None else {**values, "distill": float(self._alignment)}

    @torch.no_grad()
    def observe(self) -> None:
        """Measure the layer's share of the gradient; call between a step's last backward and clearing gradients.

        Raises:
            ConfigError: there are no gradients, the layer is frozen though λ is to be adapted, or the optimizer does
                not train the projector.
        """
        self._watch.gradients(self._beside.model, adapts=self.modulation.rule != "fixed")
        self.modulation.observe(self._beside.layer, self._beside.model)
        self._is_observed = True

    def end_epoch(self, *, refinement: bool = False) -> ModulationReport:
        """Adapt λ to the mean share of the epoch; with several ranks a collective call.

        Args:
            refinement: whether the next epoch belongs to the refinement stage, in which λ is the default weight.

        Raises:
            ConfigError: λ is to be adapted, but nothing was observed, or no gradient of the distillation loss.
        """
        if not self._is_observed and self.modulation.rule != "fixed":
            raise ConfigError("No gradient was observed in this epoch. Call `observe` after each step's last backward.")
        self._is_observed = False
        weight = self.modulation.weight
        report = self.modulation.end_epoch(refinement=refinement)
        self._watch.end_epoch(weight)
        return report

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
        self._watch.resume()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        """Support copies of the model, such as its EMA; they share the teacher, which is frozen."""
        memo[id(self._beside.teacher)] = self._beside.teacher
        memo[id(self)] = other = Tap.__new__(Tap)
        other.__dict__.update(copy.deepcopy({**self.__dict__, **self._nothing_kept()}, memo))
        return other

    @staticmethod
    def _nothing_kept() -> dict[str, Any]:
        """State between two steps: tensors of a graph cannot be copied."""
        return {"_kept": None, "_arguments": {}, "_alignment": None}

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run before the model's forward: what an earlier one has left does not belong to this one."""
        del model
        if torch.is_grad_enabled():
            self._kept = None
            self._arguments = {**dict(zip(self._parameters_of_model, args, strict=False)), **kwargs}

    def _keep(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Run after the layer's forward: keep its output, unless this is validation, or repeated by a backward pass."""
        del layer, args
        if torch.is_grad_enabled() and not _is_in_backward():
            device = self.injector.projector.weight.device.type
            autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
            self._kept = _Kept(output, *autocast, self._arguments)
            self._arguments = {}

    def _take(self) -> _Kept:
        """What was kept, once."""
        kept, self._kept = self._kept, None
        if kept is None:
            raise ConfigError(
                f'Layer "{self._layer}" has not run since the last loss. Call `loss` once after each forward pass of '
                "the tapped model, with gradients enabled, and checkpoint activations with use_reentrant=False: "
                "otherwise they are computed without gradients."
            )
        return kept

    def _reach(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run before the layer's forward: with several ranks, apply `_Reach` to its input."""
        del layer
        if world_size() == 1 or not torch.is_grad_enabled():
            return None
        values, form = pytree.tree_flatten((args, kwargs))
        for index, value in enumerate(values):
            if isinstance(value, Tensor) and value.is_floating_point():
                values[index] = _Reach.apply(value, *self.injector.parameters())
                return pytree.tree_unflatten(values, form)
        return None

    def _add(self, model: nn.Module, args: Any, output: Any) -> None:
        """Run after the model's forward, for `add_to_loss`."""
        del model, args
        if not torch.is_grad_enabled():
            return
        if not isinstance(output, MutableMapping):
            raise ConfigError(
                f"The model's output is a {type(output).__name__}, which has no `loss` by name. Let the model return a "
                "mapping (return_dict=True), or call `loss` yourself."
            )
        if output.get("loss") is None:  # no labels
            self._kept = None
            return
        self._kept = self._take()
        named, given = self._kept.arguments, self._inputs
        for name in (given.images, given.mask):
            if name not in named and name != MASK:
                raise ConfigError(
                    f'The model was called without "{name}", with {", ".join(named) or "nothing"}. Name the arguments '
                    "that have images and mask: add_to_loss(images=…, mask=…)."
                )
        images, grid_hw = named[given.images], given.grid_hw
        if callable(grid_hw):
            grid_hw = grid_hw((images.shape[-2], images.shape[-1]))
        output["loss"] = output["loss"] + self.loss(images, grid_hw=grid_hw, mean=given.mean, std=given.std)


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


def _check_kinds(model: Any, teacher: Any, modulation: Any, select: Any) -> None:
    """Raise if one of the things that a tap is made of is of another kind."""
    if isinstance(model, DistributedDataParallel):
        raise ConfigError("DDP would not reduce the projector's gradient. Make the tap first, then wrap the model.")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: got {_kind(model)}, expected a torch.nn.Module.")
    if not isinstance(teacher, Teacher):
        way = "load_teacher(NAME)" if isinstance(teacher, str) else "wrap_teacher(NETWORK)"
        raise ConfigError(f"teacher: got {_kind(teacher)}, expected a Teacher, as {way} makes one of it.")
    if not isinstance(modulation, Modulation):
        raise ConfigError(f"modulation: got {_kind(modulation)}, expected the owner of λ, such as Modulation(5.0).")
    if select is not None:
        try:
            inspect.signature(select).bind(None, (1, 1))
        except TypeError as error:
            raise ConfigError(
                "select: expected a function of the layer's output and the images' (height, width), such as "
                "lambda output, image_hw: output[0]."
            ) from error


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _names_of_arguments(model: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of a model, in order; none if it takes others as well."""
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD))


def _pictures(arguments: Mapping[str, Any]) -> list[Tensor]:
    """What among a model's arguments may be its images."""
    return [each for each in tensors_in(arguments) if each.ndim == 4 and each.shape[1] == 3]


def _as_they_were(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Undo a normalization."""
    check_normalization(mean, std)
    return images.float() * images.new_tensor(std).view(1, 3, 1, 1) + images.new_tensor(mean).view(1, 3, 1, 1)


def _is_in_backward() -> bool:
    """Whether a backward pass is running, which repeats forward passes where activations are checkpointed."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
