"""What the paper's runs cost, before they are started: steps, hours, memory and disk.

    python budget.py                       every recipe here, a line each
    python budget.py vit_base              its 22 tasks; --tasks Cars DTD for some of them
    python budget.py vit_base --measure    the same, at the rate of the machine at hand

NAME is the beginning of a recipe beside this file, or any network of timm. Steps are epochs times
batches of 128, from qvec's own table of the tasks. FLOPs are counted by torch on a network without
numbers; an addition and a multiplication are two. Hours are these FLOPs at --tflops, an assumption,
or images at the rate that --measure finds. Validation after each epoch is in them. Decoding images
is not, and on a fast device it decides: --measure tells how many images a process prepares.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvec_cli.data.tasks import TASKS, PaperTask

HERE = Path(__file__).parent
BATCH = 128  # of the paper
LAMBDAS = 11  # of the paper's grid; zero is measured once a receiver
BASELINES = 6  # on test: float, four grids without data, its own QAT
PIXELS = 224
TFLOPS = 40.0  # an assumption: README says where it comes from
CLASSES = 10  # a head hardly counts
TRAINED = 5 * 4  # bytes a parameter: itself, its gradient, two moments, its rounded self in QAT
ROW = "{:<14}{:>7}{:>11}{:>7}{:>8}{:>12}{:>12}{:>12}"
LINE = "{:<12}{:>11}{:>13}{:>13}{:>12}{:>10}{:>14}{:>12}"


@dataclass(frozen=True)
class Task:
    """One fine-tuning: the images of an epoch, and how many epochs."""

    row: PaperTask

    @property
    def val(self) -> int:
        """Images drawn from train: a tenth, at most 5,000."""
        return min(self.row.train // 10, 5000)

    @property
    def train(self) -> int:
        """Images of an epoch."""
        return self.row.train - self.val

    @property
    def steps(self) -> int:
        """Updates of one fine-tuning; the last batch of an epoch may be smaller."""
        return self.row.epochs * -(-self.train // BATCH)

    @property
    def images(self) -> int:
        """Images through forward and backward in one fine-tuning."""
        return self.row.epochs * self.train

    def validated(self, qat: bool) -> int:
        """Images through forward alone; QAT is validated in float and quantized."""
        return self.row.epochs * self.val * (2 if qat else 1)


@dataclass(frozen=True)
class Network:
    """What counting tells of a network; FLOPs and bytes of one image."""

    name: str  # timm's
    parameters: int
    forward: int  # FLOPs
    step: int  # FLOPs of forward and backward
    saved: int  # bytes that forward keeps for backward, in float32

    @property
    def memory(self) -> int:
        """Bytes of a QAT step at the paper's batch, without workspaces."""
        return TRAINED * self.parameters + BATCH * self.saved

    @property
    def checkpoint(self) -> int:
        """Bytes of one file."""
        return 4 * self.parameters


@dataclass(frozen=True)
class Rate:
    """Images a second through a training step; on a CPU, a second of one core."""

    plain: float
    qat: float

    def hours(self, network: Network, task: Task, *, qat: bool) -> float:
        """One fine-tuning; forwards count by their share of a step's FLOPs."""
        forwards = task.validated(qat) * network.forward / network.step
        return (task.images + forwards) / (self.qat if qat else self.plain) / 3600

    def grid_hours(self, network: Network, tasks: list[Task]) -> float:
        """The grid of all pairs, at the least."""
        return paired(tasks) * network.forward / network.step / self.plain / 3600


def paired(tasks: list[Task]) -> int:
    """Images through forward in the grid of these tasks by each other, as the Makefile runs it.

    Of a receiver: plain rounding on validation, baselines on test; and with each donor every
    lambda on validation, lambda 1 and the chosen one on test.
    """
    donors = len(tasks)
    val = sum(task.val * (1 + LAMBDAS * donors) for task in tasks)
    return val + sum(task.row.test * (BASELINES + 2 * donors) for task in tasks)


def spelled(name: str) -> str:
    """timm's name of the network, which is the recipe's; its beginning will do."""
    found = sorted(HERE.glob(f"{name}*.yaml"))
    return found[0].stem if found else name


