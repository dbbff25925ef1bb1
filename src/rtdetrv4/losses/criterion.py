"""The criterion: a table of supervised heads × loss terms.

References:
    RT-DETR, arXiv 2304.08069; D-FINE, arXiv 2410.13842, section 4.2; DEIM, arXiv 2412.04234 (MAL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rtdetrv4.losses.classification import Quality, matchability_aware_loss, varifocal_loss
from rtdetrv4.losses.localization import (
    EdgeBalance,
    box_losses,
    decoupled_distillation_focal,
    edge_balance,
    fine_grained_localization,
)
from rtdetrv4.losses.matcher import HungarianMatcher, Matches, denoising_matches
from rtdetrv4.ops.boxes import overlap, xyxy_from_cxcywh
from rtdetrv4.ops.collectives import mean_over_ranks
from rtdetrv4.ops.device import tensor_like
from rtdetrv4.ops.distribution import encode_edges, weighting
from rtdetrv4.types import DetectorOutput, HeadOutput, Targets, TrainingOutput

TermsOf = Callable[[DetectorOutput, Targets], dict[str, Tensor]]
"""Unweighted loss terms by name, such as a `Criterion` computes."""


class SupervisedHeads(NamedTuple):
    """H heads over the same queries, in the order in which the network computes them: one row of the table each."""

    names: tuple[str, ...]
    """The suffix of a head's term names: "_enc_0", "_pre", "_aux_0", …, and "" for the final one."""
    logits: Tensor
    """H×B×Q×K float32."""
    boxes: Tensor
    """H×B×Q×4 float32."""
    class_matches: Matches
    box_matches: Matches
    class_norm: Tensor
    """Scalar: classification terms are divided by it."""
    box_norm: Tensor
    """Scalar: box and local terms are divided by it."""
    corners: Tensor | None
    """L×B×Q×4×R float32: the last L heads have edge distributions."""
    reference: Tensor | None
    """B×Q×4: the boxes that the distributions refine."""
    balance: EdgeBalance


