"""A receiver, loaded once, and what each vector makes of it: the lines of a transfer grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import NotFiniteError, QvecError
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.lineage import inherited_use, patched_use
from qvec_cli.model.build import load
from qvec_cli.selection.by_agreement import Curve, curve_of
from qvec_cli.selection.by_labels import choose
from qvec_cli.specs import (
    DataUse,
    Grid,
    GridOptions,
    Listener,
    Loading,
    Method,
    Null,
    Scale,
    Use,
    spent,
)
from qvec_cli.transfer.nulls import null
from qvec_cli.vector.arithmetic import difference

if TYPE_CHECKING:
    from qvec_cli.checkpoint.read import Checkpoint
    from qvec_cli.inputs.images import Proxies, ProxyOptions
    from qvec_cli.inputs.receiver import Receiver
    from qvec_cli.learn.forward import Outputs
    from qvec_cli.model.configuration import Model
    from qvec_cli.selection.trial import Trial
    from qvec_cli.transfer.grid_file import GridReceiver


Point = dict[str, Any]


SELECTOR: Final = "val"
"""The paper's way to lambda*: the receiver's labelled validation images."""


LABEL_FREE: Final = "agreement"
"""The way without any label: following the receiver's own float answers on proxy images."""


_RULES: Final = (
    (Scale.ABSMAX, True),
    (Scale.MSE, True),
    (Scale.MSE_FULL, True),
    (Scale.ABSMAX, False),
)
"""Grids without data that every table shows: the paper's, clipped ones, one with a zero point."""


_NOT_KEPT: Final = "images_per_second"
"""What differs each time that a cell is measured."""


@dataclass(frozen=True, slots=True)
class CellOptions:
    """What holds for every cell of a grid."""

    grid: GridOptions
    lambdas: tuple[float, ...]
    fixed: tuple[float, ...]
    loading: Loading
    method: Method = Method.RTN
    oracle: bool = True  # whether test is measured at every lambda
    nulls: tuple[Null, ...] = ()
    null_donors: tuple[str, ...] = ()  # whose norms they take; none named: all donors'
    seed: int = 0  # of the null vectors
    device: str = "auto"
    proxy: ProxyOptions | None = None  # images for the choice without labels


@dataclass(frozen=True, slots=True)
class Vector:
    """What is added to a receiver: a donor's vector, or a null one of its length."""

    donor: str
    rho: Path
    diagonal: bool  # whether it is the receiver's own
    null: Null | None = None
    drift: tuple[Path, Path] | None = None  # the donor and the base, for a task vector
    seed: int = 0


