"""Writing: a whole file that the library opens, or nothing at all and the old file untouched."""

import contextlib
import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.dtypes import FORMATS
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import SUFFIX, check_target, replacing, write_json
from qvec_cli.checkpoint.write import size_of, write
from qvec_cli.errors import CheckpointError

CARD = Card(Kind.CHECKPOINT, role="fp", model={"b": 1, "a": [2]}, provenance={"operation": "test"})
GENERATOR = torch.Generator().manual_seed(0)


def _tensor(dtype, shape):
    """Random bytes as a torch tensor; booleans are 0 or 1."""
    raw = torch.randint(0, 2 if dtype == "BOOL" else 120, shape, generator=GENERATOR)
    return raw.to(safetensors.torch._TYPES[dtype])


TENSORS = {f"of.{dtype}": _tensor(dtype, (3, 5)) for dtype in FORMATS} | {
    "b.weight": _tensor("F32", (2, 3, 4)),
    "a.weight": _tensor("F32", (7,)),
    "scalar": _tensor("I64", ()),
    "empty": _tensor("F32", (0, 4)),
    "naïve.重み": _tensor("F16", (1,)),
    'new\nline "\\ \x1b\x00\x7f': _tensor("U8", (3,)),
}


def _dtype(tensor):
    return next(n for n, t in safetensors.torch._TYPES.items() if t == tensor.dtype)


def _raw(tensor):
    bits = tensor.reshape(-1).view(torch.uint8).numpy()
    return bits.view(FORMATS[_dtype(tensor)].numpy)


