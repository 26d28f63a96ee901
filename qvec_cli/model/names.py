"""The names of timm's networks, read from its sources: importing timm takes seconds."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Final

from qvec_cli.errors import SpecError

_NAME: Final = re.compile(r"^def (\w+)\(|^\s*'(\w+)'\s*:", re.MULTILINE)
"""A function, or a row of a table of old names; what is more than a network, timm refuses."""


@cache
def known_names() -> frozenset[str]:
    """Every architecture that timm can make, without pretrained tags, and other words."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found: set[str] = set()
    for source in Path(spec.submodule_search_locations[0], "models").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        found.update(made or renamed for made, renamed in _NAME.findall(text))
    return frozenset(found)


def check_name(name: str) -> None:
    """Refuses a network that timm does not have, before timm is imported.

    Raises:
        SpecError: with the names that come near.
    """
    architecture = name.split(".", maxsplit=1)[0]
    if architecture in known_names():
        return
    near = difflib.get_close_matches(architecture, sorted(known_names()), n=3)
    raise SpecError(
        f"model {name!r} is not known to timm",
        hint=f"Did you mean {', '.join(near)}?"
        if near
        else "A checkpoint file must exist; timm's names are listed by timm.list_models().",
    )
