"""What each way to a low-bit receiver costs, and when a vector has paid off: the facts of plane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qvec_cli.errors import MismatchError, SpecError
from qvec_cli.report.canvas import compact
from qvec_cli.report.heatmap_facts import (
    at_chosen,
    at_fixed,
    baseline_keys,
    baseline_name,
    chosen_name,
    fixed_name,
    subtitle,
    used,
)
from qvec_cli.report.plane import Plane, Way, crossing
from qvec_cli.results.documents import Extraction, TrainingRecord
from qvec_cli.results.matrix import FLOAT, OWN_QAT, PLAIN, Cell, Matrix
from qvec_cli.specs import Cost

Costs = tuple[Mapping[str, float], Mapping[str, float]]
"""Of receivers and of donors, by name."""


def plane_of(matrix: Matrix, costs: Costs, cost: Cost, donor: str | None) -> Plane:
    """Every way over what it trains for the receiver, and the sums over receivers.

    Args:
        matrix: the grid.
        costs: see ``costs_of``.
        cost: what they are counted in.
        donor: one of the grid; by default the mean of all.

    Raises:
        SpecError: a donor that the grid does not have, or a grid in which nothing has run.
    """
    if donor is not None and donor not in matrix.donors:
        raise SpecError(f"--donor {donor!r} is not in the grid; it has {', '.join(matrix.donors)}")
    if not matrix.transfers:
        raise SpecError("the grid has no pair of a donor and another receiver yet")
    own, taught = costs
    unit = "images trained on" if cost is Cost.IMAGES else "seconds of QAT"
    receivers = [name for name in matrix.receivers if name in matrix.baselines]
    spent = tuple(own[name] for name in receivers)
    label, price = _donor(taught, donor)
    return Plane(
        "What accuracy costs the receiver",
        subtitle(matrix),
        unit,
        tuple(_ways(matrix, receivers, own, donor)),
        float(np.mean([matrix.baselines[name][FLOAT].test.top1 for name in receivers])),
        spent,
        (label, price, min(taught.values()), max(taught.values())),
        break_even(label, price, spent, unit),
    )


def costs_of(
    matrix: Matrix,
    cost: Cost,
    trainings: Sequence[TrainingRecord],
    extractions: Sequence[Extraction],
) -> Costs:
    """What the QAT of each receiver and of each donor costs.

    Raises:
        MismatchError: a cost that neither the grid nor a document tells.
    """
    if cost is Cost.IMAGES:
        return _images(matrix)
    seconds = {run.digest: run.seconds for run in trainings if run.command == "train-qat"}
    twins = {found.digest: found.donor_qat for found in extractions}
    own = {name: seconds.get(str(row.qat)) for name, row in matrix.receivers.items()}
    taught = {name: seconds.get(str(twins.get(row.digest))) for name, row in matrix.donors.items()}
    hint = (
        "Add the --metrics of train-qat of every receiver and donor, and of extract of every "
        "vector; or count --cost images."
    )
    return _known(own, "receiver", hint), _known(taught, "donor", hint)


def _images(matrix: Matrix) -> Costs:
    hint = "The files of the grid do not tell how they were trained; --cost seconds may know."
    own = {name: row.trained_images for name, row in matrix.receivers.items()}
    taught = {name: row.trained_images for name, row in matrix.donors.items()}
    return _known(own, "receiver", hint), _known(taught, "donor", hint)


def _known(costs: Mapping[str, float | None], role: str, hint: str) -> dict[str, float]:
    if missing := [name for name, cost in costs.items() if cost is None]:
        more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MismatchError(f"what the QAT of {role} {missing[0]}{more} costs is not known", hint)
    return {name: float(cost) for name, cost in costs.items() if cost is not None}


def _donor(taught: Mapping[str, float], donor: str | None) -> tuple[str, float]:
    if donor is not None:
        return f"vector of {donor}", taught[donor]
    if len(taught) == 1:
        return f"vector of {next(iter(taught))}", next(iter(taught.values()))
    return "vector, mean of donors", float(np.mean(list(taught.values())))


def break_even(label: str, price: float, costs: Sequence[float], unit: str) -> str:
    """Break-even in words: how many receivers' own QAT cost what the donor's does."""
    even = price / float(np.mean(costs))
    first = _reached(sorted(costs), price), _reached(sorted(costs, reverse=True), price)
    beyond = f", more than the {len(costs)} here" if even > len(costs) else ""
    average = compact(float(np.mean(costs)))
    return (
        f"Break-even N* = {even:.2f} receivers{beyond}: the donor's QAT ({label}: {compact(price)} "
        f"{unit}) over a receiver's, {average} on average. Counted in receivers, the vector is "
        f"no dearer {first[0]} if the cheapest come first, {first[1]} if the costliest do."
    )


def _reached(costs: Sequence[float], price: float) -> str:
    count = crossing(costs, price)
    return f"from {count} on" if count else f"only beyond {len(costs)} receivers"


def _ways(
    matrix: Matrix, receivers: Sequence[str], own: Mapping[str, float], donor: str | None
) -> Iterable[Way]:
    for key in baseline_keys(matrix):
        held = [name for name in receivers if key in matrix.baselines[name]]
        if key == FLOAT or not held:
            continue
        shares = tuple(matrix.baselines[name][key].test.top1 for name in held)
        taught = key == OWN_QAT
        kind = "qat" if taught else "grid" if _data_free(matrix, key) else "named"
        costs = tuple(own[name] if taught else 0.0 for name in held)
        some = f", {len(held)} of {len(receivers)}" if len(held) < len(receivers) else ""
        yield Way(f"{baseline_name(matrix, key)}{some}", kind, costs, shares)
    pickers = [(fixed_name(lam), at_fixed(place)) for place, lam in enumerate(matrix.fixed)]
    pickers += [(chosen_name(key), at_chosen(key)) for key in matrix.selectors]
    for label, pick in pickers:
        choices = [
            [choice for c in matrix.transfers if _counts(c, name, donor) and (choice := pick(c))]
            for name in receivers
        ]
        means = [float(np.mean([c.test.top1 for c in row])) for row in choices if row]
        use = used(choice.use for row in choices for choice in row)
        if means:
            words = f"vector, {label} ({use})"
            yield Way(words, "patched", (0.0,) * len(means), tuple(means))


def _counts(cell: Cell, receiver: str, donor: str | None) -> bool:
    return cell.receiver == receiver and donor in (None, cell.donor)


def _data_free(matrix: Matrix, key: str) -> bool:
    return key == PLAIN or key.startswith("rtn ")
