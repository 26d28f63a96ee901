"""Reading: a file opens as the safetensors library opens it, or is refused as a CheckpointError."""

import contextlib
import json
import os
import pickle
import struct
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvec_cli.checkpoint import header, locate, read
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import FORMATS
from qvec_cli.checkpoint.header import MAX_HEADER, Entry
from qvec_cli.checkpoint.read import Checkpoint, finite
from qvec_cli.checkpoint.write import write as write_file
from qvec_cli.errors import CheckpointError

CARD = Card(Kind.CHECKPOINT)
RNG = np.random.default_rng(0)
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _bytes(header, data=b"", length=None):
    """A file of this header, which may be JSON or already text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def _raw(checkpoint, name):
    return b"".join(block.tobytes() for block in checkpoint.blocks(name))


def _refusal(path):
    """The error that a file is refused with, soon, and by its name."""
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert time.perf_counter() - start < 1  # torch, which pickles need, is here already
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("read")


@pytest.fixture
def write(tmp_path):
    def run(content, name="a.st"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return run


# --- what opens ---------------------------------------------------------------------------------


def _all_formats():
    plain = {name: RNG.integers(0, 2, (3, 4)).astype(row.numpy) for name, row in FORMATS.items()}
    tensors = {name: torch.from_numpy(array) for name, array in plain.items() if name != "BF16"}
    tensors["BOOL"] = tensors["BOOL"].bool()
    return {**tensors, "BF16": torch.randn(3, 4, generator=_generator()).bfloat16()}


def _generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_the_library_reads_it(name, write):
    tensors = _all_formats()
    path = write(safetensors.torch.save(tensors))
    with Checkpoint(path) as ours, safetensors.safe_open(path, "pt") as library:
        theirs = library.get_tensor(name)
        assert (ours[name].dtype, ours[name].shape) == (name, tuple(theirs.shape))
        assert _raw(ours, name) == theirs.view(torch.uint8).numpy().tobytes()
        expected = theirs.float() if name == "BF16" else theirs
        assert ours.array(name).dtype == expected.numpy().dtype
        np.testing.assert_array_equal(ours.array(name), expected.numpy())
        if ours[name].floating:
            np.testing.assert_array_equal(ours.finite(name), theirs.float().numpy())
            assert ours.finite(name).dtype == np.float32


def test_names_come_in_the_order_of_the_data(write):
    tensors = _all_formats()
    with Checkpoint(write(safetensors.torch.save(tensors))) as ours:
        assert sorted(ours) == sorted(tensors)
        starts = [entry.start for entry in ours.values()]
        assert starts == sorted(starts)


@pytest.mark.parametrize("shape", [[], [1], [0], [3, 0, 2], [1] * 64, [2**60, 0], [0, 2**60]])
def test_scalars_and_empty_tensors_are_read(shape, write):
    size = 4 * int(np.prod([min(n, 2) for n in shape]))
    with Checkpoint(write(_bytes({"a": _entry(shape, 0, size)}, b"\1" * size))) as ours:
        assert ours["a"].shape == tuple(shape)
        assert ours["a"].nbytes == size
        assert ours.array("a").shape == ours.finite("a").shape == tuple(shape)
        assert _raw(ours, "a") == b"\1" * size


@pytest.mark.parametrize(
    "name", ["", "naïve.重み", "a\nb", "\x00", "\x1b[31m", "../../etc/passwd", "a" * 5000, '"\\']
)
def test_a_name_is_text_whatever_it_holds(name, write):
    with Checkpoint(write(safetensors.numpy.save({name: np.ones(2, np.float32)}))) as ours:
        assert list(ours) == [name]
        np.testing.assert_array_equal(ours.array(name), [1, 1])


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"a": "\x1b[31m", "b": "{"}])
def test_metadata_are_text_and_make_no_card(metadata, write):
    header = {"a": F32} if metadata is None else {"__metadata__": metadata, "a": F32}
    with Checkpoint(write(_bytes(header, b"\0" * 4))) as ours:
        assert ours.metadata == (metadata or {})
        assert ours.bare
        assert ours.kind is Kind.CHECKPOINT


@pytest.mark.parametrize("length", [640, 1152, 640 + 65536, 35615, 8, 800])
def test_a_header_of_any_length_opens(length, write):
    # 640 is b"\x80\x02", 1152 is b"\x80\x04", 35615 is b"\x1f\x8b": the magic of other formats
    header, data = ({"a": F32}, b"\0" * 4) if length > 8 else ({}, b"")
    path = write(_bytes(json.dumps(header).encode().ljust(length), data))
    with safetensors.safe_open(path, "np") as library, Checkpoint(path) as ours:
        assert list(ours) == list(library.keys())


def test_a_file_without_tensors_opens(write):
    with Checkpoint(write(_bytes({}))) as ours:
        assert len(ours) == 0


@pytest.mark.slow
def test_a_hundred_thousand_tensors_open(write):
    header = {f"blocks.{i}.weight": EMPTY for i in range(100_000)}
    with Checkpoint(write(_bytes(header))) as ours:
        assert len(ours) == 100_000


@pytest.mark.parametrize("block", [1, 3, 4, 1000])
def test_a_tensor_is_the_same_in_blocks_of_any_length(block, write, monkeypatch):
    monkeypatch.setattr(read, "BLOCK", block)
    tensors = _all_formats()
    with Checkpoint(write(safetensors.torch.save(tensors))) as ours:
        for name, tensor in tensors.items():
            assert _raw(ours, name) == tensor.view(torch.uint8).numpy().tobytes()
            assert all(part.size <= block for part in ours.blocks(name))


def test_an_old_file_that_was_replaced_meanwhile_is_read_to_its_end(write):
    path = write(safetensors.numpy.save({"a": np.ones(4, np.float32)}))
    with Checkpoint(path) as ours:
        path.with_name("new").write_bytes(b"something else")
        path.with_name("new").replace(path)
        np.testing.assert_array_equal(ours.array("a"), np.ones(4))


# --- what is refused ----------------------------------------------------------------------------

ONE, TWO = b"\0" * 4, b"\0" * 8
DAMAGED = {
    "one byte": (b"\x08", "not a safetensors file"),
    "seven bytes": (b"\x08" + b"\0" * 6, "not a safetensors file"),
    "eight zero bytes": (b"\0" * 8, "not a safetensors file"),
    "only a length": (struct.pack("<Q", 2), "not a safetensors file"),
    "truncated header": (_bytes({"a": F32}, ONE)[:30], "cut short"),
    "truncated data": (_bytes({"a": F32}, ONE[:3]), "3 bytes of data.* promises 4"),
    "no data": (_bytes({"a": F32}), "0 bytes of data.* promises 4"),
    "trailing bytes": (_bytes({"a": F32}, ONE + b"x"), "5 bytes of data.* promises 4"),
    "data without tensors": (_bytes({}, ONE), "4 bytes of data.* promises 0"),
    "length over file": (_bytes({"a": F32}, ONE, length=1000), "cut short"),
    "length 2^63": (_bytes({"a": F32}, ONE, length=2**63), "cut short"),
    "length 2^64-1": (_bytes({"a": F32}, ONE, length=2**64 - 1), "cut short"),
    "length zero": (_bytes({"a": F32}, ONE, length=0), "header"),
    "length short": (_bytes({"a": F32}, ONE, length=20), "header is not valid"),
    "not UTF-8": (_bytes(b'{"\xe9":' + json.dumps(F32).encode() + b"}", ONE), "not valid"),
    "UTF-16": (_bytes(json.dumps({"a": F32}).encode("utf-16"), ONE), "not valid"),
    "byte order mark": (_bytes(b"\xef\xbb\xbf" + json.dumps({"a": F32}).encode(), ONE), "valid"),
    "lone surrogate": (_bytes(b'{"\\ud800":' + json.dumps(F32).encode() + b"}", ONE), "valid"),
    "lone surrogate in metadata": (_bytes(b'{"__metadata__":{"a":"\\udfff"}}'), "valid"),
    "deep nesting": (_bytes(b'{"a":' * 100_000), "not valid"),
    "deep nesting in metadata": (_bytes(b'{"__metadata__":' + b"[" * 99_999), "not valid"),
    "NaN": (_bytes(b'{"a":NaN}'), "valid"),
    "not JSON": (_bytes(b"{'a': 1}"), "not valid"),
    "two objects": (_bytes(b"{}{}"), "not valid"),
    "a list": (_bytes([]), "not a JSON object"),
    "a number": (_bytes(b"17"), "not a JSON object"),
    "null": (_bytes(b"null"), "not a JSON object"),
    "a long number": (_bytes(b'{"a":' + b"9" * 10_000 + b"}"), "valid"),
    "overlap": (
        _bytes({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, TWO + ONE),
        "b: .*overlap",
    ),
    "the same place twice": (_bytes({"a": F32, "b": F32}, ONE), "b: .*overlap"),
    "empty inside another": (
        _bytes({"a": _entry([2], 0, 8), "b": _entry([0], 4, 4)}, TWO),
        "b: .*overlap",
    ),
    "hole": (_bytes({"a": F32, "b": _entry([1], 8, 12)}, TWO + ONE), "b: .*hole"),
    "hole at the start": (_bytes({"a": _entry([1], 4, 8)}, TWO), "a: .*hole"),
    "reversed": (_bytes({"a": _entry([1], 4, 0)}, ONE), "a: "),
    "negative": (_bytes({"a": _entry([1], -4, 0)}, ONE), "a: .*whole numbers from 0"),
    "negative dimension": (_bytes({"a": _entry([-1, -1], 0, 4)}, ONE), "a: .*whole numbers"),
    "fractional": (_bytes({"a": _entry([1.0], 0, 4)}, ONE), "a: .*whole numbers"),
    "boolean": (_bytes({"a": _entry([True], 0, 4)}, ONE), "a: .*whole numbers"),
    "text for a number": (_bytes({"a": _entry(["1"], 0, 4)}, ONE), "a: .*whole numbers"),
    "beyond the end": (_bytes({"a": _entry([2], 0, 8)}, ONE), "4 bytes of data.* promises 8"),
    "shape too small": (_bytes({"a": _entry([1], 0, 8)}, TWO), "a: .*does not take 8"),
    "shape too large": (_bytes({"a": _entry([3], 0, 8)}, TWO), "a: .*does not take 8"),
    "shape wraps to zero": (_bytes({"a": _entry([2**32, 2**32], 0, 0)}), "a: "),
    "shape wraps to four": (_bytes({"a": _entry([2**62 + 1], 0, 4)}, ONE), "a: "),
    "dimension beyond 64 bits": (_bytes({"a": _entry([2**64, 0], 0, 0)}), "a: "),
    "dimension beyond 64 bits after zero": (_bytes({"a": _entry([0, 2**70], 0, 0)}), "a: "),
    "size beyond 64 bits": (_bytes({"a": _entry([2**62, 2**62, 0], 0, 0)}), "a: "),
    "size beyond 64 bits after zero": (_bytes({"a": _entry([0, 2**62], 0, 0)}), "a: "),
    "more dimensions than numpy has": (_bytes({"a": _entry([1] * 65, 0, 4)}, ONE), "a: "),
    "offsets of three": (_bytes({"a": {**F32, "data_offsets": [0, 4, 4]}}, ONE), "a: "),
    "offsets missing": (_bytes({"a": {"dtype": "F32", "shape": [1]}}, ONE), "a: "),
    "shape missing": (_bytes({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, ONE), "a: "),
    "dtype missing": (_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}, ONE), "a: "),
    "shape is text": (_bytes({"a": {**F32, "shape": ""}}, ONE), "a: "),
    "shape is an object": (_bytes({"a": {**F32, "shape": {}}}, ONE), "a: "),
    "shape is null": (_bytes({"a": {**F32, "shape": None}}, ONE), "a: "),
    "dtype is a list": (_bytes({"a": {**F32, "dtype": []}}, ONE), "a: "),
    "dtype is an object": (_bytes({"a": {**F32, "dtype": {}}}, ONE), "a: "),
    "dtype is null": (_bytes({"a": {**F32, "dtype": None}}, ONE), "a: "),
    "entry is null": (_bytes({"a": None}), "a: .*not valid"),
    "entry is text": (_bytes({"a": "F32"}), "a: .*not valid"),
    "entry is a list": (_bytes({"a": ["F32", [1], [0, 4]]}, ONE), "a: .*not valid"),
    "twice the same name": (
        _bytes(
            b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}", ONE
        ),
        "'a' stands in it twice",
    ),
    "twice metadata": (_bytes(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "twice a key": (
        _bytes(b'{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}}', ONE),
        "twice",
    ),
    "metadata list": (_bytes({"__metadata__": []}), "__metadata__"),
    "metadata list of text": (_bytes({"__metadata__": ["a"]}), "__metadata__"),
    "metadata text": (_bytes({"__metadata__": ""}), "__metadata__"),
    "metadata zero": (_bytes({"__metadata__": 0}), "__metadata__"),
    "metadata false": (_bytes({"__metadata__": False}), "__metadata__"),
    "metadata number": (_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata null value": (_bytes({"__metadata__": {"a": None}}), "__metadata__"),
    "metadata nested": (_bytes({"__metadata__": {"a": {}}}), "__metadata__"),
    "metadata as tensor": (_bytes({"__metadata__": F32}, ONE), "__metadata__"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_its_fault(name, write):
    content, fault = DAMAGED[name]
    error = _refusal(write(content))
    with pytest.raises(CheckpointError, match=f"(?s){fault}"):
        raise error


def test_a_refused_file_is_closed(write):
    paths = [write(content, f"{i}.st") for i, (content, _) in enumerate(DAMAGED.values())]
    before = sorted(Path("/proc/self/fd").iterdir())
    for path in paths:
        with contextlib.suppress(Exception):  # that it is a CheckpointError is asked above
            Checkpoint(path).close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(
    "dtype", ["F6_E2M3", "F6_E3M2", "F4", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64", "I4", "f32", ""]
)
def test_an_unknown_format_is_named(dtype, write):
    assert f"a: dtype {dtype} " in str(_refusal(write(_bytes({"a": {**F32, "dtype": dtype}}, ONE))))


def test_a_header_over_the_cap_is_not_read(write, monkeypatch):
    text = json.dumps({"a": F32}).encode()
    whole = write(_bytes(text.ljust(MAX_HEADER + 1), ONE))
    assert f"{MAX_HEADER + 1:,} bytes" in str(_refusal(whole))
    for module in (header, locate):
        monkeypatch.setattr(module, "MAX_HEADER", len(text))
    assert list(Checkpoint(write(_bytes(text, ONE)))) == ["a"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "header",
    [
        {"a": _entry([9] * 200_000, 0, 4)},
        {"a": _entry([10**18] * 40_000, 0, 4)},
        {"a": _entry([1] * 200_000, 0, 8)},
        b"{"
        + b"".join(b'"%d":%s,' % (i, json.dumps(EMPTY).encode()) for i in range(20_000))
        + b'"19999":0}',
    ],
    ids=["many nines", "many huge", "many ones", "a double at the end"],
)
def test_a_hostile_header_costs_less_than_a_second(header, write):
    _refusal(write(_bytes(header, ONE)))


def _npz(path):
    np.savez(path, a=np.ones(2))
    return path.with_suffix(".npz").read_bytes()


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return path.read_bytes()


FOREIGN = {
    "zip": (_zip, "pickle"),
    "npz": (_npz, "zip"),
    "npy": (lambda p: (np.save(p.open("wb"), np.ones(2)), p.read_bytes())[1], "numpy"),
    **{
        f"pickle {version}": (lambda _, v=version: pickle.dumps({"a": 1.5}, v), "pickle")
        for version in range(2, 6)
    },
    "LFS": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "git lfs pull",
    ),
    "HTML": (lambda _: b"<!DOCTYPE html>\n<html></html>", "HTML"),
    "html": (lambda _: b"<!doctype html><html></html>", "HTML"),
    "bare html": (lambda _: b"<html><body>404</body></html>", "HTML"),
    "GGUF": (lambda _: b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF"),
    "gzip": (lambda _: b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\0" * 20, "gzip"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_of_another_kind_is_called_by_its_name(name, write, tmp_path):
    make, word = FOREIGN[name]
    assert word in str(_refusal(write(make(tmp_path / "made"))))


def test_an_empty_file_is_told_from_a_damaged_one(write):
    error = _refusal(write(b""))
    assert "empty" in str(error)
    assert "copy" in error.hint


def test_a_missing_file_is_told_with_one_of_nearly_its_name(tmp_path):
    (tmp_path / "receiver.st").touch()
    error = _refusal(tmp_path / "reciever.st")
    assert "no such file" in str(error)
    assert str(tmp_path / "receiver.st") in error.hint
    assert _refusal(tmp_path / "nothing" / "like.it").hint is None


def test_a_folder_is_no_file(tmp_path):
    assert "folder" in str(_refusal(tmp_path))


def test_links_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("dangling", "loop"):
        _refusal(tmp_path / name)


def test_a_part_of_the_path_that_is_a_file_is_refused(write):
    _refusal(write(b"") / "a.st")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    _refusal(tmp_path / ("a" * 300))


def _through_a_pipe(path, content):
    """Opens a pipe that a thread writes to, as ``<(...)`` does."""
    os.mkfifo(path)

    def feed():
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(content)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return Checkpoint(path)
    finally:
        thread.join()


@pytest.mark.timeout(20)
def test_a_pipe_is_read_like_a_file(tmp_path):
    tensors = {"a": np.arange(3000, dtype=np.float32), "b": np.ones((2, 2), np.int64)}
    content = safetensors.numpy.save(tensors)
    with _through_a_pipe(tmp_path / "pipe", content) as ours:
        for name in reversed([*tensors]):  # in any order, though the pipe has gone by
            assert np.array_equal(ours.array(name), tensors[name])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("change", [b"", b"x"], ids=["cut", "too long"])
def test_a_pipe_that_breaks_its_promise_is_refused(change, tmp_path):
    content = safetensors.numpy.save({"a": np.ones(9, np.float32)})
    content = content + change if change else content[:-1]
    with pytest.raises(CheckpointError, match="its header promises 36"):
        _through_a_pipe(tmp_path / "pipe", content)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_an_endless_stream_ends_where_it_is_no_header(device):
    _refusal(Path(device))


def test_a_file_that_is_written_to_while_it_is_read_is_refused(write):
    path = write(safetensors.numpy.save({"a": np.ones(1000, np.float32)}))
    for change in (lambda: os.utime(path, ns=(1, 1)), lambda: path.write_bytes(b"x" * 9)):
        with Checkpoint(path) as ours:
            ours.array("a")
            change()
            with pytest.raises(CheckpointError, match="was changed while it was read"):
                ours.settle()


def test_a_flipped_bit_is_found_when_the_file_has_a_card(tmp_path):
    path = tmp_path / "a.st"
    entry = Entry("F32", (1000,))
    write_file(path, {"a": entry}, [("a", [np.ones(1000, np.float32)])], CARD, force=False)
    with Checkpoint(path) as ours:
        assert ours.settle() == ours.stated
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with Checkpoint(path) as ours, pytest.raises(CheckpointError, match="damaged"):
        ours.settle()


def test_the_digest_is_the_same_whatever_was_read_before(write):
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s, np.float32) for n, s in (("a", 600_000), ("b", 9))}
    path = write(safetensors.numpy.save(tensors))
    found = set()
    for names in ((), ("a",), ("b", "a"), ("a", "a")):
        with Checkpoint(path) as ours:
            for name in names:
                ours.array(name)
            half = ours.blocks("a")
            next(half)
            half.close()
            found.add(ours.settle())
    assert len(found) == 1


def test_a_card_that_is_damaged_or_newer_is_refused_by_the_name_of_the_file(write):
    for card in ({"qvec.kind": "x"}, {"qvec.kind": "vector", "qvec.schema": "99"}):
        _refusal(write(_bytes({"__metadata__": card})))


def test_a_file_that_shrinks_while_it_is_read_is_refused(write):
    path = write(safetensors.numpy.save({"a": np.ones(1000, np.float32)}))
    with Checkpoint(path) as ours:
        os.truncate(path, 500)
        with pytest.raises(CheckpointError, match="changed"):
            ours.array("a")


# --- numbers that are none ----------------------------------------------------------------------

TORCH = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [0, 4, 5, 11])
def test_a_number_that_is_none_is_refused_by_tensor_and_element(
    dtype, bad, place, write, monkeypatch
):
    monkeypatch.setattr(read, "BLOCK", 5)
    values = torch.ones(3, 4, dtype=TORCH[dtype])
    values.view(-1)[place] = float(bad)
    path = write(safetensors.torch.save({"fc.weight": values, "ok": torch.ones(2)}))
    with Checkpoint(path) as ours:
        for look in (ours.finite, ours.require_finite):
            with pytest.raises(CheckpointError) as caught:
                look("fc.weight")
            assert f"{path}: fc.weight: {bad} at element {place}" in str(caught.value)
        np.testing.assert_array_equal(ours.finite("ok"), [1, 1])


def test_a_signalling_nan_is_refused_like_a_quiet_one(write):
    for dtype, pattern in (("F16", "<H"), ("BF16", "<H"), ("F32", "<I"), ("F64", "<Q")):
        exponent = {"F16": 0x7C01, "BF16": 0x7F81, "F32": 0x7F800001, "F64": 0x7FF0000000000001}
        data = struct.pack(pattern, exponent[dtype])
        path = write(_bytes({"a": _entry([1], 0, len(data), dtype)}, data))
        with Checkpoint(path) as ours, pytest.raises(CheckpointError, match="nan at element 0"):
            ours.finite("a")


def test_a_double_beyond_float32_is_refused(write):
    path = write(safetensors.numpy.save({"a": np.array([1.0, 1e300])}))
    with Checkpoint(path) as ours, pytest.raises(CheckpointError, match=r"a: .* at element 1"):
        ours.finite("a")


def test_integers_are_not_asked_whether_they_are_finite(write):
    path = write(safetensors.numpy.save({"a": np.array([2**62, -1])}))
    with Checkpoint(path) as ours:
        np.testing.assert_array_equal(ours.array("a"), [2**62, -1])


@settings(database=None, derandomize=True)
@given(st.lists(st.floats(width=32), max_size=12))
def test_a_product_tells_what_looking_at_each_would(values):
    array = np.array(values, np.float32)
    assert finite(array) == all(map(np.isfinite, values))


def test_a_product_that_overflows_does_not_condemn_its_terms():
    assert finite(np.full(10, 3e38, np.float32))
    assert finite(np.float32([3e38, 3e38, -3e38, -3e38]))
    assert finite(np.empty(0, np.float32))


# --- any file at all ----------------------------------------------------------------------------

BASE = {
    "w": _entry([2, 3], 0, 24),
    "e": _entry([0, 5], 24, 24, "F64"),
    "h": _entry([3], 24, 30, "BF16"),
    "b": _entry([2], 30, 32, "BOOL"),
    "s": _entry([], 32, 40, "I64"),
}
DATA = bytes(range(28)) + b"\x7f\xc0\x01\x01" + bytes(8)
WHOLE = st.integers(-(2**64), 2**65) | st.sampled_from([0, 1, 2, 3, 4, 24, 2**31, 2**32, 2**63])
JUNK = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
DTYPES = st.sampled_from([*FORMATS, "F4", "F6_E2M3", "F8_E4M3", "C64", "X"])
KEYS = st.sampled_from(["dtype", "shape", "data_offsets"])
PLACES = st.sampled_from([0, 24, 30, 32, 40]) | st.integers(0, 41)
TEXTS = st.dictionaries(st.text(max_size=5), st.text(max_size=5))


CHANGES = (
    lambda draw, entry: entry.update({draw(KEYS | st.text(max_size=3)): draw(JUNK)}),
    lambda draw, entry: entry.update(dtype=draw(DTYPES)),
    lambda draw, entry: entry.update(shape=draw(st.lists(WHOLE, max_size=3))),
    lambda draw, entry: entry.update(shape=draw(st.permutations([1, 2, 3]))),
    lambda draw, entry: entry.update(data_offsets=[draw(WHOLE), draw(WHOLE)]),
    lambda draw, entry: entry.update(data_offsets=[draw(PLACES), draw(PLACES)]),
    lambda draw, entry: entry.pop(draw(KEYS), None),
)


@st.composite
def headers(draw):
    """A valid header with up to two of its tensors changed, as text."""
    header = {name: dict(entry) for name, entry in BASE.items()}
    for name in draw(st.lists(st.sampled_from(sorted(BASE)), max_size=2, unique=True)):
        if draw(st.booleans()):
            draw(st.sampled_from(CHANGES))(draw, header[name])
        else:
            header[draw(st.text(max_size=4))] = header.pop(name)
    if draw(st.booleans()):
        header["__metadata__"] = draw(TEXTS | TEXTS | JUNK)
    order = draw(st.permutations(sorted(header)))
    text = json.dumps({name: header[name] for name in order}, ensure_ascii=draw(st.booleans()))
    return text.encode(errors="surrogatepass")


@st.composite
def files(draw):
    """Such a header with data, and perhaps bytes changed, cut, added or repeated anywhere."""
    content = bytearray(_bytes(draw(headers()), DATA))
    match draw(st.integers(-5, 6)):
        case 1:
            content = content[: draw(st.integers(0, len(content)))]
        case 2:
            content += draw(st.binary(max_size=9))
        case 3:
            content[:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1)))
        case 4:
            place = draw(st.integers(0, len(content) - 1))
            content[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        case 5:
            place = draw(st.integers(8, len(content) - 1))
            content[place] = draw(st.sampled_from(b'{}[]",:0-9ae\\ '))
        case 6:
            text, start = bytes(content[8:]), draw(st.integers(8, len(content) - 9))
            piece = text[start - 8 : draw(st.integers(start - 8, len(text)))]
            content[start:start] = piece
            content[:8] = struct.pack("<Q", len(content) - 8 - len(DATA))
    return bytes(content)


@settings(
    database=None,
    derandomize=True,
    max_examples=400,
    deadline=1000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(content=files())
def test_a_file_opens_with_what_the_library_finds_or_is_refused(content, folder):
    path = folder / "mutated.st"
    path.write_bytes(content)
    try:
        checkpoint = Checkpoint(path)
    except CheckpointError:
        return
    with checkpoint as ours, safetensors.safe_open(path, "pt") as library:
        assert ours.metadata == (library.metadata() or {})
        theirs = dict(safetensors.deserialize(content))
        assert sorted(ours) == sorted(theirs)
        for name, entry in ours.items():
            assert entry.dtype == theirs[name]["dtype"]
            assert list(entry.shape) == theirs[name]["shape"]
            assert _raw(ours, name) == bytes(theirs[name]["data"])
            assert ours.array(name).shape == entry.shape
