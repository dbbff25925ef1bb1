"""Variants and recipes against the recipes of the released code."""

from __future__ import annotations

import re
from typing import Any

import pytest

from golden import RECIPES
from rtdetrv4.config import VARIANTS, Recipe, load_recipe, recipe_names

DEIMV2 = [name for name in VARIANTS if name.startswith("deimv2-")]
RELEASED = [name for name in VARIANTS if name not in ("test", "rtdetrv4-n", *DEIMV2)]
BACKBONES = {"B0": "hgnetv2_b0", "B2": "hgnetv2_b2", "B4": "hgnetv2_b4", "B5": "hgnetv2_b5"}


@pytest.fixture(params=RELEASED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def golden(name: str) -> dict[str, Any]:
    return RECIPES[name.replace("-", "_")]


def test_every_released_model_has_a_variant_and_a_recipe() -> None:
    assert {name.replace("_", "-") for name in RECIPES} == set(RELEASED)
    assert set(recipe_names()) == {*VARIANTS, "demo"}


def test_dimensions(name: str, golden: dict[str, Any]) -> None:
    variant = VARIANTS[name]
    backbone, encoder, decoder = (golden["model"][part] for part in ("backbone", "encoder", "decoder"))
    is_resnet = "depth" in backbone
    assert variant.backbone == (f"resnet{backbone['depth']}d" if is_resnet else BACKBONES[backbone["name"]])
    # timm counts the stem of a ResNet as its first stage.
    assert variant.out_indices == tuple(index + is_resnet for index in backbone["return_idx"])
    assert variant.freeze_stem == (backbone["freeze_at"] == 0)
    assert variant.freeze_backbone_norm == backbone["freeze_norm"]
    assert variant.hidden_dim == encoder["hidden_dim"]
    assert variant.encoder_ffn == encoder["dim_feedforward"]
    assert variant.encoder_blocks == ("csp" if encoder.get("version") == "rt_detrv2" else "elan")
    assert variant.depth_mult == encoder["depth_mult"]
    assert variant.expansion == encoder["expansion"]
    assert variant.decoder_dim == decoder["hidden_dim"]
    assert variant.decoder_ffn == decoder.get("dim_feedforward", 1024)
    assert variant.decoder_layers == decoder["num_layers"]
    assert variant.eval_index == decoder["eval_idx"]
    assert variant.num_points == tuple(decoder["num_points"])
    assert variant.head == ("distribution" if "reg_max" in decoder else "box")
    assert (variant.reg_max, variant.reg_scale) == (decoder.get("reg_max", 32), decoder.get("reg_scale", 4))
    assert variant.activation == decoder.get("activation", "relu") == decoder.get("mlp_act", "relu")
    assert variant.query_position_layers == (3 if decoder.get("query_pos_method") == "as_reg" else 2)
    # The released count of RT-DETRv4 includes DSI's projector, which inference does not need.
    dim, teacher_dim = encoder["hidden_dim"], encoder.get("distill_teacher_dim", 0)
    assert variant.num_parameters == golden["deploy_params"] - teacher_dim * (dim + 1)


def test_model_and_loss(name: str, golden: dict[str, Any]) -> None:
    recipe = load_recipe(name)
    decoder, criterion = golden["model"]["decoder"], golden["model"]["criterion"]
    assert recipe.model.name == name
    assert recipe.model.num_queries == decoder["num_queries"]
    assert recipe.model.num_denoising == decoder["num_denoising"]
    assert recipe.model.label_noise == decoder["label_noise_ratio"]
    assert recipe.model.box_noise == decoder["box_noise_scale"]
    resize = next(op for op in golden["augment"]["ops"] if op["type"] == "Resize")
    assert recipe.model.image_size == tuple(resize["size"])

    classification, *others = criterion["losses"]
    weights = criterion["weight_dict"]
    assert recipe.loss.classification == classification
    assert recipe.loss.weights.cls == weights[f"loss_{classification}"]
    assert recipe.loss.weights.bbox == weights["loss_bbox"]
    assert recipe.loss.weights.giou == weights["loss_giou"]
    assert recipe.loss.weights.fgl == (weights["loss_fgl"] if "local" in others else 0)
    assert recipe.loss.weights.ddf == (weights["loss_ddf"] if "local" in others else 0)
    assert (recipe.loss.alpha, recipe.loss.gamma) == (criterion["alpha"], criterion["gamma"])
    assert recipe.loss.union_matching == criterion.get("use_uni_set", True)
    matcher, costs = recipe.loss.matcher, criterion["matcher"]["weight_dict"]
    assert (matcher.cls, matcher.bbox, matcher.giou) == (costs["cost_class"], costs["cost_bbox"], costs["cost_giou"])
    assert (matcher.alpha, matcher.gamma) == (criterion["matcher"]["alpha"], criterion["matcher"]["gamma"])

    distillation = recipe.distillation
    assert distillation.is_on == ("distill" in others)
    if distillation.is_on:
        adaptive = criterion["distill_adaptive_params"]
        assert distillation.mode == "gam"
        assert distillation.weight == weights["loss_distill"]
        for constant in ("rho", "delta", "default_weight"):
            assert getattr(distillation, constant) == adaptive[constant]


def test_augmentation(name: str, golden: dict[str, Any]) -> None:
    augment = load_recipe(name).augment
    ops = {op["type"]: op for op in golden["augment"]["ops"]}
    assert augment.mosaic == golden["augment"].get("mosaic_prob", 0)
    assert augment.mixup == golden["collate"].get("mixup_prob", 0)
    assert augment.photometric == ops["RandomPhotometricDistort"]["p"]
    assert augment.iou_crop == ops["RandomIoUCrop"]["p"]
    assert augment.multi_scale_repeat == golden["collate"]["base_size_repeat"]
    if mosaic := ops.get("Mosaic"):
        assert augment.mosaic_rotation == mosaic["rotation_range"]
        assert [augment.mosaic_translation] * 2 == mosaic["translation_range"]
        assert list(augment.mosaic_scale) == mosaic["scaling_range"]


def test_schedule(name: str, golden: dict[str, Any]) -> None:
    recipe = load_recipe(name)
    schedule, policy = recipe.schedule, golden["augment"]["policy"]["epoch"]
    assert schedule.epochs == golden["epochs"]
    assert schedule.batch == golden["total_batch_size"]
    assert schedule.warmup_steps == golden["warmup_iter"]
    assert schedule.no_aug_epochs == golden["no_aug_epoch"]
    assert schedule.lr_gamma == golden["lr_gamma"]
    # The released code writes "flat to the end" as an epoch that is never reached.
    assert schedule.flat_epoch == min(golden["flat_epoch"], golden["epochs"])
    basic, middle, stop = policy if isinstance(policy, list) else (0, 0, policy)
    assert (schedule.basic_epochs, schedule.mosaic_until, schedule.refine_from) == (basic, middle, stop)
    assert golden["collate"].get("mixup_epochs", [basic, middle]) == [basic, middle]
    if name != "rtdetrv2-r18":  # see its recipe
        assert schedule.refine_from == golden["collate"]["stop_epoch"]

    assert recipe.ema.decay == golden["ema"]["decay"]
    assert recipe.ema.warmup == golden["ema"]["warmups"]
    assert recipe.ema.restart_decay == golden["collate"].get("ema_restart_decay", 0.9999)


def test_optimizer(name: str, golden: dict[str, Any]) -> None:
    optimizer = load_recipe(name).optimizer
    assert optimizer.lr == golden["optimizer"]["lr"]
    assert optimizer.weight_decay == golden["optimizer"]["weight_decay"]
    assert list(optimizer.betas) == golden["optimizer"]["betas"]
    assert optimizer.clip_norm == golden["clip_max_norm"]


def test_every_parameter_gets_the_released_learning_rate_and_decay(name: str, golden: dict[str, Any]) -> None:
    recipe = load_recipe(name)
    num_checked = 0
    for group in golden["param_groups"]:
        for parameter in group["names"]:
            assert _rates(parameter, recipe) == (group["lr"], group["weight_decay"]), parameter
            num_checked += 1
    assert num_checked > 250


def _rates(parameter: str, recipe: Recipe) -> tuple[float, float]:
    """What the schema's descriptions promise to a parameter of this released name."""
    optimizer = recipe.optimizer
    is_norm = re.search(r"norm|\.bn", parameter) is not None
    if parameter.startswith("backbone."):
        of_backbone = not is_norm or optimizer.backbone_norm_lr == "backbone"
        decays = not is_norm or optimizer.decay_backbone_norm
    else:
        of_backbone = False
        decays = not is_norm and (optimizer.decay_bias or not parameter.endswith("bias"))
    return optimizer.backbone_lr if of_backbone else optimizer.lr, optimizer.weight_decay if decays else 0.0


def test_the_smallest_rtdetrv4_trains_like_deim_with_distillation() -> None:
    ours, deim = load_recipe("rtdetrv4-n"), load_recipe("deim-n")
    assert VARIANTS["rtdetrv4-n"] == VARIANTS["deim-n"]
    assert ours.schedule == deim.schedule
    assert ours.optimizer == deim.optimizer
    assert ours.distillation == load_recipe("rtdetrv4-s").distillation
    assert ours.distillation.is_on
    assert not deim.distillation.is_on


def test_published_accuracy_is_stated_only_where_it_is_known() -> None:
    stated = {name: (variant.coco_ap, variant.latency_ms) for name, variant in VARIANTS.items() if variant.coco_ap}
    assert stated == {
        "rtdetrv4-s": (49.7, 3.66),
        "rtdetrv4-m": (53.5, 5.91),
        "rtdetrv4-l": (55.4, 8.07),
        "rtdetrv4-x": (57.0, 12.90),
        "deimv2-atto": (23.8, 1.10),
        "deimv2-femto": (31.0, 1.45),
        "deimv2-pico": (38.5, 2.13),
        "deimv2-n": (43.0, 2.32),
    }


# configs/deimv2/deimv2_hgnetv2_*_coco.yml of the DEIMv2 repository: input size, queries, width, decoder's FFN, learning
# rates of the rest and of the backbone, share of mosaics.
DEIMV2_LITE = {
    "deimv2-atto": (320, 100, 64, 160, 2e-3, 1e-3, 0.3),
    "deimv2-femto": (416, 150, 96, 256, 1.6e-3, 8e-4, 0.5),
    "deimv2-pico": (640, 200, 112, 320, 1.6e-3, 8e-4, 0.5),
}


@pytest.mark.parametrize("name", DEIMV2_LITE)
def test_the_recipes_of_deimv2_with_a_lite_encoder(name: str) -> None:
    side, queries, dim, ffn, lr, backbone_lr, mosaic = DEIMV2_LITE[name]
    variant, recipe = VARIANTS[name], load_recipe(name)
    assert variant.image_size == recipe.model.image_size == (side, side)
    assert recipe.model.num_queries == queries
    assert (variant.hidden_dim, variant.decoder_dim, variant.decoder_ffn) == (dim, dim, ffn)
    assert (variant.num_points, variant.decoder_layers, variant.depth_mult, variant.expansion) == ((4, 2), 3, 0.5, 0.34)
    assert (recipe.optimizer.lr, recipe.optimizer.backbone_lr) == (lr, backbone_lr)
    assert recipe.optimizer.decay_bias == (name == "deimv2-atto")
    assert (recipe.augment.mosaic, recipe.augment.mixup, recipe.augment.multi_scale_repeat) == (mosaic, 0, None)
    schedule, loss = recipe.schedule, recipe.loss
    assert (schedule.epochs, schedule.batch, schedule.warmup_steps, schedule.lr_gamma) == (500, 128, 4000, 0.5)
    assert (schedule.flat_epoch, schedule.mosaic_until, schedule.refine_from) == (250, 250, 468)
    assert (loss.classification, loss.gamma, loss.union_matching) == ("mal", 1.5, False)
    assert (loss.weights.fgl, loss.weights.ddf) == (0, 0)


def test_the_recipe_of_deimv2_n_is_that_of_deim_n_at_another_batch() -> None:
    ours, deim = load_recipe("deimv2-n"), load_recipe("deim-n")
    assert (ours.loss, ours.augment, ours.optimizer) == (deim.loss, deim.augment, deim.optimizer)
    assert ours.schedule == deim.schedule.model_copy(update={"batch": 32})


@pytest.mark.parametrize("name", [name for name in DEIMV2 if not name.endswith("-hf")])
def test_deimv2_as_in_transformers_is_trained_alike(name: str) -> None:
    ours, theirs = load_recipe(name), load_recipe(f"{name}-hf")
    assert theirs.model_copy(update={"model": ours.model}) == ours
