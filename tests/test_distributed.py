"""The world of torchrun, its shares of the work, and one voice for a fault: without processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import product
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
from qvec_cli.learn import distributed, forward
from qvec_cli.learn.batches import NO_LABEL, PreparedSplit, TrainingBatches, decode
from qvec_cli.learn.distributed import ALONE, World, here
from qvec_cli.learn.fit import share_of_loss
from qvec_cli.model import build
from qvec_cli.specs import Silence

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


def test_shares_of_a_batch_are_a_partition_of_it_and_near_in_size() -> None:
    for size, length in product(SIZES, range(20)):
        batch = list(range(100, 100 + length))
        shares = [world.share(batch) for world in worlds(size)]
        assert sorted(place for share in shares for place in share) == batch
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
        assert all(torch.tensor(batch)[r::size].tolist() == shares[r] for r in range(size))


def test_the_smallest_share_of_an_epoch_is_that_of_its_last_batch() -> None:
    for size, count, batch_size in product((1, 2, 3), range(1, 14), (3, 4, 13)):
        batches = [range(count)[at : at + batch_size] for at in range(0, count, batch_size)]
        shares = [len(world.share(batch)) or 1 for world in worlds(size) for batch in batches]
        assert World(size=size).smallest(count, batch_size) == min(shares)


def test_batches_to_measure_are_shared_out_whole() -> None:
    for size, count, batch_size in product(SIZES, range(20), (1, 3, 5)):
        alone = ALONE.whole_batches(count, batch_size)
        shared = [world.whole_batches(count, batch_size) for world in worlds(size)]
        assert sorted(batch for own in shared for batch in own) == alone
        assert [place for batch in alone for place in batch] == list(range(count))
        for own in shared:  # so that one rank's images, end to end, split at the same places
            assert all(len(batch) == batch_size for batch in own[:-1])


def test_the_mean_of_the_ranks_gradients_is_the_gradient_of_the_whole_batch() -> None:
    """Shares of any size, and none: such a rank borrows an image that does not count."""
    generator = torch.Generator().manual_seed(0)
    for size, smoothing, length in product(SIZES, (0.0, 0.1), (1, 2, 3, 7, 16)):
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


def test_the_ranks_together_see_the_batches_of_one_process(tmp_path: Path) -> None:
    """13 images, 4 a batch: the last one goes to the first of three ranks, the others borrow."""
    task = open_task(str(draw(tmp_path / "d", ("x", "y"), 7, 1, seed=0)), None)
    for augmented, skip in ((True, 0), (False, 2)):
        view = PreparedSplit(task.split("train"), build.transform(MODEL, augment=augmented), 3)
        assert len(view.samples) == 13
        same: Any = {"seed": 1, "batch_size": 4, "augmented": augmented, "listener": Silence()}
        made = [TrainingBatches(view, **same, world=world) for world in (ALONE, *worlds(3))]
        alone, *shared = [list(batches.epoch(0, skip)) for batches in made]
        for step, (images, labels) in enumerate(alone):
            for world, own in zip(worlds(3), shared, strict=True):
                got, its = own[step]
                if len(world.share(labels)):
                    assert torch.equal(got, world.share(images))
                    assert torch.equal(its, world.share(labels))
                else:
                    assert torch.equal(got, images[:1])
                    assert its.tolist() == [NO_LABEL]
        assert [len(own) for own in shared] == [4 - skip] * 3


def test_a_score_that_ranks_measure_together_is_that_of_one_process_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7))
    images, labels = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8), torch.arange(23) % 7
    flags: Any = {"normalise": normalise, "batch_size": 4}
    alone = forward.accuracy_of(forward.batch_counts(network, images, labels, **flags), 1.0)
    even = forward.batch_counts(network, images[::2], labels[::2], **{**flags, "batch_size": 23})
    odd_batches = forward.batch_counts(network, images, labels, **{**flags, "batch_size": 5})
    assert alone.n_correct_even == sum(batch.n_correct for batch in even)
    assert sum(batch.n_correct_even for batch in odd_batches) == alone.n_correct_even
    for size in SIZES:
        of_all = []
        for world in worlds(size):
            own = [place for batch in world.whole_batches(23, 4) for place in batch]
            of_all.append(forward.batch_counts(network, images[own], labels[own], **flags))

        def gather(boxes: list[Any], _: object, of_all: list[Any] = of_all) -> None:
            boxes[:] = of_all

        monkeypatch.setattr("torch.distributed.all_gather_object", gather)
        assert forward.accuracy_of(distributed.gathered(World(0, size), of_all[0]), 1.0) == alone


def test_a_split_without_images_for_a_rank_decodes_to_nothing(drawer: Drawer) -> None:
    samples = open_task(str(drawer.donor_data), None).split("val")
    view = PreparedSplit(samples, lambda _: torch.zeros(1), 3)
    images, labels = decode(view, Silence(), places=[])
    assert (len(images), len(labels)) == (0, 0)


def test_the_world_is_what_torchrun_says() -> None:
    assert here(COMPLETE) == World(1, 2, 1, 2)
    assert here({**COMPLETE, "RANK": "5", "WORLD_SIZE": "6"}) == World(5, 6, 1, 2)
    assert [World(rank, 2).leads for rank in range(2)] == [True, False]
    one = {**COMPLETE, "RANK": "0", "WORLD_SIZE": "1"}
    for uncounted in ({}, {"WORLD_SIZE": "4"}, one, {"RANK": "3"}):
        assert here(uncounted) == ALONE


def test_a_world_that_is_not_whole_or_has_no_such_rank_is_refused() -> None:
    for name in COMPLETE.keys() - {"RANK", "WORLD_SIZE"}:
        with pytest.raises(SpecError, match=f"{name} is not set"):
            here({key: value for key, value in COMPLETE.items() if key != name})
    for name, value in {"RANK": "x", "LOCAL_RANK": "2", "WORLD_SIZE": "0"}.items():
        with pytest.raises(SpecError):
            here({**COMPLETE, name: value})
    for rank in ("-1", "2"):
        with pytest.raises(SpecError):
            here({**COMPLETE, "RANK": rank})


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
    """Threads that play ranks, and meet at a barrier in place of torch's collectives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=30)
        self.sent: list[Any] = [None] * size
        monkeypatch.setattr("torch.distributed.all_reduce", self.all_reduce)
        monkeypatch.setattr("torch.distributed.all_gather_object", self.all_gather)
        self.rank = threading.local()

    def exchange(self, value: Any) -> list[Any]:
        self.sent[self.rank.number] = value
        self.barrier.wait()
        sent = [*self.sent]
        self.barrier.wait()
        return sent

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor.copy_(torch.stack(self.exchange(tensor.clone())).sum(0))

    def all_gather(self, boxes: list[Any], value: Any) -> None:
        boxes[:] = self.exchange(value)

    def play(self, part: Callable[[World], Any]) -> list[Any]:
        ends: dict[int, Any] = {}

        def run(world: World) -> None:
            self.rank.number = world.rank
            try:
                ends[world.rank] = part(world)
            except Exception as fault:
                ends[world.rank] = fault

        threads = [threading.Thread(target=run, args=(world,)) for world in worlds(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [ends[rank] for rank in range(self.size)]


def test_the_first_rank_tells_its_faults_at_once_and_the_others_wait_to_be_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    first, second = worlds(2)
    for world, fault in ((ALONE, SpecError("x")), (first, SpecError("x")), (first, ValueError())):
        distributed.wait_for_torchrun(world, fault)
    assert waits == []
    for world, fault in ((second, SpecError("x")), (second, ValueError()), (first, RankError(""))):
        distributed.wait_for_torchrun(world, fault)
    assert len(waits) == 3


def test_ranks_that_cannot_be_reached_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_CONNECTING", timedelta(seconds=1))
    with pytest.raises(RankError, match="cannot be reached"):
        distributed.join(World(1, 2, 1, 2), "cpu")


def test_the_first_rank_of_a_machine_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []

    def part(world: World) -> None:
        if world.leads:
            time.sleep(0.3)
        with distributed.in_turn(world):
            order.append(world.rank)

    assert Ranks(monkeypatch, 3).play(part) == [None] * 3
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_what_torch_says_of_a_lost_rank_is_ours_and_its_other_errors_are_not() -> None:
    with pytest.raises(RankError, match="has gone"), distributed.rank_errors(World(0, 2)):
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shape"), distributed.rank_errors(World(0, 2)):
        raise RuntimeError("shape mismatch")


def test_ranks_drop_different_units_and_the_same_again_on_resuming() -> None:
    def dropped(world: World, *key: int) -> str:
        distributed.seed_apart(world, *key)
        return str(functional.dropout(torch.ones(64), 0.5).tolist())

    first, second = worlds(2)
    drawn = [dropped(world, 0, step) for world in (first, second) for step in (0, 1)]
    assert len(set(drawn)) == 4
    assert dropped(second, 0, 1) == drawn[3]
    before = torch.get_rng_state()
    distributed.seed_apart(ALONE, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_several_processes_cannot_do_or_share_is_refused_by_the_first(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**COMPLETE, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for command in ("inspect", "extract", "eval", "quantize"):
        alone = f"qvec {command} runs in one process, and 2 were started"
        assert call(command, "x.st", code=2).errors == [f"error: {alone}"]
    args = ("finetune", drawer.base, "--data", drawer.donor_data, "-o", tmp_path / "x.st")
    few = call(*args, "--batch-size", 1, code=2)
    assert few.errors == ["error: --batch-size 1 is too few images for 2 processes"]
    shared = call(*args, "--device", "cuda:0", code=2)
    assert shared.errors == ["error: --device cuda:0: 2 processes cannot share it"]
    assert list(tmp_path.iterdir()) == []


def test_a_world_of_one_writes_the_bytes_of_a_plain_run(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["train-qat", drawer.base, "--data", drawer.donor_data, *FAST]
    call(*args, "-o", tmp_path / "plain.st")
    for name, value in {**COMPLETE, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    made = call(*args, "-o", tmp_path / "one.st", "--json")
    assert (tmp_path / "plain.st").read_bytes() == (tmp_path / "one.st").read_bytes()
    assert made.json["environment"]["ranks"] == 1
    assert not torch.distributed.is_initialized()
