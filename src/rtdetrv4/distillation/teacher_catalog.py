"""The catalog of teachers: short names, timm names, feature dimensions and licenses.

Plain data, without torch. timm knows many more networks, and `load_teacher` takes those too; the catalog gives short
names to the foundation models. A test compares every row with timm.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DEFAULT_TEACHER = "vit_base_patch16_dinov3.lvd1689m"
PIP_TEACHER = "efficientnet_lite2"
"""An ImageNet network with weights from pip: needs no hub; code and weights are Apache-2.0."""

_Color = tuple[float, float, float]
_IMAGENET: tuple[_Color, _Color] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP: tuple[_Color, _Color] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF: tuple[_Color, _Color] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_PLAIN: tuple[_Color, _Color] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

# Licenses of weights, and notes.
_APACHE = "apache-2.0"
_META = "dinov3-license", "Meta's terms; gated on Meta's hub pages"
_REGISTERS = _APACHE, "with registers"
_OPENAI = _APACHE, "image tower, OpenAI; their repository says MIT"
_LAION = _APACHE, "image tower, OpenCLIP on LAION-2B"
_DATACOMP = _APACHE, "image tower, OpenCLIP on DataComp-XL"
_EVA = "mit", "masked image modeling"
_EVA_CLIP = "mit", "image tower of EVA-CLIP"
_NVIDIA = "nvidia-open-model-license", "NVIDIA's terms; needs a recent timm"
_TIPS = _APACHE, "image tower of TIPSv2, one register; needs a recent timm"
_PE = _APACHE, "Perception Encoder, tuned for dense features; no final norm"
_EUPE = "fair-noncommercial-research-license", "Meta's terms; no commercial use; needs a recent timm"
_MAE = "cc-by-nc-4.0", "no commercial use"
_SAM = _APACHE, "image encoder with its neck"
_SAM2 = _APACHE, "SAM 2.1's Hiera, without its feature pyramid"
_PIP = _APACHE, "ImageNet; weights come from pip, with the extra demo"


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
    millions: float
    """Parameters, without a classifier."""
    mean: _Color
    """Per channel, of images in [0, 1]; so is `std`."""
    std: _Color
    license: str
    """Of the weights, as timm states it."""
    note: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the license of the weights is an open-source license."""
        return self.license in (_APACHE, "mit")


