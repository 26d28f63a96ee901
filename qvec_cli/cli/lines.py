"""What each command's result says in words, a few lines each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from qvec_cli.cli import table
from qvec_cli.cli.advice import advised
from qvec_cli.cli.seen import moments, moments_in_words
from qvec_cli.cli.words import size, some
from qvec_cli.errors import QvecError
from qvec_cli.inputs.foreign import bits_in_words
from qvec_cli.outputs.metrics import Metrics
from qvec_cli.specs import Grid

Facts = Mapping[str, Any]


_LONGEST: Final = 1000
"""Characters of a line that a card may fill."""


def lines(metrics: Metrics) -> Iterator[str]:
    """The lines of a result, with what it has cost of the receiver's data."""
    if "plan" in metrics.results:
        yield from _plan(metrics.results["plan"])
        return
    yield from _LINES[metrics.command](metrics.results)
    use = metrics.use
    counts = ", ".join(f"{count} {what}" for what, count in use.counts.items())
    if metrics.command not in ("finetune", "train-qat", "inspect", "extract", "moments", "combine"):
        yield f"receiver data used: {use.level}{f' ({counts})' if counts else ''}"


def score(result: Facts) -> str:
    """An accuracy with its counts and its standard error."""
    return (
        f"{result['top1']:.4f} +- {result['standard_error']:.4f} "
        f"({result['n_correct']}/{result['n']})"
    )


def _plan(plan: Facts) -> Iterator[str]:
    """The answer to --dry-run."""
    yield f"would write {plan['output'] or 'nothing'}; nothing was written"
    out = f", to write {size(plan['bytes_out'])}" if plan["bytes_out"] is not None else ""
    yield f"to read {size(plan['bytes_in'])}{out}"
    if plan["images"]:
        yield f"images: {', '.join(f'{n} {split}' for split, n in plan['images'].items())}"
    if not plan["tensors"]:
        return
    fates = Counter(tensor["fate"] for tensor in plan["tensors"])
    yield f"tensors: {', '.join(f'{count} {fate}' for fate, count in fates.items())}"
    yield "tensor\tdtype\tshape\tfate"
    for tensor in plan["tensors"]:
        yield f"{tensor['name']}\t{tensor['dtype']}\t{tensor['shape']}\t{tensor['fate']}"


def _training(results: Facts) -> Iterator[str]:
    yield f"{results['output']}: {results['steps']} steps, {len(results['epochs'])} epochs"
    images = results["data"]["images"]
    yield f"labelled images: {images['train']} to train, {images['val']} to validate"
    names = {"float": "validation, float", "quantized": "validation, quantized"}
    for key, result in results["val"].items():
        yield f"{names[key]}: top-1 {score(result)}"


def _extract(results: Facts) -> Iterator[str]:
    relative = results["relative_norm"]
    share = f", {relative:.3g} of the donor's" if relative is not None else ""
    yield (
        f"{results['output']}: rho of {results['tensors']} tensors, norm {results['norm']:.4g}"
        f"{share}"
    )
    yield f"left out: {some(results['left_out'])}"
    if carried := results["moments"]:
        share = carried["bytes"] / results["bytes"]
        cost = f"{size(carried['bytes'])}, {share:.2f} of rho's"
        yield f"carries {moments_in_words(carried)}: {cost}"


def _combine(results: Facts) -> Iterator[str]:
    norms = results["norms"]
    of = ", ".join(f"{norm:.4g}" for norm in norms)
    yield (
        f"{results['output']}: {_ruled(results)} of {len(norms)} "
        f"vector{'s' if len(norms) > 1 else ''}, {results['tensors']} tensors, "
        f"norm {results['norm']:.4g} of {of}"
    )
    if "parts" in results:
        yield f"zeros outside {', '.join(results['parts'])}: {some(results['zeros'])}"
    if results["moments"]:
        yield f"carries {moments_in_words(results['moments'])}"


def _ruled(facts: Facts) -> str:
    """A merge rule with its settings."""
    mix = ", ".join(f"{number:g}" for number in facts.get("mix", ()))
    settings = [mix, *(f"{k} {facts[k]:g}" for k in ("density", "seed") if k in facts)]
    told = ", ".join(filter(None, settings))
    return f"{facts['rule']} ({told})" if told else str(facts["rule"])


