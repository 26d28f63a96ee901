"""How the tensors of a transformer change with the basis in which it computes, by their names.

In blocks x + f(norm(x)), four changes leave the function as it is, and the tensors of the same
names and shapes:

1. The affine part of a LayerNorm goes into the layers that read it, LayerScale into those that
   write.
2. The stream x is turned by R, which keeps means and variances over channels: readers, writers,
   and what it begins with (patches, positions, tokens).
3. Values are turned in each head, and the projection after them.
4. What a reader adds for the mean of its inputs counts for nothing, because their sum is zero: its
   rows are centred.

Where a part is not of this kind, it stays; ``Basis.kept`` tells which, and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.quant.hadamard import Turn, has_hadamard

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK: Final = re.compile(r"(layers\.(\d+)\.)?blocks\w*\.\d+\.")
_STAGE: Final = re.compile(r"layers\.\d+\.")
_ATTENTION: Final = ("qkv", "q", "k", "v", "q_proj", "k_proj", "v_proj")
_MLP: Final = ("fc1", "fc1_g", "fc1_x")
_SCALES: Final = {"attn.proj": ("ls1.gamma", "gamma_1"), "mlp.fc2": ("ls2.gamma", "gamma_2")}
"""Layers that write, and what timm calls the LayerScale behind each."""

_PARTS: Final = ("norm1.weight", "attn.proj.weight", "norm2.weight", "mlp.fc2.weight")
"""What each block has."""

_TOKENS: Final = ("cls_token", "reg_token", "dist_token", "mask_token", "pos_embed")
_CLASSIFIERS: Final = ("head", "head_dist", "head.fc")
_BEFORE: Final = ("norm_pre", "patch_embed.norm")
"""LayerNorms whose affine part acts on what the stream begins with."""

_READERS: Final = {f"attn.{name}" for name in _ATTENTION} | {f"mlp.{name}" for name in _MLP}
_INSIDE: Final = {"norm1", "norm2", "ls1", "ls2", *_SCALES, *_READERS}
_MERGING: Final = ("downsample.norm", "downsample.reduction")
_OUTSIDE: Final = {"patch_embed.proj", "norm", "fc_norm", *_BEFORE, *_CLASSIFIERS, *_MERGING}
"""Modules of a block, and outside of blocks."""

_BESIDE: Final = re.compile(
    r"(rope|shared_rel_pos|patch_embed\.backbone)\..*|attn_pool\.(?!pos_embed).*"
    r"|.*\.(attn_mask|relative_position_index|relative_position_bias_table)"
    r"|.*\.attn\.(rel_pos|q_norm|k_norm|norm|sub_norm|proj_l|proj_w)\..*"
    r"|.*\.attn\.(lambda_[qk]\d|[qv]_bias)|.*\.mlp\.norm\..*"
)
"""Tensors that see no channel of the stream."""

_MAX_POOLED: Final = ("max", "avgmax", "catavgmax")


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How one tensor changes, in the order of these fields."""

    gamma: str | None = None  # the LayerNorm's weight that its columns are multiplied with
    over: str | None = None  # the LayerNorm's weight that it is divided by
    beta: tuple[str, str] | None = None  # a weight and a LayerNorm's bias, whose product is added
    columns: Turn | None = None
    centred: bool = False  # whether each row loses its mean
    scale: str | None = None  # the LayerScale that its rows are multiplied with
    rows: Turn | None = None
    fill: float | None = None  # all that is left of what went into others


@dataclass(frozen=True, slots=True)
class Basis:
    """The change of a network's tensors."""

    changes: Mapping[str, TensorChange]
    turned: tuple[int, ...]  # widths of the streams that are turned
    kept: tuple[str, ...]  # what is not, in words
    seed: int

    def to_json(self) -> dict[str, Any]:
        """As the card of a file holds it."""
        return {"seed": self.seed, "turned": list(self.turned), "kept": list(self.kept)}


def basis_of(shapes: Shapes, heads: int | Sequence[int], pool: str | None, seed: int) -> Basis:
    """The basis of a network of timm's.

    Args:
        shapes: of its tensors, by name.
        heads: of its attention, or those of each stage.
        pool: how it makes one vector of all tokens, in timm's word.
        seed: of the signs in R.

    Raises MismatchError: it has no such blocks, or lacks a part of one, or tensors do not fit.
    """
    plan = _Plan(shapes, heads, pool, seed)
    for stream in plan.streams():
        plan.add(stream)
    for name, change in plan.changes.items():
        _require_fit(name, change, shapes)
    return Basis(plan.changes, tuple(plan.turned), tuple(plan.kept), seed)


