"""Networks, made from a name of timm's or from a card, and the images that they expect."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.fetch import notice_no_network
from qvec_cli.checkpoint.source import WeightsChoice
from qvec_cli.errors import MismatchError, QvecError, SpecError, did_you_mean
from qvec_cli.model.configuration import COLOURS, DATA_KEYS, FLAGS, Model, norm_eps
from qvec_cli.model.targets import head_tensors
from qvec_cli.model.transformers_config import at_size
from qvec_cli.specs import Library
from qvec_cli.tame import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

_WRONG_ARGUMENTS: Final = (
    TypeError,
    AssertionError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    NotImplementedError,
)
"""What timm's constructors raise for impossible arguments."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """A network of timm's by name, and its flags; None: not said."""

    name: str | None = None  # timm's
    num_classes: int | None = None
    pretrained: bool = False  # weights from the hub
    img_size: int | None = None
    in_chans: int | None = None
    crop_pct: float | None = None  # share of the resized image that evaluation crops
    args: Mapping[str, Any] = field(default_factory=dict)  # for timm's constructor
    mean: tuple[float, ...] | None = None  # of pixels between 0 and 1, by channel
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_mode: str | None = None  # of timm's: center, squash or border
    weights: WeightsChoice = field(default_factory=WeightsChoice)  # which of those in a file

    def __post_init__(self) -> None:
        for name in sorted(self.args.keys() & FLAGS.keys()):
            raise SpecError(f"--model-arg {name} has a word of its own: {FLAGS[name]}")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise SpecError("--std must be above 0")

    @property
    def shaped(self) -> bool:
        """Whether flags change the network that the name stands for, or its images."""
        size = self.img_size or self.num_classes is not None or self.in_chans not in (None, COLOURS)
        return bool(size or self.args or self.prepared)

    @property
    def known(self) -> bool:
        """Whether anything is said of a network."""
        return self.name is not None or self.shaped

    @property
    def prepared(self) -> dict[str, Any]:
        """What flags say of how images are prepared, in timm's words."""
        said = {
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean) if self.mean else None,
            "std": list(self.std) if self.std else None,
        }
        return {key: value for key, value in said.items() if value is not None}


def create(options: NetworkOptions) -> tuple[nn.Module, Model]:
    """A network, and the configuration from which ``rebuild`` makes it again.

    Raises SpecError: a name or an argument that timm does not know; QvecError: pretrained weights
    that cannot be fetched.
    """
    args, name = dict(options.args), options.name or ""
    if options.in_chans not in (None, COLOURS):
        args["in_chans"] = options.in_chans
    if options.img_size is not None:
        args["img_size"] = options.img_size
    network = _create_model(name, options.num_classes or 0, args, options.pretrained)
    _check_patches(network, options.img_size, name)
    return network, _configuration(network, options, args)


def _check_patches(network: nn.Module, img_size: int | None, name: str) -> None:
    if getattr(getattr(network, "patch_embed", None), "num_patches", None) == 0:
        raise SpecError(f"--img-size {img_size} is smaller than one patch of {name}")


def rebuild(model: Model) -> nn.Module:
    """The network of a configuration, with random weights."""
    if model.library is Library.TRANSFORMERS:
        from qvec_cli.model.transformers_networks import rebuild as of_transformers

        return of_transformers(model)
    return reshaped(model)[0]


def reshaped(
    model: Model, img_size: int | None = None, in_chans: int | None = None
) -> tuple[nn.Module, Model]:
    """The network of a configuration at another image size or with other channels.

    Its weights are random; ``adapted`` brings those of the configuration to it. What is as asked
    for already, or not asked for, stays.
    Raises SpecError: a size or a number of channels that timm cannot make; of a network that timm
    does not have, other channels, or a size that its configuration has no word for.
    """
    channels, *size = model.input_size
    if model.library is not Library.TIMM:
        other = at_size(model, img_size) if img_size and img_size not in size else model
        if other is None or in_chans not in (None, channels):
            raise SpecError(
                f"{model.architecture} of {model.library} stays at {size[0]} px and {channels} "
                "channels",
                hint="Leave --in-chans out, and where it names no size of images --img-size too.",
            )
        return rebuild(other), other
    args = dict(model.model_args)
    if img_size and size != [img_size, img_size]:
        args["img_size"], size = img_size, [img_size, img_size]
    if in_chans and channels != in_chans:
        args["in_chans"] = channels = in_chans
    if args.get("in_chans") == COLOURS:  # timm's own
        del args["in_chans"]
    network = _create_model(model.architecture, model.num_classes, args, pretrained=False)
    _check_patches(network, size[0], model.architecture)
    data = {**model.pretrained_cfg, "input_size": [channels, *size]}
    return network, replace(model, model_args=args, pretrained_cfg=_with_channels(data))


