"""What a file says of itself: kind, architecture, grid and lineage, in its header's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from qvec_cli.checkpoint.json_text import encode, parse
from qvec_cli.errors import CheckpointError

SCHEMA: Final = 1
"""The format's own version: a newer one is refused, an older one is read for ever."""

NO_DIGEST: Final = "0" * 64
"""Stands in the header until the data are written and their digest is known."""

PATCHED, FAKE = "patched", "fake-quantized"
"""Roles: a receiver to which a vector was added; a float checkpoint whose targets lie on a grid."""


class Kind(StrEnum):
    """What the tensors of a file mean."""

    CHECKPOINT = "checkpoint"
    VECTOR = "vector"
    QUANTIZED = "quantized"
    STATE = "train-state"
    MOMENTS = "moments"


@dataclass(frozen=True, slots=True)
class Card:
    """The card of one file; every value but the strings is JSON."""

    kind: Kind
    role: str = ""  # fp, qat, ``PATCHED`` or ``FAKE``
    model: dict[str, Any] | None = None  # the configuration of its network
    data: dict[str, Any] | None = None  # the data set and its classes
    quant: dict[str, Any] | None = None  # the grid that was trained for, or is stored
    targets: tuple[str, ...] | None = None  # names of the weights that quantization covers
    base: str | None = None  # digest of the pretrained start, without its head
    recipe: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # operation, parents, lambda, version
    aliases: dict[str, str] = field(default_factory=dict)  # tied names, and the one that is kept
    moments: dict[str, Any] | None = None  # of what, if it carries any (calibration/moments_file)
    rotation: dict[str, Any] | None = None  # the basis of its tensors, if not the network's own
    storage: dict[str, Any] | None = None  # the grid that a vector's matrices are kept on, if any
    digest: str = NO_DIGEST  # of names, shapes, dtypes and data; not of this card

    @property
    def data_digest(self) -> str | None:
        """The digest of the data set that the file was trained on."""
        return (self.data or {}).get("digest")

    def to_header(self) -> dict[str, str]:
        """Metadata strings, sorted: the same inputs give the same bytes.

        No time, and no path but that at which a network of texts has its tokenizer.
        """
        values = {f"qvec.{f.name}": getattr(self, f.name) for f in fields(self)}
        model = values.pop("qvec.model")
        values |= {"qvec.schema": SCHEMA, _library(model): model, "format": "pt"}
        kept = sorted((key, value) for key, value in values.items() if value or value == ())
        return {k: v if isinstance(v, str) else canonical(v) for k, v in kept}

    @classmethod
    def from_header(cls, metadata: Mapping[str, str]) -> Card | None:
        """The card in a header, None without one; CheckpointError: by a newer qvec, or damaged."""
        if "qvec.kind" not in metadata:
            return None
        try:
            return cls._parse(metadata)
        except (ValueError, TypeError, KeyError) as fault:
            raise CheckpointError(f"its qvec card is damaged ({fault})") from None

    @classmethod
    def _parse(cls, metadata: Mapping[str, str]) -> Card:
        schema = int(metadata["qvec.schema"])
        if schema > SCHEMA:
            raise CheckpointError(
                f"written by a newer qvec (file format {schema}, this one reads up to {SCHEMA})",
                hint="Upgrade with: pip install --upgrade qvec",
            )
        targets = _load(metadata, "qvec.targets", list)
        mappings = {k: _load(metadata, f"qvec.{k}", dict) for k in ("data", "quant", "recipe")}
        provenance = _load(metadata, "qvec.provenance", dict) or {}
        _require_kinds(mappings["data"] or {}, provenance)
        return cls(
            kind=Kind(metadata["qvec.kind"]),
            role=metadata.get("qvec.role", ""),
            model=_load(metadata, "timm", dict) or _load(metadata, "transformers", dict),
            targets=None if targets is None else tuple(map(str, targets)),
            base=metadata.get("qvec.base"),
            provenance=provenance,
            aliases={k: str(v) for k, v in (_load(metadata, "qvec.aliases", dict) or {}).items()},
            moments=_load(metadata, "qvec.moments", dict),
            rotation=_load(metadata, "qvec.rotation", dict),
            storage=_load(metadata, "qvec.storage", dict),
            digest=metadata.get("qvec.digest", NO_DIGEST),
            **mappings,
        )


def _library(model: Mapping[str, Any] | None) -> str:
    """The key that a network's configuration has in a header: the library that builds it."""
    return "transformers" if (model or {}).get("library") == "transformers" else "timm"


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII, no NaN."""
    return encode(value, sort_keys=True, separators=(",", ":"))


def _require_kinds(data: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Refuses data sets and parents that are told of in other kinds of values: ValueError."""
    kinds = {"digest": str, "name": str, "images": dict}
    listed = [data, *(data["joined"] if isinstance(data.get("joined"), list) else [])]
    parents = provenance.get("parents", [])
    if not isinstance(parents, list):
        raise ValueError("parents")
    for each in (*listed, *parents):
        for key, kind in kinds.items() if isinstance(each, dict) else ():
            if not isinstance(each.get(key, kind()), kind | None):
                raise ValueError(f"{key} of data or of a parent")


def _load(metadata: Mapping[str, str], key: str, expected: type) -> Any:
    if key not in metadata:
        return None
    value = parse(metadata[key])
    if not isinstance(value, expected):
        raise ValueError(f"{key} is not a JSON {expected.__name__}")
    return value