def _require_fit(name: str, change: TensorChange, shapes: Shapes) -> None:
    """Refuses a tensor whose shape does not go with those that it is changed with."""
    shape = shapes[name]
    fits = bool(shape) and min(shape) > 0
    if fits:
        first, last = shape[0], shape[-1]
        beside: list[tuple[str | None, tuple[int, ...]]]
        beside = [(change.over, (last,)), (change.scale, (first,))]
        norms = [(change.gamma, last)]  # of which a layer may read several vectors, side by side
        if change.beta is not None:
            weight, norm = change.beta
            beside += [(weight, (first, *shapes[weight][1:]))]
            norms += [(norm, shapes[weight][-1])]
        fits = all(other is None or shapes[other] == wanted for other, wanted in beside)
        fits &= all(other is None or _divides(shapes[other], width) for other, width in norms)
        fits &= len(shape) == 2 or change.gamma is None
        fits &= change.columns is None or last % change.columns.order == 0
        fits &= change.rows is None or (first - change.rows.start) % change.rows.order == 0
    if not fits:
        raise MismatchError(f"{name}: {list(shape)} does not fit the tensors beside it")


def _divides(vector: tuple[int, ...], width: int) -> bool:
    """Whether a layer that is so wide reads one or several vectors of a LayerNorm."""
    return len(vector) == 1 and vector[0] > 0 and width % vector[0] == 0


@dataclass(frozen=True, slots=True)
class _Stream:
    """What residual additions run through: a network, or a stage of one."""

    blocks: tuple[str, ...]  # prefixes of names
    sources: tuple[str, ...]  # tensors that it begins with
    norm: str  # the last LayerNorm; empty: there is not just one
    readers: tuple[str, ...]  # modules behind it
    heads: int
    label: str = ""

    def width(self, shapes: Shapes) -> int:
        """Channels."""
        return shapes[f"{self.blocks[0]}norm1.weight"][0]


