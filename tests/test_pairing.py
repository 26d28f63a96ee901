"""Which tensors pair up: all of them, or the message names those that do not."""

import re

import pytest

from qvec_cli.checkpoint.dtypes import FORMATS
from qvec_cli.checkpoint.header import Entry
from qvec_cli.errors import MismatchError
from qvec_cli.vector.pairing import SHOWN, cover, pair

LABELS = ("a.st", "b.st")
HEAD = ("head.weight", "head.bias")
MODEL = {
    "norm.weight": Entry("F32", (8,)),
    "fc.weight": Entry("F32", (4, 8)),
    "scalar": Entry("F32", ()),
    "empty": Entry("F32", (0, 3)),
    "index": Entry("I64", (9, 9)),
    "mask": Entry("BOOL", (9,)),
    "head.weight": Entry("F32", (10, 4)),
    "head.bias": Entry("F32", (10,)),
}
BODY = ("norm.weight", "fc.weight", "scalar", "empty")
RHO = {name: MODEL[name] for name in BODY}


def _without(model, *names):
    return {name: entry for name, entry in model.items() if name not in names}


def _other_head(model, classes=37):
    return {
        **model,
        "head.weight": Entry("F32", (classes, 4)),
        "head.bias": Entry("F32", (classes,)),
    }


def test_twins_pair_up_outside_head_and_buffers_in_the_order_of_the_first():
    backwards = dict(reversed(MODEL.items()))
    pairing = pair(MODEL, backwards, LABELS, HEAD)
    assert pairing.names == BODY
    assert pairing.head == HEAD
    assert pairing.buffers == ("index", "mask")


@pytest.mark.parametrize("classes", [1, 10, 37])
def test_heads_of_any_number_of_classes_are_left_out(classes):
    pairing = pair(MODEL, _other_head(MODEL, classes), LABELS, HEAD)
    assert (pairing.names, pairing.head) == (BODY, HEAD)


def test_a_head_that_only_one_side_has_is_left_out():
    assert pair(MODEL, _without(MODEL, *HEAD), LABELS, HEAD).head == HEAD
    assert pair(_without(MODEL, *HEAD), MODEL, LABELS, HEAD).head == ()


def test_a_head_that_is_not_called_one_must_pair_up():
    with pytest.raises(MismatchError, match=re.escape("head.weight: [10, 4] vs [37, 4]")):
        pair(MODEL, _other_head(MODEL), LABELS, ())


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (_without(MODEL, "fc.weight"), "fc.weight: only in a.st"),
        ({**MODEL, "more": Entry("F32", (1,))}, "more: only in b.st"),
        ({**MODEL, "fc.weight": Entry("F32", (4, 9))}, "fc.weight: [4, 8] vs [4, 9]"),
        ({**MODEL, "fc.weight": Entry("F32", (8, 4))}, "fc.weight: [4, 8] vs [8, 4]"),
        ({**MODEL, "scalar": Entry("F32", (1,))}, "scalar: [] vs [1]"),
        ({**MODEL, "fc.weight": Entry("I8", (4, 8))}, "fc.weight: F32 vs I8"),
        ({**MODEL, "mask": Entry("F16", (9,))}, "mask: BOOL vs F16"),
        ({**MODEL, "index": Entry("I64", (4, 4))}, "index: [9, 9] vs [4, 4]"),
        (_without(MODEL, "index"), "index: only in a.st"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tensor_that_does_not_pair_up_is_named_with_its_reason(second, fault):
    with pytest.raises(MismatchError, match=re.escape(fault)) as caught:
        pair(MODEL, second, LABELS, HEAD)
    assert str(caught.value).startswith("1 of ")
    assert caught.value.hint


@pytest.mark.parametrize("first", [name for name, row in FORMATS.items() if row.floating])
@pytest.mark.parametrize("second", [name for name, row in FORMATS.items() if row.floating])
def test_floating_formats_pair_with_each_other(first, second):
    pairing = pair({"w": Entry(first, (3,))}, {"w": Entry(second, (3,))}, LABELS, ())
    assert pairing.names == ("w",)


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_no_real_number_is_set_apart(dtype):
    model = {"x": Entry(dtype, (3,))}
    pairing = pair(model, model, LABELS, ())
    floating = FORMATS[dtype].floating
    assert (pairing.names, pairing.buffers) == ((("x",), ()) if floating else ((), ("x",)))


def test_running_statistics_stay_with_their_model():
    model = {f"bn.{leaf}": Entry("F32", (3,)) for leaf in ("weight", "running_mean", "running_var")}
    paired = pair(model, model, LABELS, ())
    assert (paired.names, paired.buffers) == (("bn.weight",), ("bn.running_mean", "bn.running_var"))
    assert cover(model, model, LABELS, ()) == paired  # of a vector that holds them too
    assert cover(model, {"bn.weight": model["bn.weight"]}, LABELS, ()) == paired


@pytest.mark.parametrize("count", [1, SHOWN, SHOWN + 1, 100])
def test_the_message_counts_all_and_names_the_first_few(count):
    first = {f"t{i:03}": Entry("F32", (i,)) for i in range(200)}
    second = {**first, **{f"t{i:03}": Entry("F32", (i, 1)) for i in range(count)}}
    with pytest.raises(MismatchError, match=f"^{count} of 200 tensors of a.st and b.st") as caught:
        pair(first, second, LABELS, ())
    message = str(caught.value)
    assert len(re.findall(r"t\d{3}", message)) == min(count, SHOWN)
    assert (f"and {count - SHOWN} more" in message) is (count > SHOWN)
    assert "\n" not in message


def test_a_receiver_is_covered_by_a_vector_without_head_and_buffers():
    pairing = cover(_other_head(MODEL), RHO, LABELS, HEAD)
    assert pairing.names == BODY
    assert pairing.head == HEAD
    assert pairing.buffers == ("index", "mask")


@pytest.mark.parametrize(
    ("rho", "fault"),
    [
        (_without(RHO, "scalar"), "scalar: only in a.st"),
        ({**RHO, "more": Entry("F32", (2,))}, "more: only in b.st"),
        ({**RHO, "norm.weight": Entry("F32", (4,))}, "norm.weight: [8] vs [4]"),
        ({**RHO, "index": Entry("F32", (9, 9))}, "index: only in b.st"),
    ],
    ids=["missing", "extra", "shape", "buffer"],
)
def test_a_vector_that_does_not_cover_the_receiver_is_refused(rho, fault):
    with pytest.raises(MismatchError, match=re.escape(fault)):
        cover(MODEL, rho, LABELS, HEAD)


def test_every_tensor_is_either_paired_or_told_to_be_left_out():
    for pairing in (pair(MODEL, MODEL, LABELS, HEAD), cover(MODEL, RHO, LABELS, HEAD)):
        parts = (*pairing.names, *pairing.head, *pairing.buffers)
        assert sorted(parts) == sorted(MODEL)
