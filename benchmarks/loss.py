"""Matching and losses, forward and backward, against transformers' D-FINE on the same tensors.

    python benchmarks/loss.py

The heads are those of an S model: query selection, the plain head of the first layer, three decoder layers, all with
denoising queries. Predictions resemble those of a trained model, because the time of an assignment depends on them.

Both compute VFL, L1, GIoU, FGL and DDF. First the terms that both define alike are compared, and must agree to 1e-4.
transformers computes fewer of them, so the comparison is in its favor:
- it pairs the class and box predictions of one head with the distributions of the next ("pre" with layer 0, layer 0
  with layer 1), and so omits the second-to-last decoder layer, and the last one for denoising queries;
- it has no FGL for the final layer, and no union of matches.
Two bugs of earlier versions are fixed in 5.23: the main loss no longer includes denoising queries, and auxiliary
losses also exist without denoising. FGL and DDF are compared by giving its function the matching head.

Expected: 3 to 5 minutes on two cores, nearly all of it in transformers at batch 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from _measure import Results, arguments, in_turn, operator_shares
from torch import Tensor, nn
from transformers import DFineConfig
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss, DFineLoss
from transformers.models.d_fine.modeling_d_fine import get_contrastive_denoising_training_group

from rtdetrv4.losses import Criterion, HungarianMatcher, weighted_sum
from rtdetrv4.models.denoising import group_layout
from rtdetrv4.training.accelerator import keep_freed_memory
from rtdetrv4.types import DenoisingGroups, DetectorOutput, HeadOutput, Targets, TrainingOutput

NUM_CLASSES, NUM_LAYERS, NUM_BINS, NUM_DENOISING = 80, 3, 33, 100
WEIGHTS = {"vfl": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}
SMALL_ROUNDS = 5
TARGETS = {8: 0.25, 32: 0.1}
GROWTH_TARGET = 4.5
SAME_HEADS = {
    "": "",
    "_aux_0": "_pre",
    "_aux_1": "_aux_0",
    "_aux_2": "_enc_0",
    "_dn_0": "_dn_pre",
    "_dn_1": "_dn_0",
    "_dn_2": "_dn_1",
}
"""transformers' suffixes of heads → ours."""


class Predictions(NamedTuple):
    """The predictions of the heads, not stacked; N denoising queries precede Q others."""

    logits: tuple[Tensor, ...]
    """From "pre" and each layer, B×(N+Q)×K."""
    boxes: tuple[Tensor, ...]
    """The same, B×(N+Q)×4."""
    corners: tuple[Tensor, ...]
    """From each layer, B×(N+Q)×4×R."""
    reference: Tensor
    """B×(N+Q)×4."""
    encoder_logits: Tensor
    encoder_boxes: Tensor
    groups: DenoisingGroups
    targets: Targets

    @property
    def leaves(self) -> list[Tensor]:
        """All tensors that get a gradient."""
        return [*self.logits, *self.boxes, *self.corners, self.encoder_logits, self.encoder_boxes]

    @property
    def num_denoising(self) -> int:
        """N."""
        return 2 * self.groups.num_groups * self.groups.max_targets


