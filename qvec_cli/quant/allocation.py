"""Which width each layer gets, so that a budget is met at the least damage: a knapsack.

Each layer has options, of which one is taken. The best choice is found by dynamic programming over
the budget in whole parts, and so is the best but for what the parts round away; the relaxed
problem, in which an option may be taken by half, bounds by how much a choice could be better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from qvec_cli.errors import SpecError

Array = np.ndarray[Any, np.dtype[Any]]

PARTS: Final = 20_000
"""Into how many the part of a budget is cut that the cheapest choice leaves."""


class Option(NamedTuple):
    """One width of a layer, or of layers that have to have the same."""

    bits: int | None  # None: float
    cost: int  # in units of the budget
    damage: float  # from 0 up, which adds up over layers


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for every layer."""

    bits: Mapping[str, int | None]  # by the names of layers
    cost: int
    damage: float
    bound: float  # of the damage that any choice within the budget does

    @property
    def gap(self) -> float:
        """The share of the damage by which another choice could be better, at most."""
        return 1 - self.bound / self.damage if self.damage > 0 else 0.0


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> Allocation:
    """The options that together cost at most ``budget``, at the least damage.

    SpecError: even the cheapest cost more.
    """
    # An option beside which another one costs no more and does no more damage is never taken.
    fronts = {layer: [*_front(several)] for layer, several in options.items()}
    least = sum(front[0].cost for front in fronts.values())
    if least > budget:
        raise SpecError(f"at least {least:,} are needed, and the budget is {budget:,}")
    chosen = _best(fronts, budget - least)
    cost = sum(option.cost for option in chosen.values())
    damage = sum(option.damage for option in chosen.values())
    bits = {layer: option.bits for layer, option in chosen.items()}
    return Allocation(bits, cost, damage, min(_bound(fronts, budget - least), damage))


def _front(options: Sequence[Option]) -> Iterator[Option]:
    """The options that are worth their cost, the cheapest first."""
    least = math.inf
    for option in sorted(options, key=lambda option: (option.cost, option.damage)):
        if option.damage < least:
            least = option.damage
            yield option


def _best(fronts: Mapping[str, Sequence[Option]], room: int) -> dict[str, Option]:
    """The best choice whose cost above the cheapest, rounded up to parts, fits into ``room``."""
    part = max(1, room // PARTS)
    count = room // part + 1
    least, taken = np.zeros(count), {}
    for layer, front in fronts.items():
        extra = [-(-(option.cost - front[0].cost) // part) for option in front]
        tries = np.full((len(front), count), math.inf)
        for row, (option, parts) in enumerate(zip(front, extra, strict=True)):
            if parts < count:
                tries[row, parts:] = least[: count - parts] + option.damage
        taken[layer] = tries.argmin(axis=0), extra
        least = tries.min(axis=0)
    chosen, left = {}, count - 1
    for layer in reversed(taken):
        rows, extra = taken[layer]
        row = int(rows[left])
        chosen[layer], left = fronts[layer][row], left - extra[row]
    return {layer: chosen[layer] for layer in fronts}


def _bound(fronts: Mapping[str, Sequence[Option]], room: int) -> float:
    """The least damage where options may be taken in part: along the hulls, steepest first."""
    damage = sum(front[0].damage for front in fronts.values())
    steps = [step for front in fronts.values() for step in _steps(front)]
    for cost, gain in sorted(steps, key=lambda step: -step[1] / step[0]):
        share = min(1.0, room / cost)
        damage, room = damage - share * gain, room - cost
        if share < 1:
            break
    return damage


def _steps(front: Sequence[Option]) -> Iterator[tuple[int, float]]:
    """Cost and gain of each step along the lower convex hull of a layer's options."""
    place = 0
    while place + 1 < len(front):
        here = front[place]
        steps = [(o.cost - here.cost, here.damage - o.damage) for o in front[place + 1 :]]
        slopes = [gain / cost for cost, gain in steps]
        ahead = max(range(len(steps)), key=lambda n: (slopes[n], n))
        yield steps[ahead]
        place += ahead + 1