def _patch(results: Facts) -> Iterator[str]:
    only = f", of {', '.join(results['parts'])} only" if "parts" in results else ""
    yield (
        f"{results['output']}: {results['tensors']} tensors patched at lambda "
        f"{results['lambda']:g}{only}"
    )
    yield f"kept from the receiver: {some(results['kept'])}"


def _compared(results: Facts) -> Iterator[str]:
    """One row a grid; the accuracy is there if images were given."""
    split = next((name for name in ("val", "test", "train") if name in results["compared"][0]), "")
    accuracy = f"\t{split} top-1" if split else ""
    yield f"grid\tbits per weight\tsize\tSQNR{accuracy}"
    if split:
        yield f"float, not quantized\t\t{size(results['bytes_before'])}\t\t{score(results['fp'])}"
    for row in results["compared"]:
        ratio = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        measured = f"\t{score(row[split])}" if split else ""
        cost = f"{row['bits_per_weight']:.3f}\t{size(row['tensor_bytes'])}"
        yield f"{row['name']}\t{cost}\t{ratio}{measured}"


def _quantize(results: Facts) -> Iterator[str]:
    if "compared" in results:
        yield from _compared(results)
        return
    ratios = [value for value in results["sqnr_db"].values() if value is not None]
    packed = " if packed" if results["fake"] else ""
    yield (
        f"{results['output']}: {size(results['bytes_before'])} -> {size(results['bytes_after'])}, "
        f"{results['bits_per_weight']:.3f} bits per weight{packed} in "
        f"{len(results['quantized'])} tensors "
        f"({results['weights']:,} of {results['parameters']:,} parameters)"
    )
    yield f"left as they were: {some(results['left'])}"
    if ratios:
        yield (
            f"signal to quantization noise: {min(ratios):.1f} to {max(ratios):.1f} dB, "
            f"mean {sum(ratios) / len(ratios):.1f} dB"
        )
    if refined := results.get("refinement"):
        held, unit = refined["held_back"], refined["loss"].replace("_", " ")
        after = "not a number" if held["after"] is None else f"{held['after']:.4g}"
        fate = "" if refined["kept"] else ": not kept"
        yield (
            f"refined in {refined['steps']} steps: {unit} to the float network on "
            f"{held['images']} images held back {held['before']:.4g} -> {after}{fate}"
        )


def _export(results: Facts) -> Iterator[str]:
    yield (
        f"{results['output']}: {size(results['bytes_before'])} -> {size(results['bytes_after'])}, "
        f"{results['format']}"
    )
    if layouts := results.get("quantized"):
        kinds = Counter((layout["bits"], layout["block_size"]) for layout in layouts.values())
        counts = [f"{n} of {bits} bits in blocks of {block}" for (bits, block), n in kinds.items()]
        yield f"packed weights: {', '.join(counts)}"
    if results.get("left"):
        yield f"packed weights that became float: {some(results['left'])}"
    if check := results["check"]:
        yield (
            f"logits of {check['images']} random images: at most {check['max_abs_diff']:.2g} from "
            f"qvec's, the largest of which is {check['max_abs_logit']:.3g}"
        )


def _eval(results: Facts) -> Iterator[str]:
    yield f"{results['split']} top-1: {score(results)}"
    yield f"{results['split']} top-5: {results['top5']:.4f} ({results['n_correct_top5']})"
    yield f"loss: {results['loss']:.4f}"
    yield f"images/s: {results['images_per_second']:.0f}"
    cost = results["cost"]
    if cost["packed"]:
        share = cost["file_bytes"] / cost["float_bytes"]
        yield (
            f"disk: {size(cost['file_bytes'])}, {share:.3f} of the {size(cost['float_bytes'])} in "
            f"float; memory: {size(cost['memory_bytes'])}, weights are unpacked"
        )


def _sweep(results: Facts) -> Iterator[str]:
    if "objective" in results:
        yield from agreed(results)
        return
    yield "lambda\tvalidation top-1"
    chosen = results["chosen"]["lambda"]
    for point in results["curve"]:
        mark = "\t<- chosen" if point["lambda"] == chosen else ""
        yield f"{point['lambda']:g}\t{score(point['val'])}{mark}"
    rows = {
        "float, not quantized": results["baselines"]["fp"],
        "lambda 0 (plain quantization)": results["baselines"]["ptq"],
        "lambda 1 (zero-shot)": results["zero_shot"],
        f"lambda {chosen:g} (chosen)": results["chosen"],
    }
    yield "on test\ttop-1\treceiver data used"
    for name, row in rows.items():
        yield f"{name}\t{score(row['test'])}\t{row['data_use']}"