def predict(batch: int, num_boxes: int, num_queries: int, device: torch.device) -> Predictions:
    """Make predictions for random targets, closer in later heads: query q looks at box q modulo their number."""
    torch.manual_seed(0)
    targets = []
    for _ in range(batch):
        size = 0.02 + 0.4 * torch.rand(num_boxes, 2)
        center = size / 2 + (1 - size) * torch.rand(num_boxes, 2)
        targets.append((torch.randint(NUM_CLASSES, (num_boxes,)), torch.cat((center, size), dim=1)))
    groups = group_layout(NUM_DENOISING, num_boxes)
    total = 2 * groups.num_groups * num_boxes + num_queries
    seen = torch.arange(total) % num_boxes
    labels = torch.stack([labels for labels, _ in targets])[:, seen]
    boxes = torch.stack([boxes for _, boxes in targets])[:, seen]

    def head(noise: float, keep: slice = slice(None)) -> tuple[Tensor, Tensor]:
        size = boxes[:, keep, 2:].repeat(1, 1, 2)
        moved = boxes[:, keep] + noise * size * torch.randn_like(size)
        logits = torch.randn(*moved.shape[:2], NUM_CLASSES) - 4
        logits.scatter_add_(2, labels[:, keep, None], torch.randn(*moved.shape[:2], 1) + 3)
        return logits, moved.clamp(1e-3, 1 - 1e-3)

    heads = [head(0.4), head(0.3), head(0.2), head(0.15)]
    corners = tuple(torch.randn(batch, total, 4, NUM_BINS) for _ in range(NUM_LAYERS))
    encoder_logits, encoder_boxes = head(0.5, slice(total - num_queries, None))
    made = Predictions(
        logits=tuple(logits.to(device) for logits, _ in heads),
        boxes=tuple(box.to(device) for _, box in heads),
        corners=tuple(corner.to(device) for corner in corners),
        reference=heads[0][1].clone().to(device),
        encoder_logits=encoder_logits.to(device),
        encoder_boxes=encoder_boxes.to(device),
        groups=groups,
        targets=Targets.of([(labels.to(device), boxes.to(device)) for labels, boxes in targets]),
    )
    for leaf in made.leaves:
        leaf.requires_grad_()
    return made


def our_output(made: Predictions) -> DetectorOutput:
    """Return the predictions as `DetectionModel` passes them to the criterion."""
    logits, boxes, corners = torch.stack(made.logits[1:]), torch.stack(made.boxes[1:]), torch.stack(made.corners)

    def part(keep: slice) -> HeadOutput:
        return HeadOutput(
            logits[:, :, keep],
            boxes[:, :, keep],
            corners[:, :, keep],
            made.reference[:, keep],
            made.logits[0][:, keep],
            made.boxes[0][:, keep],
        )

    noised, queries = part(slice(None, made.num_denoising)), part(slice(made.num_denoising, None))
    f5 = made.encoder_logits.new_empty(0)
    training = TrainingOutput(queries, made.encoder_logits, made.encoder_boxes, f5, noised, made.groups)
    return DetectorOutput(queries.logits[-1], queries.boxes[-1], training)


def our_loss(made: Predictions) -> Callable[[], Tensor]:
    """Build the loss of an S model with D-FINE's classification term."""
    criterion = make_criterion(union_matching=True)
    return lambda: weighted_sum(criterion(our_output(made), made.targets), WEIGHTS)


def make_criterion(*, union_matching: bool) -> Criterion:
    """Return our loss, with the terms that transformers has."""
    return Criterion(HungarianMatcher(), classification="vfl", gamma=2.0, union_matching=union_matching)


def their_terms(made: Predictions) -> Callable[[], tuple[Tensor, dict[str, Tensor]]]:
    """Return transformers' loss and its weighted terms, called as its model does."""
    num_queries = made.encoder_logits.shape[1]
    config = DFineConfig(num_labels=NUM_CLASSES, num_queries=num_queries, decoder_layers=NUM_LAYERS)
    labels = their_labels(made)
    embedding = nn.Embedding(NUM_CLASSES + 1, 1, device=made.reference.device)
    *_, layout = get_contrastive_denoising_training_group(labels, NUM_CLASSES, num_queries, embedding, NUM_DENOISING)
    assert layout is not None
    assert layout["dn_num_split"] == [made.num_denoising, num_queries]

    def terms() -> tuple[Tensor, dict[str, Tensor]]:
        logits, boxes = torch.stack(made.logits, dim=1), torch.stack(made.boxes, dim=1)
        loss, by_name, _ = DFineForObjectDetectionLoss(
            logits[:, -1],
            labels,
            made.reference.device,
            boxes[:, -1],
            config,
            logits,
            boxes,
            enc_topk_logits=made.encoder_logits,
            enc_topk_bboxes=made.encoder_boxes,
            denoising_meta_values=layout,
            predicted_corners=torch.stack(made.corners, dim=1).flatten(-2),
            initial_reference_points=torch.stack([made.reference] * NUM_LAYERS, dim=1),
        )
        return loss, by_name

    return terms


def their_labels(made: Predictions) -> list[dict[str, Tensor]]:
    """Return the targets in transformers' format."""
    return [{"class_labels": labels, "boxes": boxes} for labels, boxes in made.targets.split()]


