"""Gradient-guided Adaptive Modulation: steers the weight λ of the distillation loss.

References:
    RT-DETRv4, arXiv 2510.25257, section 3.3; the default rule is the released code's (docs/divergences.md).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from rtdetrv4.errors import ConfigError
from rtdetrv4.ops.collectives import mean_over_ranks

Rule = Literal["fixed", "gam", "gam_paper", "auto"]
Reason = Literal["below", "above", "inside", "reset", "refinement", "fixed", "probe"]

SMALLEST_SHARE = 1e-6
"""Percent; below it the share counts as unmeasured and λ returns to its default."""
FACTOR_RANGE = (0.1, 10.0)
"""The smallest and the largest factor by which λ changes in an epoch."""
PROBED_DELTA = 0.1
"""δ / ρ after a probe; the authors advise 5 to 15 % (issue 17 of the released code)."""


class ModulationReport(NamedTuple):
    """What GAM saw and did at the end of an epoch."""

    weight: float
    """λ for the next epoch."""
    share: float
    """r̄: AIFI's mean share of the L1 gradient in the epoch, in percent."""
    reason: Reason
    band: tuple[float, float] | None = None
    """The target band of the share, in percent; None for a fixed λ and during a probe."""


def next_weight(
    weight: float,
    share: float,
    *,
    rho: float,
    delta: float,
    default_weight: float,
    refinement: bool,
    rule: Literal["gam", "gam_paper"] = "gam",
) -> tuple[float, Reason]:
    """One step of GAM.

    Inside the band [ρ−δ, ρ+δ], λ stays the same. Outside, the step aims at the far edge of the band, because only part
    of AIFI's gradient comes from distillation.

    Args:
        weight: λ.
        share: r̄ in percent.
        rho: middle of the band, percent.
        delta: half width of the band, percent.
        default_weight: λ when the share cannot be measured, and from the refinement stage on.
        refinement: whether the next epoch belongs to the refinement stage.
        rule: "gam" scales λ by the ratio of odds, as the released code does; "gam_paper" by the ratio of shares.
    """
    if share < SMALLEST_SHARE:
        return default_weight, "reset"
    if refinement:
        return default_weight, "refinement"
    if share < rho - delta:
        target, reason = rho + delta, "below"
    elif share > rho + delta:
        target, reason = rho - delta, "above"
    else:
        return weight, "inside"
    ratio = target / share if rule == "gam_paper" else _odds(target) / _odds(share)
    low, high = FACTOR_RANGE
    return weight * min(max(ratio, low), high), reason


def _odds(percent: float) -> float:
    return percent / (100 - percent)


