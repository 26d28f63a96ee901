"""Makes candidates, one file at a time, and measures them on images that they have not seen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.advise.candidates import AdviseInputs, AdviseRequest, Candidate
from qvec_cli.advise.decision import Family, Judged, Verdict, decide
from qvec_cli.errors import QvecError
from qvec_cli.inputs.files import InputFiles, opened
from qvec_cli.inputs.lineage import inherited_use
from qvec_cli.pipeline.quantize import quantize
from qvec_cli.quant.qtensor import stored_bits
from qvec_cli.selection.choose import Average
from qvec_cli.specs import Grid, Listener, Silence, Use, spent

if TYPE_CHECKING:
    from torch import nn

    from qvec_cli.selection.agreement import Judge
    from qvec_cli.selection.trial import Trial


Facts = dict[str, Any]


MINE: Final = "OUT.st"
"""Stands for the output in commands, where none is named."""


CHOSEN: Final = frozenset({"chosen", "anchored"})
"""Ways whose lambda was chosen on images, which the number in their commands does not tell."""


class Trials:
    """Makes candidates, one file at a time, and measures each.

    Args:
        request: what the user asks for.
        inputs: the receiver and the images that judge.
        folder: of temporary files, whose names stand in commands without it.
        files: the open files of the run.
        listener: hears how each candidate fares.
    """

    def __init__(
        self,
        request: AdviseRequest,
        inputs: AdviseInputs,
        folder: Path,
        files: InputFiles,
        listener: Listener,
    ) -> None:
        from qvec_cli.selection.agreement import load_judge, proxy_facts
        from qvec_cli.selection.trial import load_trial

        self._inputs, self._files = inputs, files
        self._folder, self._listener = folder, listener
        receiver = inputs.receiver
        splits = ("test",) if receiver.labelled else ()
        theta, targets = receiver.theta, receiver.targets
        self._trial: Trial = load_trial(
            theta, receiver.examples, targets, splits, request.device, listener
        )
        self._judge: Judge = load_judge(self._trial, receiver.model, inputs.judging, listener)
        self._proxies = proxy_facts(self._judge, inputs.judging, listener)
        self._rows: list[Facts] = []
        self._judged: list[Judged] = []
        self._skipped: list[Facts] = []
        self.candidates: dict[str, Candidate] = {}
        self.uses: dict[str, Use] = {}

    @property
    def network(self) -> nn.Module:
        """The network of the receiver; its weights are overwritten."""
        return self._trial.network

    def add(self, candidate: Candidate) -> Judged | None:
        """Makes and measures one; one that cannot be made is left out, with the reason."""
        started, path = time.perf_counter(), candidate.request.out
        try:
            quantize(candidate.request, Silence(), self._files)
        except QvecError as error:
            self.leave_out(candidate.name, str(error))
            return None
        seconds = time.perf_counter() - started
        judged = self._measure(candidate, path)
        row = {
            "name": candidate.name,
            "way": candidate.way,
            "family": candidate.family,
            "grid": candidate.grid.to_json(),
            "bits_per_weight": judged.bits_per_weight,
            "distance": judged.mean,
            "standard_error": Average.of(judged.distances).standard_error,
            "kept": judged.kept,
            "data_use": self.uses[candidate.name].to_json(),
            "seconds": seconds,
            "commands": self.commands(candidate, MINE),
        }
        if self._inputs.receiver.labelled:
            row["test"] = self._trial.measured("test").to_json()
        self._rows.append(row)
        self._judged.append(judged)
        self._listener.milestone(f"{candidate.name}: distance {judged.mean:.3g}")
        return judged

    def _measure(self, candidate: Candidate, path: Path) -> Judged:
        from qvec_cli.inputs.network import load_state
        from qvec_cli.model.build import load

        with opened(path, Silence()) as file:
            load(self._trial.network, load_state(file), str(path))
            chosen = (self._inputs.seen,) if candidate.way in CHOSEN else ()
            self.uses[candidate.name] = spent(inherited_use(file), *chosen)
        answers = self._judge.answers()
        same = answers.logits.argmax(axis=1) == self._judge.teacher.logits.argmax(axis=1)
        self.candidates[candidate.name] = candidate
        return Judged(
            candidate.name,
            candidate.family,
            bits_per_weight(candidate.grid, self._inputs.shapes),
            self._judge.distances(answers),
            float(same.mean()),
        )

    def leave_out(self, name: str, reason: str) -> None:
        """Records what is no candidate, and why."""
        self._skipped.append({"name": name, "reason": reason})

    def best(self, *families: Family) -> Candidate | None:
        """The candidate of some families that is nearest to the float answers so far."""
        judged = [one for one in self._judged if one.family in families]
        return self.candidates[min(judged, key=lambda one: one.mean).name] if judged else None

    def verdict(self, bits: int) -> Verdict:
        """The decision between candidates that cost as much as a scale and a zero point a row."""
        allowed = bits_per_weight(Grid(bits, symmetric=False), self._inputs.shapes)
        return decide(self._judged, allowed, trusted=not self._proxies["close_to_noise"])

    def commands(self, candidate: Candidate, out: str) -> list[str]:
        """What the user would type; files that were made on the way go by their names."""
        trained = self._inputs.receiver.theta.card.quant
        grid = Grid.from_json(trained) if trained else None
        if candidate.request.anchor:
            grid = self._inputs.receiver.grid
        crossing = grid is not None and grid != candidate.grid
        lines = candidate.commands(out, crossing=crossing)
        return [line.replace(f"{self._folder}/", "") for line in lines]

    def carry_out(self, candidate: Candidate, out: Path) -> None:
        """Writes the model that is recommended: the same bytes as its commands give."""
        quantize(replace(candidate.request, out=out), self._listener, self._files)

    def facts(self) -> Facts:
        """All that was measured."""
        facts: Facts = {
            "measure": self._judge.measure,
            "proxies": self._proxies,
            "candidates": self._rows,
            "skipped": self._skipped,
        }
        if self._inputs.receiver.labelled:
            facts["fp"] = self._trial.float_score("test").to_json()
        return facts


def bits_per_weight(grid: Grid, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Scales and zero points counted."""
    weights = sum(rows * columns for rows, columns in shapes.values())
    return sum(stored_bits(shape, grid) for shape in shapes.values()) / weights