def step(made: Predictions, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """Return forward and backward; reading the loss synchronizes the device."""

    def work() -> float:
        for leaf in made.leaves:
            leaf.grad = None
        value = loss()
        value.backward()
        return value.item()

    return work


def check_agreement(made: Predictions) -> int:
    """Raise unless the terms that both define alike agree, and return their number."""
    output = our_output(made)
    ours = make_criterion(union_matching=False)(output, made.targets)
    _, theirs = their_terms(made)()
    pairs = {
        term + name: (WEIGHTS[term] * ours[term + own_name], theirs[f"loss_{term}{name}"])
        for name, own_name in SAME_HEADS.items()
        for term in ("vfl", "bbox", "giou")
    }
    pairs |= _local_pairs(made, output)
    for name, (own, other) in pairs.items():
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    return len(pairs)


def _local_pairs(made: Predictions, output: DetectorOutput) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute FGL and DDF by both, giving transformers' function our matches and one head's predictions.

    DDF of denoising queries is left out: it mixes matched and unmatched queries in the proportion of the ordinary
    queries, as the released code does; transformers takes that of the denoising queries.
    """
    criterion = make_criterion(union_matching=True)
    ours = criterion(output, made.targets)
    assert output.training is not None
    theirs = DFineLoss(DFineConfig(num_labels=NUM_CLASSES)).to(made.reference.device)
    counts = made.targets.counts
    first = torch.tensor([0, *counts]).cumsum(0).tolist()
    pairs = {}
    for heads in criterion.supervised_heads(output.training, made.targets):
        assert heads.corners is not None
        image, query, target = (index[0] for index in heads.box_matches)
        indices = [(query[image == i], target[image == i] - first[i]) for i in range(len(counts))]
        for layer, name in enumerate(heads.names[-NUM_LAYERS:]):
            predicted = {
                "pred_corners": heads.corners[layer].flatten(-2),
                "ref_points": heads.reference,
                "pred_boxes": heads.boxes[layer - NUM_LAYERS],
                "teacher_corners": heads.corners[-1].flatten(-2),
                "teacher_logits": heads.logits[-1],
            }
            local = theirs.loss_local(predicted, their_labels(made), indices, heads.box_norm)
            pairs["fgl" + name] = (ours["fgl" + name], local["loss_fgl"])
            if layer < NUM_LAYERS - 1 and "dn" not in name:
                pairs["ddf" + name] = (ours["ddf" + name], local["loss_ddf"])
    return pairs


def main() -> None:
    """Compare at two batch sizes and three numbers of boxes."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    counts, num_queries, repeats = ((3,), 30, 1) if args.quick else ((7, 30, 100), 300, args.repeats)
    small, large = (2, 4) if args.quick else TARGETS

    keep_freed_memory()  # as training does; here both sides gain
    results = Results("loss", args)
    results.note(device=str(args.device), terms_that_agree=check_agreement(predict(2, 5, 40, torch.device("cpu"))))
    for num_boxes in counts:
        seconds, works = {}, {}
        # Each size separately: the large one would leave cold caches for the small one, which gets more rounds.
        for batch, rounds in ((small, SMALL_ROUNDS * repeats), (large, repeats)):
            made = predict(batch, num_boxes, num_queries, args.device)
            terms = their_terms(made)
            works = {
                f"ours, {batch}": step(made, our_loss(made)),
                f"transformers, {batch}": step(made, lambda terms=terms: terms()[0]),
            }
            seconds |= in_turn(works, rounds)
        for batch, target in zip((small, large), TARGETS.values(), strict=True):
            own, other = seconds[f"ours, {batch}"], seconds[f"transformers, {batch}"]
            name = f"loss and matching, batch {batch}, {num_boxes} boxes"
            results.add(name, own.median / other.median, target, ours_s=own, transformers_s=other)
        own, more = seconds[f"ours, {small}"], seconds[f"ours, {large}"]
        name = f"loss and matching, growth from batch {small} to {large}, {num_boxes} boxes"
        results.add(name, more.median / own.median, GROWTH_TARGET, small_s=own, large_s=more)
        shares = operator_shares(works[f"ours, {large}"])
        results.note(**{f"profile of ours, batch {large}, {num_boxes} boxes": shares})
    results.save()


if __name__ == "__main__":
    main()
