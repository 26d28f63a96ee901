"""The vocabulary: a value out of its range cannot exist, and says why with exit code 2."""

import inspect
import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_cli import errors
from qvec_cli.errors import (
    FellShortError,
    FinishedError,
    QvecError,
    ReaderLeftError,
    SpecError,
)
from qvec_cli.inputs.lambdas import MAX_LAMBDAS, parse_lambda, parse_lambdas
from qvec_cli.specs import DataUse, Granularity, Grid, Loading, Recipe, Use, spent

BITS = range(2, 9)
GRIDS = [
    *(
        Grid(bits, granularity)
        for bits in BITS
        for granularity in (Granularity.TENSOR, Granularity.CHANNEL)
    ),
    *(Grid(bits, Granularity.GROUP, size) for bits in BITS for size in (1, 64)),
]
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("bits", BITS)
def test_a_grid_has_two_to_the_bits_codes_around_zero(bits):
    grid = Grid(bits)
    codes = range(grid.quant_min, grid.quant_max + 1)
    assert len(codes) == 2**bits
    assert sum(codes) == grid.quant_min  # one more below zero than above


@pytest.mark.parametrize("bits", [-3, 0, 1, 9, 16, 3.5, *NOT_NUMBERS])
def test_bits_other_than_2_to_8_are_refused(bits):
    with pytest.raises(SpecError, match="--bits"):
        Grid(bits)


@pytest.mark.parametrize(
    ("granularity", "group_size"),
    [
        (Granularity.GROUP, None),
        (Granularity.GROUP, 0),
        (Granularity.GROUP, -4),
        (Granularity.CHANNEL, 64),
        (Granularity.TENSOR, 64),
    ],
)
def test_a_group_size_goes_with_groups_and_is_positive(granularity, group_size):
    with pytest.raises(SpecError, match="--group-size"):
        Grid(3, granularity, group_size)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_grid_survives_json(grid):
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize("key", ["scale", "symmetric"])
@pytest.mark.parametrize("value", [None, "half-range", 1])
def test_a_grid_of_another_kind_is_refused(key, value):
    with pytest.raises(SpecError, match="does not know the grid"):
        Grid.from_json({**Grid().to_json(), key: value})


@pytest.mark.parametrize(
    "damage",
    [
        {"bits": None},
        {"bits": "3"},
        {"bits": 3.5},
        {"bits": 99},
        {"granularity": "diagonal"},
        {"granularity": None},
        {"group_size": 64},
        {"granularity": "group", "group_size": "64"},
        {"granularity": "group", "group_size": 1.5},
    ],
    ids=str,
)
def test_a_damaged_grid_in_a_card_is_a_fault_and_no_traceback(damage):
    with pytest.raises(QvecError):
        Grid.from_json({**Grid().to_json(), **damage})


@pytest.mark.parametrize("key", ["bits", "granularity", "group_size"])
def test_a_grid_in_a_card_without_one_of_its_keys_is_a_fault_and_no_traceback(key):
    value = Grid().to_json()
    del value[key]
    with pytest.raises(QvecError):
        Grid.from_json(value)


@pytest.mark.parametrize(
    ("name", "least"), [("epochs", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)]
)
def test_a_recipe_counts_from_its_least_whole_number(name, least):
    assert getattr(Recipe(**{name: least}), name) == least
    with pytest.raises(SpecError, match="--" + name.replace("_", "-")):
        Recipe(**{name: least - 1})


@pytest.mark.parametrize("name", ["epochs", "batch_size", "warmup_steps", "seed"])
@pytest.mark.parametrize("wrong", [1.5, *NOT_NUMBERS])
def test_a_recipe_counts_in_whole_numbers(name, wrong):
    with pytest.raises(SpecError, match="--" + name.replace("_", "-")):
        Recipe(**{name: wrong})


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip_grad", "smoothing"])
@pytest.mark.parametrize("wrong", [-1e-9, -1, *NOT_NUMBERS])
def test_a_recipe_holds_no_rate_below_zero_nor_infinite(name, wrong):
    with pytest.raises(SpecError, match="--" + name.replace("_", "-")):
        Recipe(**{name: wrong})


@pytest.mark.parametrize("name", ["weight_decay", "clip_grad", "smoothing"])
def test_a_rate_other_than_lr_may_be_zero(name):
    assert getattr(Recipe(**{name: 0}), name) == 0


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(SpecError, match="--lr"):
        Recipe(lr=0)


def test_label_smoothing_stays_below_one():
    assert Recipe(smoothing=0.999).smoothing < 1
    with pytest.raises(SpecError, match="--smoothing"):
        Recipe(smoothing=1)


