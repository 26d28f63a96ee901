"""How images are prepared for a network, as a part of its ONNX graph.

Image libraries of servers and browsers resize each in its own way, and none as Pillow, with which
networks are trained and measured. The graph gives Pillow's very pixels: a filter's weights are
rounded to 22 bits, and sums of whole numbers that float32 holds have no order. Rows are resized
before columns, as Pillow does, but for images more than twice as high as wide, where Pillow 13
begins with columns: some levels then differ, mostly by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qvec_cli.errors import MismatchError
from qvec_cli.export.graph import INPUT, IR_VERSION, OPSET
from qvec_cli.model.configuration import COLOURS, Model
from qvec_cli.specs import Interpolation

if TYPE_CHECKING:
    from onnx import ModelProto

_FILTERS: Final = {
    Interpolation.BILINEAR: """
  {a}_line = Sub ({a}_unit, {a}_far)
  {a}_raw = Max ({a}_line, zero)
""",
    Interpolation.BICUBIC: """
  {a}_far3 = Mul ({a}_far, three)
  {a}_unit5 = Mul ({a}_unit, five)
  {a}_in1 = Sub ({a}_far3, {a}_unit5)
  {a}_square = Mul ({a}_far, {a}_far)
  {a}_in2 = Mul ({a}_in1, {a}_square)
  {a}_unit_square = Mul ({a}_unit, {a}_unit)
  {a}_cube = Mul ({a}_unit_square, {a}_unit)
  {a}_cubes = Add ({a}_cube, {a}_cube)
  {a}_in3 = Add ({a}_in2, {a}_cubes)
  {a}_is_in = Less ({a}_far, {a}_unit)
  {a}_units = Add ({a}_unit, {a}_unit)
  {a}_rest = Sub ({a}_units, {a}_far)
  {a}_near = Max ({a}_rest, zero)
  {a}_near_square = Mul ({a}_near, {a}_near)
  {a}_behind = Sub ({a}_unit, {a}_far)
  {a}_out = Mul ({a}_near_square, {a}_behind)
  {a}_raw = Where ({a}_is_in, {a}_in3, {a}_out)
""",
}
"""Pillow's weight at a distance from the middle, up to a factor; bicubic is that of a = -0.5.

1.5 d^3 - 2.5 d^2 + 1 within one unit, (2 - d)^2 (1 - d) / 2 from there to two.
"""

_AXIS: Final = """
  {a}_old = Gather (old, {a}_place)
  {a}_new = Gather (new, {a}_place)
  {a}_over = Sub ({a}_new, {a}_crop)
  {a}_margin = Div ({a}_over, two)
  {a}_odd_over = Mod ({a}_over, two)
  {a}_odd_margin = Mod ({a}_margin, two)
  {a}_even = Mul ({a}_odd_over, {a}_odd_margin)
  {a}_first = Add ({a}_margin, {a}_even)
  {a}_last = Add ({a}_first, {a}_crop)
  {a}_pixels = Range ({a}_first, {a}_last, one)
  {a}_pixels2 = Mul ({a}_pixels, two)
  {a}_pixels_half = Add ({a}_pixels2, one)
  {a}_middles = Mul ({a}_pixels_half, {a}_old)
  {a}_row = Range (zero, {a}_old, one)
  {a}_row2 = Mul ({a}_row, two)
  {a}_row_half = Add ({a}_row2, one)
  {a}_places = Mul ({a}_row_half, {a}_new)
  {a}_column = Unsqueeze ({a}_places, last)
  {a}_signed = Sub ({a}_column, {a}_middles)
  {a}_far = Abs ({a}_signed)
  {a}_larger = Max ({a}_old, {a}_new)
  {a}_unit = Mul ({a}_larger, two)
{filter}
  {a}_sum = ReduceSum <keepdims = 1> ({a}_raw, first)
  {a}_raised = Mul ({a}_raw, low)
  {a}_high = Div ({a}_raised, {a}_sum)
  {a}_whole = Mul ({a}_high, {a}_sum)
  {a}_left = Sub ({a}_raised, {a}_whole)
  {a}_left_high = Mul ({a}_left, low2)
  {a}_middle = Mul ({a}_sum, low2_half)
  {a}_positive = Add ({a}_left_high, {a}_middle)
  {a}_double = Mul ({a}_sum, two)
  {a}_shifted_low = Div ({a}_positive, {a}_double)
  {a}_low = Sub ({a}_shifted_low, low)
  {a}_both = Concat <axis = 1> ({a}_high, {a}_low)
  {a}_matrix = Cast <to = 1> ({a}_both)
"""
"""Weights float32 [old, 2 * crop] of one side, as high and low parts of 11 bits.

Twice the distances between middles of pixels are whole numbers, in units of one old pixel over the
new length, and so are the weights, up to a factor that their sum has too. An odd margin is split as
Python rounds, to the even number.
"""

_PASS: Final = """
  {a}_h, {a}_l = Split <axis = {axis}, num_outputs = 2> ({a}_product)
  {a}_hi = Cast <to = 6> ({a}_h)
  {a}_lo = Cast <to = 6> ({a}_l)
  {a}_shifted = Mul ({a}_hi, low_int)
  {a}_total = Add ({a}_shifted, {a}_lo)
  {a}_up = Add ({a}_total, half_int)
  {a}_least = Max ({a}_up, zero_int)
  {a}_level = Div ({a}_least, unit_int)
  {a}_most = Min ({a}_level, white)
  {a}_image = Cast <to = 1> ({a}_most)
