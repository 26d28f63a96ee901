"""The world of torchrun, its shares of the work, and one voice for a fault: without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, Drawer, call, draw
from test_fit import MODEL, normalise
from torch import nn
from torch.nn import functional

from qvec_cli.data.datasets import open_task
from qvec_cli.errors import RankError, SpecError
from qvec_cli.learn import accuracy, ranks
from qvec_cli.learn.batches import NO_LABEL, TrainingBatches, View, decode
from qvec_cli.learn.distributed import ALONE, World, here
from qvec_cli.learn.fit import share_of_loss
from qvec_cli.model import build

SIZES = range(1, 8)
COMPLETE = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


def worlds(size: int) -> list[World]:
    return [World(rank, size, rank, size) for rank in range(size)]


@pytest.mark.parametrize("size", SIZES)
def test_shares_of_a_batch_are_a_partition_of_it_and_near_in_size(size: int) -> None:
    for length in range(20):
        batch = list(range(100, 100 + length))
        shares = [world.share(batch) for world in worlds(size)]
        assert sorted(place for share in shares for place in share) == batch
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
        assert all(torch.tensor(batch)[r::size].tolist() == shares[r] for r in range(size))


@pytest.mark.parametrize("size", SIZES)
def test_batches_to_measure_are_shared_out_whole(size: int) -> None:
    for count in range(20):
        for batch_size in (1, 3, 5):
            alone = ALONE.whole_batches(count, batch_size)
            shared = [world.whole_batches(count, batch_size) for world in worlds(size)]
            assert sorted(batch for own in shared for batch in own) == alone
            assert [place for batch in alone for place in batch] == list(range(count))
            for own in shared:  # so that one rank's images, end to end, split at the same places
                assert all(len(batch) == batch_size for batch in own[:-1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", SIZES)
def test_the_mean_of_the_ranks_gradients_is_the_gradient_of_the_whole_batch(
    size: int, smoothing: float
) -> None:
    """Shares of any size, and none: such a rank borrows an image that does not count."""
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 3, 7, 16):
        images = torch.randn(length, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 3, (length,), generator=generator)
        weight = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        whole = functional.cross_entropy(images @ weight, labels, label_smoothing=smoothing)
        (expected,) = torch.autograd.grad(whole, weight)
        mean, losses = torch.zeros_like(weight), 0.0
        for world in worlds(size):
            mine, own = world.share(images), world.share(labels)
            if not len(mine):
                mine, own = images[:1], torch.tensor([NO_LABEL])
            loss = share_of_loss(mine @ weight, own, length, world, smoothing=smoothing)
            (gradient,) = torch.autograd.grad(loss, weight)
            mean, losses = mean + gradient / size, losses + loss.item() / size
        assert torch.allclose(mean, expected, rtol=1e-12, atol=1e-14)
        assert losses == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("skip", [0, 2])
def test_the_ranks_together_see_the_batches_of_one_process(
    tmp_path: Path, augmented: bool, skip: int
) -> None:
    """13 images, 4 a batch: the last one goes to the first of three ranks, the others borrow."""
    task = open_task(str(draw(tmp_path / "d", ("x", "y"), 7, 1, seed=0)), None)
    view = View(task.split("train"), build.transform(MODEL, augment=augmented), 3)
    assert len(view.samples) == 13

    def batches(world: World) -> list[Any]:
        made = TrainingBatches(view, seed=1, batch_size=4, augmented=augmented, world=world)
        return list(made.epoch(0, skip))

    shared = [batches(world) for world in worlds(3)]
    for step, (images, labels) in enumerate(batches(ALONE)):
        for world, own in zip(worlds(3), shared, strict=True):
            got, its = own[step]
            if len(world.share(labels)):
                assert torch.equal(got, world.share(images))
                assert torch.equal(its, world.share(labels))
            else:
                assert torch.equal(got, images[:1])
                assert its.tolist() == [NO_LABEL]
    assert [len(own) for own in shared] == [4 - skip] * 3


@pytest.mark.parametrize("size", SIZES)
def test_a_score_that_ranks_measure_together_is_that_of_one_process_to_the_bit(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7))
    images, labels = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8), torch.arange(23) % 7
    flags: Any = {"normalise": normalise, "batch_size": 4}
    of_all = []
    for world in worlds(size):
        own = [place for batch in world.whole_batches(23, 4) for place in batch]
        of_all.append(accuracy.parts(network, images[own], labels[own], **flags))

    def gather(boxes: list[Any], _: object) -> None:
        boxes[:] = of_all

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    together = accuracy.score(ranks.gathered(World(0, size), of_all[0]), 1.0)
    alone = accuracy.score(accuracy.parts(network, images, labels, **flags), 1.0)
    assert together == alone


def test_a_split_without_images_for_a_rank_decodes_to_nothing(drawer: Drawer) -> None:
    samples = open_task(str(drawer.donor_data), None).split("val")
    images, labels = decode(View(samples, lambda _: torch.zeros(1), 3), places=[])
    assert (len(images), len(labels)) == (0, 0)


def test_the_world_is_what_torchrun_says() -> None:
    assert here(COMPLETE) == World(1, 2, 1, 2)
    far = {**COMPLETE, "RANK": "5", "WORLD_SIZE": "6", "GROUP_RANK": "2"}
    assert here(far) == World(5, 6, 1, 2, 2)
    assert [World(rank, 2).leads for rank in range(2)] == [True, False]


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "4"}, {**COMPLETE, "RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "3"}],
)
def test_who_is_not_counted_or_is_the_only_one_is_alone(environment: dict[str, str]) -> None:
    assert here(environment) == ALONE


@pytest.mark.parametrize("name", [n for n in COMPLETE if n not in {"RANK", "WORLD_SIZE"}])
def test_a_world_that_is_not_whole_is_refused_by_the_name_of_what_is_missing(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} is not set"):
        here({key: value for key, value in COMPLETE.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "x"), ("RANK", "-1"), ("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "0")],
)
def test_a_rank_that_no_world_has_is_refused(name: str, value: str) -> None:
    with pytest.raises(SpecError):
        here({**COMPLETE, name: value})


def test_ranks_take_a_gpu_each_and_none_shares_one(monkeypatch: pytest.MonkeyPatch) -> None:
    second = World(1, 2, 1, 2)
    assert second.place("cuda") == "cuda:1"
    assert second.place("cpu") == "cpu"
    for there, expected in ((True, "cuda:1"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert second.place("auto") == expected
    for shared in ("cuda:0", "cuda:1", "mps", "cpu:0", "meta"):
        with pytest.raises(SpecError, match="cannot share it"):
            second.place(shared)
        assert ALONE.place(shared) == shared


class Ranks:
    """Threads that play ranks on one store of torch's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        from torch.distributed import HashStore

        self.worlds, store = worlds(size), HashStore()
        self.lines = {world: ranks._Line(store) for world in self.worlds}
        monkeypatch.setattr(ranks, "_line", self.lines.__getitem__)
        monkeypatch.setattr(ranks, "_GRACE", 0.3)
        monkeypatch.setattr(ranks, "_ECHO", 2.0)

    def play(self, part: Callable[[World], Any]) -> list[Any]:
        found: dict[int, Any] = {}

        def run(world: World) -> None:
            try:
                found[world.rank] = part(world)
            except Exception as fault:
                found[world.rank] = fault

        threads = [threading.Thread(target=run, args=(world,)) for world in self.worlds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [found[world.rank] for world in self.worlds]


@pytest.mark.parametrize("size", [2, 5])
def test_a_fault_that_all_ranks_have_is_told_once_by_the_first(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def part(world: World) -> int:
        return ranks.once(world, lambda: told.append(world.rank) or 2)  # type: ignore[func-returns-value]

    assert Ranks(monkeypatch, size).play(part) == [2] * size
    assert told == [0]


@pytest.mark.parametrize("fault", [SpecError("x"), ZeroDivisionError()])
def test_a_fault_of_one_rank_is_told_by_it_and_ends_those_that_wait(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is a traceback; the others wait to meet, or have only lost it."""
    told: list[int] = []

    def tell(world: World) -> int:
        told.append(world.rank)
        if isinstance(fault, ZeroDivisionError):
            raise fault
        return 7

    def part(world: World) -> int:
        if world.rank == 2:
            return ranks.once(world, lambda: tell(world))
        with pytest.raises(RankError):
            ranks.meet(world, "never")
        return ranks.once(world, lambda: tell(world), echo=True)

    codes = Ranks(monkeypatch, 3).play(part)
    assert told == [2]
    assert codes[:2] == ([7, 7] if isinstance(fault, SpecError) else [1, 1])
    assert codes[2] == (7 if isinstance(fault, SpecError) else fault)


def test_the_others_wait_while_the_first_rank_saves_its_last_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import time

    told: list[int] = []

    def part(world: World) -> int:
        ranks.claim(world)
        if world.leads:
            time.sleep(1.0)  # longer than its grace
        return ranks.once(world, lambda: told.append(world.rank) or 1)  # type: ignore[func-returns-value]

    assert Ranks(monkeypatch, 2).play(part) == [1, 1]
    assert told == [0]


def test_who_loses_a_rank_that_said_nothing_says_so_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = Ranks(monkeypatch, 2)
    monkeypatch.setattr(ranks, "_ECHO", 0.1)
    assert ranks.once(played.worlds[1], lambda: 1, echo=True) == 1
    assert played.lines[played.worlds[1]].mine


def test_the_first_rank_of_a_machine_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    order: list[int] = []

    def part(world: World) -> None:
        if world.leads:
            time.sleep(0.3)
        with ranks.in_turn(world, "data"):
            order.append(world.rank)

    assert Ranks(monkeypatch, 3).play(part) == [None] * 3
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_what_torch_says_of_a_lost_rank_is_ours_and_its_other_errors_are_not() -> None:
    with pytest.raises(RankError, match="has gone"), ranks.talking(World(0, 2)):
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shape"), ranks.talking(World(0, 2)):
        raise RuntimeError("shape mismatch")


def test_ranks_drop_different_units_and_the_same_again_on_resuming() -> None:
    def dropped(world: World, *key: int) -> str:
        ranks.draw_apart(world, *key)
        return str(functional.dropout(torch.ones(64), 0.5).tolist())

    first, second = worlds(2)
    drawn = [dropped(world, 0, step) for world in (first, second) for step in (0, 1)]
    assert len(set(drawn)) == 4
    assert dropped(second, 0, 1) == drawn[3]
    before = torch.get_rng_state()
    ranks.draw_apart(ALONE, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("command", ["inspect", "extract", "eval", "quantize"])
def test_what_runs_in_one_process_is_refused_in_several(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    Ranks(monkeypatch, 2)
    monkeypatch.setattr(ranks, "_ECHO", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {**COMPLETE, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    refused = call(command, "x.st", code=2)
    assert refused.errors == [f"error: qvec {command} runs in one process, and 2 were started"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch-size", 1), "--batch-size 1 is too few images for 2 processes"),
        (("--device", "cuda:0"), "--device cuda:0: 2 processes cannot share it"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    flags: tuple[Any, ...],
    words: str,
    drawer: Drawer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import signal

    Ranks(monkeypatch, 2)
    monkeypatch.setattr(ranks, "_ECHO", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {**COMPLETE, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    args = ("finetune", drawer.base, "--data", drawer.donor_data, "-o", tmp_path / "x.st")
    assert call(*args, *flags, code=2).errors == [f"error: {words}"]
    assert list(tmp_path.iterdir()) == []


def test_a_world_of_one_writes_the_bytes_of_a_plain_run(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["train-qat", drawer.base, "--data", drawer.donor_data, *FAST]
    call(*args, "-o", tmp_path / "plain.st")
    for name, value in {**COMPLETE, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "_line", None)  # nobody is asked
    made = call(*args, "-o", tmp_path / "one.st", "--json")
    assert (tmp_path / "plain.st").read_bytes() == (tmp_path / "one.st").read_bytes()
    assert made.json["environment"]["ranks"] == 1
    assert not torch.distributed.is_initialized()
