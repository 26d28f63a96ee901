"""rho = theta_QAT - theta_FP, from two checkpoint files into a vector file.

A vector that is to be sent may be stored on few bits: each matrix on a grid with a scale for every
group of a row, all else in bfloat16. The grid is symmetric ``mse-full`` with float16 scales: on the
vectors of the tiny study, a zero point lessens the error by less than its own bits would
(examples/tiny/results/small_vectors.txt).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from qvec_cli.calibration.moments_file import StoredMoments, check_fit, require_same_base
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array, from_float32, to_float32
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.errors import CheckpointError, MismatchError, SpecError, located
from qvec_cli.inputs.files import InputFiles, card_of, require, stated_model
from qvec_cli.inputs.lineage import require_one_data, require_same_start, require_twins
from qvec_cli.model.targets import HeadChoice
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.quant.qtensor import parts, stored_bits
from qvec_cli.quant.scales import rtn
from qvec_cli.specs import NOTHING, Granularity, Grid, Listener, Scale, ScaleDtype
from qvec_cli.tame import counted
from qvec_cli.vector.arithmetic import Norm, difference
from qvec_cli.vector.pairing import Pairing, pair

GROUP: Final = 64
"""Numbers of a row that share a scale, where a vector is stored on few bits."""

_LARGEST: Final = 3e4  # of a number on bits: no scale of it is beyond float16


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What ``qvec extract`` is asked for."""

    donor: Path  # the plain checkpoint
    donor_qat: Path  # its twin
    out: Path
    moments: Path | None = None  # a file of moments that the vector is to carry
    head: HeadChoice = HeadChoice()  # the classifier, which is left out
    weights: WeightsChoice = WeightsChoice()  # which of those in files without a card
    cross_data: bool = False  # whether the two may be of different data
    bits: int | None = None  # on which matrices are stored; None: all of the vector in float32
    group_size: int | None = None  # with bits; None: ``GROUP``
    force: bool = False
    dry_run: bool = False

    @property
    def grid(self) -> Grid | None:
        """The grid of the matrices in the file; SpecError: none of ours."""
        if self.bits is None and self.group_size is not None:
            raise SpecError("--group-size goes with --bits")
        if self.bits is None:
            return None
        size = GROUP if self.group_size is None else self.group_size
        kinds = Granularity.GROUP, size, Scale.MSE_FULL, True, ScaleDtype.FLOAT16
        return Grid(self.bits, *kinds)


@dataclass(frozen=True, slots=True)
class _Storage:
    """How the vector stands in its file: matrices on a grid, the rest in bfloat16; or float32."""

    grid: Grid | None  # with the largest group
    apart: Norm = field(default_factory=Norm)  # what is stored, less what was to be

    def grid_of(self, shape: tuple[int, ...]) -> Grid | None:
        """The grid of one tensor, its group the largest that divides a row.

        None where there is none: no matrix, or one that bits make no smaller than bfloat16.
        """
        if self.grid is None or len(shape) != 2 or not math.prod(shape):
            return None
        largest = min(self.grid.group_size or 1, shape[1])
        size = next(n for n in range(largest, 0, -1) if shape[1] % n == 0)
        grid = replace(self.grid, group_size=size)
        return grid if stored_bits({"": shape}, grid) < 16 * math.prod(shape) else None

    def entries(self, name: str, shape: tuple[int, ...]) -> dict[str, Entry]:
        """The arrays of one tensor."""
        if grid := self.grid_of(shape):
            return {part: Entry(*kind) for part, kind in parts(name, shape, grid).items()}
        return {name: Entry("F32" if self.grid is None else "BF16", shape)}

    def stored(self, name: str, shape: tuple[int, ...], blocks: Iterable[Array]) -> Blocks:
        """The same with their numbers; a matrix on a grid is in memory as a whole."""
        if self.grid is None:
            yield name, blocks
        elif grid := self.grid_of(shape):
            rho = np.concatenate([*blocks]).reshape(shape)
            if abs(rho).max() > _LARGEST:
                raise MismatchError("rho is too large for float16 scales", hint="Leave --bits out.")
            weight = rtn(rho, grid)
            self.apart.add(weight.weight() - rho)
            yield from ((part, [a.reshape(-1)]) for part, a in weight.to_named(name).items())
        else:
            yield name, map(self._rounded, blocks)

    def _rounded(self, block: Array) -> Array:
        raw = from_float32(block, "BF16")
        self.apart.add(to_float32(raw, "BF16") - block)
        return raw


def extract(request: ExtractRequest, listener: Listener) -> Metrics:
    """Writes the quantization vector of a donor: every floating tensor but the head.

    Raises MismatchError: the two are not twins; CheckpointError: a file that cannot be read or
    written, or holds NaN.
    """
    started = time.perf_counter()
    grid = request.grid
    out, moments = request.out, request.moments
    check_target(out, force=request.force)
    with InputFiles(listener, request.weights) as files:
        fp, qat = files.open(request.donor), files.open(request.donor_qat)
        pairing = _match(fp, qat, request, listener)
        carried = _carried(qat, files.open(moments), listener) if moments else None
        job = _Subtraction(fp, qat, pairing.names, _Storage(grid))
        plan, rho, base = job.plan(), job.rho, job.base
        attached = carried.checkpoint.attached if carried else {}
        whole = {**plan, **attached}
        inputs = (fp, qat, *((carried.checkpoint,) if carried else ()))
        if request.dry_run:
            fates = pairing.fates(fp, "subtracted", "left out")
            fates |= dict.fromkeys(attached, "carried")
            planned = Plan("extract", out, fates, {**fp, **attached}, {})
            return planned.metrics(inputs, started, size_of(whole, _card(job, carried)))
        tensors = chain(job.tensors(), _copied(carried))
        card = write(out, whole, tensors, lambda: _card(job, carried), force=request.force)
        read = tuple(map(Input.of, inputs))
    results = {
        "output": str(out),
        "digest": card.digest,
        "tensors": len(pairing.names),
        "norm": rho.value,
        "relative_norm": rho.value / base.value if base.value else None,
        "head": [*pairing.head],
        "left_out": [*pairing.head, *pairing.buffers],
        "bytes": sum(entry.nbytes for entry in plan.values()),
        "storage": job.storage_facts(),
        "moments": {**carried.facts.in_words(), "bytes": carried.nbytes} if carried else None,
    }
    return Metrics("extract", read, {}, results, started=started)