def _plan(tensors):
    return {name: Entry(_dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _blocks(tensors, size=4):
    for name, tensor in tensors.items():
        raw = _raw(tensor)
        yield name, [raw[start : start + size] for start in range(0, raw.size, size)]


def _save(path, tensors=TENSORS, card=CARD, *, force=False):
    return write(path, _plan(tensors), _blocks(tensors), card, force=force)


def _header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    """A file that stands where the new one shall."""
    path = tmp_path / "a.st"
    _save(path, {"old": torch.ones(3)})
    return path


# --- what the library finds ---------------------------------------------------------------------


def test_the_library_finds_every_tensor_as_it_was(tmp_path):
    _save(tmp_path / "a.st")
    with safetensors.safe_open(tmp_path / "a.st", "pt") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor)


def test_our_reader_finds_every_tensor_as_it_was(tmp_path):
    _save(tmp_path / "a.st")
    with Checkpoint(tmp_path / "a.st") as ours:
        for name, tensor in TENSORS.items():
            assert b"".join(b.tobytes() for b in ours.blocks(name)) == _raw(tensor).tobytes()
            assert ours[name].shape == tuple(tensor.shape)


@pytest.mark.parametrize("tensors", [{}, {"a": torch.empty(0)}, TENSORS], ids=len)
def test_the_bytes_are_the_librarys_but_for_the_order_of_metadata(tensors, tmp_path):
    _save(tmp_path / "ours.st", tensors)
    text, data = _header(tmp_path / "ours.st")
    metadata = json.loads(text)["__metadata__"]
    safetensors.torch.save_file(tensors, tmp_path / "library.st", metadata=metadata)
    their_text, their_data = _header(tmp_path / "library.st")
    assert data == their_data
    assert len(text) == len(their_text)
    assert json.loads(text) == json.loads(their_text)
    after = len(json.dumps({"__metadata__": metadata}, separators=(",", ":")).encode()) - 1
    assert text[after:] == their_text[after:]


def test_data_are_aligned_and_the_header_is_padded_with_spaces(tmp_path):
    for length in range(9):
        path = tmp_path / f"{length}.st"
        _save(path, {"n" * length: torch.ones(2)})
        text, _ = _header(path)
        assert len(text) % 8 == 0
        assert text.startswith(b"{")
        assert text.rstrip(b" ").endswith(b"}")


@pytest.mark.parametrize("align", [8, 64, 4096])
def test_whole_pieces_start_at_multiples_and_the_rest_comes_last(align, tmp_path):
    tensors = {
        **TENSORS,
        **{f"whole {n}": torch.full((n * align // 4,), n) for n in range(3)},
        **{f"half {n}": torch.full((n * align // 2,), n).half() for n in range(3)},
    }
    plan, path = _plan(tensors), tmp_path / "a.st"
    card = write(path, plan, _blocks(tensors, 1000), CARD, force=False, align=align)
    assert path.stat().st_size == size_of(plan, card, align)
    with Checkpoint(path) as ours:
        assert card.digest == ours.contents()
        rests = [entry.nbytes % align for entry in ours.values()]
        assert sorted(rests, key=bool) == rests
        assert {entry.start % align for entry in ours.values() if not entry.nbytes % align} == {0}
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())


def test_metadata_are_sorted_text(tmp_path):
    card = _save(tmp_path / "a.st")
    metadata = json.loads(_header(tmp_path / "a.st")[0])["__metadata__"]
    assert list(metadata) == sorted(metadata)
    assert metadata == card.to_header()


def test_the_card_comes_back_with_the_digest_of_the_contents(tmp_path):
    card = _save(tmp_path / "a.st")
    with Checkpoint(tmp_path / "a.st") as ours:
        assert ours.card == card
        assert card.digest == ours.contents()


def test_tensors_may_come_in_any_order_and_in_blocks_of_any_length(tmp_path):
    plan, backwards = _plan(TENSORS), dict(reversed(TENSORS.items()))
    for i, size in enumerate((1, 3, 1000)):
        write(tmp_path / f"{i}.st", plan, _blocks(backwards, size), CARD, force=False)
    _save(tmp_path / "forwards.st")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_blocks_may_be_drawn_one_by_one(tmp_path):
    tensor = torch.arange(6, dtype=torch.float32)
    lazy = (("a", (_raw(tensor)[i : i + 2] for i in (0, 2, 4))) for _ in range(1))
    write(tmp_path / "a.st", _plan({"a": tensor}), lazy, CARD, force=False)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.st")["a"], tensor)


SAVE = """
import sys, numpy as np
from pathlib import Path
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.write import write
names = {"a", "b", "c", "d", "e"}
plan = {name: Entry("F32", (2,)) for name in names}
card = Card(Kind.CHECKPOINT, model={n: {m: 1 for m in names} for n in names}, role="fp")
blocks = ((name, [np.full(2, ord(name), np.float32)]) for name in names)
write(Path(sys.argv[1]), plan, blocks, card, force=False)
"""


def test_the_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    for seed in ("0", "1", "2"):
        subprocess.run(
            [sys.executable, "-c", SAVE, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


# --- what is refused ----------------------------------------------------------------------------


def test_a_tensor_named_like_the_metadata_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="__metadata__"):
        _save(tmp_path / "a.st", {"__metadata__": torch.ones(1)})
    assert _names(tmp_path) == []


def test_an_output_that_exists_is_refused_unless_forced(old):
    before = old.read_bytes()
    with pytest.raises(CheckpointError, match="exists") as caught:
        _save(old)
    assert "--force" in caught.value.hint
    assert old.read_bytes() == before
    _save(old, force=True)
    assert set(safetensors.torch.load_file(old)) == set(TENSORS)
    assert _names(old.parent) == ["a.st"]


def test_a_folder_as_target_is_refused_also_by_force(tmp_path):
    for force in (False, True):
        with pytest.raises(CheckpointError, match="folder"):
            _save(tmp_path, force=force)


def test_a_missing_folder_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(CheckpointError, match="folder does not exist") as caught:
        _save(tmp_path / "x" / "y" / "a.st")
    assert f"mkdir -p {tmp_path / 'x' / 'y'}" in caught.value.hint
    assert _names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_refused(old):
    with pytest.raises(CheckpointError):
        _save(old / "b.st")


@pytest.mark.timeout(20)
def test_a_pipe_gets_the_bytes_of_a_file_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    _save(tmp_path / "file")
    got = []
    thread = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    thread.start()
    _save(tmp_path / "pipe", force=False)
    thread.join()
    assert got == [(tmp_path / "file").read_bytes()]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(os.getuid() == 0, reason="root could replace the device if this went wrong")
def test_a_full_device_is_told(tmp_path):  # for root, test_terminal makes a device of its own
    with pytest.raises(CheckpointError, match="/dev/full: cannot be written: no space left"):
        _save(Path("/dev/full"))


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for force in (False, True):
        with pytest.raises(CheckpointError):
            _save(tmp_path / "loop", force=force)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "a"], ids=["name", "path"])
def test_a_name_that_is_too_long_for_the_disk_is_refused(name, tmp_path):
    with pytest.raises(CheckpointError):
        _save(tmp_path / name)


AS_NOBODY = """
import difflib, os, sys
from pathlib import Path
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.replace import check_target, write_json
from qvec_cli.errors import CheckpointError
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
folder = Path(sys.argv[1])
looks = {
    "unreadable file": lambda: Checkpoint(folder / "unreadable.st"),
    "file in a closed folder": lambda: Checkpoint(folder / "closed" / "a.st"),
    "check of a read-only folder": lambda: check_target(folder / "readonly" / "b", force=False),
    "check of a closed folder": lambda: check_target(folder / "closed" / "b", force=False),
    "write to a closed folder": lambda: write_json(folder / "closed" / "b", {}, force=True),
}
for name, look in looks.items():
    try:
        look()
        print(name, "passed")
    except CheckpointError as error:
        print(name, "refused", str(error).startswith(str(folder)))
    except Exception as error:
        print(name, type(error).__name__)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_what_permissions_forbid_is_refused():
    with tempfile.TemporaryDirectory() as name:  # not in tmp_path, whose parents are closed
        folder = Path(name)
        folder.chmod(0o755)
        for inner, mode in (("closed", 0o700), ("readonly", 0o555)):
            (folder / inner).mkdir()
            _save(folder / inner / "a.st")
            (folder / inner).chmod(mode)
        _save(folder / "unreadable.st")
        (folder / "unreadable.st").chmod(0)
        said = subprocess.check_output([sys.executable, "-c", AS_NOBODY, name], text=True)
    lines = said.splitlines()
    assert len(lines) == 5
    assert [line for line in lines if not line.endswith(" refused True")] == []


# --- whole or not at all ------------------------------------------------------------------------


class Interrupted(BaseException):
    """Anything that may come up, also what is no Exception."""


def _fails_after(count, fault):
    for i, pair in enumerate(_blocks(TENSORS)):
        if i == count:
            raise fault
        yield pair


@pytest.mark.parametrize("count", [0, 1, len(TENSORS) - 1])
@pytest.mark.parametrize("fault", [CheckpointError("x"), ValueError("x"), Interrupted("x")])
def test_a_fault_in_the_stream_leaves_the_old_file_and_nothing_else(count, fault, old):
    before = old.read_bytes()
    with pytest.raises(type(fault), match="x"):
        write(old, _plan(TENSORS), _fails_after(count, fault), CARD, force=True)
    assert old.read_bytes() == before
    assert _names(old.parent) == ["a.st"]


def test_a_fault_within_a_tensor_leaves_nothing(tmp_path):
    def blocks():
        yield np.zeros(1, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.st", {"a": Entry("F32", (2,))}, [("a", blocks())], CARD, force=False)
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [("a", [np.zeros(4, np.float32)])],
        [("a", [np.zeros(3, np.float32)]), ("b", [np.zeros(1, np.float32)])],
        [("a", [np.zeros(5, np.float32)]), ("b", [np.zeros(1, np.float32)])],
        [("a", [np.zeros(4, np.float64)]), ("b", [np.zeros(1, np.float32)])],
        [("a", [np.zeros(4, np.float32)]), ("b", [])],
        [("a", [np.zeros(4, np.float32)]), ("b", [np.zeros(1, np.float32)]), ("c", [])],
    ],
    ids=["none", "missing", "short", "long", "wide", "empty", "unplanned"],
)
def test_data_that_are_not_as_planned_make_no_file(blocks, old):
    before = old.read_bytes()
    plan = {"a": Entry("F32", (4,)), "b": Entry("F32", (1,))}
    with pytest.raises((AssertionError, KeyError)):
        write(old, plan, blocks, CARD, force=True)
    assert old.read_bytes() == before
    assert _names(old.parent) == ["a.st"]


def test_while_it_is_written_a_file_is_a_hidden_sibling(tmp_path):
    seen = []

    def blocks():
        for pair in _blocks(TENSORS):
            seen.append(_names(tmp_path))
            yield pair

    write(tmp_path / "a.st", _plan(TENSORS), blocks(), CARD, force=False)
    assert all(len(names) == 1 for names in seen)
    assert all(n.startswith(".a.st.") and n.endswith(SUFFIX) for (n,) in seen)
    assert _names(tmp_path) == ["a.st"]


def test_a_short_write_is_carried_on(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, bytes(data)[:100], offset))
    _save(tmp_path / "a.st")
    monkeypatch.undo()
    with Checkpoint(tmp_path / "a.st") as ours:
        assert set(ours) == set(TENSORS)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write(
        Path(sys.argv[1]),
        {"a": Entry("F32", (100_000,))},
        [("a", [np.zeros(100_000, np.float32)])],
        Card(Kind.CHECKPOINT),
        force=True,
    )
except CheckpointError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_leaves_the_old_file_and_nothing_else(old):
    before = old.read_bytes()
    said = subprocess.check_output([sys.executable, "-c", FULL, str(old)], text=True)
    assert f"{old}: cannot be written: file too large" in said
    assert old.read_bytes() == before
    assert _names(old.parent) == ["a.st"]


def test_data_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    events = []

    def recorded(name):
        call = getattr(os, name)

        def run(*args, **kwargs):
            what = "folder" if name == "fsync" and _is_folder(args[0]) else ""
            events.append(name + what)
            return call(*args, **kwargs)

        monkeypatch.setattr(os, name, run)

    for name in ("fsync", "link", "replace"):
        recorded(name)
    _save(tmp_path / "a.st")
    _save(tmp_path / "a.st", force=True)
    assert events == ["fsync", "link", "fsyncfolder", "fsync", "replace", "fsyncfolder"]


def _is_folder(fd):
    return os.path.isdir(f"/proc/self/fd/{fd}")  # noqa: PTH112


RACE = """
import multiprocessing, sys
from pathlib import Path
import numpy as np
from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.checkpoint.write import write
from qvec_cli.errors import CheckpointError

def run(path, number, barrier, results):
    array = np.full(1000, number, np.float32)
    def blocks():
        barrier.wait()  # all have seen that nothing is there
        yield "a", [array]
    try:
        write(path, {"a": Entry("F32", (1000,))}, blocks(), Card(Kind.VECTOR), force=False)
        results.put(number)
    except CheckpointError as error:
        results.put(None if "exists" in str(error) else repr(error))

fork = multiprocessing.get_context("fork")
for turn in range(15):
    path = Path(sys.argv[1]) / f"{turn}.st"
    barrier, results = fork.Barrier(6), fork.Queue()
    args = [(path, number, barrier, results) for number in range(1, 7)]
    processes = [fork.Process(target=run, args=a) for a in args]
    for process in processes:
        process.start()
    winners = [w for w in (results.get(timeout=20) for _ in processes) if w is not None]
    for process in processes:
        process.join()
    assert len(winners) == 1, winners
    with Checkpoint(path) as file:
        assert (file.array("a") == winners[0]).all()
        assert file.settle() == file.stated
"""


@pytest.mark.timeout(60)
def test_of_six_writers_to_one_name_exactly_one_wins(tmp_path):
    subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], check=True)
    assert _names(tmp_path) == sorted(f"{turn}.st" for turn in range(15))


# --- names, links and modes ---------------------------------------------------------------------


@contextlib.contextmanager
def _umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _mode(path):
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(mask, mode, tmp_path):
    with _umask(mask):
        _save(tmp_path / "a.st")
        write_json(tmp_path / "a.json", {}, force=False)
    assert _mode(tmp_path / "a.st") == _mode(tmp_path / "a.json") == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(mode, old):
    old.chmod(mode)
    with _umask(0o022):
        _save(old, force=True)
    assert _mode(old) == mode


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.st").symlink_to("there/real.st")
    for force in (False, True):  # the first time it dangles
        _save(tmp_path / "link.st", force=force)
        assert (tmp_path / "link.st").is_symlink()
        assert not (tmp_path / "there" / "real.st").is_symlink()
        assert _names(tmp_path / "there") == ["real.st"]
    assert set(safetensors.torch.load_file(tmp_path / "link.st")) == set(TENSORS)


def test_a_link_to_a_file_that_exists_is_refused_unless_forced(old):
    (old.parent / "link.st").symlink_to("a.st")
    with pytest.raises(CheckpointError, match="exists"):
        _save(old.parent / "link.st")


def test_another_name_of_the_old_file_keeps_the_old_contents(old):
    (old.parent / "b.st").hardlink_to(old)
    before = old.read_bytes()
    _save(old, force=True)
    assert (old.parent / "b.st").read_bytes() == before != old.read_bytes()


def test_a_file_may_be_replaced_by_what_is_read_from_it(old):
    with Checkpoint(old) as source:
        blocks = ((name, [b * 2 for b in source.blocks(name)]) for name in source)
        write(old, source, blocks, CARD, force=True)
    assert torch.equal(safetensors.torch.load_file(old)["old"], torch.full((3,), 2.0))


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "重" * 85], ids=["1", "2", "3"])
def test_a_name_as_long_as_the_disk_allows_is_written(name, tmp_path):
    _save(tmp_path / name)
    _save(tmp_path / name, force=True)
    assert _names(tmp_path) == [name]


@pytest.mark.parametrize(
    "name", ["-rf", "new\nline", "\x1b[31m", "a b", "%s", b"\xff.st"], ids=repr
)
def test_any_name_is_written(name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    _save(path)
    with Checkpoint(path) as ours:
        assert len(ours) == len(TENSORS)


def test_a_relative_path_is_one_from_where_we_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.st", "./b.st", "../" + tmp_path.name + "/c.st"):
        _save(Path(name))
    assert _names(tmp_path) == ["a.st", "b.st", "c.st"]


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    stale = tmp_path / f".a.st.1-00000000{SUFFIX}"
    other = tmp_path / f".b.st.1-00000000{SUFFIX}"
    for path in (stale, other):
        path.write_bytes(b"x")
    with replacing(tmp_path / "a.st", force=False) as file:
        file.write(b"first")
        with replacing(tmp_path / "a.st", force=False) as rival:
            rival.write(b"second")
        assert Path(file.name).exists()
        assert not stale.exists()
        assert other.exists()  # of another target
        (tmp_path / "a.st").unlink()
    assert _names(tmp_path) == sorted([other.name, "a.st"])
    assert (tmp_path / "a.st").read_bytes() == b"first"


def test_a_link_with_the_name_of_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    link = tmp_path / f".a.st.1-00000000{SUFFIX}"
    link.symlink_to("precious")
    _save(tmp_path / "a.st")
    assert (tmp_path / "precious").read_bytes() == b"x"


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_without_hard_links_is_written_to_and_nothing_is_replaced(
    force, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    _save(tmp_path / "a.st", force=force)
    before = (tmp_path / "a.st").read_bytes()
    with (
        pytest.raises(CheckpointError, match="exists"),
        replacing(tmp_path / "a.st", force=False) as file,
    ):
        file.write(b"x")
    assert (tmp_path / "a.st").read_bytes() == before
    assert _names(tmp_path) == ["a.st"]


def test_a_disk_that_is_too_small_is_refused_before_any_work(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ bytes, and its disk has [\d,]+ left"):
        check_target(tmp_path / "a.st", force=False, size=2 * free + (1 << 40))


def test_a_target_that_can_be_written_passes_the_check(old):
    check_target(old, force=True)
    check_target(old.parent / "new.st", force=False)
    assert _names(old.parent) == ["a.st"]


# --- JSON ---------------------------------------------------------------------------------------


def test_json_is_sorted_indented_and_ends_with_a_newline(tmp_path):
    document = {"b": [1, None], "a": {"d": 0.1, "c": "ü"}}
    write_json(tmp_path / "a.json", document, force=False)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert json.loads(text) == document
    assert text.index('"a"') < text.index('"b"')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_not_json_is_not_written(value, old):
    before = old.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_json(old, {"a": value}, force=True)
    assert old.read_bytes() == before
    assert _names(old.parent) == ["a.st"]


def test_json_obeys_the_rules_of_every_output(old, tmp_path):
    with pytest.raises(CheckpointError, match="exists"):
        write_json(old, {}, force=False)
    with pytest.raises(CheckpointError, match="folder does not exist"):
        write_json(tmp_path / "x" / "a.json", {}, force=False)
    write_json(old, {}, force=True)
    assert old.read_text() == "{}\n"


def test_any_bytes_can_be_put_in_place(tmp_path):
    with replacing(tmp_path / "a.bin", force=False) as file:
        file.write(b"\0\1")
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"\0\1"