class Criterion:
    """Computes every loss term of every supervised head, unweighted.

    Args:
        matcher: pairs queries and targets.
        classification: "mal" (DEIM, RT-DETRv4) or "vfl" (D-FINE, RT-DETRv2).
        alpha: background weight of VFL; MAL has none.
        gamma: focal exponent.
        union_matching: box and local terms of all heads use the union of all heads' matches.
        reg_max: R − 1 of the edge distributions.
        reg_scale: their scale.
        local_terms: whether FGL and DDF are computed.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        classification: Literal["mal", "vfl"] = "mal",
        alpha: float = 0.75,
        gamma: float = 1.5,
        union_matching: bool = True,
        local_terms: bool = True,
        reg_max: int = 32,
        reg_scale: float = 4.0,
    ) -> None:
        self.matcher = matcher
        self.classification: Literal["mal", "vfl"] = classification
        self.alpha = alpha
        self.gamma = gamma
        self.union_matching = union_matching
        self.local_terms = local_terms
        self.reg_scale = reg_scale
        self._weighting = weighting(reg_max, reg_scale)

    def __call__(self, output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Scalar float32 terms named term + head: `mal`, `bbox_aux_0`, `giou_pre`, `fgl_dn_1`, `mal_enc_0`, ….

        Terms are normalized by the mean number of boxes over ranks. Images without boxes are valid input; in a batch
        without any box, the box terms are 0 and still reach every parameter.
        """
        if output.training is None:
            raise ValueError("the criterion needs a model in train mode: call model.train() before the forward pass")
        terms: dict[str, Tensor] = {}
        for heads in self.supervised_heads(output.training, targets):
            for term, names, values in self._terms(heads, targets):
                terms.update({term + name: value for name, value in zip(names, values.unbind(), strict=True)})
        return terms

    def supervised_heads(self, output: TrainingOutput, targets: Targets) -> Iterator[SupervisedHeads]:
        """The encoder's selection and the decoder's heads; then the decoder's heads for denoising queries."""
        queries = output.queries
        decoder = _decoder_heads(queries, names=("_pre", "_aux", ""))
        names = ("_enc_0", *decoder.names)
        all_logits = torch.cat((output.encoder_logits[None], decoder.logits)).float()
        all_boxes = torch.cat((output.encoder_boxes[None], decoder.boxes)).float()

        matched = self.matcher(all_logits, all_boxes, targets)
        class_matches = matched.each()
        box_matches = matched.union().expand(len(names)) if self.union_matching else class_matches
        counts = [float(len(targets.labels)), float(box_matches.query.shape[1])]
        norms = mean_over_ranks(tensor_like(counts, all_boxes)).clamp(min=1)
        class_norm, union_norm = norms.unbind()
        batch, num_queries = all_logits.shape[1:3]
        balance = edge_balance(box_matches.query.shape[1], batch * num_queries)
        yield SupervisedHeads(
            names=names,
            logits=all_logits,
            boxes=all_boxes,
            class_matches=class_matches,
            box_matches=box_matches,
            class_norm=class_norm,
            box_norm=union_norm if self.union_matching else class_norm,
            corners=_float(queries.corners),
            reference=_float(queries.reference),
            balance=balance,
        )
        if output.denoising is not None and output.denoising_groups is not None:
            groups = output.denoising_groups
            yield _denoising_heads(
                output.denoising,
                denoising_matches(targets, groups.num_groups, groups.max_targets),
                norm=class_norm * max(groups.num_groups, 1),
                balance=balance,
            )

    def _terms(self, heads: SupervisedHeads, targets: Targets) -> Iterator[tuple[str, tuple[str, ...], Tensor]]:
        """Each term's name, the suffixes of the heads it applies to, and one value per head."""
        yield self.classification, heads.names, self._classification(heads, targets) / heads.class_norm

        image, query, target = heads.box_matches
        predicted = heads.boxes[_rows(query), image, query]
        boxes = box_losses(predicted, targets.boxes[target])
        yield "bbox", heads.names, boxes.bbox / heads.box_norm
        yield "giou", heads.names, boxes.giou / heads.box_norm

        if not self.local_terms or heads.corners is None or heads.reference is None:
            return
        self._weighting = self._weighting.to(heads.corners.device)
        # Local terms are defined on matches that all layers share, so any head's will do.
        image, query, target = image[0], query[0], target[0]
        layers = heads.names[-len(heads.corners) :]
        iou = boxes.iou[-len(layers) :].detach()
        edges = encode_edges(
            heads.reference[image, query],
            xyxy_from_cxcywh(targets.boxes[target]),
            self._weighting,
            self.reg_scale,
        )
        matched_corners = heads.corners[:, image, query]
        yield "fgl", layers, fine_grained_localization(matched_corners, edges, iou) / heads.box_norm
        if len(layers) > 1:
            yield (
                "ddf",
                layers[:-1],
                decoupled_distillation_focal(
                    heads.corners[:-1],
                    heads.corners[-1],
                    heads.logits[-1].detach().amax(dim=-1).sigmoid(),
                    image,
                    query,
                    iou[:-1],
                    heads.balance,
                ),
            )

    def _classification(self, heads: SupervisedHeads, targets: Targets) -> Tensor:
        image, query, target = heads.class_matches
        with torch.no_grad():
            predicted = xyxy_from_cxcywh(heads.boxes[_rows(query), image, query])
            iou = overlap(predicted, xyxy_from_cxcywh(targets.boxes[target])).iou
        quality = Quality(image, query, targets.labels[target], iou)
        if self.classification == "mal":
            return matchability_aware_loss(heads.logits, quality, gamma=self.gamma)
        return varifocal_loss(heads.logits, quality, alpha=self.alpha, gamma=self.gamma)


def no_terms(output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
    """The criterion of images without labels: they supervise nothing."""
    del output, targets
    return {}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss: each term times the weight of its base name ("giou_aux_0" → "giou").

    Raises:
        KeyError: a term has no weight.
    """
    values = torch.stack(list(terms.values()))
    return values @ tensor_like([weights[name.partition("_")[0]] for name in terms], values)


class _DecoderHeads(NamedTuple):
    names: tuple[str, ...]
    logits: Tensor
    boxes: Tensor


def _decoder_heads(output: HeadOutput, *, names: tuple[str, str, str]) -> _DecoderHeads:
    """The first layer's plain head, if any, and all layers; `names` are for that head, a layer, and the last one."""
    pre, layer, last = names
    count = len(output.logits)
    layers = (*(f"{layer}_{index}" for index in range(count - 1)), last)
    if output.pre_logits is None or output.pre_boxes is None:
        return _DecoderHeads(layers, output.logits, output.boxes)
    return _DecoderHeads(
        (pre, *layers),
        torch.cat((output.pre_logits[None], output.logits)),
        torch.cat((output.pre_boxes[None], output.boxes)),
    )


def _denoising_heads(denoising: HeadOutput, matches: Matches, *, norm: Tensor, balance: EdgeBalance) -> SupervisedHeads:
    heads = _decoder_heads(denoising, names=("_dn_pre", "_dn", f"_dn_{len(denoising.logits) - 1}"))
    shared = matches.expand(len(heads.names))
    return SupervisedHeads(
        names=heads.names,
        logits=heads.logits.float(),
        boxes=heads.boxes.float(),
        class_matches=shared,
        box_matches=shared,
        class_norm=norm,
        box_norm=norm,
        corners=_float(denoising.corners),
        reference=_float(denoising.reference),
        balance=balance,
    )


def _rows(index: Tensor) -> Tensor:
    """H×1 row numbers that pair with an H×M index."""
    return torch.arange(len(index), device=index.device)[:, None]


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