def _match(fp: Checkpoint, qat: Checkpoint, request: ExtractRequest, listener: Listener) -> Pairing:
    """Pairs two files that are twins."""
    for checkpoint in (fp, qat):
        require(checkpoint, Kind.CHECKPOINT)
    require_twins(fp, qat, listener)
    require_same_start(fp, qat, listener)
    if not request.cross_data:
        require_one_data(fp, qat)
    head = request.head.tensors(fp, stated_model(qat), str(fp.path), bare=fp.bare)
    pairing = pair(fp, qat, (str(fp.path), str(qat.path)), head)
    if not pairing.names:
        raise MismatchError(f"{fp.path} holds no floating tensor outside its head")
    for checkpoint in (fp, qat):
        if half := [n for n in pairing.names if checkpoint[n].dtype in ("F16", "BF16")]:
            listener.note(
                f"{checkpoint.path}: {counted(len(half), 'tensor')} of {checkpoint[half[0]].dtype}:"
                " rho from half precision is mostly rounding error; use the float32 files"
            )
    return pairing


def _carried(qat: Checkpoint, file: Checkpoint, listener: Listener) -> StoredMoments:
    """Moments that fit a donor."""
    require(file, Kind.MOMENTS)
    carried = StoredMoments(file)
    require_same_base(qat, carried, listener)
    targets = qat.card.targets
    check_fit(carried, {n: qat[n].shape for n in targets or carried.facts.sites if n in qat})
    if strange := sorted(carried.facts.targets - {*(targets or qat)}):
        raise MismatchError(
            f"{file.path}: has moments of {strange[0]}, which is no target of {qat.path}",
            hint="Make them with the donor's own --targets.",
        )
    return carried


def _copied(carried: StoredMoments | None) -> Blocks:
    if carried:
        yield from carried.blocks()
        carried.checkpoint.settle()


@dataclass(frozen=True, slots=True)
class _Subtraction:
    """The twins, the tensors in which they differ, and the lengths that are met on the way."""

    fp: Checkpoint
    qat: Checkpoint
    names: tuple[str, ...]
    storage: _Storage
    rho: Norm = field(default_factory=Norm)
    base: Norm = field(default_factory=Norm)

    def plan(self) -> dict[str, Entry]:
        """The arrays of the vector in its file."""
        shapes = {name: self.fp[name].shape for name in self.names}
        if self.storage.grid and not self._matrices():
            raise MismatchError(
                f"{self.fp.path}: no matrix of it is smaller in {self.storage.grid.bits} bits",
                hint="Leave --bits out.",
            )
        whole: dict[str, Entry] = {}
        for name, shape in shapes.items():
            entries = self.storage.entries(name, shape)
            if twice := sorted(entries.keys() & whole.keys()):
                raise MismatchError(
                    f"{self.fp.path}: {twice[0]} is a tensor, and would be a part of one in bits",
                    hint="Leave --bits out.",
                )
            whole |= entries
        return whole

    def tensors(self) -> Blocks:
        """Their numbers."""
        for name in self.names:
            with located(f"{self.qat.path}: {name}"):
                yield from self.storage.stored(name, self.fp[name].shape, self._difference(name))
        if self.rho.value == 0:
            raise MismatchError(f"{self.fp.path} and {self.qat.path} are equal: rho would be zero")
        self.fp.settle()
        self.qat.settle()

    def storage_facts(self) -> dict[str, Any] | None:
        """On what grid how many matrices are stored, and how far that is from rho."""
        if self.storage.grid is None:
            return None
        error = self.storage.apart.value / self.rho.value
        grid, count = self.storage.grid.to_json(), len(self._matrices())
        return {"grid": grid, "matrices": count, "relative_error": error}

    def _matrices(self) -> list[str]:
        return [name for name in self.names if self.storage.grid_of(self.fp[name].shape)]

    def _difference(self, name: str) -> Iterator[Array]:
        for theta_fp, theta_qat in zip(self.fp.floats(name), self.qat.floats(name), strict=True):
            with np.errstate(over="ignore", invalid="ignore"):  # found below, by name
                block = difference(theta_qat, theta_fp)
            if not finite(block):  # as it is if either is not
                self.fp.require_finite(name)
                self.qat.require_finite(name)
                raise CheckpointError(f"{self.qat.path}: {name}: rho overflows float32")
            self.rho.add(block)
            self.base.add(theta_fp)
            yield block


def _card(job: _Subtraction, carried: StoredMoments | None) -> Card:
    # the donor's twin used data of the donor; of a receiver nothing is used here
    parents = {"donor": job.fp, "donor_qat": job.qat}
    parents |= {"moments": carried.checkpoint} if carried else {}
    return replace(
        card_of(job.qat, Kind.VECTOR),
        role="",
        provenance=provenance("extract", parents, NOTHING),
        moments=carried.facts.to_json() if carried else None,
        storage=job.storage.grid.to_json() if job.storage.grid else None,
    )
