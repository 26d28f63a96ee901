"""Pickled state dicts: the tensors of torch.save, and never a line of anybody's code."""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, call, spawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qvec_cli.checkpoint.read import Checkpoint
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


def test_of_weights_and_their_average_the_weights_count_and_a_note_says_so(tmp_path: Path) -> None:
    averaged = {name: tensor * 2 for name, tensor in STATE.items()}
    torch.save({"state_dict_ema": averaged, "state_dict": STATE}, tmp_path / "a.pt")
    with Checkpoint(tmp_path / "a.pt") as ours:
        assert np.array_equal(ours.array("noise"), STATE["noise"].numpy())
        assert ours.notes == ["the weights are those under 'state_dict'; state_dict_ema left out"]


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
    from qvec_cli.ops.state import load_state

    tied = torch.randn(4, 4, generator=GENERATOR)
    for name, shift in (("donor", 0), ("qat", 1), ("receiver", 2)):
        weight = tied + shift
        state = {"a.weight": weight, "b.weight": weight, "c": weight[:2]}
        torch.save(state, tmp_path / f"{name}.pt")
    rho, out = tmp_path / "rho.st", tmp_path / "out.st"
    call("extract", tmp_path / "donor.pt", tmp_path / "qat.pt", "-o", rho)
    call("patch", tmp_path / "receiver.pt", rho, "-o", out)
    for path in (tmp_path / "donor.pt", rho, out):
        with Checkpoint(path) as ours:
            assert set(ours) == {"a.weight", "c"}
            assert ours.aliases == {"b.weight": "a.weight"}
    with Checkpoint(out) as ours:
        state = load_state(ours)
    assert torch.allclose(state["a.weight"], tied + 3)
    assert state["b.weight"] is state["a.weight"]


def test_an_alias_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    from qvec_cli.ops.state import load_state

    metadata = {"qvec.kind": "checkpoint", "qvec.schema": "1", "qvec.aliases": '{"b":"gone"}'}
    save_file({"a": torch.ones(1)}, tmp_path / "a.st", metadata)
    with Checkpoint(tmp_path / "a.st") as ours, pytest.raises(CheckpointError, match="b: tied to"):
        load_state(ours)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("form", [*FORMS, "bare pickle 2", "bare pickle 4"])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside tensors"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_pickle_that_would_run_code_does_not(
    form: str, inside: bool, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the environment asks torch for it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / f"evil.{suffix}"
    evil: object = Evil(f"touch {canary}")
    evil = {**STATE, "x": evil} if inside else evil
    if form.startswith("bare"):
        path.write_bytes(pickle.dumps({"x": Evil(f"touch {canary}")}, int(form[-1])))
    else:
        FORMS[form](evil, path)
    assert "could run code" in refusal(path)
    assert ("holds posix.system" in refusal(path)) == (form != "bare pickle 4")
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(f"touch {tmp_path / 'canary'}")))
    assert (tmp_path / "canary").exists()


def test_a_whole_network_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "a.pt")


STRANGE: dict[str, tuple[Any, str]] = {
    "sparse": (torch.eye(3).to_sparse(), "w: float32 sparse_coo is not supported"),
    "complex": (torch.ones(2, dtype=torch.complex64), "w: complex64 strided is not supported"),
    "fp8": (torch.ones(2).to(torch.float8_e4m3fn), "w: float8_e4m3fn strided is not supported"),
    "quantized": ("quantized", "w: qint8"),
    "a number": (3, "w: is int, not a tensor"),
    "a text": ("x", "w: is str, not a tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_plain_tensor_is_refused_by_name(case: str, tmp_path: Path) -> None:
    value, words = STRANGE[case]
    if case == "quantized":  # warns of its own end when it is made
        value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
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


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    """A compressed archive of 256 MB of zeros, and one that lies about its size."""
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(16):
                member.write(bytes(16 << 20))
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from qvec_cli.checkpoint.read import Checkpoint\n"
        "try: Checkpoint(Path(sys.argv[1]))\nexcept Exception as e: print(type(e).__name__, e)\n"
        "print('torch' in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    said = subprocess.check_output([sys.executable, "-c", code, tmp_path / "bomb"], text=True)
    message, facts = said.splitlines()
    assert message.startswith("CheckpointError")
    assert "a compressed zip archive" in message
    assert facts.split()[0] == "False"


def test_an_archive_of_something_else_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    assert "a zip archive, but not one of torch.save" in refusal(tmp_path / "a.npz")


def _saved(form: str) -> bytes:
    buffer = io.BytesIO()
    FORMS[form]({"a": torch.ones(3), "b": torch.zeros(2, 2)}, buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


WHOLE = {form: _saved(form) for form in FORMS}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


def test_a_pickle_works_in_a_process_of_its_own(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    assert "w\tF32\t[2]" in spawn("inspect", tmp_path / "a.pt").out
