"""Pickled state dicts: the tensors of torch.save, and never a line of anybody's code."""

from __future__ import annotations

import _codecs
import argparse
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qvec_cli.checkpoint import archives, locate
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.errors import CheckpointError

GENERATOR = torch.Generator().manual_seed(0)
STATE = {
    **{
        f"of.{str(dtype).removeprefix('torch.')}": torch.randint(
            0, 2, (3, 5), generator=GENERATOR
        ).to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
            *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        )
    },
    "noise": torch.randn(40, 50, generator=GENERATOR),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "view": torch.arange(12.0).reshape(3, 4).T,
    "part": torch.arange(12.0)[2:7],
    "expanded": torch.ones(1).expand(4),
}


def legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


FORMS = {"new": torch.save, "old": legacy}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_state_dict_is_the_same_as_in_safetensors(form: str, suffix: str, tmp_path: Path) -> None:
    FORMS[form](STATE, tmp_path / f"a.{suffix}")
    save_file({n: t.contiguous() for n, t in STATE.items()}, tmp_path / "b.st")
    with Checkpoint(tmp_path / f"a.{suffix}") as ours, Checkpoint(tmp_path / "b.st") as stock:
        assert set(ours) == set(stock)
        assert all(ours[name][:2] == stock[name][:2] for name in stock)
        assert ours.settle() == stock.settle()
        assert ours.notes == []


@pytest.mark.parametrize(
    "prefix", ["model.", "module.", "_orig_mod.", "timm_model.", "module._orig_mod.model."]
)
def test_what_wrappers_put_before_every_name_is_left_out_with_a_note(
    prefix: str, tmp_path: Path
) -> None:
    torch.save({prefix + name: tensor for name, tensor in STATE.items()}, tmp_path / "a.pt")
    save_file({prefix + n: t.contiguous() for n, t in STATE.items()}, tmp_path / "b.st")
    for file in ("a.pt", "b.st"):
        with Checkpoint(tmp_path / file) as ours:
            assert set(ours) == set(STATE)
            assert ours.notes == [f"{prefix!r} before every name is left out"]


def test_a_prefix_of_some_names_is_theirs(tmp_path: Path) -> None:
    torch.save({"model.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pt")
    with Checkpoint(tmp_path / "a.pt") as ours:
        assert set(ours) == {"model.a", "b"}


@pytest.mark.parametrize("key", ["state_dict", "model", "ema", "model_state_dict", "module"])
def test_a_training_scripts_dictionary_is_looked_into(key: str, tmp_path: Path) -> None:
    """timm's own has the arguments of the run beside the weights, as a bag of attributes."""
    extra = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    torch.save({**extra, key: STATE}, tmp_path / "a.pt")
    with Checkpoint(tmp_path / "a.pt") as ours:
        assert set(ours) == set(STATE)
        assert ours.notes == [f"the weights are those under {key!r}"]


def test_of_weights_and_their_average_the_average_counts_and_a_note_says_so(tmp_path: Path) -> None:
    """As in timm's own loader; a word takes the others."""
    averaged = {name: tensor * 2 for name, tensor in STATE.items()}
    torch.save({"state_dict_ema": averaged, "state_dict": STATE}, tmp_path / "a.pt")
    for use_ema, factor in ((True, 2), (False, 1)):
        with Checkpoint(tmp_path / "a.pt", WeightsChoice(use_ema=use_ema)) as ours:
            assert np.array_equal(ours.array("noise"), factor * STATE["noise"].numpy())
            keys = ("state_dict_ema", "state_dict")[:: 1 if use_ema else -1]
            flag = " (--no-use-ema takes them)" if use_ema else ""
            note = f"the weights are those under {keys[0]!r}; {keys[1]} left out{flag}"
            assert ours.notes == [note]


def test_the_authors_pair_is_read_as_it_is(drawer: Drawer, tmp_path: Path) -> None:
    """Keys with model. before them, a head of its own in each: as with the files of qvec."""
    for name in ("donor", "donor_qat"):
        tensors = load_file(getattr(drawer, name))
        torch.save({f"model.{n}": t for n, t in tensors.items()}, tmp_path / f"{name}.pt")
    pair = (tmp_path / "donor.pt", tmp_path / "donor_qat.pt")
    result = call("extract", *pair, "-o", tmp_path / "rho.st")
    assert result.err.count("'model.' before every name is left out") == 2
    assert "left out: head.bias, head.weight" in result.out
    assert call("inspect", tmp_path / "rho.st", drawer.rho, "--json").json["results"]["same"]


def test_tied_tensors_are_kept_once_and_restored_in_the_network(tmp_path: Path) -> None:
    """Through every step: the names of the dropped ones travel with the card."""
    from qvec_cli.inputs.network import load_state

    tied = torch.randn(4, 4, generator=GENERATOR)
    for name, shift in (("donor", 0), ("qat", 1), ("receiver", 2)):
        weight = tied + shift
        state = {"a.weight": weight, "b.weight": weight, "c": weight[:2]}
        torch.save(state, tmp_path / f"{name}.pt")
    rho, out = tmp_path / "rho.st", tmp_path / "out.st"
    call("extract", tmp_path / "donor.pt", tmp_path / "qat.pt", "--no-head", "-o", rho)
    call("patch", tmp_path / "receiver.pt", rho, "--no-head", "-o", out)
    for path in (tmp_path / "donor.pt", rho, out):
        with Checkpoint(path) as ours:
            assert set(ours) == {"a.weight", "c"}
            assert ours.aliases == {"b.weight": "a.weight"}
    with Checkpoint(out) as ours:
        state = load_state(ours)
    assert torch.allclose(state["a.weight"], tied + 3)
    assert state["b.weight"] is state["a.weight"]


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("form", [*FORMS, "bare pickle 2", "bare pickle 4"])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside tensors"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_pickle_that_would_run_code_does_not(
    form: str, inside: bool, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the environment asks torch for it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / f"evil.{suffix}"
    evil: object = Call(os.system, f"touch {canary}")
    if form.startswith("bare"):
        path.write_bytes(pickle.dumps({"x": evil}, int(form[-1])))
    else:
        FORMS[form]({**STATE, "x": evil} if inside else evil, path)
    assert "could run code" in refusal(path)
    assert ("holds posix.system" in refusal(path)) == (form != "bare pickle 4")
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Call(os.system, f"touch {tmp_path / 'canary'}")))
    assert (tmp_path / "canary").exists()


