"""A receiver, loaded once, and what each vector makes of it: the lines of a transfer grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import NotFiniteError, located
from qvec_cli.inputs.files import InputFiles
from qvec_cli.inputs.lineage import inherited_use, patched_use
from qvec_cli.selection.by_agreement import curve_of
from qvec_cli.selection.by_labels import choose
from qvec_cli.selection.choose import LeftOut, skipped
from qvec_cli.specs import DataUse, Grid, Listener, Scale, Use, spent
from qvec_cli.transfer.grid_file import CellOptions, GridReceiver, Vector
from qvec_cli.transfer.nulls import null
from qvec_cli.vector.arithmetic import difference

if TYPE_CHECKING:
    from qvec_cli.checkpoint.read import Checkpoint
    from qvec_cli.inputs.receiver import Receiver
    from qvec_cli.learn.forward import Accuracy, Outputs
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


class MeasuredReceiver:
    """A receiver with its network and images in memory, on which vectors are measured.

    Its name and ``member``, its files, are those of the grid file; ``files`` are the run's.
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
        from qvec_cli.selection.trial import load_judge, load_trial

        self._name, self._member, self._files = name, member, files
        self._options, self._splits, self._listener = options, ("val", "test"), listener
        theta = files.open(member.model)
        reopened, device = replace(receiver, theta=theta), options.device
        self._use = inherited_use(theta)
        self._trial = load_trial(reopened, self._splits, device, listener, options.method)
        theta.settle()
        self.device = self._trial.device  # the last bits of a product may hang on that
        scores = self._trial.scores(0.0, self._splits)
        self._plain = {split: _bare(score) for split, score in scores.items()}
        self._evens = {0.0: scores["test"].n_correct_even}  # by lambda
        self._labels = Use(DataUse.RECEIVER_LABELS, {"val": self._plain["val"]["n"]})
        self._judge = None
        if receiver.proxies:
            self._judge = load_judge(self._trial, receiver.proxies, listener)
            self._answers = self._judge.answers_at(self._trial, 0.0)

    def proxies(self) -> Point:
        """How answers to the proxies are compared, and how much these tell, if there are some."""
        if self._judge is None:
            return {}
        facts = self._judge.proxy_facts(self._listener)
        del facts["sources"]  # the run's line has them
        return {"proxies": {"measure": self._judge.measure, **facts}}

    def baselines(self) -> dict[str, Point]:
        """Test accuracy without any donor; first float, then plain rounding."""
        own, trial, use = self._trial.grid, self._trial, self._use.level
        fp, ptq = trial.float_score("test"), self._plain["test"]
        rows: dict[str, Point] = {
            "fp": {"grid": None, "test": _bare(fp), "data_use": use},
            "ptq": {"grid": own.to_json(), "test": ptq, "data_use": use},
        }
        for grid in other_grids(own):
            name = f"rtn {grid.scale}{'' if grid.symmetric else ' asymmetric'}"
            try:
                test = _bare(replace(trial, grid=grid).score(0.0, "test"))
            except NotFiniteError as error:
                self._listener.note(f"{self._name}: {name} is left out: {error}")
                continue
            rows[name] = {"grid": grid.to_json(), "test": test, "data_use": use}
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
        with located(qat.path, NotFiniteError):
            test, use = _bare(twin.score(0.0, "test")), inherited_use(qat).level
        return {"grid": self._trial.grid.to_json(), "test": test, "data_use": use}

    def _file(self, model: Checkpoint) -> Point:
        """Any model of the same task, float or packed, as it is."""
        from qvec_cli.inputs.network import load_state
        from qvec_cli.model.build import load

        load(self._trial.network, load_state(model), str(model.path))
        model.settle()
        with located(model.path, NotFiniteError):
            test, use = _bare(self._trial.measured("test")), inherited_use(model).level
        return {"grid": model.card.quant, "test": test, "data_use": use}

    def cell(self, vector: Vector, listener: Listener) -> Point:
        """The curve over lambda, its best point and the fixed lambdas, for one vector."""
        options = self._options
        trial, patched = self._loaded(vector)
        left_out = LeftOut(self._listener, f"{self._name} + {vector.donor}")
        curve, answers = self._traced(trial, left_out, listener)
        known = {point["lambda"]: point for point in curve if "test" in point}

        def on_test(lam: float, use: Use) -> Point:
            point = known.get(lam) or self._scores(trial, lam, ("test",))
            return {"lambda": lam, "test": point["test"], "data_use": use.level}

        fixed: list[Point] = []
        for lam in options.fixed:
            with left_out.skipping(lam):
                if lam not in left_out.reasons:
                    fixed.append(on_test(lam, patched if lam else self._use))
        chosen: dict[str, Point] = {}
        while SELECTOR not in chosen:  # a lambda may be finite on validation only
            best, use = choose(left_out.kept(curve)), spent(patched, self._labels)
            with left_out.skipping(best["lambda"]):
                chosen[SELECTOR] = {**on_test(best["lambda"], use), "val": best["val"]}
        facts: Point = {}
        while self._judge and LABEL_FREE not in chosen:
            points = left_out.kept(curve)
            agreement = curve_of(self._judge, {p["lambda"]: answers[p["lambda"]] for p in points})
            with left_out.skipping(agreement.lam):
                use = spent(patched, self._judge.proxies.use)
                chosen[LABEL_FREE] = on_test(agreement.lam, use)
                curve = [{**p, **q} for p, q in zip(points, agreement.points(), strict=True)]
                facts = {"score": agreement.score()}
        curve = left_out.kept(curve)
        return {
            "curve": curve,
            "fixed": fixed,
            "chosen": chosen,
            **facts,
            **skipped(left_out.points()),
            "oracle": _oracle(curve, self._evens) if options.oracle else None,
        }

    def _traced(
        self, trial: Trial, left_out: LeftOut, listener: Listener
    ) -> tuple[list[Point], dict[float, Outputs]]:
        """The curve of a vector by labels, and where there are proxies its answers to them."""
        lambdas = self._options.points
        splits = self._splits if self._options.oracle else ("val",)
        curve: list[Point] = []
        answers: dict[float, Outputs] = {}
        for done, lam in enumerate(lambdas, start=1):
            with left_out.skipping(lam):
                scores = self._scores(trial, lam, splits)
                if self._judge:
                    answers[lam] = self._judge.answers() if lam else self._answers
                curve.append({"lambda": lam, **{split: scores[split] for split in splits}})
            count = len(lambdas)
            listener.progress(f"{left_out.name}, lambda {done}/{count}", done, count)
        return curve, answers

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

    def _scores(self, trial: Trial, lam: float, splits: tuple[str, ...]) -> dict[str, Point]:
        if lam == 0:
            return self._plain
        scores = trial.scores(lam, splits)
        if "test" in scores:
            self._evens[lam] = scores["test"].n_correct_even
        return {split: _bare(score) for split, score in scores.items()}


