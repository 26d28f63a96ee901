"""What a file without a card is: its network, how its images are prepared, its classes.

The user's word comes first, then the folder's config.json, then what a training script has kept
beside the weights, then names and shapes; timm's defaults fill in the rest, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.checkpoint.card import Card, Kind
from qvec_cli.checkpoint.naming import is_of_transformers
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import CheckpointError, MismatchError, QvecError, located
from qvec_cli.inputs.files import DOOR, model_of, stated_model
from qvec_cli.model import build
from qvec_cli.model.build import NetworkOptions
from qvec_cli.model.configuration import FLAGS, Model, are_numbers
from qvec_cli.model.recognise import recognise
from qvec_cli.model.transformers_config import prepared_as
from qvec_cli.specs import Interpolation, Library, Listener
from qvec_cli.tame import counted

if TYPE_CHECKING:
    from qvec_cli.model.fit_shapes import Fitting

_SCRIPT: Final = {"img_size": (int,), "crop_pct": (int, float), "interpolation": (str,)}
"""Arguments of timm's training script that have the names of our options, and their types."""

_FLAGGED: Final = ("mean", "std", "interpolation", "crop_pct")
_PREPARATION: Final = (*_FLAGGED, "crop_mode")
"""What is said of how images are prepared, by flags and otherwise."""

_SHOWN: Final = 12  # names in a list


def network_of(checkpoint: Checkpoint, options: NetworkOptions, listener: Listener) -> Model:
    """timm's configuration of the network of a file; one without a card gets the card of a door.

    CheckpointError: neither file nor user says it. MismatchError: the user says another one, or the
    tensors are not those of that network.
    """
    if stated_model(checkpoint) is None:
        card = identified(checkpoint, options, listener)
        told = card if checkpoint.bare else replace(checkpoint.card, model=card.model)
        checkpoint.card, checkpoint.completed = told, True
    model = model_of(checkpoint)
    if checkpoint.completed:  # now, or earlier in the run
        return model
    if checkpoint.bare and (names := _class_names(checkpoint, model, None)):
        checkpoint.card = replace(checkpoint.card, data=_named(checkpoint, names))
    if checkpoint.bare and model.library is not Library.TIMM:
        tell_preparation(checkpoint, model, listener)
    if options.shaped:
        also = "; qvec import FILE overrules what a folder says" if checkpoint.bare else ""
        raise MismatchError(
            f"{checkpoint.path} knows its own --img-size, --crop-pct, --mean and the like",
            hint=f"Leave them out, and --model too{also}.",
        )
    if options.name and _plain(options.name) != model.architecture:
        raise MismatchError(
            f"{checkpoint.path} is a {model.architecture}, not a {options.name}",
            hint="Leave --model out: the file knows.",
        )
    return model


def tells_network(checkpoint: Checkpoint) -> bool:
    """Whether what lies beside a file's weights tells its network better than names and shapes.

    A training script has kept the name of one of timm's, or a folder is of transformers' own.
    """
    own = checkpoint.bare and is_of_transformers(checkpoint.config)
    return own or _script_name(checkpoint) is not None


def _script_name(checkpoint: Checkpoint) -> str | None:
    """That name; one of the hub's is timm's if what follows the last slash is."""
    name = checkpoint.script.get("arch")
    last = name.rpartition("/")[2] if isinstance(name, str) else ""
    return last if _plain(last) in build.known_names() else None


def identified(
    checkpoint: Checkpoint,
    options: NetworkOptions,
    listener: Listener,
    *,
    search: bool = False,
    classes: Sequence[str] | None = None,
) -> Card:
    """The card of a file that has none.

    Args:
        checkpoint: a bare file, open.
        options: what the user says of it.
        listener: hears what was taken from where.
        search: whether timm's networks are looked through where nobody names one.
        classes: their names in the order of the head, if the user lists them.

    Raises CheckpointError: nothing says the network; MismatchError: several networks have such
    tensors, or that of the name has others.
    """
    stated = stated_model(checkpoint)
    if stated and stated.library is not Library.TIMM:
        return _of_library(checkpoint, stated, options, listener, classes)
    known = _of_config(stated) if stated else _of_script(checkpoint, listener)
    known = _merged(options, known)
    if known.name is None and search:
        known = replace(known, name=_searched(checkpoint, listener))
    if known.name is None:
        raise CheckpointError(f"{checkpoint.path}: does not say its architecture", hint=DOOR)
    build.check_name(known.name)
    fitting = _fitting(checkpoint, known)
    if stated and not fitting.sized:
        fitting = _fitting(checkpoint, replace(known, img_size=stated.input_size[1]))
    _tell(checkpoint, known, fitting, listener)
    model = fitting.model
    names = _class_names(checkpoint, model, classes)
    return Card(
        Kind.CHECKPOINT,
        model=model.to_json(),
        data=_named(checkpoint, names) if names else None,
        targets=_targets(checkpoint, fitting),
        aliases=checkpoint.aliases,
    )


