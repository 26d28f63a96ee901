"""What each target layer of a float model sees of some images, into a file that can travel."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qvec_cli.calibration.moments_file import MomentsFacts, MomentsSource, packed, plan
from qvec_cli.calibration.sequential import (
    check_images,
    linear_weights,
    load_float,
    normalised_batches,
    require_finite_inputs,
)
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import Array
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target
from qvec_cli.checkpoint.write import size_of, write
from qvec_cli.data.samples import Subset, Task
from qvec_cli.errors import MismatchError, NotFiniteError, located
from qvec_cli.inputs.files import opened, require
from qvec_cli.inputs.grids import require_some, targets_in
from qvec_cli.inputs.identify import network_of
from qvec_cli.inputs.images import Examples, open_images
from qvec_cli.inputs.lineage import digest_of
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import Model
from qvec_cli.model.targets import head_tensors
from qvec_cli.outputs.metrics import Input, Metrics, Plan, backbone_digest, provenance
from qvec_cli.quant.moments import Inputs, is_smaller
from qvec_cli.specs import DataUse, Listener, Loading, Use

SAMPLES: Final = 64
"""Images that are enough: more of them hardly change what GPTQ makes of their moments."""


@dataclass(frozen=True, slots=True)
class MomentsRequest:
    """What ``qvec moments`` is asked for."""

    source: Path  # a float checkpoint
    data: str
    out: Path
    samples: int = SAMPLES
    rank: int | None = None  # eigenpairs to keep of each moment; None: all of it
    half: bool = False  # whether moments are stored in float16
    split: str = "train"
    loading: Loading = field(default_factory=Loading)
    patterns: tuple[str, ...] = ()  # globs that name the targets; else the card or a rule does
    device: str = "auto"
    network: NetworkOptions = NetworkOptions()  # for a file without a card
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Collection:
    """A model, its targets and the images that go through it."""

    theta: Checkpoint
    model: Model
    targets: tuple[str, ...]
    task: Task  # the whole data set
    examples: Examples  # the images that were drawn
    count: int

    @property
    def use(self) -> Use:
        """The receiver data that the moments used: none, they are of other images."""
        return Use(DataUse.NONE, {"moments": self.count})


def collect(request: MomentsRequest, listener: Listener) -> Metrics:
    """Writes the moments of every target's inputs.
    Raises MismatchError: a target whose inputs cannot be seen, a rank that saves nothing;
    DataError: no such data set or split; NotFiniteError: inputs that overflow.
    """
    started = time.perf_counter()
    check_target(request.out, force=request.force)
    with opened(request.source, listener, request.network.weights) as theta:
        job = _prepared(request, theta, listener)
        parameters = {
            "data": request.data,
            "split": request.split,
            "samples": job.count,
            "rank": request.rank,
            "half": request.half,
        }
        if request.dry_run:
            # Which layers share their inputs only a forward tells, so the size is not foretold.
            check_images(theta, job.targets, job.model, request.device)
            fates = dict.fromkeys(theta, "no target")
            fates |= dict.fromkeys(job.targets, "inputs are measured")
            images, data = {request.split: job.count}, request.data
            planned = Plan("moments", request.out, fates, theta, parameters, images, data=data)
            return planned.metrics((theta,), started)
        sites, facts = _measured(request, job, listener)
        widths = {site: len(inputs.mean) for site, inputs in sites.items()}
        entries = plan(widths, facts.rank, half=facts.half)
        tensors = _tensors(theta, sites, facts)
        card = Card(
            Kind.MOMENTS,
            model=job.model.to_json(),
            targets=job.targets,
            base=theta.card.base,
            provenance=provenance("moments", {"model": theta}, job.use, of=facts.in_words()),
            moments=facts.to_json(),
            rotation=theta.card.rotation,
        )
        written = write(request.out, entries, tensors, card, force=request.force)
        read = (Input.of(theta), Input(request.data, "data", job.task.digest))
        results = {
            "output": str(request.out),
            "digest": written.digest,
            "layers": len(job.targets),
            "tokens": dict(facts.sites),
            **facts.in_words(),
            "bytes": size_of(entries, written),
            "model_bytes": theta.nbytes,
        }
    return Metrics("moments", read, parameters, results, job.use, started=started)


def _prepared(request: MomentsRequest, theta: Checkpoint, listener: Listener) -> _Collection:
    require(theta, Kind.CHECKPOINT)
    model = network_of(theta, request.network, listener)
    targets = targets_in(theta, model, request.patterns, head_tensors(theta, model), listener)
    require_some(targets, str(theta.path))
    rank, widest = request.rank, max(theta[name].shape[1] for name in targets)
    if rank is not None and not is_smaller(widest, rank):
        most = max((k for k in range(1, widest) if is_smaller(widest, k)), default=0)
        raise MismatchError(
            f"--rank {rank}: the widest layer has {widest} inputs, and a factor of more than "
            f"{most} rows is no smaller than its whole moment",
            hint="Leave --rank out to keep whole moments.",
        )
    task = open_images(request.data, model, request.loading, listener)
    whole = task.split(request.split)
    count = min(request.samples, len(whole))
    some = Subset(whole, 0, count, request.loading.draw)
    drawn = Task(task.name, task.classes, {request.split: some})
    relabel = tuple(range(len(task.classes)))
    examples = Examples(drawn, model, relabel, request.loading)
    return _Collection(theta, model, targets, task, examples, count)


def _measured(
    request: MomentsRequest, job: _Collection, listener: Listener
) -> tuple[dict[str, Inputs], MomentsFacts]:
    """One pass of the network: the moments of each site, and what the card says of them."""
    from qvec_cli.calibration.walk import site_moments

    theta = job.theta
    network = load_float(theta, job.model, request.device)
    weights = linear_weights(network, theta, job.targets)
    decoded, _ = job.examples.decoded(request.split, listener)
    batches = normalised_batches(network, job.model, decoded, request.loading.batch_size)
    sites: dict[str, Inputs] = {}
    tokens: dict[str, int] = {}
    aliases: dict[str, str] = {}

    def progress(done: int) -> None:
        listener.progress(f"batch {done}/{len(batches)}", done, len(batches))

    with located(theta.path):
        for site, inputs, count in site_moments(network, weights, batches, progress):
            first, *others = site.names
            require_finite_inputs(theta, first, inputs, "images")
            sites[first], tokens[first] = inputs, count
            aliases |= dict.fromkeys(others, first)
    task, start = job.task, backbone_digest(network, job.model)
    name, classes, model = Path(task.name).name, digest_of(task.classes), theta.settle()
    base = theta.card.base
    source = MomentsSource(name, task.digest, classes, job.count, model, start, base)
    return sites, MomentsFacts(request.rank, tokens, aliases, (source,), request.half)


def _tensors(
    theta: Checkpoint, sites: Mapping[str, Inputs], facts: MomentsFacts
) -> Iterator[tuple[str, Iterable[Array]]]:
    for site, inputs in sites.items():
        with located(theta.path, NotFiniteError):
            yield from packed(site, inputs, facts.rank, half=facts.half)