def test_a_whole_network_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "a.pt")


STRANGE: dict[str, tuple[Any, str]] = {
    "sparse": (torch.eye(3).to_sparse(), "w: float32 sparse_coo is not supported"),
    "complex": (torch.ones(2, dtype=torch.complex64), "w: complex64 strided is not supported"),
    "fp8": (torch.ones(2).to(torch.float8_e4m3fn), "w: float8_e4m3fn strided is not supported"),
    "quantized": ("quantized", "w: qint8"),
    "nested": ("nested", "w: float32"),
    "meta": (torch.ones(2, device="meta"), "w: float32"),
    "a number": (3, "w: is int, not a tensor"),
    "a text": ("x", "w: is str, not a tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_plain_tensor_is_refused_by_name(case: str, tmp_path: Path) -> None:
    value, words = STRANGE[case]
    if case == "quantized":  # warns of its own end when it is made
        value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    if case == "nested":
        value = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"a": torch.ones(1), "w": value}, tmp_path / "a.pt")
    assert words in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [[1, 2], torch.ones(2), 3, {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    for form, save in FORMS.items():
        save(STATE, tmp_path / form)
        whole = (tmp_path / form).read_bytes()
        for share in (0.1, 0.5, 0.99):
            (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
            refusal(tmp_path / "cut")


@functools.cache
def _compressed() -> bytes:
    count, plain, packed = 64 << 20, io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(1000)}, plain)
    with zipfile.ZipFile(plain) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in members.items():
            if name.endswith("/data/0"):
                file.writestr(name, bytes(4 * count), zipfile.ZIP_DEFLATED)
            else:
                long, short = (pickle.dumps(n, 2)[2:-1] for n in (count, 1000))
                file.writestr(name, content.replace(short, long))
    return packed.getvalue()


def compressed(path: Path) -> None:
    """What torch.save would write, were it to compress: 256 MB of noughts in 260 kB."""
    path.write_bytes(_compressed())


def two_directories(path: Path) -> None:
    """The same with a second one before its end, where zipfile looks: all is stored and small."""
    compressed(path)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    start = struct.unpack_from("<L", content, end + 16)[0]
    harmless, place = bytearray(content[start:end]), 0
    while place < len(harmless):
        struct.pack_into("<H", harmless, place + 10, zipfile.ZIP_STORED)
        harmless[place + 24 : place + 28] = harmless[place + 20 : place + 24]
        place += 46 + sum(struct.unpack_from("<3H", harmless, place + 28))
    path.write_bytes(content[:end] + harmless + content[end:])


def doubled(times: int) -> Call:
    """Text that grows to twice its length with each call."""
    inner = doubled(times - 1) if times else "a"
    return Call(_codecs.encode, inner, "hex" if times else "latin1")


def transposes() -> dict[str, torch.Tensor]:
    numbers = torch.ones(1_000_100)
    return {f"w{i}": numbers[i : i + 1_000_000].view(1000, 1000).T for i in range(100)}


def lists(depth: int) -> list[Any]:
    """A few kilobytes that stand for a billion numbers."""
    inner: Any = lists(depth - 1) if depth else 1.0
    return [inner] * 1000


def nested(depth: int) -> dict[str, Any]:
    """Each holds the next one twice."""
    inner: Any = {"a": 1}
    for _ in range(depth):
        inner = {"a": inner, "b": inner}
    return inner


def endless() -> dict[str, Any]:
    itself: dict[str, Any] = {}
    itself["a"] = itself
    return itself


BOMBS: dict[str, Callable[[Path], None]] = {
    "a compressed archive": compressed,
    "an archive with two directories": two_directories,
    "one number many times": lambda p: torch.save({"w": torch.ones(1).expand(10**8)}, p),
    "the same in the old form": lambda p: legacy({"w": torch.ones(1).expand(10**8)}, p),
    "a tensor turned many times": lambda p: torch.save(transposes(), p),
    "a tensor that nobody has filled": lambda p: torch.save({"w": Call(torch.Tensor, 10**8)}, p),
    "as many bytes as it asks for": lambda p: torch.save({"w": Call(bytearray, 4 * 10**8)}, p),
    "more bytes than there are": lambda p: torch.save({"w": Call(bytearray, 10**16)}, p),
    "text that is doubled again and again": lambda p: torch.save({"w": doubled(28)}, p),
    "a list of itself": lambda p: torch.save({"w": Call(torch.Tensor, lists(3))}, p),
    "dictionaries in one another": lambda p: torch.save({"args": nested(60), "x": nested(60)}, p),
    "a dictionary of itself": lambda p: torch.save({"args": endless(), "x": endless()}, p),
}
OPENS = """
import contextlib, sys
from pathlib import Path
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError
from qvec_cli.outputs.metrics import peak_rss_bytes
for name in sys.argv[1:]:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_rss_bytes()
    try:
        said = f"opened {len(Checkpoint(Path(name)))}"
    except CheckpointError:
        said = "refused"
    except BaseException as fault:
        said = type(fault).__name__
    print(said, peak_rss_bytes() - before, sep="\\t")
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What a process says to a pickle and to each bomb, and the bytes that it took."""
    folder = tmp_path_factory.mktemp("bombs")
    makers = {"a pickle": lambda p: torch.save({"w": torch.ones(2)}, p), **BOMBS}
    paths = {case: folder / f"{number}.pt" for number, case in enumerate(makers)}
    for case, path in paths.items():
        makers[case](path)
    command = [sys.executable, "-c", OPENS, *map(str, paths.values())]
    lines = subprocess.check_output(command, text=True).splitlines()
    pairs = (line.split("\t") for line in lines)
    return {case: (said, int(cost)) for case, (said, cost) in zip(makers, pairs, strict=True)}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(
    case: str, opened: dict[str, tuple[str, int]]
) -> None:
    said, cost = opened[case]
    assert said == "refused"
    assert cost < 160e6


def test_a_compressed_archive_is_refused_without_torch(tmp_path: Path) -> None:
    compressed(tmp_path / "bomb")
    code = OPENS + "print('torch' in sys.modules, peak_rss_bytes())"
    command = [sys.executable, "-c", code, str(tmp_path / "bomb")]
    said, last = subprocess.check_output(command, text=True).splitlines()
    assert (said.split()[0], last.split()[0]) == ("refused", "False")
    assert int(last.split()[1]) < 200e6
    assert "a compressed zip archive" in refusal(tmp_path / "bomb")


def test_the_table_of_an_archive_is_read_only_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    Checkpoint(tmp_path / "a.pt").close()
    monkeypatch.setattr(archives, "_MAX_DIRECTORY", 100)
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "name", ["\ud800", "w" * 20_000, "__metadata__"], ids=["surrogate", "long", "metadata"]
)
def test_a_name_that_no_safetensors_file_can_have_never_gets_into_one(
    name: str, tmp_path: Path
) -> None:
    for file in ("donor.pt", "qat.pt"):
        torch.save({name: torch.randn(4, 4), "b": torch.ones(2)}, tmp_path / file)
    files = (tmp_path / "donor.pt", tmp_path / "qat.pt", "-o", tmp_path / "rho.st")
    assert len(call("extract", *files, code=1).errors) == 1
    assert not (tmp_path / "rho.st").exists()