def from_folder(folder: Path) -> nn.Module:
    """The network that timm makes of a folder in its own form, weights included.

    Raises QvecError: timm does not take it.
    """
    import timm

    try:
        network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (*_WRONG_ARGUMENTS, RuntimeError, OSError) as fault:
        raise QvecError(f"timm cannot load what was exported: {first_line(fault)}") from None
    return network


def load(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads every tensor of a model, none missing and none left over.

    Raises MismatchError: names and shapes that are not the network's.
    """
    expected = network.state_dict()
    faults = [f"{n}: only in the file" for n in state if n not in expected]
    faults += [f"{n}: missing" for n in expected if n not in state]
    faults += [
        f"{n}: {list(state[n].shape)} vs {list(expected[n].shape)}"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    if faults:
        some, verb = counted(len(faults), "tensor"), "do" if len(faults) > 1 else "does"
        raise MismatchError(
            f"{source}: {some} {verb} not fit the network: {'; '.join(faults[:5])}",
            hint="Is it of another network, --img-size or --model-arg?",
        )
    network.load_state_dict(state)


def start_from(
    network: nn.Module, state: Mapping[str, Tensor], model: Model, source: str
) -> tuple[str, ...]:
    """Loads a backbone, and the head where it fits; returns the head tensors left new."""
    fresh = network.state_dict()
    head = head_tensors(fresh, model)
    fits = all(n in state and state[n].shape == fresh[n].shape for n in head)
    keep = () if fits else head
    body = {n: t for n, t in state.items() if n not in head_tensors(state, model) or fits}
    load(network, {**body, **{n: fresh[n] for n in keep}}, source)
    return keep


_POSITIONS: Final = re.compile(r"^pos_embed|(^|\.)embeddings\.position_embedding(s|\.weight)$")
"""What timm and transformers call the position embeddings of images."""


def adapted(
    state: Mapping[str, Tensor], network: nn.Module, model: Model
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state brought to the image size and the channels of a network, as timm does.

    Position embeddings and tables of relative positions are resampled by timm's filter for the
    architecture, or where it has none by the function that its filters share; the channels of the
    first convolution are summed or repeated. A tensor keeps its dtype, and so its rounding.

    Args:
        state: by the network's names; on the meta device the result is only its shapes.
        network: at its new size, on any device; only its shapes are read.
        model: of the network.

    Returns:
        The state, and a note of each change. The classifier's tensors, and others that do not
        fit and that timm cannot bring over, are as they were: ``load`` refuses them.
    """
    own, result = network.state_dict(), dict(state)
    head = head_tensors(own, model)
    names = [n for n in own if n in state and state[n].shape != own[n].shape and n not in head]
    if not names:
        return result, ()
    bare = {n: state[n] for n in names if state[n].is_meta}
    start = {**state, **{n: t.new_zeros(t.shape, device="cpu") for n, t in bare.items()}}
    start |= _first_conv(start, network, model) if model.library is Library.TIMM else {}
    notes: dict[str, None] = {}
    for name, tensor in _resampled(start, network, model).items():
        if name in names and tensor.shape == own[name].shape:
            result[name] = tensor.to(state[name].device)
            notes[_change(name, state[name], tensor)] = None
    return result, tuple(notes)


def _first_conv(state: Mapping[str, Tensor], network: nn.Module, model: Model) -> dict[str, Tensor]:
    """The first convolutions with the network's channels, where they had others."""
    from timm.models._manipulate import adapt_input_conv

    named: Any = network.pretrained_cfg
    named = named.get("first_conv") or ()
    own, channels = network.state_dict(), model.input_size[0]
    result = {}
    for name in (f"{n}.weight" for n in ((named,) if isinstance(named, str) else named)):
        if name in state and name in own and state[name].shape[1] != own[name].shape[1]:
            # a stem may see each channel several times, or a part of them in each group
            before = state[name].shape[1] * channels // own[name].shape[1]
            with contextlib.suppress(*_WRONG_ARGUMENTS):  # then it is another network's
                result[name] = adapt_input_conv(channels, state[name], base_chans=before)
    return result


def _resampled(state: dict[str, Tensor], network: nn.Module, model: Model) -> dict[str, Tensor]:
    """What timm makes of a state for the network's image size, as far as it can.

    Kernels stay as large as they are: another patch size is another network.
    """
    import timm
    from timm.layers import resample_abs_pos_embed

    result = dict(state)
    for name, own in network.state_dict().items():
        if _POSITIONS.search(name) and own.ndim in (2, 3) and name in state:
            side = math.isqrt(own.shape[-2])
            with contextlib.suppress(*_WRONG_ARGUMENTS, RuntimeError):
                rows = state[name].reshape(1, -1, own.shape[-1])
                result[name] = resample_abs_pos_embed(
                    rows, [side, side], num_prefix_tokens=own.shape[-2] - side**2
                ).reshape(own.shape)
    if model.library is not Library.TIMM:
        return result
    module = sys.modules[timm.models.model_entrypoint(model.architecture).__module__]
    adapt = getattr(module, "checkpoint_filter_fn", None)
    with contextlib.suppress(*_WRONG_ARGUMENTS, RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about how timm's interpolation indexes
        if adapt is not None:
            fitted = {n: t for n, t in adapt(dict(state), network).items() if n in state}
            result |= {n: t for n, t in fitted.items() if t.ndim < 4 and t.shape != state[n].shape}
    return result


def _change(name: str, before: Tensor, after: Tensor) -> str:
    """What ``adapted`` has done to a tensor."""
    if before.ndim == 4:
        old, new = before.shape[1], after.shape[1]
        return f"the first convolution adapted from {old} channels to {new}"
    if not _POSITIONS.search(name):
        return "tables of relative positions resampled"
    old, new = (math.isqrt(tensor.shape[-2]) for tensor in (before, after))
    return f"position embeddings resampled from {old}x{old} to {new}x{new}"


def transform(model: Model, *, augment: bool) -> Callable[[Any], Tensor]:
    """From a decoded image to a uint8 tensor [C, H, W], as timm prepares it.

    Or from a text to an int32 tensor [tokens], padded to the longest that the network takes.
    """
    if model.reads_texts:
        from qvec_cli.model.tokens import tokenizer

        return tokenizer(model)
    from timm.data import create_transform

    data = model.pretrained_cfg
    prepare: Callable[[Image.Image], Tensor] = create_transform(
        model.input_size,
        is_training=augment,
        use_prefetcher=True,
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
        # with which timm fills what lies outside of an image
        **{key: tuple(data[key]) for key in ("mean", "std") if key in data},
    )
    return prepare


def normalise(model: Model) -> Callable[[Tensor], Tensor]:
    """From uint8 [N, C, H, W] to what the network takes: (x / 255 - mean) / std.

    Tokens stay as they are.
    """
    import torch

    if model.reads_texts:
        return torch.Tensor.long
    mean, std = (
        torch.tensor(model.pretrained_cfg[key], dtype=torch.float32).view(1, -1, 1, 1)
        for key in ("mean", "std")
    )

    def run(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean.to(images.device)) / std.to(images.device)

    return run


def _create_model(name: str, num_classes: int, args: dict[str, Any], pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = did_you_mean(name.split(".", maxsplit=1)[0], timm.list_models(), 3)
        raise SpecError(f"model {name!r} is not known to timm", hint=near)
    if pretrained:
        notice_no_network()
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, **_with_norm(args)
        )
    except _WRONG_ARGUMENTS as fault:
        if "img_size" in args and "img_size" in str(fault):  # networks of any size, as ConvNeXt
            del args["img_size"]
            return _create_model(name, num_classes, args, pretrained)
        raise SpecError(f"timm cannot make {name} with {args}: {fault}") from None
    except (RuntimeError, OSError) as fault:
        if not pretrained:
            raise SpecError(f"timm cannot make {name} with {args}: {fault}") from None
        raise QvecError(
            f"pretrained weights of {name} cannot be had: {first_line(fault)}",
            hint="Offline? Give a checkpoint file in place of the name.",
        ) from None
    return network


def _with_norm(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments with a class for a LayerNorm of another eps than timm's 1e-6: no text names one."""
    eps = norm_eps(args)
    if eps is None:
        return args
    from timm.layers import LayerNorm

    return {**args, "norm_layer": partial(LayerNorm, eps=eps)}


def _configuration(network: nn.Module, options: NetworkOptions, args: Mapping[str, Any]) -> Model:
    from timm.data import resolve_data_config

    pretrained: Any = network.pretrained_cfg
    size, channels = tuple(pretrained["input_size"])[1:], options.in_chans or COLOURS
    if options.img_size is not None:
        size = (options.img_size, options.img_size)
    data = resolve_data_config({"input_size": (channels, *size)}, pretrained_cfg=pretrained)
    config = {
        key: list(data[key]) if isinstance(data[key], tuple) else data[key] for key in DATA_KEYS
    }
    prepared = options.prepared
    for key in ("mean", "std"):
        if len(prepared.get(key, ())) == 1:  # timm takes it for every channel
            prepared[key] *= channels
    config = _with_channels(config) | prepared
    check_channels(config, channels)
    name, classes = options.name or "", options.num_classes or 0
    config["classifier"] = _classifier(network, pretrained.get("classifier"), name)
    config["num_classes"] = classes
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in args.items()}  # as in JSON
    return Model(name.split(".")[0], classes, plain, config)


def check_channels(prepared: Mapping[str, Any], channels: int) -> None:
    """Refuses a mean or a std of another number of channels; SpecError names the flag."""
    for key in ("mean", "std"):
        if len(prepared.get(key, ())) not in (0, channels):
            raise SpecError(f"--{key} has {len(prepared[key])} numbers for {channels} channels")


def _with_channels(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with a mean and std for each channel: the average where counts differ."""
    channels = config["input_size"][0]
    if channels == len(config["mean"]):
        return config
    means = {key: sum(config[key]) / len(config[key]) for key in ("mean", "std")}
    return config | {key: [mean] * channels for key, mean in means.items()}


def _classifier(network: nn.Module, named: Any, name: str) -> str | list[str]:
    """The classifier's modules; LeViT has a second that timm does not always name."""
    names = [named] if isinstance(named, str) else list(named or ())
    modules = {module for module, _ in network.named_modules()}
    if modules.isdisjoint(names):  # timm names one for some encoders that have none
        raise SpecError(f"{name} has no classifier")
    second = "head_dist.linear"
    if second in modules and second not in names:
        names.append(second)
    return names[0] if len(names) == 1 else names


def first_line(fault: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]


_NAME: Final = re.compile(r"^def (\w+)\(|^\s*'(\w+)'\s*:", re.MULTILINE)
"""A function, or a row of a table of old names; what is more than a network, timm refuses."""


@cache
def known_names() -> frozenset[str]:
    """Every architecture of timm's without pretrained tags, and some words that are none."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    names: set[str] = set()
    for source in Path(spec.submodule_search_locations[0], "models").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        names.update(function or renamed for function, renamed in _NAME.findall(text))
    return frozenset(names)


def check_name(name: str) -> None:
    """Refuses a network that timm does not have, before timm is imported.

    Raises SpecError: with the names that come near.
    """
    architecture = name.split(".", maxsplit=1)[0]
    if architecture in known_names():
        return
    raise SpecError(
        f"model {name!r} is not known to timm",
        hint=did_you_mean(architecture, known_names(), 3)
        or "A checkpoint file must exist; timm's names are listed by timm.list_models().",
    )
