"""A receiver, loaded once, and what each vector makes of it: the lines of a transfer grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import NotFiniteError, QvecError
from qvec_cli.inputs.data_use import inherited_use, patched_use
from qvec_cli.inputs.examples import Examples
from qvec_cli.inputs.files import opened
from qvec_cli.model.build import load
from qvec_cli.selection.by_agreement import Curve, curve_of
from qvec_cli.selection.by_labels import choose
from qvec_cli.specs import DataUse, Grid, Listener, Method, Null, Scale, Use, spent
from qvec_cli.transfer.nulls import null
from qvec_cli.vector.arithmetic import difference

if TYPE_CHECKING:
    from qvec_cli.inputs.proxies import Proxies
    from qvec_cli.learn.forward import Outputs
    from qvec_cli.selection.trial import Trial


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
class ReceiverInputs:
    """A receiver and all that is measured on it, found to belong together."""

    name: str
    theta: Path
    qat: Path | None
    baselines: Mapping[str, Path]
    examples: Examples
    targets: tuple[str, ...]
    grid: Grid
    method: Method
    lambdas: tuple[float, ...]  # ascending, 0 among them
    fixed: tuple[float, ...]
    oracle: bool  # whether every lambda is measured on test too
    device: str
    proxies: Proxies | None = None  # for the choice without labels


@dataclass(frozen=True, slots=True)
class Vector:
    """What is added to a receiver: a donor's vector, or a null one of its length."""

    donor: str
    rho: Path
    diagonal: bool  # whether it is the receiver's own
    null: Null | None = None
    drift: tuple[Path, Path] | None = None  # the donor and the base, for a task vector
    seed: int = 0


class Host:
    """A receiver with its network and images in memory."""

    def __init__(self, setting: ReceiverInputs, listener: Listener) -> None:
        from qvec_cli.selection.trial import load_trial

        self.setting = setting
        splits = ("val", "test")
        with opened(setting.theta, listener) as theta:
            self._use = inherited_use(theta)
            plain = load_trial(
                theta, setting.examples, setting.targets, splits, setting.device, listener
            )
            theta.settle()
        self._trial = replace(plain, grid=setting.grid, method=setting.method)
        self._plain = _kept(self._trial.scores(0.0, splits))
        self._labels = Use(DataUse.RECEIVER_LABELS, {"val": self._plain["val"]["n"]})
        self._jury = _Jury(self._trial, setting, listener) if setting.proxies else None

    @property
    def device(self) -> str:
        """Where it is measured; the last bits of a product may hang on that."""
        return str(next(self._trial.network.parameters()).device)

    def proxies(self, listener: Listener) -> Point:
        """What the proxy images are to the receiver, where there are some."""
        return {"proxies": self._jury.images(listener)} if self._jury else {}

    def baselines(self, listener: Listener) -> dict[str, Point]:
        """What the receiver has without any donor, on test; first float, then plain rounding."""
        own, trial = self.setting.grid, self._trial
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
        if self.setting.qat is not None:
            rows["qat"] = self._own_qat(self.setting.qat, listener)
        for name, path in self.setting.baselines.items():
            rows[name] = self._file(path, listener)
        return rows

    def _own_qat(self, path: Path, listener: Listener) -> Point:
        """The receiver's own QAT twin, on the grid."""
        from qvec_cli.selection.trial import resident

        with opened(path, listener) as checkpoint:
            twin = replace(self._trial, theta=resident(checkpoint))
            use = inherited_use(checkpoint).level
            checkpoint.settle()
        test = twin.score(0.0, "test").to_json()
        return {"grid": self.setting.grid.to_json(), "test": _bare(test), "data_use": use}

    def _file(self, path: Path, listener: Listener) -> Point:
        """Any model of the same task, float or packed, as it is."""
        from qvec_cli.inputs.network import load_state

        with opened(path, listener) as checkpoint:
            state = load_state(checkpoint)
            grid = checkpoint.card.quant
            use = inherited_use(checkpoint).level
            checkpoint.settle()
        load(self._trial.network, state, str(path))
        test = self._trial.measured("test").to_json()
        return {"grid": grid, "test": _bare(test), "data_use": use}

    def cell(self, vector: Vector, listener: Listener) -> Point:
        """The curve over lambda, its best point and the fixed lambdas, for one vector."""
        setting = self.setting
        trial, patched = self._loaded(vector, listener)
        splits = ("val", "test") if setting.oracle else ("val",)
        curve: list[Point] = []
        answers = {}
        for done, lam in enumerate(setting.lambdas, start=1):
            scores = self._scores(trial, vector, lam, splits)
            curve.append({"lambda": lam, **{split: scores[split] for split in splits}})
            if self._jury:
                answers[lam] = self._jury.answers(lam)
            listener.progress(f"{setting.name} + {vector.donor}", done, len(setting.lambdas))
        known = {point["lambda"]: point for point in curve if "test" in point}

        def on_test(lam: float, use: Use) -> Point:
            point = known.get(lam) or self._scores(trial, vector, lam, ("test",))
            return {"lambda": lam, "test": point["test"], "data_use": use.level}

        best = choose(curve)
        use = spent(patched, self._labels)
        chosen = {SELECTOR: {**on_test(best["lambda"], use), "val": best["val"]}}
        facts: Point = {}
        if self._jury:
            told = self._jury.told(answers)
            curve = [{**p, **q} for p, q in zip(curve, told.points(), strict=True)]
            chosen[LABEL_FREE] = on_test(told.lam, spent(patched, self._jury.use))
            facts = {"score": told.score()}
        return {
            "curve": curve,
            "fixed": [on_test(lam, patched if lam else self._use) for lam in setting.fixed],
            "chosen": chosen,
            **facts,
            "oracle": _oracle(curve) if setting.oracle else None,
        }

    def _loaded(self, vector: Vector, listener: Listener) -> tuple[Trial, Use]:
        """The trial of a vector, and what the receiver has cost with it."""
        from qvec_cli.selection.trial import resident

        with opened(vector.rho, listener) as rho, opened(self.setting.theta, listener) as theta:
            numbers = resident(rho)
            key = f"{vector.seed} {rho.settle()}"
            use = patched_use(theta, rho) if vector.null is None else self._use
        if vector.null is not None:
            numbers = null(vector.null, numbers, _drift(vector, listener), key)
        return replace(self._trial, rho=numbers), use

    def _scores(
        self, trial: Trial, vector: Vector, lam: float, splits: tuple[str, ...]
    ) -> dict[str, Point]:
        if lam == 0:
            return self._plain
        try:
            return _kept(trial.scores(lam, splits))
        except NotFiniteError:
            raise QvecError(
                f"{self.setting.name} + {lam:g} * {vector.rho} is no longer finite",
                hint="Leave it out of lambdas; the lines before it are kept for --resume.",
            ) from None