def _saved(form: str) -> bytes:
    buffer = io.BytesIO()
    FORMS[form]({"a": torch.ones(3), "b": torch.zeros(2, 2)}, buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


EXAMPLES = settings(
    database=None,
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WHOLE = {form: _saved(form) for form in FORMS}


@EXAMPLES
@pytest.mark.filterwarnings("ignore")
@given(
    form=st.sampled_from(sorted(FORMS)),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_a_mangled_pickle_is_read_or_refused_and_nothing_else(
    form: str, changes: list[tuple[int, int]], cut: int, tmp_path: Path
) -> None:
    content = bytearray(WHOLE[form])
    for place, value in changes:
        content[4 + place % (len(content) - 4)] = value
    path = tmp_path / "mangled"
    path.write_bytes(content[: len(content) - cut] if cut > 20 else content)
    try:
        with Checkpoint(path) as ours:
            ours.settle()
    except CheckpointError:
        pass


@EXAMPLES
@given(magic=st.sampled_from(locate._PICKLED), rest=st.binary(max_size=300))
def test_anything_after_the_magic_is_refused(magic: bytes, rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "random"
    path.write_bytes(magic + rest.ljust(14, b"\xff"))
    refusal(path)


def test_a_pickle_works_in_a_process_that_has_not_imported_torch(
    opened: dict[str, tuple[str, int]],
) -> None:
    said, _ = opened["a pickle"]
    assert said == "opened 1"
