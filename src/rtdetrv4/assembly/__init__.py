"""The composition root: the only package that knows both configs and classes.

`assembly.training` needs the `train` extra; building a detector does not.
"""

from rtdetrv4.assembly.models import build_detector, create_model, find_variant

__all__ = ["build_detector", "create_model", "find_variant"]
