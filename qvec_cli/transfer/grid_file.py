"""The members of a transfer grid, as its YAML file names them: receivers, donors and their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvec_cli.errors import SpecError
from qvec_cli.inputs.yaml_text import entries, inside, is_mapping, line, near, scalar

if TYPE_CHECKING:
    import yaml


PARTS: Final = ("receivers", "donors", "base")
"""Keys of a grid file that say who takes part; all others are flags of the command."""


BUILT_IN: Final = ("fp", "ptq", "qat")
"""Rows that every receiver has, or may have, without naming them."""


@dataclass(frozen=True, slots=True)
class GridReceiver:
    """A fine-tuned model that is to be quantized."""

    model: Path
    data: str  # as --data names it
    qat: Path | None = None  # its own QAT twin, to compare with
    baselines: Mapping[str, Path] = field(default_factory=dict)  # further files, measured as is


@dataclass(frozen=True, slots=True)
class GridDonor:
    """A vector, and the plain twin that it was taken from."""

    rho: Path
    model: Path | None = None  # for the null vector "taskvec"


@dataclass(frozen=True, slots=True)
class GridFile:
    """Who takes part in a grid, by name; one name on both sides is one task."""

    receivers: Mapping[str, GridReceiver]
    donors: Mapping[str, GridDonor]
    base: Path | None = None  # what all were fine-tuned from

    @property
    def files(self) -> tuple[Path, ...]:
        """Every checkpoint that is named."""
        parts = [self.base]
        for receiver in self.receivers.values():
            parts += [receiver.model, receiver.qat, *receiver.baselines.values()]
        for donor in self.donors.values():
            parts += [donor.rho, donor.model]
        return tuple(path for path in parts if path is not None)


def read_grid_file(path: Path) -> GridFile:
    """The parts of a grid file.

    ::

        receivers:
          digits: {model: digits.st, data: images/digits, qat: digits_qat.st}
        donors:
          greek: rho_greek.st
          latin: {rho: rho_latin.st, model: latin.st}

    Raises:
        SpecError: with file and line: a part or a key that is missing, unknown or there twice.
    """
    parts: dict[str, yaml.Node] = {}
    for key, node in entries(path):
        if key.value in PARTS:
            if key.value in parts:
                raise SpecError(f"{line(path, key)}: {key.value!r} stands in it twice")
            parts[key.value] = node
    if missing := [part for part in ("receivers", "donors") if part not in parts]:
        raise SpecError(f"{path}: has no {missing[0]}", hint="A grid file names both sides.")
    base = parts.get("base")
    return GridFile(
        {name: _receiver(path, name, node) for name, node in _named(path, parts, "receivers")},
        {name: _donor(path, name, node) for name, node in _named(path, parts, "donors")},
        Path(scalar(line(path, base), base).value) if base is not None else None,
    )


def _named(path: Path, parts: Mapping[str, yaml.Node], part: str) -> list[tuple[str, yaml.Node]]:
    members = list(inside(path, part, parts[part]).items())
    if not members:
        raise SpecError(f"{line(path, parts[part])}: {part} is empty")
    if "" in dict(members):
        raise SpecError(f"{line(path, parts[part])}: a name in {part} is empty")
    return members


def _receiver(path: Path, name: str, node: yaml.Node) -> GridReceiver:
    keys = _keys(path, name, node, ("model", "data"), ("qat", "baselines"))
    others = keys.pop("baselines", None)
    texts = {key: scalar(line(path, value), value).value for key, value in keys.items()}
    named = inside(path, "baselines", others) if others is not None else {}
    for key in named:
        if not key or key in BUILT_IN or key.startswith("rtn "):
            raise SpecError(
                f"{line(path, named[key])}: a baseline of {name} cannot be called {key!r}",
                hint=f"{', '.join(BUILT_IN)} and 'rtn ...' are rows of their own; its QAT is qat.",
            )
    return GridReceiver(
        Path(texts["model"]),
        texts["data"],
        Path(texts["qat"]) if "qat" in texts else None,
        {key: Path(scalar(line(path, value), value).value) for key, value in named.items()},
    )


def _donor(path: Path, name: str, node: yaml.Node) -> GridDonor:
    if not is_mapping(node):
        return GridDonor(Path(scalar(line(path, node), node).value))
    keys = _keys(path, name, node, ("rho",), ("model",))
    texts = {key: scalar(line(path, value), value).value for key, value in keys.items()}
    return GridDonor(Path(texts["rho"]), Path(texts["model"]) if "model" in texts else None)


def _keys(
    path: Path, name: str, node: yaml.Node, needed: tuple[str, ...], more: tuple[str, ...]
) -> dict[str, yaml.Node]:
    keys = inside(path, name, node)
    known = (*needed, *more)
    for key, value in keys.items():
        if key not in known:
            hint = near(key, known, f"Known are {', '.join(known)}.")
            raise SpecError(f"{line(path, value)}: {key!r} is no key of {name}", hint=hint)
    if missing := [key for key in needed if key not in keys]:
        raise SpecError(f"{line(path, node)}: {name} has no {missing[0]}")
    return keys