class _Jury:
    """The float receiver's answers to proxy images, and those of plain quantization."""

    def __init__(self, trial: Trial, setting: ReceiverInputs, listener: Listener) -> None:
        from qvec_cli.selection.agreement import load_judge

        assert setting.proxies is not None
        self._proxies = setting.proxies
        self.use = setting.proxies.use
        self._judge = load_judge(trial, setting.examples.model, setting.proxies, listener)
        self._plain = self._judge.answers_at(trial, 0.0)

    def answers(self, lam: float) -> Outputs:
        """Of the network as it stands, which has been measured at lambda."""
        return self._plain if lam == 0 else self._judge.answers()

    def images(self, listener: Listener) -> Point:
        """How answers to the images are compared, and how much these tell."""
        from qvec_cli.selection.agreement import told

        found = told(self._judge, self._proxies, listener)
        del found["sources"]  # the run's line has them
        return {"measure": self._judge.measure, **found}

    def told(self, answers: Mapping[float, Outputs]) -> Curve:
        """What the answers at every lambda say."""
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


def _drift(vector: Vector, listener: Listener) -> dict[str, Any] | None:
    """What a donor's plain fine-tuning has changed, by name."""
    if vector.drift is None:
        return None
    with opened(vector.drift[0], listener) as donor, opened(vector.drift[1], listener) as base:
        with opened(vector.rho, listener) as rho:
            names = [*rho]
        drift = {name: difference(donor.finite(name), base.finite(name)) for name in names}
        for checkpoint in (donor, base):
            checkpoint.settle()
        return drift


def _kept(scores: Mapping[str, Any]) -> dict[str, Point]:
    return {split: _bare(score.to_json()) for split, score in scores.items()}


def _bare(score: Mapping[str, Any]) -> Point:
    return {name: number for name, number in score.items() if name != _NOT_KEPT}