def counted(name: str) -> Network:
    """Counts a network that holds no numbers: shapes alone tell what a step does."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from qvec_cli.model.build import NetworkOptions, create

    with torch.device("meta"):
        network, _ = create(NetworkOptions(spelled(name), CLASSES))
        image = torch.empty(1, 3, PIXELS, PIXELS)
    network.train()
    # attention as plain products: the counter does not know each of its kernels
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = network(image).sum()
        forward = counter.get_total_flops()
        loss.backward()
    with FakeTensorMode(allow_non_fake_inputs=True):  # on a device, which chooses the kernel
        saved = _saved(network.to_empty(device="cpu"), torch.empty(1, 3, PIXELS, PIXELS))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Network(spelled(name), parameters, forward, counter.get_total_flops(), saved)


def _saved(network: Any, image: Any) -> int:
    """Bytes of the storages that autograd holds after a forward; weights are there anyway."""
    import torch

    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    held = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage  # kept, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = network(image).sum()
    del kept
    return sum(storage.nbytes() for storage in held.values())


# --- the machine at hand ---


class Clock:
    """A listener that notes when each step was done.

    Args:
        now: seconds: of the wall, or of this process on all cores, which others cannot lengthen.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.ticks = now, [now()]

    def progress(self, label: str, done: float, total: float, **facts: float) -> None:
        """A step is done."""
        self.ticks.append(self.now())

    def note(self, text: str, about: str | None = None) -> None:
        """Nothing to note."""

    milestone = note

    def median(self) -> float:
        """Seconds of a step; the first one warms up."""
        spans = [b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)]
        return statistics.median(spans[1:])


@dataclass(frozen=True)
class Same:
    """An epoch of one batch over and over: images in memory, as from a perfect loader."""

    images: Any
    labels: Any
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches."""
        for _ in range(self.steps):
            yield self.images, self.labels


def measured(name: str, batch: int, steps: int, device: str) -> Rate:
    """Times qvec's own training steps, plain and through the paper's grid.

    On a CPU these are seconds of cores, so that a machine which others use tells the same.
    """
    return Rate(*(batch / _seconds(name, batch, steps, device, qat=q) for q in (False, True)))


def _seconds(name: str, batch: int, steps: int, device: str, *, qat: bool) -> float:
    import torch

    from qvec_cli.learn.fit import TrainingRun
    from qvec_cli.model.build import NetworkOptions, create, normalise
    from qvec_cli.model.qat import prepare
    from qvec_cli.specs import Grid, Recipe

    torch.manual_seed(0)
    network, model = create(NetworkOptions(spelled(name), CLASSES))
    if qat:
        prepare(network, model, Grid())
    images = torch.randint(0, 256, (batch, 3, PIXELS, PIXELS), dtype=torch.uint8)
    batches: Any = Same(images, torch.randint(0, CLASSES, (batch,)), steps + 1)
    clock = Clock(time.process_time if device == "cpu" else time.perf_counter)
    recipe = Recipe(epochs=1, batch_size=batch, warmup_steps=0)
    fit = TrainingRun(network.to(device), batches, recipe, normalise(model), clock)
    clock.ticks[:] = [clock.now()]
    fit.run(save=lambda: None, validate=dict)
    return clock.median()


def prepared(name: str, count: int = 40) -> float:
    """Images a second that one process decodes and augments: smooth JPEGs of 500 x 375 pixels."""
    import torch
    from PIL import Image

    from qvec_cli.model.build import NetworkOptions, create, transform

    noise = torch.randint(0, 256, (25, 19, 3), dtype=torch.uint8).numpy()
    held = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(held, "JPEG")
    with torch.device("meta"):
        _, model = create(NetworkOptions(spelled(name), CLASSES))
    augment = transform(model, augment=True)
    started = time.process_time()
    for _ in range(count):
        held.seek(0)
        augment(Image.open(held).convert("RGB"))
    return count / (time.process_time() - started)


# --- what is printed ---


def assumed(network: Network, tflops: float) -> Rate:
    """The rate of a device that keeps up so many TFLOP/s; QAT's rounding adds products of none."""
    rate = tflops * 1e12 / network.step
    return Rate(rate, rate)


def both(network: Network, rate: Rate, tasks: list[Task]) -> float:
    """Hours of all twins."""
    return sum(rate.hours(network, task, qat=qat) for task in tasks for qat in (False, True))


def stored(network: Network, tasks: list[Task]) -> int:
    """Bytes of a model, its twin and their vector for each task."""
    return 3 * network.checkpoint * len(tasks)


def overview(network: Network, tflops: float = TFLOPS) -> str:
    """A recipe in one line: all 22 tasks."""
    tasks = [Task(row) for row in TASKS.values()]
    rate = assumed(network, tflops)
    return LINE.format(
        network.name.split("_patch")[0],
        f"{network.parameters / 1e6:.1f} M",
        f"{network.step / 1e9:.1f} GFLOP",
        f"{network.saved / 1e6:.0f} MB",
        f"{network.memory / 1e9:.1f} GB",
        f"{stored(network, tasks) / 1e9:.1f} GB",
        f"{both(network, rate, tasks):.1f} h",
        f"{rate.grid_hours(network, tasks):.1f} h",
    )


def heads() -> list[str]:
    """The two lines above overviews."""
    upper = ("", "", "an image", "kept for", "a step", "", "22 finetune,", "the grid,")
    lower = ("recipe", "parameters", "trained", "each", f"of {BATCH}", "files", "22 train-qat")
    return [LINE.format(*upper), LINE.format(*lower, "22 x 22")]


