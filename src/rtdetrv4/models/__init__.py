"""The detection model, its building blocks, and its post-processing."""

from rtdetrv4.models.attention import DeformableAttention, SelfAttention
from rtdetrv4.models.backbone import Backbone
from rtdetrv4.models.compiling import compile_parts
from rtdetrv4.models.decoder import BoxDecoder, DecoderLayer, DistributionDecoder
from rtdetrv4.models.denoising import ContrastiveDenoising
from rtdetrv4.models.deployment import fuse
from rtdetrv4.models.detection_model import DetectionModel, SemanticPath
from rtdetrv4.models.hybrid_encoder import AIFI, CCFF, HybridEncoder, LiteEncoder
from rtdetrv4.models.layers import ConvNorm
from rtdetrv4.models.memory import checkpoint_activations, recompute_activations
from rtdetrv4.models.postprocess import postprocess
from rtdetrv4.models.query_selection import QuerySelection

__all__ = [
    "AIFI",
    "CCFF",
    "Backbone",
    "BoxDecoder",
    "ContrastiveDenoising",
    "ConvNorm",
    "DecoderLayer",
    "DeformableAttention",
    "DetectionModel",
    "DistributionDecoder",
    "HybridEncoder",
    "LiteEncoder",
    "QuerySelection",
    "SelfAttention",
    "SemanticPath",
    "checkpoint_activations",
    "compile_parts",
    "fuse",
    "postprocess",
    "recompute_activations",
]
