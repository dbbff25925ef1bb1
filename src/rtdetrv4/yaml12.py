"""YAML 1.2, as recipes and descriptions of data sets are meant: `off`, `no` and `1:30` are text, `1e-4` is a number.

PyYAML reads YAML 1.1: there `off` and `no` are booleans, `012` and `1:30` numbers of other bases, and `1e-4` is text.
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
    """Quotes what either version of YAML would not read as text."""


for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def load_yaml(text: str) -> Any:
    """Plain Python values from a YAML document.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(content: Any) -> str:
    """A YAML document that `load_yaml` reads as `content`, and so do readers of YAML 1.1."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