def table(network: Network, rate: Rate, tasks: list[Task]) -> list[str]:
    """A task a line, their sum, and the grid of them all."""
    lines = [ROW.format("task", "epochs", "train", "val", "steps", "images", "finetune h", "qat h")]
    spent = {qat: [rate.hours(network, task, qat=qat) for task in tasks] for qat in (False, True)}
    for task, plain, qat in zip(tasks, spent[False], spent[True], strict=True):
        facts = (task.row.name, task.row.epochs, f"{task.train:,}", f"{task.val:,}")
        work = (f"{task.steps:,}", f"{task.images:,}", f"{plain:.2f}", f"{qat:.2f}")
        lines.append(ROW.format(*facts, *work))
    steps, images = sum(t.steps for t in tasks), sum(t.images for t in tasks)
    hours = [sum(spent[False]), sum(spent[True])]
    sums = (f"{steps:,}", f"{images:,}", f"{hours[0]:.2f}", f"{hours[1]:.2f}")
    lines.append(ROW.format(f"{len(tasks)} tasks", "", "", "", *sums))
    grid = rate.grid_hours(network, tasks)
    count, whole = len(tasks), sum(hours) + grid
    size = f"{network.checkpoint / 1e6:.0f} MB, {stored(network, tasks) / 1e9:.1f} GB in all"
    return [
        *lines,
        f"grid of {count} x {count} pairs: {paired(tasks):,} images forward, {grid:.2f} h",
        f"all together {whole:.1f} h, {whole / 24:.2f} days",
        f"files: {3 * count} of {size}; while a run lasts, its state takes three times one",
    ]


def described(network: Network) -> str:
    """What a step takes, in one line."""
    work = f"{network.step / 1e9:.1f} GFLOP an image trained, {network.forward / 1e9:.1f} forward"
    memory = f"{network.memory / 1e9:.1f} GB a step of {BATCH} in float32"
    return f"{network.name}: {network.parameters / 1e6:.1f} M parameters; {work}; {memory}"


def heading(network: Network, tflops: float = TFLOPS) -> list[str]:
    """What a recipe says of its hardware and its time, as comments in it."""
    tasks = [Task(row) for row in TASKS.values()]
    rate = assumed(network, tflops)
    memory, files = network.memory / 1e9, stored(network, tasks) / 1e9
    grid = rate.grid_hours(network, tasks)
    steps = f"{sum(task.steps for task in tasks):,} steps of each of the twins"
    return [
        f"# Hardware: {memory:.1f} GB of memory for a QAT step of {BATCH} images, and workspaces;",
        f"#   {files:.1f} GB of disk for the files of 22 tasks.",
        f"# Time of 22 tasks: {steps}. At {tflops:g} TFLOP/s, an assumption,",
        f"#   {both(network, rate, tasks):.1f} h, and {grid:.1f} h for the grid. From budget.py.",
    ]


def detail(name: str, args: argparse.Namespace) -> None:
    """Prints one network's budget."""
    network = counted(name)
    print(described(network))
    if args.measure:
        import torch

        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        rate = measured(name, args.batch_size, args.steps, device)
        second, whose = ("core-second", "one core") if device == "cpu" else ("second", device)
        print(
            f"measured on {device}: {rate.plain:.2f} images plain and {rate.qat:.2f} in QAT "
            f"a {second}, {rate.plain * network.step / 1e12:.3f} TFLOP/s; median of {args.steps} "
            f"steps of {args.batch_size}, {torch.get_num_threads()} threads; hours are of {whose}"
        )
        print(f"one process decodes and augments {prepared(name):.0f} images/s")
    else:
        rate = assumed(network, args.tflops)
        print(f"hours at {args.tflops:g} TFLOP/s, an assumption: {rate.plain:.0f} images/s")
    print("\n".join(table(network, rate, [Task(TASKS[task]) for task in args.tasks or TASKS])))


def main() -> None:
    """Parses the command line and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK")
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="sustained, an assumption")
    parser.add_argument("--measure", action="store_true", help="time training steps here")
    parser.add_argument("--batch-size", type=int, default=16, help="of the measured steps")
    parser.add_argument("--steps", type=int, default=5, help="measured; one more warms up")
    parser.add_argument("--device", help="of the measured steps")
    args = parser.parse_args()
    for name in args.names:
        detail(name, args)
    if not args.names:
        print("\n".join(heads()))
        for path in sorted(HERE.glob("*.yaml")):
            print(overview(counted(path.stem), args.tflops))
        print(f"hours at {args.tflops:g} TFLOP/s, an assumption; memory and files in float32")


if __name__ == "__main__":
    main()
