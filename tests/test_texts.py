"""Networks that read texts: tables as data, padding that counts for nothing, the whole chain."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, call

from qvec_cli.calibration.sequential import linear_weights
from qvec_cli.calibration.walk import Walk, mean_inputs, site_moments
from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.data.datasets import open_task
from qvec_cli.errors import DataError, MismatchError
from qvec_cli.inputs.files import model_of
from qvec_cli.inputs.network import load_network
from qvec_cli.model import build
from qvec_cli.model.targets import of_network

os.environ["HF_HUB_OFFLINE"] = "1"
library = pytest.importorskip("transformers", reason="qvec[hf] is not installed")
tokenizers = pytest.importorskip("tokenizers")

ANIMALS, COLOURS = ("dog", "cat", "bird"), ("red", "blue", "green")
OTHERS = ("the", "a", "of", "runs", "sleeps", "fast", "slow", "big", "small")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *ANIMALS, *COLOURS, *OTHERS)
LONGEST = 24
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": LONGEST,
}
KINDS = {
    "bert": ("BertForSequenceClassification", SIZES),
    "roberta": (
        "RobertaForSequenceClassification",
        {**SIZES, "max_position_embeddings": LONGEST + 2, "pad_token_id": 1},
    ),
}


@dataclass(frozen=True)
class Texts:
    """A network of texts in a folder, and a task."""

    base: Path
    task: Path
    rows: dict[str, list[tuple[str, str]]]


def tokenizer_in(folder: Path, pad: str = "[PAD]") -> None:
    numbers = {word: place for place, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = library.PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad)
    fast.save_pretrained(folder)


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of several lengths, and which of two kinds of words they have more of."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        kind = draw.choice(("animal", "colour"))
        own = draw.choices(ANIMALS if kind == "animal" else COLOURS, k=draw.randint(1, 6))
        words = [*own, *draw.choices(OTHERS, k=draw.randint(0, 12))]
        draw.shuffle(words)
        rows.append((" ".join(words), kind))
    return rows


def table(
    path: Path, rows: list[tuple[str, str]], names: tuple[str, str] = ("text", "label")
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([names, *rows])


def saved(kind: str, folder: Path) -> Path:
    name, sizes = KINDS[kind]
    torch.manual_seed(0)
    network = getattr(library, name)
    network(network.config_class(**sizes)).save_pretrained(folder)
    tokenizer_in(folder, "[UNK]" if kind == "roberta" else "[PAD]")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    root = tmp_path_factory.mktemp("texts")
    library.logging.set_verbosity_error()
    rows = {"train": sentences(120, 0), "test": sentences(60, 1)}
    for split, each in rows.items():
        table(root / "task" / f"{split}.csv", each)
    return Texts(saved("bert", root / "base"), root / "task", rows)


def loaded(folder: Path, rows: list[tuple[str, str]]) -> tuple[Any, torch.Tensor, list[list[int]]]:
    """A network, its padded tokens, and the tokens of each text by the library's own call."""
    with Checkpoint(folder) as theta:
        model = model_of(theta)
        network = load_network(theta, model, "cpu").float().eval()
    encode = build.transform(model, augment=False)
    batch = build.normalise(model)(torch.stack([encode(text) for text, _ in rows]))
    own = library.AutoTokenizer.from_pretrained(folder)
    return network, batch, [own(text)["input_ids"] for text, _ in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_answer(kind: str, tmp_path: Path) -> None:
    rows = sentences(12, 3)
    network, batch, tokens = loaded(saved(kind, tmp_path), rows)
    assert batch.shape == (12, LONGEST)
    stock = getattr(library, KINDS[kind][0]).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        whole = network(batch)
        alone = torch.cat([stock(torch.tensor([numbers])).logits for numbers in tokens])
    assert len({len(numbers) for numbers in tokens}) > 3
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_a_padded_token_is_no_sample_of_any_moment(texts: Texts) -> None:
    rows = texts.rows["test"][:12]
    network, batch, tokens = loaded(texts.base, rows)
    with Checkpoint(texts.base) as theta:
        weights = linear_weights(network, theta, of_network(network, model_of(theta)))
    batches = [*batch.split(5)]
    seen: dict[int, list[torch.Tensor]] = {}
    linear = {id(m.weight): m for m in network.modules() if isinstance(m, torch.nn.Linear)}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, key=key: seen.setdefault(key, []).append(args[0].flatten(0, -2))
        )
        for key, module in linear.items()
    ]
    with torch.no_grad():
        for numbers in tokens:
            network(torch.tensor([numbers]))  # alone, without any padding
    for hook in hooks:
        hook.remove()
    references = {key: torch.cat(parts).double().numpy() for key, parts in seen.items()}
    counts = {len(tokens), sum(map(len, tokens))}
    means = mean_inputs(network, weights, batches)
    steps = [(s, i) for _, s, i, _ in Walk(network, weights, batches).steps()]
    resumed = [(s, i) for _, s, i, _ in Walk(network, weights, batches, resumed=True).steps()]
    passes = [(site, inputs) for site, inputs, _ in site_moments(network, weights, batches)]
    assert {count for _, _, count in site_moments(network, weights, batches)} == counts
    for site, inputs in (*steps, *resumed, *passes):
        rows_seen = references[id(site.weights[0])]
        moment = rows_seen.T @ rows_seen / len(rows_seen)
        np.testing.assert_allclose(inputs.moment, moment, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(means[site.names[0]], rows_seen.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("names", [("text", "label"), ("sentence", "class")])
def test_the_same_rows_are_the_same_task_in_every_form(
    suffix: str, names: tuple[str, str], texts: Texts, tmp_path: Path
) -> None:
    rows = {**texts.rows, "train": [('he said "a, b"\tand\nmore', "animal"), *texts.rows["train"]]}
    for split, each in rows.items():
        table(tmp_path / "one" / f"{split}{suffix}", each, names)
        table(tmp_path / "two" / f"{split}.csv", each)
    one, two = (open_task(str(tmp_path / name), None) for name in ("one", "two"))
    assert one.digest == two.digest
    assert one.classes == ("animal", "colour")
    assert [one.splits["test"].load(n) for n in range(60)] == [text for text, _ in rows["test"]]
    lone = open_task(str(tmp_path / "one" / f"test{suffix}"), None)
    assert len(lone.splits["train"]) + len(lone.splits["val"]) == 60


def test_the_whole_chain_runs_on_texts_and_the_stock_call_gives_the_stated_accuracy(
    texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("compressed_tensors")
    monkeypatch.chdir(tmp_path)
    tokenizer_in(tmp_path)
    train = ("--data", texts.task, "--epochs", 10, "--lr", "3e-3", "--batch-size", 16)
    trained = call("finetune", texts.base, *train, "-o", "fp.st")
    assert "images are prepared" not in trained.err
    assert (
        "images are prepared" not in call("eval", texts.base, "--data", texts.task, code=None).err
    )
    call("train-qat", texts.base, *train, "--bits", 3, "-o", "qat.st")
    call("extract", "fp.st", "qat.st", "-o", "rho.st")
    call("moments", "fp.st", "--data", texts.task, "--samples", 8, "-o", "m.st")
    call("quantize", "fp.st", "--bits", 3, "--method", "gptq", "--moments", "m.st", "-o", "w3.st")
    flags = ("--rho", "rho.st", "--proxy", texts.task, "--proxy-samples", 32, "--refine", 2)
    advice = call("advise", "fp.st", "--bits", 3, *flags, "-o", "OUT/", "--json")
    assert advice.json["results"]["candidates"]
    scores = {
        name: call("eval", name, "--data", texts.task, "--json").json["results"]
        for name in ("fp.st", "w3.st", "OUT")
    }
    assert scores["fp.st"]["top1"] > 0.8, "or nothing was learned"
    network = library.AutoModelForSequenceClassification.from_pretrained("OUT").eval()
    own = library.AutoTokenizer.from_pretrained("OUT")
    correct = 0
    for text, label in texts.rows["test"]:
        with torch.no_grad():
            answer = network(**own(text, return_tensors="pt")).logits.argmax()
        correct += network.config.id2label[int(answer)] == label
    assert correct == scores["OUT"]["n_correct"]


def test_a_file_that_was_moved_has_the_tokenizer_of_its_start(
    texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(texts.base, "base")
    short = ("--data", texts.task, "--epochs", 1, "--no-aug", "--device", "cpu")
    for folder in ("runs", "sums", "elsewhere", "deep/er"):
        Path(folder).mkdir(parents=True)
    call("finetune", "base", *short, "-o", "runs/a.st")
    call("train-qat", "base/", *short, "--bits", 4, "-o", "runs/q.st")
    Path("runs/a.st").rename("elsewhere/b.st")
    call("extract", "elsewhere/b.st", "runs/q.st", "-o", "rho.st")
    call("patch", "elsewhere/b.st", "rho.st", "--lambda", 1, "-o", "sums/p.st")
    call("quantize", "sums/p.st", "--bits", 4, "-o", "sums/p4.st")
    Path("sums/p4.st").rename("deep/er/p4.st")
    call("quantize", "elsewhere/b.st", "--bits", 8, "-o", "out/")
    assert Path("out/tokenizer.json").read_bytes() == Path("base/tokenizer.json").read_bytes()
    shutil.copytree("base", "by")
    shutil.copy("elsewhere/b.st", "by/c.st")
    scores = [
        call("eval", name, "--data", texts.task, "--json").json["results"]["n_correct"]
        for name in ("elsewhere/b.st", "by/c.st", "out")
    ]
    assert scores[0] == scores[1]
    assert call("eval", "deep/er/p4.st", "--data", texts.task, "--json").json["results"]
    assert "tokenizer: base" in call("inspect", "deep/er/p4.st").out.splitlines()
    Path("base").rename("gone")
    lost = call("eval", "elsewhere/b.st", "--data", texts.task, code=1)
    assert "no tokenizer is in elsewhere nor in base, and BertFor" in lost.errors[0]
    assert "beside the file" in lost.err
    assert call("eval", "by/c.st", "--data", texts.task, "--json").json["results"]
    call("quantize", "elsewhere/b.st", "--bits", 8, "-o", "kept.st")
    assert "tokenizer: base" in call("inspect", "kept.st").out.splitlines()


def test_a_place_of_a_tokenizer_that_is_none_is_passed_over(texts: Texts, tmp_path: Path) -> None:
    call("import", texts.base, "-o", tmp_path / "a.st")
    with Checkpoint(tmp_path / "a.st") as theta:
        assert theta.card.provenance["tokenizer"] == str(texts.base)
        lineage = theta.card.provenance
        for odd in (3, None, ["x"], "a\0b", "x" * 5000, "y" * 400, "/closed/to/us"):
            theta.card = replace(theta.card, provenance={**lineage, "tokenizer": odd})
            with pytest.raises(MismatchError, match=f"no tokenizer is in {tmp_path}"):
                build.transform(model_of(theta), augment=False)


def test_a_card_names_no_tokenizer_where_none_is(
    texts: Texts, drawer: Drawer, tmp_path: Path
) -> None:
    shutil.copytree(texts.base, tmp_path / "base")
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    call("import", tmp_path / "base", "-o", tmp_path / "a.st")
    for path in (tmp_path / "a.st", drawer.receiver):
        with Checkpoint(path) as theta:
            assert "tokenizer" not in theta.card.provenance


def test_no_code_of_a_tokenizer_is_run_or_offered(texts: Texts, tmp_path: Path) -> None:
    folder = shutil.copytree(texts.base, tmp_path / "bert")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["strange.Words", None]}, "tokenizer_class": "Words"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    read, plain = (call("eval", f, "--data", texts.task, "--json") for f in (folder, texts.base))
    assert read.json["results"]["n_correct"] == plain.json["results"]["n_correct"]
    assert "[y/N]" not in read.out + read.err
    assert not (tmp_path / "ran").exists()


FAULTS: dict[str, tuple[str, str]] = {
    "no column of texts": ("words,label\na,b\n", "has no column of texts; it has words, label"),
    "an empty text": ("text,label\na,b\n ,b\n", "line 3: no text"),
    "no label": ("text,label\na,\n", "line 2: no label"),
    "not utf-8": ("text,label\n\udcff,b\n", "cannot be read as csv"),
    "only a head": ("text,label\n", "the train split is empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_is_no_task_is_refused_in_a_line(fault: str, tmp_path: Path) -> None:
    content, reason = FAULTS[fault]
    path = tmp_path / "train.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=reason):
        open_task(str(path), None).split("train")


Arrange = Callable[[Texts, Path, Drawer], tuple[object, ...]]


def _long(texts: Texts, folder: Path, _: Drawer) -> tuple[object, ...]:
    table(folder / "test.csv", [("dog " * 40, "animal"), ("red", "colour")])
    return ("eval", texts.base, "--data", folder)


def _strange(texts: Texts, folder: Path, _: Drawer) -> tuple[object, ...]:
    table(folder / "test.csv", [("dog", "LABEL_0"), ("red", "LABEL_7"), ("a", "LABEL_8")])
    return ("eval", texts.base, "--data", folder)


def _no_tokenizer(texts: Texts, folder: Path, _: Drawer) -> tuple[object, ...]:
    alone, base = folder / "alone.st", shutil.copytree(texts.base, folder / "base")
    call("import", base, "-o", alone)
    shutil.rmtree(base)
    return ("eval", alone, "--data", texts.task)


REFUSED: dict[str, tuple[Arrange, str]] = {
    "a text longer than positions": (_long, "a text of 42 tokens"),
    "a label that the head does not know": (_strange, "has 3 classes, the head of"),
    "no tokenizer": (_no_tokenizer, "no tokenizer is in "),
    "images": (
        lambda texts, _, drawer: ("moments", texts.base, "--data", drawer.receiver_data, "-o", "m"),
        "reads texts, and this data set holds images",
    ),
    "texts for a network of images": (
        lambda texts, _, drawer: ("moments", drawer.receiver, "--data", texts.task, "-o", "m"),
        "holds texts, and the network takes images",
    ),
    "generated pictures": (
        lambda texts, _, __: (
            "quantize",
            texts.base,
            "--bits",
            2,
            "--preset",
            "best",
            "-o",
            "w.st",
        ),
        "generated: is made of pictures, and BertForSequenceClassification reads texts",
    ),
    "export": (
        lambda texts, _, __: ("export", texts.base, "-o", "x.onnx"),
        "reads texts, and networks of images are exported",
    ),
    "a rotated basis": (
        lambda texts, _, __: ("rotate", texts.base, "-o", "r.st"),
        "bert cannot be rotated",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_with_texts_is_refused_in_a_line(
    what: str, texts: Texts, drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrange, reason = REFUSED[what]
    refused = call(*arrange(texts, tmp_path, drawer), code=1)
    assert len(refused.errors) == 1
    assert reason in refused.errors[0]
