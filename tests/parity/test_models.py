"""Agreement with the released code, to the tolerances of tests/golden/README.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import golden
from rtdetrv4.assembly import create_model
from rtdetrv4.distillation import DistillationStudent, Injector, alignment_loss
from rtdetrv4.distillation.modulation import gradient_l1
from rtdetrv4.losses import Criterion, HungarianMatcher, weighted_sum
from rtdetrv4.models import postprocess
from rtdetrv4.types import Targets
from rtdetrv4.weights.convert import from_released

MODELS = {
    # name: box tolerance, logit tolerance
    "rtdetrv4_s": (2e-3, 1e-2),
    "rtdetrv4_l": (1e-2, 5e-2),
    "dfine_n": (2e-3, 1e-2),
    "deim_s": (2e-3, 1e-2),
    "rtdetrv2_r18": (2e-3, 1e-2),
}


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    """A model, for all tests of which its weights are drawn once."""
    return request.param


def student(name: str, num_denoising: int = 0) -> DistillationStudent:
    """The released weights in our model."""
    state = from_released({key: torch.from_numpy(value) for key, value in golden.weights(name).items()})
    detector = create_model(name.replace("_", "-"), num_denoising=num_denoising)
    projector = state.get("injector.projector.weight")
    injector = None if projector is None else Injector(projector.shape[1], projector.shape[0])
    whole = DistillationStudent(detector, injector)
    renamed = {key if key.startswith("injector.") else f"detector.{key}": value for key, value in state.items()}
    missing, unexpected = whole.load_state_dict(renamed, strict=False)
    assert not [key for key in missing if not key.endswith("num_batches_tracked")]
    assert unexpected == ([] if num_denoising else ["detector.denoising.class_embedding.weight"])
    return whole


def images(seeds: list[int], size: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([golden.image(seed, *size) for seed in seeds]))


def test_evaluation_outputs(name: str) -> None:
    facts, arrays = golden.load(name)
    box_tolerance, logit_tolerance = MODELS[name]
    model = student(name).detector.eval()
    pixels = images(facts["eval"]["image_seeds"], facts["eval"]["size"])
    # Double precision, as recorded: fixed random weights amplify the rounding of float32.
    with torch.no_grad():
        output = model.double()(pixels.double())
    for image in range(len(pixels)):
        logits, boxes = output.logits[image], output.boxes[image]
        true_logits = torch.from_numpy(arrays["eval/pred_logits"][image]).double()
        true_boxes = torch.from_numpy(arrays["eval/pred_boxes"][image]).double()
        distance = torch.cdist(boxes, true_boxes, p=1) + torch.cdist(logits, true_logits, p=1) / logits.shape[-1]
        mine, theirs = linear_sum_assignment(distance.numpy())
        assert (boxes[mine] - true_boxes[theirs]).abs().max() < box_tolerance
        assert (logits[mine] - true_logits[theirs]).abs().max() < logit_tolerance


def test_losses_and_gradients(name: str) -> None:
    facts, _ = golden.load(name)
    train = facts["train"]
    whole = student(name).train()
    weights = {key.removeprefix("loss_"): value for key, value in facts["weight_dict"].items()}
    recipe = golden.RECIPES[name]["model"]
    criterion = Criterion(
        HungarianMatcher(),
        classification="mal" if "mal" in recipe["criterion"]["losses"] else "vfl",
        gamma=recipe["criterion"]["gamma"],
        union_matching=recipe["criterion"].get("use_uni_set", True),
        local_terms="local" in recipe["criterion"]["losses"],
    )
    drawn = golden.targets(train["target_seed"], train["targets_per_image"])
    targets = Targets.of([(torch.from_numpy(labels), torch.from_numpy(boxes)) for labels, boxes in drawn])
    output, projected = whole(images(train["image_seeds"], train["size"]), targets)
    terms = criterion(output, targets)
    if projected is not None:
        teacher = np.random.RandomState(train["teacher_seed"]).standard_normal((3, 768, 10, 10))
        terms["distill"] = alignment_loss(projected, torch.from_numpy(teacher).float())

    weighted = {f"loss_{key}": value.item() * weights[key.partition("_")[0]] for key, value in terms.items()}
    assert weighted == pytest.approx(facts["losses"], rel=1e-3, abs=1e-6)

    weighted_sum(terms, weights).backward()
    detector = whole.detector
    parts = {
        "backbone": [detector.backbone],
        "aifi": [detector.hybrid_encoder.aifi],
        "ccff": [detector.hybrid_encoder.ccff, detector.hybrid_encoder.projections],
        "decoder": [detector.decoder, detector.query_selection, detector.memory_projections or torch.nn.Identity()],
    }
    sums = {part: sum(float(gradient_l1(module)) for module in modules) for part, modules in parts.items()}
    expected = {part: facts["grad_l1"][part] for part in parts}
    assert sums == pytest.approx(expected, rel=1e-2)
    share = 100 * float(gradient_l1(detector.hybrid_encoder.aifi) / gradient_l1(whole))
    assert share == pytest.approx(facts["aifi_grad_percent"], rel=1e-2)


def test_postprocessing() -> None:
    _, arrays = golden.load("rtdetrv4_s")
    logits = torch.from_numpy(arrays["eval/pred_logits"])
    boxes = torch.from_numpy(arrays["eval/pred_boxes"])
    result = postprocess(logits, boxes, torch.tensor([[480, 640], [720, 1280]]), num_top=300)
    # Recorded with the labels mapped back to COCO's category ids, of which ten are unused.
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    category_ids = torch.tensor([number for number in range(1, 91) if number not in unused])
    assert torch.equal(category_ids[result.labels], torch.from_numpy(arrays["post/labels"]))
    torch.testing.assert_close(result.scores, torch.from_numpy(arrays["post/scores"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.boxes_xyxy_px, torch.from_numpy(arrays["post/boxes"]), rtol=0, atol=1e-3)
