"""Texts as a network of transformers' reads them: token numbers, padded to one length.

A tokenizer is no part of a single file. It is looked for beside the file, then in the folder where
the lineage of the file had it, which cards name as it was typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import DataError, MismatchError
from qvec_cli.model.configuration import Model
from qvec_cli.model.transformers_config import is_reading

if TYPE_CHECKING:
    from torch import Tensor

FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
"""What a tokenizer is kept in, beside the weights."""

PLACE: Final = "tokenizer"
"""The word of a lineage for the folder where the tokenizer was."""


def places_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The folders where the tokenizer of a file may be, the likeliest first."""
    own = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    named = checkpoint.card.provenance.get(PLACE)
    return tuple(dict.fromkeys((own, Path(named)))) if isinstance(named, str) else (own,)


def home_among(places: Iterable[Path]) -> Path | None:
    """The first folder that has a tokenizer's files."""
    return next((place for place in places if files_in(place)), None)


def place_in_lineage(parents: Iterable[Checkpoint]) -> dict[str, str]:
    """What a lineage says of the tokenizer: of the first parent that reads texts, if one does."""
    for parent in parents:
        if is_reading(parent.card.model, parent.config):
            own, *named = places_of(parent)
            home = home_among((own, *named)) or next(iter(named), None)
            return {PLACE: str(home)} if home else {}
    return {}


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a tokenizer in a folder, by name; none where it is closed to us."""
    try:
        return {name: folder / name for name in FILES if (folder / name).is_file()}
    except (OSError, ValueError):  # closed to us, or no name that can be
        return {}


def tokenizer(model: Model) -> Callable[[Any], Tensor]:
    """From a text to its tokens, int32 [longest], padded at the end.

    MismatchError: no tokenizer is where it may be. What is called raises DataError: no
    text, or one that is longer than the network has positions.
    """
    from qvec_cli.model.transformers_networks import load_tokenizer

    facts, home = model.pretrained_cfg["tokens"], home_among(model.places)
    if home is None:
        listed = " nor in ".join(map(str, model.places))
        raise MismatchError(
            f"no tokenizer is in {listed}, and {model.architecture} reads texts",
            hint="Put tokenizer.json and what else belongs to it beside the file.",
        )
    encode, longest = load_tokenizer(str(home)), facts["longest"]

    def run(text: Any) -> Tensor:
        import torch

        if not isinstance(text, str):
            raise DataError(f"{model.architecture} reads texts, and this data set holds images")
        numbers = encode(text)
        if len(numbers) > longest:
            raise DataError(
                f"a text of {len(numbers)} tokens ({text[:40]!r}...), and the network has "
                f"positions for {longest}",
                hint="Cut texts before.",
            )
        padded = torch.full((longest,), facts["pad"], dtype=torch.int32)
        padded[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        return padded

    return run
