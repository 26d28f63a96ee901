"""The generated pictures as files, to look at."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

from qvec_cli.checkpoint.replace import is_stream, replacing
from qvec_cli.checkpoint.whole_folder import replacing_folder
from qvec_cli.data.generated import COUNT, GeneratedImages
from qvec_cli.errors import CheckpointError, SpecError
from qvec_cli.outputs.metrics import Metrics, Plan
from qvec_cli.specs import DataUse, Listener, Use


@dataclass(frozen=True, slots=True)
class PicturesRequest:
    """What ``qvec pictures`` is asked for."""

    out: Path  # a folder
    samples: int = 64
    side: int = 224  # of the square pictures, in pixels
    force: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= COUNT:
            raise SpecError(f"--samples must be 1 to {COUNT:,}, got {self.samples}")


def pictures(request: PicturesRequest, listener: Listener) -> Metrics:
    """Writes the first of the generated pictures, as PNG files of a new folder.

    A folder that is there gets them beside its other files, with ``force``.
    Raises CheckpointError: a folder that exists, or cannot be written.
    """
    started, out = time.perf_counter(), request.out
    if is_stream(out):
        raise SpecError(f"{out}: a folder is written, which no stream can take")
    if out.suffix.lower() in (".png", ".jpg", ".jpeg"):
        raise SpecError(
            f"{out}: is named like a picture", hint="-o names a folder for all of them."
        )
    if out.exists() and not (request.force and out.is_dir()):
        raise CheckpointError(f"{out}: exists", hint="Name a new folder, or pass --force.")
    parameters = {"samples": request.samples, "img_size": request.side}
    if request.dry_run:
        images = {"generated": request.samples}
        return Plan("pictures", out, {}, {}, parameters, images).metrics((), started)
    size = _written(request, listener)
    results = {"output": str(out), "images": request.samples, "bytes": size}
    use = Use(DataUse.NONE, {"generated": request.samples})
    return Metrics("pictures", (), parameters, results, use, started=started)


def _written(request: PicturesRequest, listener: Listener) -> int:
    """Writes all of them together; returns their bytes."""
    with replacing_folder(request.out, force=request.force) as folder:
        return sum(_write(folder, number, request, listener) for number in range(request.samples))


def _write(folder: Path, number: int, request: PicturesRequest, listener: Listener) -> int:
    """Draws and writes one; returns its bytes."""
    data = io.BytesIO()
    GeneratedImages(request.side).load(number).save(data, "PNG")
    with replacing(folder / f"{number:04d}.png", force=False) as file:
        file.write(data.getbuffer())
    listener.progress(f"picture {number + 1}/{request.samples}", number + 1, request.samples)
    return len(data.getbuffer())