class Modulation:
    """Owns λ: measures AIFI's share of the gradient each step, and adapts λ once per epoch.

    All ranks end an epoch with the same λ. No step synchronizes with the device.

    Args:
        weight: λ at the start.
        rho: middle of the target band, percent.
        delta: half width of the target band, percent.
        default_weight: λ when the share cannot be measured, and from the refinement stage on.
        rule: the `distillation.mode` of recipes: "fixed" (λ never changes; the share is still measured), "gam" or
            "gam_paper" (see `next_weight`), or "auto" ("gam" with a band that is measured first).
        probe_epochs: only for "auto": λ stays at `weight` for this many epochs; then ρ becomes the mean share of their
            second half, and δ a tenth of it. In the first half, the projector is still untrained and the share higher
            than it will ever be again. The published bands suit the published data, batch size and resolution; the
            probe finds one for any other.

    Raises:
        ConfigError: the rule is unknown, or a number is outside the range that its rule needs.
    """

    def __init__(
        self,
        weight: float,
        *,
        rho: float = 0.0,
        delta: float = 0.0,
        default_weight: float = 0.0,
        rule: Rule = "fixed",
        probe_epochs: int = 0,
    ) -> None:
        if rule not in get_args(Rule):
            raise ConfigError(f'rule: got "{rule}", expected one of {", ".join(get_args(Rule))}.')
        for name, value in (("weight", weight), ("default_weight", default_weight)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}: got {value}, expected a finite number of at least 0.")
        if rule in ("gam", "gam_paper") and not 0 < rho - delta <= rho + delta < 100:
            raise ConfigError(
                f'rho, delta: got a band of {rho} ± {delta}, expected one between 0 and 100 percent; rule="auto" '
                "measures one."
            )
        if (rule == "auto") != (probe_epochs > 0):
            raise ConfigError(
                f'probe_epochs: got {probe_epochs} with rule="{rule}", expected at least 1 with "auto" and 0 otherwise.'
            )
        self.weight: float = weight
        self.rho: float = rho
        self.delta: float = delta
        self.default_weight = default_weight
        self.rule: Rule = rule
        self._probe_epochs = self._probe_left = probe_epochs
        self._probe_sum = self._probe_steps = 0.0
        self._sum: Tensor | float = 0.0
        self._steps: Tensor | float = 0.0

    @torch.no_grad()
    def observe(self, part: nn.Module, whole: nn.Module) -> None:
        """Record this step's share; call after the last backward of a step, before clipping.

        A step whose gradients are not finite is not counted.

        Args:
            part: the module that computes F5: AIFI.
            whole: everything that is trained, `part` included.
        """
        self.record(gradient_share(part, whole))

    @torch.no_grad()
    def record(self, share: Tensor) -> None:
        """Record a step's share that was measured by `gradient_share`, unless it is not finite."""
        finite = share.isfinite()
        self._sum = self._sum + torch.where(finite, share, 0.0)
        self._steps = self._steps + finite

    def end_epoch(self, *, refinement: bool) -> ModulationReport:
        """Adapt λ to the mean share of the epoch, and start a new mean; a collective call."""
        total = torch.stack([torch.as_tensor(self._sum, dtype=torch.float32), torch.as_tensor(self._steps).float()])
        share_sum, steps = mean_over_ranks(total).tolist()
        self._sum = self._steps = 0.0
        share = share_sum / max(steps, 1.0)
        if self.rule == "fixed":
            return ModulationReport(self.weight, share, "fixed")
        if self._probe_left > 0:
            self._probe(share_sum, steps)
            return ModulationReport(self.weight, share, "probe")
        band = (self.rho - self.delta, self.rho + self.delta)
        self.weight, reason = next_weight(
            self.weight,
            share,
            rho=self.rho,
            delta=self.delta,
            default_weight=self.default_weight,
            refinement=refinement,
            rule="gam_paper" if self.rule == "gam_paper" else "gam",
        )
        return ModulationReport(self.weight, share, reason, band)

    def _probe(self, share_sum: float, steps: float) -> None:
        if self._probe_left <= (self._probe_epochs + 1) // 2:
            self._probe_sum += share_sum
            self._probe_steps += steps
        self._probe_left -= 1
        if self._probe_left:
            return
        share = self._probe_sum / max(self._probe_steps, 1.0)
        if share < SMALLEST_SHARE:  # no step was finite: probe for another epoch
            self._probe_left = 1
            return
        self.rho, self.delta = share, PROBED_DELTA * share

    def state_dict(self) -> dict[str, float]:
        """λ, the running mean and the probe, so that a run can resume in the middle of an epoch."""
        return {
            "weight": self.weight,
            "share_sum": float(self._sum),
            "steps": float(self._steps),
            "rho": self.rho,
            "delta": self.delta,
            "probe_left": self._probe_left,
            "probe_sum": self._probe_sum,
            "probe_steps": self._probe_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.weight = float(state["weight"])
        self._sum, self._steps = float(state["share_sum"]), float(state["steps"])
        self.rho = float(state["rho"])
        self.delta = float(state["delta"])
        self._probe_left = int(state["probe_left"])
        self._probe_sum, self._probe_steps = float(state["probe_sum"]), float(state["probe_steps"])


@torch.no_grad()
def gradient_share(part: nn.Module, whole: nn.Module) -> Tensor:
    """R of section 3.3: the part's share of the L1 norm of all gradients, in percent; a scalar on their device."""
    return 100 * gradient_l1(part) / gradient_l1(whole)


def gradient_l1(module: nn.Module) -> Tensor:
    """Σ|g| over the parameters of `module` that have a gradient; a scalar on their device."""
    return get_total_norm((p.grad for p in module.parameters() if p.grad is not None), norm_type=1.0)
