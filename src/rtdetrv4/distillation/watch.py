"""Notices mistakes in a foreign training loop that no other code would: distillation would go wrong without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetrv4.distillation.modulation import gradient_l1
from rtdetrv4.errors import ConfigError

IMAGE_RANGE = (-0.1, 1.1)
"""Augmentations may overshoot [0, 1] slightly; bytes and normalized images exceed this range."""
CHECK_EVERY = 50
"""Batches of images after which what was seen of them is read from the device, which has to be waited for. On a CPU,
that is after each."""

_SAME_IMAGES = 0.25
"""Mean correlation below which images are others. It is 1 for the same ones however normalized, high if one of them has
other colors, noise or erased parts, and near 0 for others."""
_COARSE = 16
"""Side of the grid on which images are compared."""
_FLAT = 1e-4
"""Variance below which there is nothing to compare."""


class Watch:
    """Watches the images that the teacher gets, and whether the projector is trained.

    Args:
        projector: the part that only exists in training.
        layer: the tapped layer.
        name: the layer's, for messages.
    """

    def __init__(self, projector: nn.Module, layer: nn.Module, name: str) -> None:
        self._projector, self._layer, self._name = projector, layer, name
        self._batches = 0
        self._seen: Tensor | None = None
        self._before: dict[Tensor, Tensor] | None = None
        self._is_trained = False
        self._has_gradient: Tensor | bool = False
        self._observed = 0

    # ---- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def images(self, images: Tensor, model_saw: Sequence[Tensor], valid: Tensor | None) -> None:
        """Take a batch into account.

        Args:
            images: what the teacher gets, B×3×H×W.
            model_saw: images among the arguments of the model's last call, however normalized.
            valid: B×h×w, boolean: what is not padding; None if all is image.

        Raises:
            ConfigError: they are not in [0, 1], or not the images that the model saw, or none of an image is valid. On
                an accelerator, up to `CHECK_EVERY` batches later.
        """
        low, high = images.aminmax()
        likeness = [_likeness(images, other, valid) for other in model_saw if len(other) == len(images)]
        same = torch.stack(likeness).amax() if likeness else torch.ones_like(low)
        filled = torch.ones_like(low) if valid is None else valid.flatten(1).any(dim=1).all()
        seen = torch.stack([each.float().to(images.device) for each in (low, -high, same, filled)])
        self._seen = seen if self._seen is None else torch.minimum(self._seen, seen)
        self._batches += 1
        if not _must_wait(images.device) or self._batches % CHECK_EVERY == 1:
            self.check_images()

    def check_images(self) -> None:
        """Read what was seen of the images since the last check, and raise if it was wrong."""
        if self._seen is None:
            return
        low, minus_high, same, filled = self._seen.tolist()
        self._seen = None
        if not (low >= IMAGE_RANGE[0] and -minus_high <= IMAGE_RANGE[1]):
            raise ConfigError(
                f"The teacher takes images in [0, 1] and got values from {low:.4g} to {-minus_high:.4g}. Divide bytes "
                "by 255; for normalized images give the mean and std that they were normalized with."
            )
        if same < _SAME_IMAGES:
            raise ConfigError(
                f"The images given to `loss` are not those that the model saw last (their correlation is {same:.2f}). "
                "Give `loss` the batch of the forward pass just before it, in the same order."
            )
        if not filled:
            raise ConfigError(
                "mask: an image has no position that counts. Expected nonzero where there is image, and 0 where there "
                "is padding; where the mask says the opposite, give ~mask."
            )

    # ---- gradients and steps ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def gradients(self, model: nn.Module, *, adapts: bool) -> None:
        """Look at the gradients of a step, and at what the step before has changed.

        Args:
            model: whose gradients they are.
            adapts: whether λ follows the layer's share of the gradient.

        Raises:
            ConfigError: there are no gradients, the layer is frozen and so has no share, or the optimizer does not know
                the projector.
        """
        if all(parameter.grad is None for parameter in model.parameters()):
            raise ConfigError(
                "There are no gradients to observe. Call `observe` after a step's last backward, and before "
                "`zero_grad`."
            )
        if adapts and not any(parameter.requires_grad for parameter in self._layer.parameters()):
            raise ConfigError(
                f'Layer "{self._name}" is frozen, so it has no share of the gradient by which λ could be adapted. '
                'Unfreeze it, or keep λ fixed: Modulation(5.0, rule="fixed").'
            )
        gradient = gradient_l1(self._projector)
        self._observed += 1
        self._has_gradient = ~(gradient == 0) | self._has_gradient
        if not self._is_trained:
            self._compare(model, bool(gradient != 0))

    def _compare(self, model: nn.Module, has_gradient: bool) -> None:
        """Until the projector is seen to change: raise if a step for which it had a gradient changed the rest only."""
        before, self._before = self._before, None
        if before is not None:
            self._is_trained = any(_changed(parameter, before) for parameter in self._projector.parameters())
            if self._is_trained:
                return
            if any(_changed(parameter, before) for parameter in model.parameters()):
                raise ConfigError(
                    "The optimizer trains the model but not the projector of the tap, because it was made before the "
                    "tap. Make the tap first, or add the projector to the optimizer: "
                    'optimizer.add_param_group({"params": model.tap.parameters()}).'
                )
        # The layer stands for all of the model, unless it is frozen.
        rest = self._layer if any(p.requires_grad for p in self._layer.parameters()) else model
        watched = {*self._projector.parameters(), *rest.parameters()} if has_gradient else ()
        self._before = {parameter: parameter.detach().clone() for parameter in watched} or None

    def end_epoch(self, weight: float) -> None:
        """Raise if images were wrong, or if no gradient has reached the projector in the epoch; start a new one.

        Args:
            weight: λ in the epoch.
        """
        self.check_images()
        observed, self._observed = self._observed, 0
        has_gradient, self._has_gradient = bool(self._has_gradient), False
        if observed and weight > 0 and not has_gradient:
            raise ConfigError(
                f"The distillation loss had no gradient in any of {observed} observed steps. Add `loss` of the tap to "
                "what is differentiated, and call `observe` before gradients are set to zero."
            )

    def resume(self) -> None:
        """Forget what was compared, because weights have been loaded; some of the epoch may be over."""
        self._before, self._has_gradient = None, True


def require_trained(f5: Tensor, projector: nn.Module, layer: str) -> None:
    """Raise if the distillation loss would train nothing of the detector, or no projector."""
    if not f5.requires_grad:
        raise ConfigError(
            f'Nothing that computes the output of layer "{layer}" is trained, so distillation would change nothing of '
            "the detector. Unfreeze the layer or what comes before it, or close the tap."
        )
    if not all(parameter.requires_grad for parameter in projector.parameters()):
        raise ConfigError(
            "The projector is frozen. Freeze parts of the model before you make the tap, or unfreeze it: "
            "model.tap.requires_grad_()."
        )


def _must_wait(device: torch.device) -> bool:
    """Whether reading a value means to wait for all computations before it."""
    return device.type != "cpu"


def _changed(parameter: Tensor, before: Mapping[Tensor, Tensor]) -> bool:
    """Whether a parameter is watched, and not what it was."""
    return parameter in before and not torch.equal(parameter, before[parameter].to(parameter.device))


def _likeness(images: Tensor, other: Tensor, valid: Tensor | None) -> Tensor:
    """How alike two batches are: the correlation, however channels are scaled and shifted; a scalar.

    Images that are plain do not count; if all are, the batches count as alike.
    """
    size = (min(_COARSE, images.shape[-2], other.shape[-2]), min(_COARSE, images.shape[-1], other.shape[-1]))
    other = other.to(images.device)
    weight = torch.ones(len(images), 1, *size, device=images.device)
    if valid is not None:
        weight = F.adaptive_avg_pool2d(valid[:, None].to(images.device).float(), size).round()
    weight = weight / weight.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    centered = []
    for batch in (images, other):
        coarse = F.adaptive_avg_pool2d(batch.float(), size)
        centered.append(coarse - (weight * coarse).sum(dim=(2, 3), keepdim=True))
    one, two = centered
    variance, variance_of_other = ((weight * each.square()).sum(dim=(2, 3)) for each in centered)
    covariance = (weight * one * two).sum(dim=(2, 3))
    correlation = covariance / (variance * variance_of_other).clamp(min=1e-12).sqrt()
    counts = variance > _FLAT
    mean = (correlation * counts).sum() / counts.sum().clamp(min=1)
    return torch.where(counts.any(), mean.abs(), 1.0)