def agreed(results: Facts) -> Iterator[str]:
    """A choice without labels: the curve of the best donor, and how the donors rank."""
    chosen, proxies = results["chosen"], results["proxies"]
    yield f"distance to the float answers on {proxies['n']} proxy images, {results['measure']}"
    judged = "val" in results["curve"][0]
    yield "lambda\tdistance" + ("\tvalidation top-1" if judged else "")
    for point in results["curve"]:
        mark = "\t<- chosen" if point["lambda"] == chosen["lambda"] else ""
        val = f"\t{score(point['val'])}" if judged else ""
        far = f"{point['distance']:.4f} +- {point['standard_error']:.4f}"
        yield f"{point['lambda']:g}\t{far}{val}{mark}"
    yield "donor\tdamage explained\tlambda\tremoved" + ("\ttest top-1" if judged else "")
    for donor in results["donors"]:
        taken = donor["chosen"]
        test = f"\t{score(taken['test'])}" if judged else ""
        explained, removed = (f"{donor['score'][key]:.1%}" for key in ("explained", "removed"))
        yield f"{donor['rho']}\t{explained}\t{taken['lambda']:g}\t{removed}{test}"
    if judged:
        for name, row in (("float", "fp"), ("lambda 0", "ptq")):
            yield f"{name} on test: {score(results['baselines'][row]['test'])}"
    if chosen["lambda"] == 0:
        yield "lambda 0: no vector is surely better than plain quantization here"


def _inspect(results: Facts) -> Iterator[str]:
    """One of inspect's four answers, told by what it holds."""
    if "verified" in results:
        yield f"the tensors are those of the card: {results['verified']}"
    elif "same" in results:
        yield from _comparison(results)
    elif "tensors" in results:
        yield from _description(results)
    else:
        role = _cut(f", {results['role']}") if results["role"] else ""
        yield f"{results['kind']}{role} {(results['digest'] or 'of unknown digest')[:17]}"
        yield _cut(f"base: {results['base'] or 'unknown'}")
        yield from map(_cut, _family(results["provenance"], ""))


def _comparison(results: Facts) -> Iterator[str]:
    rows = results["tensors"]
    for key, words in (("only_in_first", "first"), ("only_in_second", "second")):
        if results[key]:
            yield f"only in the {words}: {some(results[key])}"
    if results["same"]:
        yield f"the same {len(rows)} tensors in both"
        return
    relative = results["relative_norm"]
    share = f", {relative:.3g} of the first" if relative is not None else ""
    norm = "not finite" if results["norm"] is None else f"{results['norm']:.4g}"
    yield f"{len(rows)} tensors in both, norm of the difference {norm}{share}"
    yield "tensor\tdtype\tshape\tunequal\tnorm of the difference"
    for row in rows:
        if row.get("unequal") != 0:
            dtype, shape = (_both(row[key]) for key in ("dtype", "shape"))
            norm = f"{row['norm']:.6g}" if row.get("norm") is not None else "-"
            yield f"{row['name']}\t{dtype}\t{shape}\t{row.get('unequal', '-')}\t{norm}"


def _both(pair: list[Any]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} vs {pair[1]}"


def _description(results: Facts) -> Iterator[str]:
    card = results["card"]
    role = _cut(f", {card['role']}") if card and card["role"] else ""
    yield (
        f"{results['kind']}{role}: {len(results['tensors'])} tensors, "
        f"{_count(results['parameters'])} parameters, {size(results['bytes'])}"
    )
    if results["moments"]:
        carried = f"carries {moments_in_words(results['moments'])}"
        yield _cut(f"{carried}, in {len(results['attached'])} tensors")
    if model := results["model"]:
        yield _cut(
            f"architecture: {model['architecture']} {model['model_args'] or ''}, "
            f"{model['num_classes']} classes"
        )
    yield from map(_cut, _card(card)) if card else ["no qvec card: lineage is not known"]
    if results["layout"]:
        yield f"layout: {_layout(results['layout'])}"
    held = "" if results["digest_holds"] else " (not that of its card: edited since)"
    yield f"digest: {results['digest']}{held}"
    yield "tensor\tdtype\tshape\tnorm"
    for tensor in (*results["tensors"], *results["attached"]):
        bad = f"\t{tensor['not_finite']} not finite" if tensor.get("not_finite") else ""
        norm = f"{tensor['norm']:.6g}" if "norm" in tensor else "-"
        yield f"{tensor['name']}\t{tensor['dtype']}\t{tensor['shape']}\t{norm}{bad}"