class MeasuredReceiver:
    """A receiver with its network and images in memory, on which vectors are measured.

    Args:
        member: its files, as the grid file names them.
        receiver: as it was resolved.
        options: of every cell.
        files: the open files of the run.
        listener: hears of the decoding.
    """

    def __init__(
        self,
        name: str,
        member: GridReceiver,
        receiver: Receiver,
        options: CellOptions,
        files: InputFiles,
        listener: Listener,
    ) -> None:
        from qvec_cli.selection.trial import load_trial

        self._name, self._member, self._files = name, member, files
        self._options, self._splits = options, ("val", "test")
        theta, targets = files.open(member.model), receiver.targets
        self._use = inherited_use(theta)
        plain = load_trial(
            theta, receiver.examples, targets, self._splits, options.device, listener
        )
        theta.settle()
        assert receiver.grid is not None
        self._trial = replace(plain, grid=receiver.grid, method=options.method)
        self._plain = _kept(self._trial.scores(0.0, self._splits))
        self._labels = Use(DataUse.RECEIVER_LABELS, {"val": self._plain["val"]["n"]})
        self._proxies = receiver.proxies
        self._agreement = None
        if self._proxies:
            self._agreement = _Agreement(self._trial, receiver.model, self._proxies, listener)

    @property
    def device(self) -> str:
        """Where it is measured; the last bits of a product may hang on that."""
        return str(next(self._trial.network.parameters()).device)

    def proxies(self, listener: Listener) -> Point:
        """What the proxy images are to the receiver, where there are some."""
        return {"proxies": self._agreement.facts(listener)} if self._agreement else {}

    def baselines(self) -> dict[str, Point]:
        """Test accuracy without any donor; first float, then plain rounding."""
        own, trial = self._trial.grid, self._trial
        use = self._use.level
        fp = trial.float_score("test").to_json()
        rows: dict[str, Point] = {
            "fp": {"grid": None, "test": _bare(fp), "data_use": use},
            "ptq": {"grid": own.to_json(), "test": self._plain["test"], "data_use": use},
        }
        for grid in other_grids(own):
            test = replace(trial, grid=grid).score(0.0, "test").to_json()
            name = f"rtn {grid.scale}{'' if grid.symmetric else ' asymmetric'}"
            rows[name] = {"grid": grid.to_json(), "test": _bare(test), "data_use": use}
        if self._member.qat is not None:
            rows["qat"] = self._own_qat(self._files.open(self._member.qat))
        for name, path in self._member.baselines.items():
            rows[name] = self._file(self._files.open(path))
        return rows

    def _own_qat(self, qat: Checkpoint) -> Point:
        """The receiver's own QAT twin, on the grid."""
        from qvec_cli.selection.trial import resident

        twin = replace(self._trial, theta=resident(qat))
        qat.settle()
        test, use = twin.score(0.0, "test").to_json(), inherited_use(qat).level
        return {"grid": self._trial.grid.to_json(), "test": _bare(test), "data_use": use}

    def _file(self, model: Checkpoint) -> Point:
        """Any model of the same task, float or packed, as it is."""
        from qvec_cli.inputs.network import load_state

        load(self._trial.network, load_state(model), str(model.path))
        model.settle()
        test, use = self._trial.measured("test").to_json(), inherited_use(model).level
        return {"grid": model.card.quant, "test": _bare(test), "data_use": use}

    def cell(self, vector: Vector, listener: Listener) -> Point:
        """The curve over lambda, its best point and the fixed lambdas, for one vector."""
        options = self._options
        trial, patched = self._loaded(vector)
        splits = self._splits if options.oracle else ("val",)
        curve: list[Point] = []
        answers = {}
        for done, lam in enumerate(options.lambdas, start=1):
            scores = self._scores(trial, vector, lam, splits)
            curve.append({"lambda": lam, **{split: scores[split] for split in splits}})
            if self._agreement:
                answers[lam] = self._agreement.answers(lam)
            listener.progress(f"{self._name} + {vector.donor}", done, len(options.lambdas))
        known = {point["lambda"]: point for point in curve if "test" in point}

        def on_test(lam: float, use: Use) -> Point:
            point = known.get(lam) or self._scores(trial, vector, lam, ("test",))
            return {"lambda": lam, "test": point["test"], "data_use": use.level}

        best = choose(curve)
        use = spent(patched, self._labels)
        chosen = {SELECTOR: {**on_test(best["lambda"], use), "val": best["val"]}}
        facts: Point = {}
        if self._agreement:
            agreement = self._agreement.curve(answers)
            curve = [{**p, **q} for p, q in zip(curve, agreement.points(), strict=True)]
            chosen[LABEL_FREE] = on_test(agreement.lam, spent(patched, self._agreement.use))
            facts = {"score": agreement.score()}
        return {
            "curve": curve,
            "fixed": [on_test(lam, patched if lam else self._use) for lam in options.fixed],
            "chosen": chosen,
            **facts,
            "oracle": _oracle(curve) if options.oracle else None,
        }

    def _loaded(self, vector: Vector) -> tuple[Trial, Use]:
        """The trial of a vector, and the receiver data that the two have used."""
        from qvec_cli.selection.trial import resident

        rho, theta = self._files.open(vector.rho), self._files.open(self._member.model)
        numbers = resident(rho)
        key = f"{vector.seed} {rho.settle()}"
        if vector.null is None:
            return replace(self._trial, rho=numbers), patched_use(theta, rho)
        numbers = null(vector.null, numbers, _drift(vector, self._files), key)
        return replace(self._trial, rho=numbers), self._use

    def _scores(
        self, trial: Trial, vector: Vector, lam: float, splits: tuple[str, ...]
    ) -> dict[str, Point]:
        if lam == 0:
            return self._plain
        try:
            return _kept(trial.scores(lam, splits))
        except NotFiniteError:
            raise QvecError(
                f"{self._name} + {lam:g} * {vector.rho} is no longer finite",
                hint="Leave it out of lambdas; the lines before it are kept for --resume.",
            ) from None


class _Agreement:
    """The float receiver's answers to proxy images, and those of plain quantization."""

    def __init__(self, trial: Trial, model: Model, proxies: Proxies, listener: Listener) -> None:
        from qvec_cli.selection.agreement import load_judge

        self._proxies, self.use = proxies, proxies.use
        self._judge = load_judge(trial, model, proxies, listener)
        self._plain = self._judge.answers_at(trial, 0.0)

    def answers(self, lam: float) -> Outputs:
        """Of the network as it stands, which has been measured at lambda."""
        return self._plain if lam == 0 else self._judge.answers()

    def facts(self, listener: Listener) -> Point:
        """How answers to the images are compared, and how much these tell."""
        from qvec_cli.selection.agreement import proxy_facts

        facts = proxy_facts(self._judge, self._proxies, listener)
        del facts["sources"]  # the run's line has them
        return {"measure": self._judge.measure, **facts}

    def curve(self, answers: Mapping[float, Outputs]) -> Curve:
        """The distances and the choice that follow from the answers at every lambda."""
        return curve_of(self._judge, answers)


def other_grids(own: Grid) -> Iterator[Grid]:
    """Grids of the same bits and blocks whose scales need no data, but for the run's own."""
    for scale, symmetric in _RULES:
        grid = replace(own, scale=scale, symmetric=symmetric)
        if grid != own:
            yield grid


def _oracle(curve: list[Point]) -> Point:
    """The lambda that nobody can choose: the best on test, ties to the smaller |lambda|."""
    best = max(curve, key=lambda point: (point["test"]["n_correct"], -abs(point["lambda"])))
    return {"lambda": best["lambda"], "test": best["test"]}


def _drift(vector: Vector, files: InputFiles) -> dict[str, Any] | None:
    """What a donor's plain fine-tuning has changed, by name."""
    if vector.drift is None:
        return None
    donor, base = (files.open(path) for path in vector.drift)
    names = [*files.open(vector.rho)]
    drift = {name: difference(donor.finite(name), base.finite(name)) for name in names}
    for checkpoint in (donor, base):
        checkpoint.settle()
    return drift


def _kept(scores: Mapping[str, Any]) -> dict[str, Point]:
    return {split: _bare(score.to_json()) for split, score in scores.items()}


def _bare(score: Mapping[str, Any]) -> Point:
    return {name: number for name, number in score.items() if name != _NOT_KEPT}