"""
"""From such products to whole levels, 0 to 255."""

_GREY: Final = """
  coloured = Mul (pixel_values, luma)
  mixed = ReduceSum <keepdims = 1> (coloured, channel)
  mixed_up = Add (mixed, luma_half)
  mixed_share = Div (mixed_up, luma_unit)
  image = Floor (mixed_share)
"""
"""Pillow's grey, of 16 bits, which float32 holds."""

_TEXT: Final = """
<ir_version: {ir}, opset_import: ["": {opset}]>
prepare (float[batch, 3, height, width] pixel_values) => (float[batch, {c}, {h}, {w}] prepared)
<int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64 three = {{3}}, int64 five = {{5}},
 int64 low = {{2048}}, int64 low2 = {{4096}}, int64 low2_half = {{4097}},
 int32 low_int = {{2048}}, int32 half_int = {{2097152}}, int32 unit_int = {{4194304}},
 int32 zero_int = {{0}}, int32 white = {{255}}, float levels = {{255}},
 int64[1] first = {{0}}, int64[1] last = {{-1}}, int64[1] channel = {{1}},
 int64 y_place = {{0}}, int64 x_place = {{1}},
 int64 y_crop = {{{h}}}, int64 x_crop = {{{w}}}, int64[2] edges = {{{edges}}},
 float[1, 3, 1, 1] luma = {{19595, 38470, 7471}},
 float luma_half = {{32768}}, float luma_unit = {{65536}},
 float[1, {c}, 1, 1] mean = {{{mean}}}, float[1, {c}, 1, 1] std = {{{std}}}>
{{
  old = Shape <start = 2> (pixel_values)
{sized}
{x_axis}
{y_axis}
{coloured}
  x_product = MatMul (image, x_matrix)
{x_pass}
  y_turned = Transpose (y_matrix)
  y_product = MatMul (y_turned, x_image)
{y_pass}
  shares = Div (y_image, levels)
  centred = Sub (shares, mean)
  prepared = Div (centred, std)
}}
"""

_DONE: Final = ("mean", "std")
"""What the metadata of a file tell whoever prepares images."""

_SHORTER: Final = """
  shorter = ReduceMin <keepdims = 0> (old)
  longer = Mul (old, edges)
  new = Div (longer, shorter)
"""
"""The shorter side gets its length, and the other keeps the proportion."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done with the levels of an RGB image of any size before a network sees them."""

    size: tuple[int, int, int]  # channels, 1 or 3, height and width of what the network takes
    edges: tuple[int, int]  # height and width to which an image is resized, or its shorter side
    squash: bool  # whether the proportion is lost
    interpolation: Interpolation
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def of(cls, model: Model) -> Preparation:
        """That of timm's words.
        Raises MismatchError: it has no words here.
        """
        data, (channels, height, width) = model.pretrained_cfg, model.input_size
        mode, share = data["crop_mode"], data["crop_pct"]
        edges = int(height / share), int(width / share)
        reasons = {
            f"{channels} channels": channels not in (1, COLOURS),
            f"crop_mode {mode}": mode == "border",
            f"images of {height} x {width} that keep their proportion": mode == "center"
            and height != width,
            f"crop_pct {share:g}": min(edges[0] - height, edges[1] - width) < 0,
            f"interpolation {data['interpolation']}": data["interpolation"] not in _FILTERS,
        }
        for reason, holds in reasons.items():
            if holds:
                raise MismatchError(
                    f"{reason}: a graph cannot prepare images so",
                    hint="--to onnx leaves it to whoever runs the file.",
                )
        word = Interpolation(data["interpolation"])
        size = (channels, height, width)
        return cls(size, edges, mode == "squash", word, data["mean"], data["std"])

    def prepended(self, network: bytes) -> bytes:
        """A network's ONNX file that prepares images itself.

        Its input is RGB levels, float32 [batch, 3, height, width] from 0 to 255, of any size.
        """
        import onnx

        theirs = onnx.load_model_from_string(network)
        whole = onnx.compose.merge_models(
            self.graph(), theirs, [("prepared", INPUT)], prefix1="prepare.", producer_name="qvec"
        )
        whole.producer_version = theirs.producer_version
        entry = whole.graph.input[0].name
        whole.graph.input[0].name = INPUT
        whole.graph.name = theirs.graph.name
        for node in whole.graph.node:
            node.input[:] = [INPUT if name == entry else name for name in node.input]
        facts = {fact.key: fact.value for fact in theirs.metadata_props}
        onnx.helper.set_model_props(whole, {k: facts[k] for k in facts if k not in _DONE})
        content: bytes = whole.SerializeToString(deterministic=True)
        return content

    def graph(self) -> ModelProto:
        """From such levels to ``prepared``, what the network takes."""
        import onnx

        channels, height, width = self.size
        form = _FILTERS[self.interpolation]
        axes = {f"{a}_axis": _AXIS.format(a=a, filter=form.format(a=a)) for a in "xy"}
        passes = {f"{a}_pass": _PASS.format(a=a, axis=n) for a, n in (("x", 3), ("y", 2))}
        sizes: Mapping[str, Any] = {"c": channels, "h": height, "w": width}
        numbers = {"mean": self.mean, "std": self.std}
        text = _TEXT.format(
            ir=IR_VERSION,
            opset=OPSET,
            sized="  new = Identity (edges)" if self.squash else _SHORTER,
            coloured=_GREY if channels == 1 else "  image = Identity (pixel_values)",
            edges=", ".join(map(str, self.edges)),
            **sizes,
            **axes,
            **passes,
            **{name: ", ".join(map(repr, map(float, n))) for name, n in numbers.items()},
        )
        model = onnx.parser.parse_model(text)
        used = {name for node in model.graph.node for name in node.input}
        kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        return model
