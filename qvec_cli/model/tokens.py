"""Texts as a network of transformers' reads them: token numbers, padded to one length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import DataError, MismatchError
from qvec_cli.model.configuration import Model

if TYPE_CHECKING:
    from torch import Tensor

FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
"""What a tokenizer is kept in, beside the weights."""


def files_in(folder: Path | None) -> dict[str, Path]:
    """The files of a tokenizer in a folder, by name."""
    if folder is None:
        return {}
    return {name: folder / name for name in FILES if (folder / name).is_file()}


def tokenizer(model: Model) -> Callable[[Any], Tensor]:
    """From a text to its tokens, int32 [longest], padded at the end.

    MismatchError: no tokenizer lies beside the network's file. What is called raises DataError: no
    text, or one that is longer than the network has positions.
    """
    from qvec_cli.model.transformers_networks import load_tokenizer

    place, facts = model.place, model.pretrained_cfg["tokens"]
    if not files_in(place):
        raise MismatchError(
            f"{place}: no tokenizer is there, and {model.architecture} reads texts",
            hint="Put tokenizer.json and what else belongs to it beside the file.",
        )
    encode, longest = load_tokenizer(str(place)), facts["longest"]

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
