"""A model on disk: one file, or a folder that stock loaders of transformers or timm take.

A folder holds model.safetensors, the same bytes as the single file, and config.json; beside a
network of transformers' own stands preprocessor_config.json. A stock loader needs all of them, so
they appear together, and replace older ones together. Whatever reads with qvec goes by the card in
the weights' own header. Other files of the folder stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from qvec_cli.checkpoint.card import Card
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.locate import PROCESSOR
from qvec_cli.checkpoint.naming import WRAPPED
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target, dump, is_stream, refused, replacing
from qvec_cli.checkpoint.whole_folder import replacing_folder
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.errors import CheckpointError, MismatchError, QvecError, SpecError, located
from qvec_cli.model import transformers_config
from qvec_cli.model.configuration import Model, to_config
from qvec_cli.model.targets import may_be_linear
from qvec_cli.model.tokens import files_in, home_among
from qvec_cli.quant.compressed_tensors import require_loadable, to_scheme
from qvec_cli.specs import Grid, Library

ALIGN: Final = 64
"""Bytes at whose multiples tensors start on disk, so that a loader that maps the file has them
there in memory too: the last bit of a product of matrices hangs on it (with MKL, on x86)."""

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"

Config = Mapping[str, Mapping[str, Any] | bytes]
"""The files beside the weights, by name, as JSON or as they are; empty where one file is meant."""


def check_output(
    path: Path,
    *,
    folder: bool,
    force: bool,
    size: int = 0,
    names: Iterable[str] = (CONFIG, WEIGHTS),
) -> None:
    """Refuses, before any work, an output that could not be written afterwards.

    See ``check_target`` for files; a folder, of files with these ``names``, is made where it is
    missing.
    """
    if not folder:
        check_target(path, force=force, size=size)
        return
    with _refusing(path):
        is_folder = path.is_dir()
    if is_folder:
        for name in names:
            check_target(path / name, force=force, size=size)
    elif is_stream(path):
        raise SpecError(f"{path}: a folder is written, which no stream can take")
    elif path.exists():
        raise CheckpointError(
            f"{path}: is no folder", hint="Name a folder; for a file, leave the last / out."
        )
    else:
        check_target(path, force=False, size=size)


def config_of(theta: Checkpoint, model: Model, targets: Iterable[str], grid: Grid | None) -> Config:
    """What has to be said of a network and, if there is a grid, of its packed targets.

    MismatchError: what a stock loader would fail on, or would not load to the same numbers.
    """
    if theta.aliases:
        dropped, kept = min(theta.aliases.items())
        raise MismatchError(
            f"{theta.path}: {dropped}: is tied to {kept}, which stock loaders do not know",
            hint="A single file may hold it: -o FILE.",
        )
    names = theta.classes
    if names is not None and not len(set(names)) == len(names) == model.num_classes:
        raise MismatchError(f"{theta.path}: its qvec card is damaged (classes)")
    own = model.library is Library.TRANSFORMERS
    config = transformers_config.to_config(model, names) if own else to_config(model, names)
    processor = transformers_config.processor_of(model) if own else None
    beside: dict[str, Mapping[str, Any] | bytes] = {PROCESSOR: processor} if processor else {}
    if model.reads_texts and (home := home_among(model.places)):
        beside |= {name: path.read_bytes() for name, path in files_in(home).items()}
    if grid is not None:
        chosen = {name: theta[name].shape for name in sorted(targets)}
        _require_loadable(theta, chosen, grid)
        # A linear layer has a matrix for its weight. Those that are not targets have to be named,
        # and naming an embedding as well does no harm, so that no network need be built.
        matrices = [name for name, entry in theta.items() if len(entry.shape) == 2]
        left = [name for name in matrices if name.endswith(".weight") and name not in chosen]
        ignored = [f"{'' if own else WRAPPED}{name.removesuffix('.weight')}" for name in left]
        ignored += _called_otherwise(model, ignored) if own else []
        widths = _widths(model, chosen, grid, own=own)
        config["quantization_config"] = to_scheme(grid, ignored, widths)
    return {CONFIG: config, **beside}


def _widths(model: Model, names: Iterable[str], grid: Grid, *, own: bool) -> dict[str, int]:
    """The bits of each module, by the name that loaders know it by; none if all have the same.

    QvecError: transformers, which alone knows its names, is not installed.
    """
    widths = {name: grid.of(name).bits for name in names}
    if len({*widths.values()}) < 2:
        return {}
    known = {name: f"{WRAPPED}{name}" for name in names}
    if own:
        from qvec_cli.model.transformers_networks import names_in_memory

        known |= {name: name for name in names} | names_in_memory(model)
    return {known[name].removesuffix(".weight"): bits for name, bits in widths.items()}


def _called_otherwise(model: Model, modules: Iterable[str]) -> list[str]:
    """What transformers calls modules in memory, where that is not as in files.

    Loaders ask by these names which layers are not packed. Where it is not installed, nothing is
    known of them, and a head and embeddings have one name everywhere.
    """
    from qvec_cli.model.transformers_networks import names_in_memory

    try:
        memory = names_in_memory(model)
    except QvecError:
        return []
    names = {name.removesuffix(".weight"): other for name, other in memory.items()}
    others = [names[module].removesuffix(".weight") for module in modules if module in names]
    return [name for name in others if name not in names]


def size_of_output(plan: Mapping[str, Entry], card: Card, config: Config) -> int:
    """Bytes of what ``write_output`` would write."""
    beside = sum(len(_bytes(document)) for document in config.values())
    return size_of(plan, card, ALIGN) + beside


def write_output(
    out: Path,
    plan: Mapping[str, Entry],
    tensors: Blocks,
    card: Callable[[], Card],
    config: Config,
    *,
    force: bool,
    check: Callable[[Path], None] = lambda weights: None,
) -> Card:
    """Streams tensors into a file, or into a folder if there is a config; see ``write``.

    ``check`` is called with the name of the new weights when they are whole; a fault that it
    raises leaves what stood there.
    """
    if not config:
        return write(out, plan, tensors, card, force=force, align=ALIGN, ready=check)

    with replacing_folder(out, force=force) as new:
        weights = new / WEIGHTS
        written = write(weights, plan, tensors, card, force=False, align=ALIGN, ready=check)
        for name, document in config.items():
            with replacing(new / name, force=False) as file:
                file.write(_bytes(document))
    return written


def _bytes(document: Mapping[str, Any] | bytes) -> bytes:
    return document if isinstance(document, bytes) else dump(document).encode()


def _require_loadable(theta: Checkpoint, shapes: Mapping[str, tuple[int, ...]], grid: Grid) -> None:
    stated = set(theta.card.targets or ())
    if strange := [name for name in shapes if name not in stated and not may_be_linear(name)]:
        raise MismatchError(
            f"{theta.path}: {strange[0]}: looks like an embedding, and a folder holds packed "
            "weights of linear layers only",
            hint="Leave --embed-bits out, choose others with --targets, or write a single file: "
            "-o FILE.",
        )
    with located(theta.path):
        require_loadable(shapes, grid)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise refused(path, fault) from None
