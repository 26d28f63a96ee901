"""The Hugging Face hub: what is fetched by name, and a network that is not there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from qvec_cli.errors import CheckpointError

NAMES: Final = ("hf-hub:", "hf_hub:")
"""How the name of a model on the hub begins, in timm's spelling."""

_PATIENCE: Final = 5.0
"""Seconds within which the hub must answer anything at all."""

_BESIDE: Final = ("config.json", "preprocessor_config.json")
_FILES: Final = (*_BESIDE, "model*.safetensors", "model.safetensors.index.json")
_PICKLES: Final = (*_BESIDE, "pytorch_model*.bin", "pytorch_model.bin.index.json")


def fetched(path: Path) -> Path:
    """The folder of a model that is named hf-hub:ORG/NAME, or @REVISION of it; else the path.

    CheckpointError: no such model, or no network and none of it in the cache.
    """
    name = str(path)
    if not name.startswith(NAMES):
        return path
    identity, _, revision = name.split(":", 1)[1].partition("@")
    if identity.count("/") != 1 or not all(identity.split("/")):
        raise CheckpointError(f"{name}: is not hf-hub:ORG/NAME")
    from huggingface_hub import constants, snapshot_download

    notice_no_network()
    try:
        for patterns in (_FILES, _PICKLES):
            folder = Path(
                snapshot_download(
                    identity, revision=revision or None, allow_patterns=list(patterns)
                )
            )
            if any(file.name not in _BESIDE for file in folder.iterdir()):
                return folder
    except Exception as fault:  # of whichever client the library has
        line = next(iter(str(fault).splitlines()), type(fault).__name__)
        if constants.HF_HUB_OFFLINE:
            line = "the hub does not answer, and its cache here does not hold it"
        raise CheckpointError(
            f"{name}: cannot be fetched: {line}",
            hint="Without a network, name a file or folder that is here.",
        ) from None
    raise CheckpointError(f"{name}: holds no weights of PyTorch's")


def notice_no_network() -> None:
    """Sends the hub's client straight to its cache where it would retry for most of a minute.

    The hub is asked on a thread, because a name server that keeps silent knows no timeout, and
    each of the hub's addresses would be given one of its own.
    """
    import threading

    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return
    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # of whichever client the library has
            answers.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    if not answers:
        constants.HF_HUB_OFFLINE = True
