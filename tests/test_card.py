"""The card in a header: what goes in comes out, and nothing hostile gets further.

Regenerate golden/card_v1.json (only for a new schema, under a new name): python tests/test_card.py
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_cli.checkpoint.card import NO_DIGEST, SCHEMA, Card, Kind, canonical
from qvec_cli.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "card_v1.json"

FULL = Card(
    Kind.QUANTIZED,
    role="patched",
    model={
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": {"img_size": 32},
        "pretrained_cfg": {"input_size": [3, 32, 32], "classifier": "head", "mean": [0.5] * 3},
    },
    data={"name": "folder", "split": "train", "classes": ["b", "a", "ü"]},
    quant={"bits": 3, "granularity": "channel", "group_size": None, "scale": "absmax"},
    targets=("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"),
    base="b" * 64,
    recipe={"epochs": 2, "lr": 1e-5, "no_aug": False},
    provenance={"operation": "patch", "lambda": 0.75, "parents": [{"name": "r.st"}]},
    digest="d" * 64,
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(-1e100, 1e100)  # beyond, no number of a model's or a run's is
    # lone surrogates cannot be stored in a header
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FILLED = st.dictionaries(st.text(max_size=5), JSON_VALUES, min_size=1, max_size=3)


@pytest.mark.parametrize("kind", Kind)
def test_a_card_survives_its_header(kind):
    assert Card.from_header(Card(kind).to_header()) == Card(kind)
    assert Card.from_header(replace(FULL, kind=kind).to_header()) == replace(FULL, kind=kind)


@settings(database=None, derandomize=True, max_examples=25)
@given(FILLED, FILLED, st.lists(st.text(max_size=5), min_size=1).map(tuple))
def test_whatever_json_a_card_holds_survives(model, recipe, targets):
    card = replace(FULL, model=model, recipe=recipe, targets=targets)
    assert Card.from_header(card.to_header()) == card


def test_a_card_that_lists_no_targets_is_not_one_that_does_not_say():
    card = Card(Kind.CHECKPOINT, targets=())
    assert Card.from_header(card.to_header()) == card


def test_a_header_is_sorted_text_and_says_its_format_and_schema():
    header = FULL.to_header()
    assert list(header) == sorted(header)
    assert all(isinstance(value, str) for value in header.values())
    assert header["format"] == "pt"
    assert header["qvec.schema"] == str(SCHEMA)


def test_the_order_in_which_a_card_was_filled_does_not_show():
    backwards = {key: FULL.model[key] for key in reversed(FULL.model)}
    assert replace(FULL, model=backwards).to_header() == FULL.to_header()


def test_a_card_of_the_first_schema_is_read_for_ever():
    assert Card.from_header(json.loads(GOLDEN.read_text())) == FULL


def test_a_card_is_written_as_the_first_schema_wrote_it():
    assert FULL.to_header() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("schema", [SCHEMA + 1, 999])
def test_a_newer_schema_is_refused_with_the_way_out(schema):
    header = {**FULL.to_header(), "qvec.schema": str(schema), "qvec.kind": "hologram"}
    with pytest.raises(CheckpointError, match="newer qvec") as caught:
        Card.from_header(header)
    assert "upgrade" in caught.value.hint.lower()


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"timm": "{", "qvec.role": "fp"}])
def test_a_file_that_qvec_did_not_write_has_no_card(metadata):
    assert Card.from_header(metadata) is None


def test_keys_that_this_version_does_not_know_are_ignored():
    header = {**FULL.to_header(), "qvec.colour": "}{", "other": "", "modelspec.title": "x"}
    assert Card.from_header(header) == FULL


def test_a_card_without_a_digest_has_the_digest_that_stands_for_none():
    header = FULL.to_header()
    del header["qvec.digest"]
    assert Card.from_header(header).digest == NO_DIGEST


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qvec.kind", "hologram"),
        ("qvec.kind", ""),
        ("qvec.schema", "one"),
        ("qvec.schema", ""),
        ("qvec.schema", "1.5"),
        ("qvec.schema", "9" * 5000),
        ("timm", "{"),
        ("timm", "[]"),
        ("timm", '{"lr":NaN}'),
        ("qvec.data", "null"),
        ("qvec.quant", '"3-bit"'),
        ("qvec.targets", "{}"),
        ("qvec.targets", "not json"),
        ("qvec.recipe", "[" * 100_000),
        ("qvec.recipe", '{"lr":Infinity}'),
        ("qvec.provenance", "1" + "0" * 5000),
    ],
    ids=lambda text: text[:16],
)
def test_a_damaged_card_is_refused(key, value):
    with pytest.raises(CheckpointError) as caught:
        Card.from_header({**FULL.to_header(), key: value})
    assert len(str(caught.value)) < 500


def test_a_card_without_a_schema_is_damaged():
    header = FULL.to_header()
    del header["qvec.schema"]
    with pytest.raises(CheckpointError, match="damaged"):
        Card.from_header(header)


def test_canonical_json_has_one_spelling():
    assert canonical({"b": [1, 0.5, None], "a": "ü"}) == '{"a":"\\u00fc","b":[1,0.5,null]}'
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical({"x": wrong})


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(FULL.to_header(), indent=1, sort_keys=True) + "\n")