def other_grids(own: Grid) -> Iterator[Grid]:
    """Grids of the same bits and blocks whose scales need no data, but for the run's own."""
    for scale, symmetric in _RULES:
        grid = replace(own, scale=scale, symmetric=symmetric)
        if grid != own:
            yield grid


def _oracle(curve: list[Point], evens: Mapping[float, int]) -> Point:
    """The lambda that nobody can choose: the best on test, ties to the smaller |lambda|.

    The best of several noisy scores flatters itself; ``crossed`` does not: of the images at even
    places and of the others, each half is scored at the lambda that is best on the other half.
    ``evens`` are the right answers at even places, by lambda.
    """
    right = {point["lambda"]: point["test"]["n_correct"] for point in curve}
    halves = [{lam: evens[lam] for lam in right}]
    halves.append({lam: right[lam] - evens[lam] for lam in right})
    best, one, other = (_most_right(counts) for counts in (right, *halves))
    images = curve[0]["test"]["n"]
    test = next(point["test"] for point in curve if point["lambda"] == best)
    crossed = halves[0][other] + halves[1][one]
    score = {"n": images, "n_correct": crossed, "top1": crossed / images}
    return {"lambda": best, "test": test, "crossed": score}


def _most_right(counts: Mapping[float, int]) -> float:
    return max(counts, key=lambda lam: (counts[lam], -abs(lam)))


def _drift(vector: Vector, files: InputFiles) -> Mapping[str, Any] | None:
    """What a donor's plain fine-tuning has changed, by name."""
    if vector.drift is None:
        return None
    donor, base = (files.open(path) for path in vector.drift)
    names = [*files.open(vector.rho)]
    drift = {name: difference(donor.finite(name), base.finite(name)) for name in names}
    for checkpoint in (donor, base):
        checkpoint.settle()
    return drift


def _bare(score: Accuracy) -> Point:
    """A score without what differs each time that it is measured."""
    return {key: value for key, value in score.to_json().items() if key != "images_per_second"}