def _of_library(
    checkpoint: Checkpoint,
    stated: Model,
    options: NetworkOptions,
    listener: Listener,
    classes: Sequence[str] | None,
) -> Card:
    """The card of a folder of transformers' own, of which flags change only how images are seen.

    MismatchError: the tensors are not those of the network, or flags ask for another one.
    """
    from qvec_cli.inputs.network import check_network
    from qvec_cli.model.targets import of_network

    own = stated.model_args.get("image_size")
    if options.name or options.args or options.img_size not in (None, own) or options.in_chans:
        raise MismatchError(
            f"{checkpoint.path} is a {stated.architecture}, as its config.json says",
            hint="Leave --model, --model-arg, --in-chans and an --img-size of another network out.",
        )
    said = options.prepared
    if options.img_size:  # networks that interpolate see others by default
        said["input_size"] = [stated.input_size[0], own, own]
    model = prepared_as(stated, said)
    network = check_network(checkpoint, model, "cpu")
    tell_preparation(checkpoint, model, listener)
    names = _class_names(checkpoint, model, classes)
    return Card(
        Kind.CHECKPOINT,
        model=model.to_json(),
        data=_named(checkpoint, names) if names else None,
        targets=tuple(n for n in of_network(network, model) if n in checkpoint),
        aliases=checkpoint.aliases,
    )


def tell_preparation(checkpoint: Checkpoint, model: Model, listener: Listener) -> None:
    """Says how images are prepared where a folder does not."""
    if checkpoint.processor is None and not model.reads_texts:
        listener.note(
            f"{checkpoint.path}: has no preprocessor_config.json: images are prepared with "
            f"{model.preparation}; where it was trained otherwise, say so to qvec import (--mean, "
            "--std, --interpolation, --crop-pct)"
        )


def _named(checkpoint: Checkpoint, classes: list[str]) -> dict[str, Any]:
    """What a card has to say of data of which the classes alone are known."""
    return {"name": checkpoint.name, "classes": classes}


def _of_config(model: Model) -> NetworkOptions:
    """What a folder's config.json says, for flags to overrule."""
    data, args = model.pretrained_cfg, dict(model.model_args)
    size, channels = args.pop("img_size", None), args.pop("in_chans", None)
    return NetworkOptions(
        model.architecture,
        model.num_classes,
        img_size=size,
        in_chans=channels,
        crop_pct=data["crop_pct"],
        args=args,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_mode=data["crop_mode"],
    )


def _of_script(checkpoint: Checkpoint, listener: Listener) -> NetworkOptions:
    """What a training script has kept beside the weights, if it is timm's or like it."""
    script, name = dict(checkpoint.script), _script_name(checkpoint)
    named = script.get("model_kwargs")
    args = dict(named) if isinstance(named, Mapping) else {}
    if isinstance(script.get("gp"), str) and "fc_norm.weight" in checkpoint:  # shapes tell others
        args["global_pool"] = script["gp"]
    size = script.get("input_size")
    if size is not None and are_numbers(size) and len(size) == 3:
        if size[1] != size[2]:
            raise MismatchError(
                f"{checkpoint.path}: its training script says images of {size[1]} x {size[2]} px",
                hint="Only networks of square images are read.",
            )
        script["img_size"] = size[1]
    script["img_size"] = args.get("img_size", script.get("img_size"))
    facts = {key: script[key] for key, kinds in _SCRIPT.items() if type(script.get(key)) in kinds}
    facts |= {key: tuple(script[key]) for key in ("mean", "std") if are_numbers(script.get(key))}
    if facts.get("interpolation") not in {None, *Interpolation}:  # timm's own default is no word
        del facts["interpolation"]
    if not 0 < facts.get("crop_pct", 1) <= 1:
        del facts["crop_pct"]
    args = {key: value for key, value in args.items() if key not in FLAGS} if name else {}
    said = [f"{key} {value}" for key, value in {**facts, **args}.items()]
    if name or said:
        words = ", ".join(filter(None, (name, *said)))
        listener.note(f"{checkpoint.path}: its training script says {words}")
    return NetworkOptions(name, args=args, **facts)


def _merged(options: NetworkOptions, known: NetworkOptions) -> NetworkOptions:
    """What is known, where the user has not said otherwise; of another network nothing is."""
    if options.name and known.name and _plain(options.name) != _plain(known.name):
        return options
    fields = ("name", "num_classes", "img_size", "in_chans", *_PREPARATION)
    said = {key: getattr(options, key) for key in fields}
    taken = {key: getattr(known, key) if value is None else value for key, value in said.items()}
    return replace(options, **taken, args={**known.args, **options.args})


