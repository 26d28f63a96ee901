"""The request of advise, and the receiver and images that it is resolved to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_cli.data.noise import NOISE
from qvec_cli.inputs.proxies import ProxyOptions

if TYPE_CHECKING:
    from qvec_cli.inputs.proxies import Proxies
    from qvec_cli.inputs.receiver import Receiver
    from qvec_cli.specs import Use


@dataclass(frozen=True, slots=True)
class AdviseRequest:
    """What the user asks for."""

    receiver: Path
    bits: int
    vectors: tuple[Path, ...] = ()
    moments: Path | None = None  # None: those that the vectors carry
    proxy: ProxyOptions = field(default_factory=lambda: ProxyOptions((NOISE,)))
    data: str | None = None  # labels, to judge the decision by; they take no part in it
    steps: int = 60  # of refinement; 0: it is not tried
    out: Path | None = None  # where the recommended model is written
    device: str = "auto"
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class AdviseInputs:
    """The receiver, and the images that judge its candidates."""

    receiver: Receiver  # with its vectors, their grid and, where given, labelled images
    judging: Proxies  # images that no candidate has seen
    seen: Use  # the data that a choice on the candidates' own images uses

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """[out, in] of each weight to be quantized."""
        return {name: self.receiver.theta[name].shape for name in self.receiver.targets}
