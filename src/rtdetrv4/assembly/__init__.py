"""The composition root: the only package that knows both configs and classes.

`build.training` needs the extra `train`; a detector can be built without it.
"""

from rtdetrv4.assembly.models import build_detector, create_model, find_variant

__all__ = ["build_detector", "create_model", "find_variant"]
