"""Hungarian matching of all heads at once, and the union of their matches.

References:
    DETR, arXiv 2005.12872, section 3.1; D-FINE, arXiv 2410.13842, section 4.2 ("union set" of matches).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rtdetrv4.ops.boxes import overlap, xyxy_from_cxcywh
from rtdetrv4.types import Targets


class Matches(NamedTuple):
    """M pairs (query, target) for each of H heads; H is 1 if all heads share them."""

    image: Tensor
    """H×M int64, in [0, B)."""
    query: Tensor
    """H×M int64, in [0, Q)."""
    target: Tensor
    """H×M int64, in [0, N), into `Targets`."""

    def expand(self, num_heads: int) -> Matches:
        """The same pairs for `num_heads` heads."""
        return Matches(*(index.expand(num_heads, -1) for index in self))


class HungarianMatcher:
    """One-to-one matching of minimal cost between the queries and the boxes of each image.

    Costs are computed only for (query, target) pairs of the same image, for all heads at once, and move to the CPU in
    one transfer. A target box is left out only if its image has more boxes than queries.

    Args:
        class_weight: weight of the focal-style classification cost.
        box_weight: weight of the L1 distance of cxcywh.
        giou_weight: weight of −GIoU.
        alpha: focal balance.
        gamma: focal exponent.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """N×H×Q costs of assigning target n to query q of head h. Logits are H×B×Q×K, boxes H×B×Q×4."""
        image = _image_index(targets).to(logits.device, non_blocking=True)
        p = logits[:, image, :, targets.labels].sigmoid()  # N×H×Q
        positive = -self.alpha * (1 - p) ** self.gamma * (p + 1e-8).log()
        negative = -(1 - self.alpha) * p**self.gamma * (1 - p + 1e-8).log()
        predicted = boxes[:, image].transpose(0, 1)  # N×H×Q×4
        true = targets.boxes[:, None, None]
        distance = (predicted - true).abs().sum(dim=-1)
        giou = overlap(xyxy_from_cxcywh(predicted), xyxy_from_cxcywh(true)).giou
        return self.class_weight * (positive - negative) + self.box_weight * distance - self.giou_weight * giou

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> MatchedHeads:
        """Match H heads: logits H×B×Q×K, boxes H×B×Q×4."""
        num_heads, _, num_queries, _ = logits.shape
        # The training loop detects diverging predictions by their loss; the assignment only needs finite numbers.
        cost = self.cost(logits, boxes, targets).nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
        image, query, target = [], [], []
        start = 0
        for index, count in enumerate(targets.counts):
            problem = cost[start : start + count]
            solved = [linear_sum_assignment(problem[:, head]) for head in range(num_heads)]
            target.append(np.stack([rows for rows, _ in solved]) + start)
            query.append(np.stack([columns for _, columns in solved]))
            image.append(np.full((num_heads, min(count, num_queries)), index))
            start += count
        pairs = np.stack([np.concatenate(part, axis=1) for part in (image, query, target)]).astype(np.int64)
        return MatchedHeads(pairs, num_queries, logits.device)


class MatchedHeads:
    """The result of matching several heads: `pairs` is 3×H×M (image, query, target)."""

    def __init__(self, pairs: np.ndarray, num_queries: int, device: torch.device) -> None:
        self._pairs = pairs
        self._num_queries = num_queries
        self._device = device

    def each(self) -> Matches:
        """Every head with its own matches, H×M."""
        return self._to_device(self._pairs)

    def union(self) -> Matches:
        """One set of matches for all heads, 1×U.

        All heads' (query, target) pairs are pooled and counted; every query keeps its most frequent target. Heads are
        in the order in which the network computes them; in a tie, the target with the earliest vote loses. (The
        released code leaves ties to an unstable sort.)
        """
        image, query, target = self._pairs.reshape(3, -1)
        num_heads, num_pairs = self._pairs.shape[1:]
        num_targets = int(target.max()) + 1 if target.size else 1
        slot = image * self._num_queries + query
        pair, voters = np.unique(slot * num_targets + target, return_inverse=True)
        # A vote counts 1 minus a discount that halves from head to head; all discounts together stay below one vote.
        vote = (1 - 0.25 * 0.5 ** np.arange(num_heads)).repeat(num_pairs)
        votes = np.bincount(voters, weights=vote, minlength=len(pair))
        slot, target = pair // num_targets, pair % num_targets
        order = np.lexsort((target, -votes, slot))
        slot, first = np.unique(slot[order], return_index=True)
        union = np.stack((slot // self._num_queries, slot % self._num_queries, target[order][first]))
        return self._to_device(union[:, None])

    def _to_device(self, pairs: np.ndarray) -> Matches:
        image, query, target = torch.from_numpy(pairs).to(self._device, non_blocking=True).unbind()
        return Matches(image, query, target)


def denoising_matches(targets: Targets, num_groups: int, max_targets: int) -> Matches:
    """The positives of every denoising group, matched with the boxes they were made from; 1×(N·G).

    The positives of group g are queries [2g·Tmax, (2g+1)·Tmax), followed by its negatives; the t-th of them is box t of
    its image.
    """
    image = _image_index(targets)
    counts = torch.tensor(targets.counts)
    rank = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    query = (rank[:, None] + 2 * max_targets * torch.arange(num_groups)).flatten()
    target = torch.arange(len(image)).repeat_interleave(num_groups)
    pairs = torch.stack((image[target], query, target))[:, None]
    return Matches(*pairs.to(targets.labels.device, non_blocking=True))


def _image_index(targets: Targets) -> Tensor:
    """(N,) int64 on the CPU: the image of each box."""
    return torch.arange(len(targets.counts)).repeat_interleave(torch.tensor(targets.counts))
