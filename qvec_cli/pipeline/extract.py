"""rho = theta_QAT - theta_FP, from two checkpoint files into a vector file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from qvec_cli.calibration.moments_file import StoredMoments, check_fit, require_same_base
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.checkpoint.write import Blocks, size_of, write
from qvec_cli.errors import CheckpointError, MismatchError
from qvec_cli.inputs.files import InputFiles, card_of, require, stated_model
from qvec_cli.inputs.lineage import require_one_data, require_same_start, require_twins
from qvec_cli.model.targets import HeadChoice
from qvec_cli.outputs.metrics import Input, Metrics, Plan, provenance
from qvec_cli.specs import NOTHING, Listener
from qvec_cli.tame import counted
from qvec_cli.vector.arithmetic import Norm, difference
from qvec_cli.vector.pairing import Pairing, pair


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
    force: bool = False
    dry_run: bool = False


def extract(request: ExtractRequest, listener: Listener) -> Metrics:
    """Writes the quantization vector of a donor, float32, every floating tensor but the head.

    Raises MismatchError: the two are not twins; CheckpointError: a file that cannot be read or
    written, or holds NaN.
    """
    started = time.perf_counter()
    out, moments = request.out, request.moments
    check_target(out, force=request.force)
    with InputFiles(listener, request.weights) as files:
        fp, qat = files.open(request.donor), files.open(request.donor_qat)
        pairing = _match(fp, qat, request, listener)
        carried = _carried(qat, files.open(moments), listener) if moments else None
        rho, base = Norm(), Norm()
        plan = {name: Entry("F32", fp[name].shape) for name in pairing.names}
        attached = carried.checkpoint.attached if carried else {}
        whole = {**plan, **attached}
        inputs = (fp, qat, *((carried.checkpoint,) if carried else ()))
        if request.dry_run:
            fates = pairing.fates(fp, "subtracted", "left out")
            fates |= dict.fromkeys(attached, "carried")
            planned = Plan("extract", out, fates, {**fp, **attached}, {})
            return planned.metrics(inputs, started, size_of(whole, _card(fp, qat, carried)))
        tensors = chain(_tensors(fp, qat, plan, rho, base), _copied(carried))
        card = write(out, whole, tensors, lambda: _card(fp, qat, carried), force=request.force)
        read = tuple(map(Input.of, inputs))
    results = {
        "output": str(out),
        "digest": card.digest,
        "tensors": len(plan),
        "norm": rho.value,
        "relative_norm": rho.value / base.value if base.value else None,
        "head": [*pairing.head],
        "left_out": [*pairing.head, *pairing.buffers],
        "bytes": sum(entry.nbytes for entry in plan.values()),
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


def _tensors(fp: Checkpoint, qat: Checkpoint, plan: Iterable[str], rho: Norm, base: Norm) -> Blocks:
    for name in plan:
        yield name, _difference(fp, qat, name, rho, base)
    if rho.value == 0:
        raise MismatchError(f"{fp.path} and {qat.path} are equal: rho would be zero")
    fp.settle()
    qat.settle()


def _difference(
    fp: Checkpoint, qat: Checkpoint, name: str, rho: Norm, base: Norm
) -> Iterator[Array]:
    for theta_fp, theta_qat in zip(fp.floats(name), qat.floats(name), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):  # found below, by name
            block = difference(theta_qat, theta_fp)
        if not finite(block):  # as it is if either is not
            fp.require_finite(name)
            qat.require_finite(name)
            raise CheckpointError(f"{qat.path}: {name}: rho overflows float32")
        rho.add(block)
        base.add(theta_fp)
        yield block


def _card(fp: Checkpoint, qat: Checkpoint, carried: StoredMoments | None) -> Card:
    # the donor's twin used data of the donor; of a receiver nothing is used here
    parents = {"donor": fp, "donor_qat": qat}
    parents |= {"moments": carried.checkpoint} if carried else {}
    return replace(
        card_of(qat, Kind.VECTOR),
        role="",
        provenance=provenance("extract", parents, NOTHING),
        moments=carried.facts.to_json() if carried else None,
    )