@dataclass(slots=True)
class _Plan:
    """Collects changes."""

    shapes: Shapes
    heads: int | Sequence[int]
    pool: str | None
    seed: int
    changes: dict[str, TensorChange] = field(default_factory=dict)
    turned: list[int] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def streams(self) -> list[_Stream]:
        """The one of a plain transformer; those of Swin's stages, in order."""
        matches = [match for name in self.shapes if (match := _BLOCK.match(name))]
        stages = sorted({int(match[2]) for match in matches if match[2]})
        blocks = [*dict.fromkeys(match[0] for match in matches)]
        if not blocks:
            raise MismatchError("it has no blocks x + f(norm(x))")
        self._require_parts(blocks)
        if not stages:
            sources = [name for name in self.shapes if name in _TOKENS]
            sources += self._present("patch_embed.proj.weight", "patch_embed.proj.bias")
            return [_Stream(tuple(blocks), tuple(sources), *self._end(), self._heads_of(0))]
        return [self._stage(n, blocks, last=n == stages[-1]) for n in stages]

    def _require_parts(self, blocks: Iterable[str]) -> None:
        """Refuses a block without norms or writers: MismatchError names the tensor."""
        for name in (f"{block}{part}" for block in blocks for part in _PARTS):
            dimensions = 1 if "norm" in name.split(".")[-2] else 2
            shape = self.shapes.get(name, ())
            if len(shape) != dimensions or min(shape) < 1:
                raise MismatchError(f"{name}: is missing, or no part of a block x + f(norm(x))")

    def _heads_of(self, stage: int) -> int:
        if isinstance(self.heads, int):
            return self.heads
        if stage >= len(self.heads):
            raise MismatchError(f"stage {stage} has no number of attention heads")
        return self.heads[stage]

    def _stage(self, stage: int, blocks: Iterable[str], *, last: bool) -> _Stream:
        """A stage, whose last norm is the one before four neighbours are merged for the next."""
        inside = tuple(block for block in blocks if block.startswith(f"layers.{stage}."))
        sources = self._present(f"layers.{stage}.downsample.reduction.weight")
        following = f"layers.{stage + 1}.downsample"
        end = self._end() if last else (f"{following}.norm", (f"{following}.reduction",))
        heads = self._heads_of(stage)
        return _Stream(inside, tuple(sources), *end, heads, f"stage {stage}: ")

    def _end(self) -> tuple[str, tuple[str, ...]]:
        """The last norm of the network, and the modules that read it."""
        norms = [name for name in ("norm", "fc_norm") if f"{name}.weight" in self.shapes]
        pooled = ["attn_pool.kv"] if "attn_pool.kv.weight" in self.shapes else []
        heads = [name for name in _CLASSIFIERS if f"{name}.weight" in self.shapes]
        return norms[0] if len(norms) == 1 else "", tuple(pooled or heads)

    def _fault(self, stream: _Stream) -> str | None:
        """Why a stream cannot be turned; None where it can."""
        width = stream.width(self.shapes)
        before = [n for n in _BEFORE if f"{n}.weight" in self.shapes]
        before = [] if stream.label and stream.sources else before
        strange = [name for name in self.shapes if not _is_known(name)]
        shapes = [self.shapes[name] for name in stream.sources]
        faults = [
            (before, f"{', '.join(before)} stands before it"),
            (strange, f"{strange[0] if strange else ''} has no place in it"),
            (self.pool in _MAX_POOLED, f"the network pools by {self.pool}"),
            (not stream.norm, "it has not one last LayerNorm"),
            (not stream.readers, "no classifier takes in its last LayerNorm"),
            (any(width not in (s[0], s[-1]) for s in shapes), "its begin is of another width"),
            (not has_hadamard(width), f"no Hadamard matrix of order {width} is known"),
        ]
        return next((reason for fault, reason in faults if fault), None)

    def add(self, stream: _Stream) -> None:
        """Plans the changes of one stream."""
        turn = None
        if fault := self._fault(stream):
            self.kept.append(f"{stream.label}the stream is not turned: {fault}")
        else:
            turn = Turn(stream.width(self.shapes), self.seed)
            self.turned.append(turn.order)
            for name in stream.sources:
                axis = "columns" if name in _TOKENS else "rows"
                self._change(name, **{axis: turn})
            self._read(stream.norm, stream.readers, turn, centred=False)
        for block in stream.blocks:
            self._read(f"{block}norm1", [f"{block}attn.{n}" for n in _ATTENTION], turn)
            self._read(f"{block}norm2", [f"{block}mlp.{n}" for n in _MLP], turn)
            for module in _SCALES:
                self._write(block, module, turn)
            self._values(f"{block}attn.", stream.heads)

    def _read(
        self, norm: str, modules: Iterable[str], turn: Turn | None, *, centred: bool = True
    ) -> None:
        """A LayerNorm, and the layers that read it; where one has no bias, it keeps its own."""
        readers = [module for module in modules if f"{module}.weight" in self.shapes]
        if not readers:
            raise MismatchError(f"{norm}: no layer is there that reads it")
        gamma, beta = f"{norm}.weight", f"{norm}.bias"
        has_beta = beta in self.shapes
        absorbed = has_beta and all(f"{module}.bias" in self.shapes for module in readers)
        for module in readers:
            weight = f"{module}.weight"
            self._change(weight, gamma=gamma, columns=turn, centred=centred and absorbed)
            if absorbed:
                self._change(f"{module}.bias", beta=(weight, beta))
        self._change(gamma, fill=1.0)
        if absorbed:
            self._change(beta, fill=0.0)
        elif has_beta:
            self._change(beta, over=gamma, columns=turn)

    def _write(self, block: str, module: str, turn: Turn | None) -> None:
        """A layer whose output is added to the stream, with its LayerScale."""
        scale = next(iter(self._present(*(f"{block}{name}" for name in _SCALES[module]))), None)
        for part in self._present(f"{block}{module}.weight", f"{block}{module}.bias"):
            self._change(part, scale=scale, rows=turn)
        if scale is not None:
            self._change(scale, fill=1.0)

    def _values(self, attention: str, heads: int) -> None:
        """The values of each head, and the projection that reads them."""
        projection = f"{attention}proj.weight"
        width = self.shapes[projection][1]
        fused = self._present(f"{attention}qkv.weight")
        reasons = {
            "a norm follows them": self._present(
                f"{attention}norm.weight", f"{attention}sub_norm.weight"
            ),
            f"heads are {width / heads:g} wide": width % heads or not has_hadamard(width // heads),
            "heads share them": any(self.shapes[name][0] != 3 * width for name in fused),
        }
        if reason := next((reason for reason, holds in reasons.items() if holds), None):
            note = f"values are not turned: {reason}"
            self.kept += [] if note in self.kept else [note]
            return
        size = width // heads
        self._change(projection, columns=Turn(size))
        modules = [f"{attention}{n}." for n in ("v", "v_proj")]
        parts = [f"{module}{part}" for module in modules for part in ("weight", "bias")]
        for name in self._present(*parts, f"{attention}v_bias"):
            self._change(name, rows=Turn(size))
        for name in self._present(f"{attention}qkv.weight", f"{attention}qkv.bias"):
            self._change(name, rows=Turn(size, start=self.shapes[name][0] - width))

    def _present(self, *names: str) -> list[str]:
        return [name for name in names if name in self.shapes]

    def _change(self, name: str, **fields: Any) -> None:
        given = {key: value for key, value in fields.items() if value is not None}
        self.changes[name] = replace(self.changes.get(name, TensorChange()), **given)


def _is_known(name: str) -> bool:
    """Whether a tensor has a place in a network of blocks x + f(norm(x))."""
    if _BESIDE.fullmatch(name) or name in _TOKENS:
        return True
    block = _BLOCK.match(name)
    module, _, leaf = _STAGE.sub("", name[block.end() :] if block else name).rpartition(".")
    if block and not module:
        return leaf in ("gamma_1", "gamma_2")
    known = _INSIDE if block else _OUTSIDE
    return module in known and leaf in ("weight", "bias", "gamma")
