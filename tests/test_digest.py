"""The digest: one for equal tensors, whatever file they lie in; another for any change."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import name_of
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint, Hasher, combined_digest
from qvec_cli.checkpoint.write import write

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(7, 5)).astype(np.float32),
    "a.bias": RNG.normal(size=5).astype(np.float16),
    "step": np.array(3, np.int64),
    "empty": np.empty((0, 4), np.float32),
}


def _sha(data):
    return hashlib.sha256(data).hexdigest()


def _described(tensors):
    return {
        name: (name_of(array.dtype), array.shape, _sha(array.tobytes()))
        for name, array in tensors.items()
    }


def _save(path, tensors, card):
    plan = {name: Entry(name_of(array.dtype), array.shape) for name, array in tensors.items()}
    blocks = ((name, [array.reshape(-1)]) for name, array in tensors.items())
    return write(path, plan, blocks, card, force=False)


def test_the_digest_is_the_hash_of_the_sorted_descriptions():
    lines = [
        json.dumps([name, dtype, list(shape), sha], separators=(",", ":"))
        for name, (dtype, shape, sha) in sorted(_described(TENSORS).items())
    ]
    assert combined_digest(_described(TENSORS)) == _sha("\n".join(lines).encode())


def test_the_digest_does_not_depend_on_the_order_of_tensors():
    backwards = dict(reversed(_described(TENSORS).items()))
    assert combined_digest(backwards) == combined_digest(_described(TENSORS))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "a.bias2": t["a.bias"]},
        lambda t: {name: array for name, array in t.items() if name != "empty"},
        lambda t: {**{n: a for n, a in t.items() if n != "step"}, "Step": t["step"]},
        lambda t: {**t, "a.weight": t["a.weight"].reshape(5, 7)},
        lambda t: {**t, "a.weight": np.nextafter(t["a.weight"], np.float32(9))},
        lambda t: {**t, "a.bias": t["a.bias"].view(np.int16)},
        lambda t: {**t, "empty": t["empty"].reshape(4, 0)},
        lambda t: {**t, "step": t["step"].reshape(1)},
    ],
    ids=["added", "removed", "renamed", "shape", "ulp", "dtype", "empty shape", "0-d to 1-d"],
)
def test_any_change_of_the_contents_changes_the_digest(change):
    assert combined_digest(_described(change(TENSORS))) != combined_digest(_described(TENSORS))


def test_tensors_cannot_trade_names_or_boundaries_unnoticed():
    swapped = {"a": ("F32", (1,), "x"), "b": ("F32", (1,), "y")}
    assert combined_digest(swapped) != combined_digest({"a": swapped["b"], "b": swapped["a"]})
    joined = {'a","F32",[1],"x"]\n["b': ("F32", (1,), "y")}
    assert combined_digest(swapped) != combined_digest(joined)


@pytest.mark.parametrize("cut", [1, 2, 7, 34, 35])
def test_blocks_of_any_length_hash_to_the_whole(cut):
    flat = TENSORS["a.weight"].reshape(-1)
    with Hasher() as hasher:
        hasher.start("w")
        for start in range(0, flat.size, cut):
            hasher.update("w", flat[start : start + cut])
    assert hasher.digests() == {"w": _sha(flat.tobytes())}


def test_interleaved_tensors_do_not_mix():
    first, second = (RNG.normal(size=64).astype(np.float32) for _ in range(2))
    with Hasher() as hasher:
        hasher.start("first")
        hasher.start("second")
        for i in range(64):
            hasher.update("first", first[i : i + 1])
            hasher.update("second", second[i : i + 1])
    assert hasher.digests() == {"first": _sha(first.tobytes()), "second": _sha(second.tobytes())}


def test_a_tensor_without_bytes_has_the_hash_of_nothing():
    with Hasher() as hasher:
        hasher.start("empty")
    assert hasher.digests() == {"empty": _sha(b"")}


@pytest.mark.timeout(10)
def test_a_fault_in_the_stream_stops_the_hashing_thread():
    hasher = Hasher()

    def stream():
        with hasher:
            hasher.start("w")
            hasher.update("w", np.zeros(1 << 16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream()
    assert hasher._thread is None
    hasher.finish()  # twice is no fault


def test_the_digest_depends_neither_on_the_card_nor_on_the_order_in_the_file(tmp_path):
    plain = _save(tmp_path / "plain.st", TENSORS, Card(Kind.CHECKPOINT))
    backwards = dict(reversed(TENSORS.items()))
    other = _save(tmp_path / "other.st", backwards, Card(Kind.VECTOR, role="qat", data={"a": 1}))
    safetensors.numpy.save_file(TENSORS, tmp_path / "library.st")
    with Checkpoint(tmp_path / "library.st") as library:
        assert library.bare
        assert (
            plain.digest == other.digest == library.settle() == combined_digest(_described(TENSORS))
        )


def test_the_digest_in_the_card_is_that_of_the_contents(tmp_path):
    card = _save(tmp_path / "a.st", TENSORS, Card(Kind.CHECKPOINT))
    with Checkpoint(tmp_path / "a.st") as checkpoint:
        assert checkpoint.settle() == card.digest == checkpoint.contents()