TEACHERS: tuple[TeacherFacts, ...] = (
    TeacherFacts("dinov3-s", "vit_small_patch16_dinov3.lvd1689m", "DINOv3", 384, 16, 22, *_IMAGENET, *_META),
    TeacherFacts("dinov3-s+", "vit_small_plus_patch16_dinov3.lvd1689m", "DINOv3", 384, 16, 29, *_IMAGENET, *_META),
    TeacherFacts("dinov3-b", "vit_base_patch16_dinov3.lvd1689m", "DINOv3", 768, 16, 86, *_IMAGENET, *_META),
    TeacherFacts("dinov3-l", "vit_large_patch16_dinov3.lvd1689m", "DINOv3", 1024, 16, 303, *_IMAGENET, *_META),
    TeacherFacts(
        "dinov3-convnext-t", "convnext_tiny.dinov3_lvd1689m", "DINOv3 ConvNeXt", 768, 32, 28, *_IMAGENET, *_META
    ),
    TeacherFacts(
        "dinov3-convnext-s", "convnext_small.dinov3_lvd1689m", "DINOv3 ConvNeXt", 768, 32, 49, *_IMAGENET, *_META
    ),
    TeacherFacts(
        "dinov3-convnext-b", "convnext_base.dinov3_lvd1689m", "DINOv3 ConvNeXt", 1024, 32, 88, *_IMAGENET, *_META
    ),
    TeacherFacts(
        "dinov3-convnext-l", "convnext_large.dinov3_lvd1689m", "DINOv3 ConvNeXt", 1536, 32, 196, *_IMAGENET, *_META
    ),
    TeacherFacts("dinov2-s", "vit_small_patch14_dinov2.lvd142m", "DINOv2", 384, 14, 22, *_IMAGENET, _APACHE),
    TeacherFacts("dinov2-b", "vit_base_patch14_dinov2.lvd142m", "DINOv2", 768, 14, 87, *_IMAGENET, _APACHE),
    TeacherFacts("dinov2-l", "vit_large_patch14_dinov2.lvd142m", "DINOv2", 1024, 14, 304, *_IMAGENET, _APACHE),
    TeacherFacts("dinov2-g", "vit_giant_patch14_dinov2.lvd142m", "DINOv2", 1536, 14, 1136, *_IMAGENET, _APACHE),
    TeacherFacts(
        "dinov2-s-reg", "vit_small_patch14_reg4_dinov2.lvd142m", "DINOv2", 384, 14, 22, *_IMAGENET, *_REGISTERS
    ),
    TeacherFacts(
        "dinov2-b-reg", "vit_base_patch14_reg4_dinov2.lvd142m", "DINOv2", 768, 14, 87, *_IMAGENET, *_REGISTERS
    ),
    TeacherFacts(
        "dinov2-l-reg", "vit_large_patch14_reg4_dinov2.lvd142m", "DINOv2", 1024, 14, 304, *_IMAGENET, *_REGISTERS
    ),
    TeacherFacts(
        "dinov2-g-reg", "vit_giant_patch14_reg4_dinov2.lvd142m", "DINOv2", 1536, 14, 1136, *_IMAGENET, *_REGISTERS
    ),
    TeacherFacts("siglip2-b", "vit_base_patch16_siglip_256.v2_webli", "SigLIP 2", 768, 16, 93, *_HALF, _APACHE),
    TeacherFacts("siglip2-l", "vit_large_patch16_siglip_256.v2_webli", "SigLIP 2", 1024, 16, 316, *_HALF, _APACHE),
    TeacherFacts(
        "siglip2-so400m", "vit_so400m_patch16_siglip_256.v2_webli", "SigLIP 2", 1152, 16, 428, *_HALF, _APACHE
    ),
    TeacherFacts("clip-b", "vit_base_patch16_clip_quickgelu_224.openai", "CLIP", 768, 16, 86, *_CLIP, *_OPENAI),
    TeacherFacts("clip-l", "vit_large_patch14_clip_quickgelu_224.openai", "CLIP", 1024, 14, 303, *_CLIP, *_OPENAI),
    TeacherFacts("clip-b-laion2b", "vit_base_patch16_clip_224.laion2b", "CLIP", 768, 16, 86, *_CLIP, *_LAION),
    TeacherFacts("clip-b-datacomp", "vit_base_patch16_clip_224.datacompxl", "CLIP", 768, 16, 86, *_CLIP, *_DATACOMP),
    TeacherFacts("clip-l-datacomp", "vit_large_patch14_clip_224.datacompxl", "CLIP", 1024, 14, 303, *_CLIP, *_DATACOMP),
    TeacherFacts("tipsv2-b", "vit_base_patch14_reg1_tipsv2.webli", "TIPSv2", 768, 14, 86, *_PLAIN, *_TIPS),
    TeacherFacts("tipsv2-l", "vit_large_patch14_reg1_tipsv2.webli", "TIPSv2", 1024, 14, 304, *_PLAIN, *_TIPS),
    TeacherFacts("tipsv2-so400m", "vit_so400m_patch14_reg1_tipsv2.webli", "TIPSv2", 1152, 14, 413, *_PLAIN, *_TIPS),
    TeacherFacts("tipsv2-g", "vit_giant_patch14_reg1_tipsv2.webli", "TIPSv2", 1536, 14, 1136, *_PLAIN, *_TIPS),
    TeacherFacts("pe-spatial-t", "vit_pe_spatial_tiny_patch16_512.fb", "PE-Spatial", 192, 16, 5.7, *_HALF, *_PE),
    TeacherFacts("pe-spatial-s", "vit_pe_spatial_small_patch16_512.fb", "PE-Spatial", 384, 16, 22, *_HALF, *_PE),
    TeacherFacts("pe-spatial-b", "vit_pe_spatial_base_patch16_512.fb", "PE-Spatial", 768, 16, 86, *_HALF, *_PE),
    TeacherFacts("pe-spatial-l", "vit_pe_spatial_large_patch14_448.fb", "PE-Spatial", 1024, 14, 304, *_HALF, *_PE),
    TeacherFacts("pe-spatial-g", "vit_pe_spatial_gigantic_patch14_448.fb", "PE-Spatial", 1536, 14, 1852, *_HALF, *_PE),
    TeacherFacts("eupe-t", "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", "EUPE", 192, 16, 5.5, *_IMAGENET, *_EUPE),
    TeacherFacts("eupe-s", "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m", "EUPE", 384, 16, 22, *_IMAGENET, *_EUPE),
    TeacherFacts("eupe-b", "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", "EUPE", 768, 16, 86, *_IMAGENET, *_EUPE),
    TeacherFacts("eupe-convnext-t", "convnext_tiny.eupe_lvd1689m", "EUPE ConvNeXt", 768, 32, 28, *_IMAGENET, *_EUPE),
    TeacherFacts("eupe-convnext-s", "convnext_small.eupe_lvd1689m", "EUPE ConvNeXt", 768, 32, 49, *_IMAGENET, *_EUPE),
    TeacherFacts("eupe-convnext-b", "convnext_base.eupe_lvd1689m", "EUPE ConvNeXt", 1024, 32, 88, *_IMAGENET, *_EUPE),
    TeacherFacts("eva02-s", "eva02_small_patch14_224.mim_in22k", "EVA-02", 384, 14, 22, *_CLIP, *_EVA),
    TeacherFacts("eva02-b", "eva02_base_patch14_224.mim_in22k", "EVA-02", 768, 14, 86, *_CLIP, *_EVA),
    TeacherFacts("eva02-l", "eva02_large_patch14_224.mim_m38m", "EVA-02", 1024, 14, 303, *_CLIP, *_EVA),
    TeacherFacts("eva02-clip-b", "eva02_base_patch16_clip_224.merged2b", "EVA-02", 768, 16, 86, *_CLIP, *_EVA_CLIP),
    TeacherFacts("eva02-clip-l", "eva02_large_patch14_clip_224.merged2b", "EVA-02", 1024, 14, 303, *_CLIP, *_EVA_CLIP),
    TeacherFacts("radio3-b", "naflexvit_base_patch16_radio_v3.c_radio", "C-RADIO", 768, 16, 98, *_CLIP, *_NVIDIA),
    TeacherFacts("radio3-l", "naflexvit_large_patch16_radio_v3.c_radio", "C-RADIO", 1024, 16, 320, *_CLIP, *_NVIDIA),
    TeacherFacts("radio3-h", "naflexvit_huge_patch16_radio_v3.c_radio", "C-RADIO", 1280, 16, 652, *_CLIP, *_NVIDIA),
    TeacherFacts(
        "radio4-so400m", "naflexvit_so400m_patch16_radio_v4.c_radio", "C-RADIO", 1152, 16, 431, *_CLIP, *_NVIDIA
    ),
    TeacherFacts("radio4-h", "naflexvit_huge_patch16_radio_v4.c_radio", "C-RADIO", 1280, 16, 652, *_CLIP, *_NVIDIA),
    TeacherFacts("mae-b", "vit_base_patch16_224.mae", "MAE", 768, 16, 86, *_IMAGENET, *_MAE),
    TeacherFacts("mae-l", "vit_large_patch16_224.mae", "MAE", 1024, 16, 303, *_IMAGENET, *_MAE),
    TeacherFacts("sam-b", "samvit_base_patch16.sa1b", "SAM", 256, 16, 90, *_IMAGENET, *_SAM),
    TeacherFacts("sam-l", "samvit_large_patch16.sa1b", "SAM", 256, 16, 308, *_IMAGENET, *_SAM),
    TeacherFacts("sam2-t", "sam2_hiera_tiny.fb_r896_2pt1", "SAM 2", 768, 32, 27, *_IMAGENET, *_SAM2),
    TeacherFacts("sam2-s", "sam2_hiera_small.fb_r896_2pt1", "SAM 2", 768, 32, 34, *_IMAGENET, *_SAM2),
    TeacherFacts("sam2-b+", "sam2_hiera_base_plus.fb_r896_2pt1", "SAM 2", 896, 32, 69, *_IMAGENET, *_SAM2),
    TeacherFacts("sam2-l", "sam2_hiera_large.fb_r1024_2pt1", "SAM 2", 1152, 32, 212, *_IMAGENET, *_SAM2),
    TeacherFacts(PIP_TEACHER, "tf_efficientnet_lite2.in1k", "EfficientNet", 352, 32, 4.8, *_HALF, *_PIP),
)
"""The catalog, by family."""

BY_NAME = {facts.name: facts for facts in TEACHERS}


def split_names(teacher: str) -> list[str]:
    """The teachers that a setting names: several have commas between, unless that is the name of a file."""
    return [teacher] if Path(teacher).is_file() else [name.strip() for name in teacher.split(",")]


def timm_name(name: str) -> str:
    """The timm name behind a short name; any other name unchanged."""
    return BY_NAME[name].timm_name if name in BY_NAME and name != PIP_TEACHER else name
