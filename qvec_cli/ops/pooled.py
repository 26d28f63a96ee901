"""Several files' moments as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from qvec_cli.checkpoint.card import canonical
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.errors import MismatchError
from qvec_cli.ops.attached import Carried, Facts, packed, plan
from qvec_cli.quant import moments


class Pooled:
    """What the images of all of several files together would have given.

    Args:
        many: of one architecture; the same moments twice count once.

    Raises:
        MismatchError: files whose layers are not the same.
    """

    def __init__(self, many: Sequence[Carried]) -> None:
        unlike = {canonical(one.facts.to_json()): one for one in reversed(many)}
        self._many = [*reversed(unlike.values())]
        first = self._many[0]
        for other in self._many[1:]:
            if _outline(first) != _outline(other):
                raise MismatchError(
                    f"{first.checkpoint.path} and {other.checkpoint.path} have moments of "
                    "different layers",
                    hint="Make them with the same --targets.",
                )
        sources = [source for one in self._many for source in one.facts.sources]
        tokens = {s: sum(one.facts.sites[s] for one in self._many) for s in first.facts.sites}
        ranks = [one.facts.rank for one in self._many]
        rank = None if None in ranks else max(r for r in ranks if r is not None)
        self.facts = Facts(rank, tokens, first.facts.aliases, tuple(dict.fromkeys(sources)))
        self.plan = plan(first.widths, rank)

    def blocks(self) -> Iterator[tuple[str, Iterable[Array]]]:
        """Every array of ``plan``, a layer at a time; one file's go as they stand."""
        if len(self._many) == 1:
            yield from self._many[0].blocks()
            return
        for site in self.facts.sites:
            counts = [one.facts.sites[site] for one in self._many]
            inputs = moments.pool((one.of_site(site) for one in self._many), counts)
            yield from packed(site, inputs, self.facts.rank)


def _outline(carried: Carried) -> tuple[Mapping[str, int], Mapping[str, str]]:
    return carried.widths, carried.facts.aliases
