"""The JSON configuration of a network, in timm's words, as cards and folders hold it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.specs import Interpolation, Library

FLAGS: Final = {
    "img_size": "--img-size",
    "in_chans": "--in-chans",
    "num_classes": "--num-classes, or the classes of the data set",
    "pretrained": "--pretrained",
    "checkpoint_path": "--initial-checkpoint",
    "pretrained_cfg": "--img-size, --in-chans, --mean, --std, --interpolation and --crop-pct",
    "pretrained_cfg_overlay": "--img-size, --in-chans, --mean, --std and --crop-pct",
}
"""Arguments of timm that would go past qvec, and what says them here."""

COLOURS: Final = 3
"""The channels of a network of timm's where nothing else is said."""

DATA_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


_EPS: Final = "eps"

_LARGEST_FLOAT: Final = sys.float_info.max


def are_numbers(value: Any) -> bool:
    """Whether it is a list of some finite numbers."""
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    return listed and all(type(n) in (int, float) and abs(n) <= _LARGEST_FLOAT for n in value)


_PREPARED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "mean": are_numbers,
    "std": lambda value: are_numbers(value) and min(value) > 0,
    "crop_pct": lambda value: type(value) in (int, float) and _SMALLEST_CROP <= value <= 4,
    "crop_mode": lambda value: value in ("center", "squash", "border"),
    "interpolation": lambda value: value in (*Interpolation, "random"),
}
"""What each word about the preparation of images may be."""

_SMALLEST_CROP: Final = 0.01  # an image is resized to its size over this; timm has 0.8 to 1.1

_MOST_CHANNELS, _LARGEST_SIDE, _MOST_CLASSES = 1024, 8192, 10_000_000

_LARGEST_NUMBER: Final = 1 << 16
"""Of what timm's constructors take. A card is text from anywhere: what it asks for is built."""

_MOST_BLOCKS: Final = 1024
"""The same, of words that count blocks or layers."""

_MOST_WORDS: Final = 1 << 22
"""The same, of words that count or number entries of a vocabulary."""

_MOST_ARGUMENTS, _LONGEST_TEXT, _DEEPEST = 1024, 256, 4