def _count(parameters: int | None) -> str:
    return f"{parameters:,}" if parameters is not None else "packed"


def _layout(facts: Facts) -> str:
    """A low-bit layout, and what its tensors tell of it."""
    group = f"group {facts['group_size']}" if facts["group_size"] else ""
    weights = f"{facts['weights']} weight{'s' if facts['weights'] > 1 else ''}"
    return ", ".join(
        filter(None, (facts["name"], bits_in_words(facts["possible_bits"]), group, weights))
    )


def _figure(results: Facts) -> Iterator[str]:
    yield f"{results['output']}: {results['figure']}, {size(results['bytes'])}"
    yield results["words"]


def _report(results: Facts) -> Iterator[str]:
    counts = [(results[key], key) for key in ("figures", "tables")]
    shown = ", ".join(f"{count} {key if count != 1 else key[:-1]}" for count, key in counts)
    yield f"{results['output']}: {shown}, {size(results['bytes'])}"
    yield f"sections: {', '.join(results['sections'])}"
    for grid in results["grids"]:
        runs = f", {grid['runs']} runs" if grid["runs"] > 1 else ""
        yield f"{grid['grid']}, {grid['summary']['receivers']} receivers{runs}"
        yield from table.rows(grid["summary"])


def _transfer(results: Facts) -> Iterator[str]:
    receivers = results["summary"]["receivers"]
    yield f"{results['output']}: {results['lines']} lines, {receivers} receivers"
    yield from table.rows(results["summary"])


def _cut(text: str) -> str:
    """What a card says, which may be of any length."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _card(card: Facts) -> Iterator[str]:
    if data := card["data"]:
        yield f"data: {data.get('name', '?')}, {data.get('images', '?')}"
    if card["grid"]:
        yield f"grid: {_grid(card['grid'])}"
    if card["targets"] is not None:
        yield f"targets: {len(card['targets'])} weights"
    if recipe := card["recipe"]:
        yield "recipe: " + ", ".join(f"{key} {value}" for key, value in recipe.items())
    yield f"base: {card['base'] or 'unknown'}"
    yield from _family(card["provenance"], "")


def _family(lineage: Facts, indent: str) -> Iterator[str]:
    """An operation, its parents below it, theirs below them."""
    facts = f" at lambda {lineage['lambda']}" if "lambda" in lineage else ""
    facts += f" by {lineage['rule']}" if "rule" in lineage else ""
    facts += f" of {', '.join(map(str, lineage['parts']))}" if _listed(lineage, "parts") else ""
    facts += f" by {lineage['ranks']} processes" if "ranks" in lineage else ""
    yield f"{indent}made by: qvec {lineage.get('qvec', '?')} {lineage.get('op', '?')}{facts}"
    parents = lineage.get("parents")
    for parent in parents if isinstance(parents, list) else []:
        if isinstance(parent, dict):
            name, kind = parent.get("name", "?"), parent.get("kind", "?")
            digest = str(parent.get("digest", "?"))[:12]
            yield f"{indent}from: {parent.get('as', '?')} {name} ({kind}, {digest})"
            if isinstance(parent.get("provenance"), dict) and parent["provenance"]:
                yield from _family(parent["provenance"], indent + "  ")


def _listed(lineage: Facts, key: str) -> bool:
    return isinstance(lineage.get(key), list)


def _grid(value: Facts) -> str:
    try:
        return str(Grid.from_json(value))
    except QvecError:
        return str(value)


_LINES: Final[Mapping[str, Callable[[Facts], Iterator[str]]]] = {
    "finetune": _training,
    "train-qat": _training,
    "extract": _extract,
    "moments": moments,
    "combine": _combine,
    "patch": _patch,
    "quantize": _quantize,
    "export": _export,
    "eval": _eval,
    "sweep-lambda": _sweep,
    "transfer": _transfer,
    "advise": advised,
    "inspect": _inspect,
    "plot": _figure,
    "report": _report,
}
