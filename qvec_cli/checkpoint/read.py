"""A checkpoint, checked as a whole before any tensor is read, then read block by block."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from qvec_cli.checkpoint.card import NO_DIGEST, Card, Kind, canonical
from qvec_cli.checkpoint.dtypes import FORMATS, Array, to_float32
from qvec_cli.checkpoint.header import Entry
from qvec_cli.checkpoint.locate import locate
from qvec_cli.checkpoint.source import File, WeightsChoice
from qvec_cli.errors import CheckpointError

ATTACHED: Final = "moments/"
"""How the names of tensors begin that a file carries beside its own: no arithmetic meets them."""

BLOCK: Final = 1 << 18
"""Elements in a block: memory stays the same for any model, and a block fits into a cache."""

_SMALL: Final = 1 << 15  # bytes that are hashed sooner than handed to a thread
_WAITING: Final = 4  # blocks that wait for the thread, at most


class Checkpoint(Mapping[str, Entry]):
    """An open checkpoint: a mapping from tensor names, in the order of the data, to entries.

    Tensors that a file carries for others' use are no part of the mapping but ``attached``: they
    are read by name as the others are, and the digest covers them.

    What is read is hashed as it streams by; ``settle`` tells whether the card says the same.

    Args:
        path: a safetensors file, an index of several, a folder of the hub, a pickled state dict,
            ``-`` for stdin, or hf-hub:ORG/NAME; found by content. Reads never map a file.
        choice: which weights of a file are meant that qvec did not write.

    Raises CheckpointError: missing, unreadable, or not whole and valid.
    """

    def __init__(self, path: Path, choice: WeightsChoice = WeightsChoice()) -> None:
        self.path = path
        self._contents = locate(path, choice)
        self.metadata = self._contents.metadata  # the texts in the header
        self.config = self._contents.config  # what config.json beside the weights says
        self.processor = self._contents.processor  # and preprocessor_config.json
        self.notes = self._contents.notes  # what the user should know of the reading
        self.script = self._contents.script  # what a training script keeps beside the weights
        self._hasher = Hasher()
        self._begun: set[str] = set()  # tensors whose blocks somebody reads
        self._whole: set[str] = set()  # and has read to the end
        self.digest = NO_DIGEST  # of the contents, from ``settle`` on
        try:
            card = Card.from_header(self.metadata)
        except CheckpointError as error:
            self.close()
            raise CheckpointError(f"{path}: {error}", hint=error.hint) from None
        self.bare = card is None  # no card: a file that qvec did not write
        self.card = card or Card(Kind.CHECKPOINT, aliases=self._contents.aliases)
        self.completed = False  # whether others have put on the card what the file does not say
        self.kind = self.card.kind  # that of a bare file is taken to be a checkpoint
        self.aliases = self.card.aliases  # names of tied tensors, and the name that each goes by
        entries, carries = self._contents.entries, self.card.moments is not None
        self.attached: Mapping[str, Entry] = {
            n: e for n, e in entries.items() if carries and n.startswith(ATTACHED)
        }
        self._own = {n: e for n, e in entries.items() if n not in self.attached}
        self._decoders: Mapping[str, Callable[[], Array]] = {}  # see ``decode``

    def __getitem__(self, name: str) -> Entry:
        return self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(
        self,
        entries: Mapping[str, Entry],
        decoders: Mapping[str, Callable[[], Array]],
        parts: Collection[str],
    ) -> None:
        """Shows tensors in place of the ``parts`` that they are stored as.

        ``entries`` says what they look like, a decoder gives all numbers of one. The parts are
        still read by name, and they are what the digest covers.
        """
        others = {name: entry for name, entry in self._own.items() if name not in parts}
        self._own, self._decoders = {**entries, **others}, decoders

    def close(self) -> None:
        """Gives the files back."""
        self._hasher.finish()
        self._contents.close()

    @property
    def name(self) -> str:
        """What the input is called, without its folder."""
        return self.path.name or self.path.resolve().name

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the head, where the card lists them."""
        names: list[str] | None = (self.card.data or {}).get("classes")
        if names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            return names
        raise CheckpointError(f"{self.path}: its qvec card is damaged (classes)")

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(source.size for source in self._contents.sources if isinstance(source, File))

    @property
    def weight_bytes(self) -> int:
        """The same without what lies beside the weights in a file that qvec did not write."""
        return sum(e.nbytes for e in self.values()) if self.bare else self.nbytes

    @property
    def in_memory(self) -> bool:
        """Whether all of it is held, as a pickle is, and does not stream."""
        return not self._contents.streams

    @property
    def stated(self) -> str | None:
        """The digest that the card tells; ``settle`` finds out whether it holds."""
        return self.card.digest if self.card.digest != NO_DIGEST else None

    def is_file_of(self, other: Checkpoint) -> bool:
        """Whether both are names of one file."""
        return self._contents.identities == other._contents.identities

    def blocks(self, name: str) -> Iterator[Array]:
        """The raw elements of a tensor, flat, at most ``BLOCK`` at a time (BF16 as uint16)."""
        if name in self._decoders:
            flat = self._decoders[name]().reshape(-1)
            yield from (flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))
            return
        entry = self._contents.entries[name]
        source, dtype = self._contents.sources[entry.part], FORMATS[entry.dtype].numpy
        step, hashing = BLOCK * dtype.itemsize, name not in self._begun
        self._begun.add(name)
        if hashing:
            self._hasher.start(name)
        for start in range(entry.start, entry.stop, step):
            block = np.frombuffer(source.read(min(step, entry.stop - start), start), dtype)
            if hashing:
                self._hasher.update(name, block)
            yield block
        if hashing:
            self._whole.add(name)

    def floats(self, name: str) -> Iterator[Array]:
        """The blocks of a floating tensor in float32; they may hold what is no number."""
        dtype = self._entry(name).dtype
        return (to_float32(raw, dtype) for raw in self.blocks(name))

    def checked(self, name: str) -> Iterator[Array]:
        """The raw blocks of a tensor, every element of a floating one a number."""
        entry = self._entry(name)
        for raw in self.blocks(name):
            if entry.floating and not finite(to_float32(raw, entry.dtype)):
                self.require_finite(name)
            yield raw

    def require_finite(self, name: str) -> None:
        """Refuses a floating tensor with a NaN or an infinity; CheckpointError says where it is."""
        seen = 0
        for values in self.floats(name):
            if not finite(values):
                bad = int(np.flatnonzero(~np.isfinite(values))[0])
                raise CheckpointError(
                    f"{self.path}: {name}: {values[bad]} at element {seen + bad}",
                    hint="A model with NaN or infinite weights came from a run that diverged.",
                )
            seen += values.size

    def array(self, name: str) -> Array:
        """A whole tensor in its shape; BF16 becomes float32, all else keeps its dtype."""
        entry = self._entry(name)
        flat = np.concatenate([*self.blocks(name), np.empty(0, FORMATS[entry.dtype].numpy)])
        if entry.dtype == "BF16":
            flat = to_float32(flat, "BF16")
        if entry.dtype == "BOOL":
            flat = flat.view(np.bool_)
        return flat.reshape(entry.shape)

    def finite(self, name: str) -> Array:
        """A whole floating tensor in float32, every element finite."""
        entry = self._entry(name)
        whole = np.concatenate([*self.floats(name), np.empty(0, np.float32)])
        if not finite(whole):
            self.require_finite(name)
        return whole.reshape(entry.shape)

    def _entry(self, name: str) -> Entry:
        return self._own.get(name) or self._contents.entries[name]

    def contents(self) -> str:
        """The digest of all tensors, also those that nobody has read yet; not of order or card.

        CheckpointError: a file that was written to meanwhile.
        """
        entries = self._contents.entries
        for name in [name for name in entries if name not in self._whole]:
            self._begun.discard(name)
            for _ in self.blocks(name):
                pass
        digest = self._hasher.combined(entries)
        for source in self._contents.sources:
            source.require_unchanged()
        return digest

    def settle(self) -> str:
        """The digest of the contents, once they are known to be what the card says.

        CheckpointError: damaged or edited since the card was written, or while it was read.
        """
        if self.digest == NO_DIGEST:
            digest = self.contents()
            if self.stated not in (None, digest):
                raise CheckpointError(
                    f"{self.path}: its tensors are not those that its card tells of: the file is "
                    "damaged, or was edited",
                    hint="Fetch or make it again; without qvec.* metadata it is taken as it is.",
                )
            self.digest = digest
        return self.digest


