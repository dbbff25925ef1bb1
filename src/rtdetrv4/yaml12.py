"""YAML 1.2, for recipes and data set descriptions: `off`, `no` and `1:30` are text, and `1e-4` is a number.

PyYAML reads YAML 1.1, in which `off` and `no` are booleans, `012` and `1:30` are numbers in other bases, and `1e-4` is
text.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {}


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def load_yaml(text: str) -> Any:
    """Parse a YAML document into plain Python values.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(content: Any) -> str:
    """A YAML document that `load_yaml`, and readers of YAML 1.1, read as `content`."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
