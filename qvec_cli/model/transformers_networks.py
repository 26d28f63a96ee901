"""Networks of transformers' own, under the names that their tensors have in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from qvec_cli.errors import MismatchError, QvecError, did_you_mean
from qvec_cli.model.configuration import Model
from qvec_cli.model.transformers_config import is_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXTRA: Final = "pip install 'qvec[hf]'"
"""What installs the library."""


class TransformersNetwork(nn.Module):
    """A network of transformers' that takes images and gives logits.

    Its modules are those of the library's network, and hang here under the names that files have
    for them; the library may call them otherwise in memory, and computes with its own.

    Args:
        inner: the library's network.
        names: of its tensors in files, by those in memory.
    """

    only_linear = True
    """Stock loaders unpack the weights of linear layers alone."""

    def __init__(self, inner: PreTrainedModel, names: Mapping[str, str]) -> None:
        super().__init__()
        self._inner = (inner,)  # in a tuple: no part of the state
        self.tower = _TOWER if hasattr(inner, "visual_projection") or _sees_and_reads(inner) else ""
        self.pad: int | None = None  # the number of tokens that are none, where it reads texts
        _hang(self, inner, "", names)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, classes]; without a classifier to features [N, width].

        Or from tokens [N, longest], of which padding at the end counts for nothing.
        """
        (inner,) = self._inner
        if self.pad is not None:
            real = self.real_tokens(images)
            tokens = images[:, : real.shape[1]]
            return _answer(inner(input_ids=tokens, attention_mask=real.long()))
        network: Any = inner.get_image_features if _sees_and_reads(inner) else inner
        return _answer(network(pixel_values=images))

    def real_tokens(self, tokens: Tensor) -> Tensor:
        """Which tokens of a batch are none of padding, bool [N, length of the longest text]."""
        real = tokens.ne(-1 if self.pad is None else self.pad)
        return real[:, : max(1, int(real.sum(1).max()))]

    def train(self, mode: bool = True) -> TransformersNetwork:
        """Puts also what has no tensors, as dropout, into training mode, or out of it."""
        self._inner[0].train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TransformersNetwork:
        """Moves the library's network, whose modules these are."""
        self._inner[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


_TOWER: Final = "vision_model."
"""Where networks of images and texts, or whose features go with texts, have what sees images."""


def _sees_and_reads(network: PreTrainedModel) -> bool:
    """Whether a network puts images and texts into one space, as CLIP's and SigLIP's do."""
    return hasattr(network, "get_image_features") and hasattr(network, _TOWER.rstrip("."))


def _answer(outputs: Any) -> Tensor:
    """What a network says of each image."""
    if isinstance(outputs, Tensor):
        return outputs
    for word in ("logits", "image_embeds", "pooler_output"):
        if (tensor := getattr(outputs, word, None)) is not None:
            assert isinstance(tensor, Tensor)
            return tensor
    tokens = outputs.last_hidden_state
    assert isinstance(tokens, Tensor)
    return tokens.mean(1)


def _hang(root: nn.Module, module: nn.Module, path: str, names: Mapping[str, str]) -> None:
    """Hangs a module at its name in files; where its parts are not together there, each part."""
    inside = {n.removeprefix(path): name for n, name in names.items() if n.startswith(path)}
    if not inside:
        return
    part, name = next(iter(inside.items()))
    place = name.removesuffix(part)
    there = sorted(name for name in names.values() if name.startswith(place))
    if path and there == sorted(place + part for part in inside):
        holder, _, word = place.rstrip(".").rpartition(".")
        _holder(root, holder).add_module(word, module)
        return
    for word, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and word in inside:
            holder, _, last = inside[word].rpartition(".")
            if not isinstance(tensor, nn.Parameter):
                raise MismatchError(f"{inside[word]}: a buffer that transformers calls otherwise")
            _holder(root, holder).register_parameter(last, tensor)
    for word, child in module.named_children():
        _hang(root, child, f"{path}{word}.", names)


def _holder(root: nn.Module, path: str) -> nn.Module:
    """The module at a place, made where nothing is there."""
    for word in path.split(".") if path else ():
        if word not in root._modules:
            root.add_module(word, nn.Module())
        root = root.get_submodule(word)
    return root


def rebuild(model: Model) -> TransformersNetwork:
    """The network of a configuration, with random weights.

    Raises QvecError: transformers is not installed; MismatchError: it does not know the
    architecture, or cannot make it.
    """
    inner = _made(model)
    network = TransformersNetwork(inner, _names_in_files(inner))
    if model.reads_texts:
        network.pad = model.pretrained_cfg["tokens"]["pad"]
    return network


def _made(model: Model, *, whatever: bool = False) -> PreTrainedModel:
    library = _library()
    args, classes = _harmless(model.model_args), model.num_classes
    kind = str(args.pop("model_type", ""))
    exists = whatever and hasattr(library, model.architecture)
    if not exists and model.architecture not in _architectures():
        raise MismatchError(
            f"{model.architecture} is no encoder or classifier that transformers "
            f"{library.__version__} knows",
            hint=did_you_mean(model.architecture, _architectures(), 3)
            or "A newer transformers may know it.",
        )
    try:
        labels = {"num_labels": classes} if is_classifier(model.architecture) else {}
        config = library.AutoConfig.for_model(kind, **args, **labels)
        network: PreTrainedModel = getattr(library, model.architecture)(config)
    except Exception as fault:  # of whatever kind: what it is made from is text from anywhere
        reason = (str(fault).splitlines() or [type(fault).__name__])[0][:200]
        raise MismatchError(f"transformers cannot make {model.architecture}: {reason}") from None
    return network


_FETCHING: Final = (
    *("attn_implementation", "experts_implementation", "use_kernels", "use_pretrained_backbone"),
    *("auto_map", "custom_pipelines", "quantization_config"),
)
"""What makes transformers fetch weights or code where a configuration says it."""


def _harmless(config: Any) -> Any:
    """A configuration without what would be fetched; a card is text from anywhere."""
    if isinstance(config, list):
        return [_harmless(each) for each in config]
    if not isinstance(config, dict):
        return config
    kept = {key: each for key, each in config.items() if key.lstrip("_") not in _FETCHING}
    return {key: _harmless(each) for key, each in kept.items()}


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise QvecError(
            "a network of transformers' own needs that library, which is not installed",
            hint=f"{EXTRA} installs it.",
        ) from None
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return transformers


@cache
def _architectures() -> frozenset[str]:
    """The classes that are built: classifiers of images, and encoders."""
    from transformers.models.auto import modeling_auto as auto

    tables = (
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_MAPPING_NAMES,
    )
    names = {"CLIPVisionModelWithProjection"}
    for table in tables:
        for value in table.values():
            names.update([value] if isinstance(value, str) else value)
    return frozenset(names)


def load_tokenizer(folder: str) -> Callable[[str], list[int]]:
    """The tokens of a text by the tokenizer in a folder, whole; MismatchError: it is damaged."""
    try:
        tokenizer = _library().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as fault:  # of whatever kind: what it is made from is text from anywhere
        reason = (str(fault).splitlines() or [type(fault).__name__])[0][:200]
        raise MismatchError(f"{folder}: its tokenizer cannot be read: {reason}") from None

    def encode(text: str) -> list[int]:
        numbers: list[int] = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return numbers

    return encode


def _names_in_files(network: PreTrainedModel) -> dict[str, str]:
    """What files call each tensor of a network, by its name in memory.

    Raises MismatchError: a tensor that the library joins of others, or splits, when it reads.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5, files and memory had the same names
        return {name: name for name in network.state_dict()}
    state = network.state_dict()
    memory = {id(tensor): name for name, tensor in state.items()}
    names = {}
    for name, tensor in revert_weight_conversion(network, dict(state)).items():
        if id(tensor) not in memory:
            raise MismatchError(f"{name}: transformers changes this tensor when it reads it")
        names[memory[id(tensor)]] = name
    return {name: names[name] for name in state}


def names_in_memory(model: Model) -> dict[str, str]:
    """What the library calls each tensor in memory, by its name in files.

    Of any network that it has. Raises QvecError, MismatchError: as ``rebuild``.
    """
    with torch.device("meta"):
        names = _names_in_files(_made(model, whatever=True))
    return {name: memory for memory, name in names.items()}
