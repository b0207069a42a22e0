"""Names of models: the ones that documentation still shows, and what they mean today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_MODEL = "sonnet"
"""An alias: the CLI resolves it to the current model of that family."""

DEFAULT_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "claude-3-5-sonnet-20241022": "sonnet",
        "claude-3-5-haiku-20241022": "haiku",
        "claude-3-opus-20240229": "opus",
    }
)
"""The names in the API reference, of October 2025, which the upstream no longer serves."""

FAMILIES = frozenset({"sonnet", "opus", "haiku"})
"""Names that the CLI knows by itself; others it tries upstream when it is told of them."""

_NAME = re.compile(r"[A-Za-z0-9][\w.:/@+\[\]-]{0,254}", re.ASCII)


def is_name(model: str) -> bool:
    """Whether it could be a model's name, a cloud provider's with slashes and colons included."""
    return _NAME.fullmatch(model) is not None
