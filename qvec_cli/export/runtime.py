"""An ONNX file run by onnxruntime on the CPU."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from qvec_cli.errors import QvecError

Array = np.ndarray[Any, np.dtype[Any]]

_FATAL: Final = 4
"""onnxruntime's level of messages; lower ones it would write to stderr, beside its exceptions."""


def logits(content: bytes, images: Array) -> Array:
    """What a file answers.

    Args:
        content: the whole file.
        images: float32 [N, C, H, W], normalised.

    Returns:
        float32 [N, classes].

    Raises:
        QvecError: a file that onnxruntime refuses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1  # a few images: more threads would only be started
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as fault:  # its exceptions share no class of their own
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise QvecError(f"onnxruntime cannot run what was exported: {reason}") from None
    return np.asarray(answer)