def finite(values: Array) -> bool:
    """Whether every element is a number; their squares tell far sooner than looking at each."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def combined_digest(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """One sha256 from each tensor's (dtype, shape, sha256 of its bytes)."""
    lines = [
        canonical([name, dtype, list(shape), digest])
        for name, (dtype, shape, digest) in sorted(tensors.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Hasher:
    """Hashes tensors on a thread of its own while their blocks stream by.

    Blocks of one tensor arrive in order and must not be changed afterwards. Use as a context, or
    ``finish``. Hand-overs are single steps of the interpreter: an exception that a signal raises
    leaves no lock behind.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib._Hash] = {}
        self._waiting: set[str] = set()  # tensors with blocks that went to the thread
        self._queue: queue.SimpleQueue[tuple[hashlib._Hash, Array] | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # of blocks that may wait
        for _ in range(_WAITING):
            self._room.put(None)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Waits until every block is hashed."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def start(self, name: str) -> None:
        """Makes a tensor known, also one without any bytes; or begins it anew."""
        self._hashes[name] = hashlib.sha256()
        self._waiting.discard(name)

    def update(self, name: str, block: Array) -> None:
        """Takes the next block of a tensor; waits when hashing is behind."""
        if block.nbytes < _SMALL and name not in self._waiting:
            self._hashes[name].update(block.data)
            return
        if self._thread is None:
            thread = threading.Thread(target=self._work, daemon=True)
            thread.start()
            self._thread = thread  # last: a signal may come at any line
        self._waiting.add(name)
        self._room.get()
        self._queue.put((self._hashes[name], block))

    def digests(self) -> dict[str, str]:
        """Hexadecimal sha256 by tensor, once hashing has finished."""
        return {name: value.hexdigest() for name, value in self._hashes.items()}

    def combined(self, entries: Mapping[str, Entry]) -> str:
        """The digest of all these tensors, once every block is hashed."""
        self.finish()
        digests = self.digests()
        return combined_digest({n: (e.dtype, e.shape, digests[n]) for n, e in entries.items()})

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            item[0].update(item[1].data)
            self._room.put(None)