@dataclass(frozen=True, slots=True)
class Model:
    """Which network is built, and how its images are prepared; fields have timm's names."""

    architecture: str  # a name of timm's, or a class of transformers'
    num_classes: int
    model_args: dict[str, Any]  # of timm's constructor, or transformers' configuration
    pretrained_cfg: dict[str, Any]  # preprocessing, and the names of the classifier's modules
    library: Library = Library.TIMM
    places: tuple[Path, ...] = field(default=(), compare=False)  # where its tokenizer may be

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Model:
        """The model that a card states; cards are only text, so each field is checked.

        Raises MismatchError: names the field.
        """
        _check_kinds(value)
        if past := value["model_args"].keys() & FLAGS.keys() - {"img_size", "in_chans"}:
            raise _damaged(min(past))
        data = value["pretrained_cfg"]
        named = data.get("classifier")
        if not all(isinstance(n, str) for n in (named if isinstance(named, list) else [named])):
            raise _damaged("classifier")
        size = data.get("input_size")
        most = (_MOST_CHANNELS, _LARGEST_SIDE, _LARGEST_SIDE)
        if not (isinstance(size, list) and [type(n) for n in size] == [int] * 3):
            raise _damaged("input_size")
        if not all(0 < n <= limit for n, limit in zip(size, most, strict=True)):
            raise _damaged(f"input_size {size}")
        if type(value["num_classes"]) is not int or not 0 <= value["num_classes"] <= _MOST_CLASSES:
            raise _damaged("num_classes")
        _check_arguments(value["model_args"])
        _check_beside(data)
        _check_preparation(data, size[0])
        args, classes = value["model_args"], value["num_classes"]
        library = Library(value.get("library", Library.TIMM))
        return cls(value["architecture"], classes, args, data, library)

    def to_json(self) -> dict[str, Any]:
        """The form that cards keep, which tells of another library than timm alone."""
        value = asdict(self)
        del value["places"]
        if self.library is Library.TIMM:
            del value["library"]
        return value

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the network takes."""
        channels, height, width = self.pretrained_cfg["input_size"]
        return channels, height, width

    @property
    def channels(self) -> int:
        """Of the images that it takes; 0: it takes texts."""
        return 0 if self.reads_texts else self.input_size[0]

    def batch_shape(self, count: int) -> tuple[int, ...]:
        """Of so many images [N, C, H, W], or of short texts [N, tokens]."""
        return (count, 8) if self.reads_texts else (count, *self.input_size)

    @property
    def classifier(self) -> tuple[str, ...]:
        """Names of the modules that tell the classes apart."""
        named = self.pretrained_cfg.get("classifier") or ()
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def reads_texts(self) -> bool:
        """Whether it takes texts, and no images."""
        return "tokens" in self.pretrained_cfg

    @property
    def preparation(self) -> str:
        """How images are prepared, in words."""
        data = self.pretrained_cfg
        if self.reads_texts:
            return f"texts of up to {data['tokens']['longest']} tokens"
        mean, std = (" ".join(f"{value:g}" for value in data[key]) for key in ("mean", "std"))
        crop = f"crop {data['crop_pct']:g}"
        return f"mean {mean}, std {std}, {data['interpolation']}, {crop}"


def _check_kinds(value: Mapping[str, Any]) -> None:
    """Refuses fields that are missing or of another kind: MismatchError."""
    kinds = {"architecture": str, "num_classes": int, "model_args": dict, "pretrained_cfg": dict}
    for name, kind in kinds.items():
        if not isinstance(value.get(name), kind):
            raise _damaged(name)
    if value.get("library", Library.TIMM) not in (*Library,):
        raise _damaged("library")


def _check_preparation(data: Mapping[str, Any], channels: int) -> None:
    """Refuses what says nothing, or no sense, of how images are prepared: MismatchError."""
    if missing := [key for key in DATA_KEYS if key not in data]:
        raise _damaged(f"{missing[0]} is missing")
    for key, holds in _PREPARED.items():
        if not holds(data[key]):
            raise _damaged(key)
    if not len(data["mean"]) == len(data["std"]) == channels:
        raise _damaged("mean and std are of another number of channels")


def _check_beside(data: Mapping[str, Any]) -> None:
    """Refuses what makes no sense of an image processor, and of how texts are prepared."""
    if isinstance(data.get("processor"), Mapping):
        _check_arguments(data["processor"])
    tokens = data.get("tokens", {"pad": 0, "longest": 1})
    pad, longest = (tokens.get(w) if isinstance(tokens, dict) else None for w in ("pad", "longest"))
    if type(pad) is not int or type(longest) is not int or pad < 0 or not 0 < longest < 1 << 16:
        raise _damaged("tokens")


def _check_arguments(args: Mapping[str, Any]) -> None:
    """Refuses numbers, texts and nesting that no network of timm's has: MismatchError."""
    left: list[tuple[str, Any, int]] = [(f"model_args.{key}", args[key], 1) for key in args]
    for seen, (name, value, depth) in enumerate(left):
        if seen >= _MOST_ARGUMENTS or depth > _DEEPEST or len(name) > _LONGEST_TEXT:
            raise _damaged("model_args has more in it than any network takes")
        if isinstance(value, dict):
            left += [(f"{name}.{key}", inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(name, inner, depth + 1) for inner in value]
        elif not _is_moderate(name, value):
            raise _damaged(name)


def _is_moderate(name: str, value: Any) -> bool:
    """Whether a text is short, and a number one that some network has."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    counts_blocks = any(word in name for word in ("depth", "layers", "blocks"))
    most = _MOST_BLOCKS if counts_blocks else _LARGEST_NUMBER
    if name.endswith(("vocab_size", "_token_id")):
        most = _MOST_WORDS
    return not isinstance(value, int | float) or abs(value) <= most


def norm_eps(args: Mapping[str, Any]) -> float | None:
    """The eps of LayerNorms that qvec makes timm build, where its constructor has another.

    Such arguments say {"norm_layer": {"eps": 1e-12}}: timm itself takes a class there, which no
    text of its own names.
    """
    norm = args.get("norm_layer")
    if not isinstance(norm, Mapping) or norm.keys() != {_EPS}:
        return None
    eps = norm[_EPS]
    return float(eps) if type(eps) in (int, float) and eps > 0 else None


def with_norm_eps(eps: float) -> dict[str, Any]:
    """The argument that says it."""
    return {"norm_layer": {_EPS: eps}}


def require_stock(model: Model) -> None:
    """Refuses a network that timm does not build from its own config.json: MismatchError."""
    if isinstance(model.model_args.get("norm_layer"), Mapping):
        raise MismatchError(
            f"norm_layer {model.model_args['norm_layer']}: timm has no word for an eps in a folder",
            hint="A single file holds it: -o FILE.",
        )


def _damaged(what: str) -> MismatchError:
    return MismatchError(f"its configuration of a network is damaged: {what}")


def of_config(config: Mapping[str, Any]) -> Model | None:
    """The model in a config.json of timm or of transformers' wrapper for it."""
    pretrained, args = config.get("pretrained_cfg"), config.get("model_args", {})
    if not (isinstance(pretrained, Mapping) and isinstance(args, Mapping)):
        return None
    args = {key: value for key, value in args.items() if key != "num_classes"}
    data = {key: pretrained[key] for key in (*DATA_KEYS, "classifier") if key in pretrained}
    size = args.get("img_size")
    if isinstance(size, list) and size and size == size[:1] * len(size):
        args["img_size"] = size = size[0]
    if args.get("in_chans") == COLOURS:
        del args["in_chans"]
    if isinstance(size, int):  # what timm says of a tag's images is not what a network was made for
        data["input_size"] = [args.get("in_chans", COLOURS), size, size]
    model = {
        "architecture": config.get("architecture"),
        "num_classes": config.get(
            "num_classes", pretrained.get("num_classes", config.get("num_labels"))
        ),
        "model_args": args,
        "pretrained_cfg": data,
    }
    try:
        return Model.from_json(model)
    except MismatchError:
        return None


def to_config(model: Model, classes: Sequence[str] | None) -> dict[str, Any]:
    """The config.json from which transformers' wrapper, and timm itself, make a network.

    Args:
        model: of a card.
        classes: names in the order of the head, if they are known.

    Raises MismatchError: no config.json says how the network is made.
    """
    require_stock(model)
    count = model.num_classes
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "dtype": "float32",  # as qvec computes, whatever the file holds
        "architecture": model.architecture,
        "model_args": dict(model.model_args),
        "pretrained_cfg": {**model.pretrained_cfg, "num_classes": count},
        "num_classes": count,  # timm and its wrapper read these two words,
        "num_labels": count,  # everything else of transformers these
    }
    if classes is not None:
        config["label_names"] = list(classes)
        config["id2label"] = {str(index): name for index, name in enumerate(classes)}
        config["label2id"] = {name: index for index, name in enumerate(classes)}
    return config


def same_backbone(first: Model, second: Model) -> list[str]:
    """What keeps two configurations from sharing a backbone, as "img_size 224 vs 384".

    Pooling, which is the head's, dropout, which is training's, and the eps of LayerNorms, which
    displaces no weight, do not.
    """
    pairs: dict[str, Any] = {"architecture": (first.architecture, second.architecture)}
    ours, theirs = first.model_args, second.model_args
    keys = sorted({*ours, *theirs} - {"global_pool"} - {k for k in ours | theirs if "drop" in k})
    pairs |= {k: (ours.get(k), theirs.get(k)) for k in keys}
    norms = [args.get("norm_layer") for args in (ours, theirs)]
    if all(norm is None or isinstance(norm, Mapping) for norm in norms):
        pairs.pop("norm_layer", None)
    return [f"{key} {a} vs {b}" for key, (a, b) in pairs.items() if a != b]
