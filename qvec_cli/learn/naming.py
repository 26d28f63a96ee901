"""One spelling of class names, so that two copies of a data set agree on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def fold(name: str) -> str:
    """A name without case and punctuation: fashion-mnist and FashionMNIST are the same."""
    return "".join(c for c in name.lower() if c.isalnum())


def name_classes(raw: Sequence[str], official: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The names of classes in label order.

    Libraries write "American Bulldog", "american_bulldog" and "T - shirt / top"; heads are
    matched with data sets by name. So names are lower case with an underscore for every run
    of other characters. A name that two classes share (ImageNet's cranes) gets its label added.

    Args:
        raw: what the library calls them.
        official: names in the official numbering, which win unless ``raw`` has the same
            names in another order.
    """
    names = [re.sub(r"[\W_]+", "_", name.lower()).strip("_") for name in raw]
    if official is not None and set(names) != set(official):
        return official
    often = Counter(names)
    return tuple(
        name if often[name] == 1 else f"{name}_{label}" for label, name in enumerate(names)
    )