def test_the_default_recipe_is_the_papers():
    paper = {"lr": 1e-5, "weight_decay": 0.1, "warmup_steps": 500, "clip_grad": 1.0}
    paper |= {"batch_size": 128, "smoothing": 0.0, "amp": False}
    assert paper.items() <= Recipe().to_json().items()


@pytest.mark.parametrize(("name", "least"), [("batch_size", 1), ("workers", 0)])
def test_loading_is_bounded_below(name, least):
    assert getattr(Loading(**{name: least}), name) == least
    with pytest.raises(SpecError, match="--" + name.replace("_", "-")):
        Loading(**{name: least - 1})


def test_the_papers_range_has_eleven_exact_points():
    points = parse_lambdas("0:1.5:0.15")
    assert points == (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.2, 1.35, 1.5)


@settings(database=None, derandomize=True)
@given(st.integers(-3000, 3000), st.integers(1, 500), st.integers(0, 60), st.integers(0, 499))
def test_a_range_holds_the_nearest_double_to_every_multiple_of_its_step(start, step, count, rest):
    stop = start + step * count + rest % step  # in thousandths
    points = parse_lambdas(f"{start / 1000}:{stop / 1000}:{step / 1000}")
    assert points == tuple(float(Fraction(start + step * i, 1000)) for i in range(count + 1))


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("1", (1.0,)),
        ("0,0.5,1", (0.0, 0.5, 1.0)),
        (" 1 , -2.5e-1 ", (1.0, -0.25)),
        ("1,1.0,1e0,0.5", (1.0, 0.5)),
        ("0.5:0.5:0.1", (0.5,)),
        ("0:1:0.3", (0.0, 0.3, 0.6, 0.9)),
        ("-1:1:1", (-1.0, 0.0, 1.0)),
    ],
)
def test_a_list_of_lambdas_keeps_its_order_and_drops_doubles(text, points):
    assert parse_lambdas(text) == points


def test_a_range_may_hold_as_many_points_as_are_allowed_and_no_more():
    assert len(parse_lambdas(f"1:{MAX_LAMBDAS}:1")) == MAX_LAMBDAS
    with pytest.raises(SpecError, match=f"{MAX_LAMBDAS}"):
        parse_lambdas(f"0:{MAX_LAMBDAS}:1")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", "1,,2", "0,", "abc", "0x1", "1;2"),
        *("nan", "sNaN", "inf", "-inf", "1,nan", "1e400", "1e99999999999999999999"),
        *("0:1", "0:1:0.1:2", ":", "::", "0::1", "a:1:1", "0:nan:1", "0:inf:1", "0:1:nan"),
        *("1:0:0.1", "0:1:0", "0:1:-0.1", "0:2:0"),
        *("0:1:1e-300", "0:1:1e-400", "0:1:1e-5000", "0:1e300:1e-999999"),
    ],
)
def test_what_is_no_list_of_lambdas_is_refused_as_usage(text):
    with pytest.raises(SpecError) as caught:
        parse_lambdas(text)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["0", "-1.5", "1e-3", "0.75"])
def test_a_single_lambda_is_the_nearest_double(text):
    assert parse_lambda(text) == float(text)


@pytest.mark.parametrize("text", ["", "nan", "inf", "1,2", "0:1:0.1", "1e400"])
def test_what_is_no_single_lambda_is_refused_as_usage(text):
    with pytest.raises(SpecError) as caught:
        parse_lambda(text)
    assert caught.value.exit_code == 2


CODES = {SpecError: 2, FellShortError: 3, ReaderLeftError: 141, FinishedError: 0}


def _leaves():
    kinds = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in kinds if issubclass(kind, QvecError)]


@pytest.mark.parametrize("kind", _leaves())
def test_an_error_carries_its_sentence_its_hint_and_an_exit_code(kind):
    error = kind("sentence", hint="way out")
    assert (str(error), error.hint) == ("sentence", "way out")
    assert kind("sentence").hint is None
    assert error.exit_code == CODES.get(kind, 1)


def test_what_several_things_cost_is_the_dearest_and_counts_an_image_once():
    labels = Use(DataUse.RECEIVER_LABELS, {"val": 12})
    images = Use(DataUse.RECEIVER_IMAGES, {"val": 9, "train": 5})
    assert spent() == Use()
    assert spent(Use(), images) == images
    assert spent(images, labels) == Use(DataUse.RECEIVER_LABELS, {"val": 12, "train": 5})


@pytest.mark.parametrize("counts", [{"val": -1}, {"val": 1.5}, {"val": True}, {"val": "1"}])
def test_counts_are_whole_numbers(counts):
    with pytest.raises(SpecError):
        Use(DataUse.NONE, counts)