def _plain(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _searched(checkpoint: Checkpoint, listener: Listener) -> str:
    """The one network of timm's that has such tensors.

    Raises MismatchError: there are several that compute differently, or none.
    """
    shapes = _shapes(checkpoint)
    groups = recognise(shapes)
    if len(groups) > 1:  # sizes of windows and numbers of tokens tell more
        groups = [names for names in groups if _fits(names[0], shapes)] or groups
    if not groups:
        raise MismatchError(
            f"{checkpoint.path}: no network of timm has these names and shapes",
            hint="Where it has other widths than timm's, name the nearest: --model NAME; "
            "transformers' and open_clip's own networks are not timm's; import FILE --to hf takes "
            "open_clip's vision transformers.",
        )
    if len(groups) > 1:
        each = ", ".join(names[0] for names in groups[:_SHOWN])
        raise MismatchError(
            f"{checkpoint.path}: {len(groups)} networks of timm have these tensors and compute "
            f"differently: {each}",
            hint="Say which: --model NAME.",
        )
    name, *others = groups[0]
    also = f"; so are those of {', '.join(others[:_SHOWN])}, the same network" if others else ""
    listener.note(f"{checkpoint.path}: its tensors are those of {name}{also}")
    return name


def _fits(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a network has exactly these tensors at some image size."""
    from qvec_cli.model.fit_shapes import fitted

    try:
        state = fitted(NetworkOptions(name), shapes).network.state_dict()
    except QvecError:
        return False
    return {n: tuple(t.shape) for n, t in state.items()} == dict(shapes)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Of every tensor, also of those that are tied."""
    shapes = {name: entry.shape for name, entry in checkpoint.items()}
    aliases = checkpoint.aliases.items()
    return shapes | {dropped: shapes[kept] for dropped, kept in aliases if kept in shapes}


def _fitting(checkpoint: Checkpoint, options: NetworkOptions) -> Fitting:
    from qvec_cli.inputs.network import outline
    from qvec_cli.model.fit_shapes import fitted

    with located(checkpoint.path):
        fitting = fitted(options, _shapes(checkpoint))
    build.load(fitting.network, outline(checkpoint), str(checkpoint.path))
    return fitting


def _targets(checkpoint: Checkpoint, fitting: Fitting) -> tuple[str, ...]:
    from qvec_cli.model.targets import of_network

    return tuple(n for n in of_network(fitting.network, fitting.model) if n in checkpoint)


def _tell(
    checkpoint: Checkpoint, known: NetworkOptions, fitting: Fitting, listener: Listener
) -> None:
    """Says what the network is, and what nobody has said of it."""
    model = fitting.model
    channels, side, _ = model.input_size
    sizes = ("img_size", "in_chans")
    args = [f"{key} {value}" for key, value in model.model_args.items() if key not in sizes]
    parts = [f"{model.architecture} at {side} px", counted(channels, "channel"), *args]
    parts += [counted(model.num_classes, "class") if model.num_classes else "no classifier"]
    listener.note(f"{checkpoint.path}: {', '.join(parts)}")
    if not fitting.sized:
        listener.note(
            f"{checkpoint.path}: no tensor tells the size of its images: {side} px is timm's for "
            "the name (--img-size)"
        )
    if lacking := [word for word in _FLAGGED if word not in known.prepared]:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in lacking)
        listener.note(
            f"{checkpoint.path}: images are prepared as timm has it for {model.architecture}: "
            f"{model.preparation}; where it was trained otherwise, say so ({flags})"
        )


def _class_names(
    checkpoint: Checkpoint, model: Model, classes: Sequence[str] | None
) -> list[str] | None:
    """Names of the classes, of the user or of config.json, one for each row of the head."""
    if classes is not None:
        if len(classes) != model.num_classes:
            raise MismatchError(
                f"--class-map has {len(classes)} classes, the head of {checkpoint.path} "
                f"{model.num_classes}"
            )
        return list(classes)
    names = _names_in(checkpoint.config or {})
    return names if len({*names}) == len(names) == model.num_classes > 0 else None


def _names_in(config: Mapping[str, Any]) -> list[str]:
    """The names that timm or transformers has put into config.json, none where they say nothing."""
    listed, table = config.get("label_names"), config.get("id2label")
    if isinstance(table, Mapping) and not isinstance(listed, list):
        try:
            listed = [table[key] for key in sorted(table, key=int)]
        except (ValueError, TypeError):
            listed = []
    names = [n for n in listed if isinstance(n, str)] if isinstance(listed, list) else []
    return [] if names and all(n.startswith("LABEL_") for n in names) else names
