"""Networks: the same again from their configuration, and never half loaded."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image

from qvec_cli.checkpoint import fetch
from qvec_cli.errors import MismatchError, QvecError, SpecError
from qvec_cli.model import build
from qvec_cli.model.build import (
    NetworkOptions,
    adapted,
    create,
    first_line,
    load,
    normalise,
    rebuild,
    reshaped,
    start_from,
    transform,
)
from qvec_cli.model.configuration import Model

PICO = NetworkOptions("test_vit", 3, img_size=32)
OPTIONS = [
    PICO,
    NetworkOptions("test_vit", 7, img_size=64, in_chans=1),
    NetworkOptions("test_vit2", 3, img_size=32, args={"depth": 2}),
    NetworkOptions("vit_tiny_patch16_224", 10),
    NetworkOptions("vit_tiny_patch16_224.augreg_in21k", 10, img_size=96),
    NetworkOptions("deit_tiny_distilled_patch16_224", 10),
    NetworkOptions("swin_tiny_patch4_window7_224", 10),
    NetworkOptions("levit_128s", 10),
    NetworkOptions("convnext_atto", 10, img_size=64),
]


def _outline(network):
    return {name: (t.shape, t.dtype) for name, t in network.state_dict().items()}


@pytest.fixture(scope="module")
def pico():
    return create(PICO)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.name}-{o.img_size}")
def test_a_configuration_is_json_and_the_whole_of_its_network(options):
    with torch.device("meta"):
        network, model = create(options)
        text = json.dumps(model.to_json(), allow_nan=False)
        again = rebuild(Model.from_json(json.loads(text)))
    assert Model.from_json(json.loads(text)) == model
    assert _outline(again) == _outline(network)
    assert list(again.state_dict()) == list(network.state_dict())
    size = model.pretrained_cfg["input_size"]
    own = network.pretrained_cfg["input_size"][1:]
    assert size == [options.in_chans or 3, *((options.img_size,) * 2 if options.img_size else own)]
    assert model.input_size[0] == (options.in_chans or 3)
    assert model.architecture == options.name.split(".")[0]
    assert model.num_classes == model.pretrained_cfg["num_classes"] == options.num_classes
    assert len(model.pretrained_cfg["mean"]) == (options.in_chans or 3)
    assert len(model.pretrained_cfg["std"]) == (options.in_chans or 3)
    for head in model.classifier:
        assert network.get_submodule(head).out_features == options.num_classes


def test_the_same_seed_makes_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(create(PICO)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_network_of_one_channel_sees_grey_images():
    network, model = create(NetworkOptions("test_vit", 3, img_size=32, in_chans=1))
    assert model.input_size[0] == 1
    images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    assert network(normalise(model)(images)).shape == (2, 3)


def test_a_crop_is_kept_or_that_of_the_flag(pico):
    assert pico[1].pretrained_cfg["crop_pct"] == timm.create_model("test_vit").pretrained_cfg.get(
        "crop_pct"
    )
    _, model = create(NetworkOptions("test_vit", 3, img_size=32, crop_pct=0.5))
    assert model.pretrained_cfg["crop_pct"] == 0.5


def test_a_network_of_any_size_takes_an_image_size_without_keeping_it():
    with torch.device("meta"):
        _, model = create(NetworkOptions("convnext_atto", 3, img_size=64))
    assert model.model_args == {}
    assert model.pretrained_cfg["input_size"] == [3, 64, 64]


def test_an_unknown_network_is_refused_with_those_of_nearly_its_name():
    for name in ("vit_tiny_patch16_244", "vit_tiny_patch16_244.augreg_in21k"):
        with pytest.raises(SpecError, match=name) as caught:
            create(NetworkOptions(name, 3))
        assert "vit_tiny_patch16_224" in caught.value.hint


def test_what_timm_cannot_make_is_refused_as_usage():
    for options in (
        NetworkOptions("", 3),
        NetworkOptions("no network has a name like this", 3),
        NetworkOptions("hf-hub:org/model", 3),
        NetworkOptions("../test_vit", 3),
        NetworkOptions("test_vit.no_such_weights", 3),
        NetworkOptions("test_vit", 3, args={"no_such_argument": 1}),
        NetworkOptions("test_vit", 3, args={"depth": "many"}),
        NetworkOptions("test_vit", 3, args={"patch_size": 0}),
        NetworkOptions("swin_tiny_patch4_window7_224", 3, img_size=0),
    ):
        with pytest.raises(SpecError):
            create(options)


def test_an_encoder_without_a_classifier_is_refused_as_usage():
    encoders = ("qwen3_vit_88m_enc", "deepseek_vit_412m_enc", "gemma4_vit_167m_enc")
    present = [name for name in encoders if timm.is_model(name)]
    if not present:
        pytest.skip("not in this timm")
    for name in present:
        with torch.device("meta"), pytest.raises(SpecError, match=f"^{name} has no classifier$"):
            create(NetworkOptions(name, 3))


def test_weights_that_cannot_be_fetched_are_a_fault_with_a_way_out(monkeypatch):
    monkeypatch.setattr(build, "notice_no_network", lambda: None)
    for fault in (OSError, RuntimeError, ConnectionError):

        def refuse(*_, fault=fault, **__):
            raise fault("no route to host\nand more")

        monkeypatch.setattr(timm, "create_model", refuse)
        with pytest.raises(QvecError, match=r"test_vit cannot be had: no route to host$") as caught:
            create(NetworkOptions("test_vit", 3, pretrained=True))
        assert caught.value.exit_code == 1
        assert "Offline" in caught.value.hint


# --- loading ------------------------------------------------------------------------------------


def _shifted(network):
    return {name: tensor + 1 for name, tensor in network.state_dict().items()}


def test_loading_takes_every_tensor(pico):
    state, network = _shifted(pico[0]), rebuild(pico[1])
    load(network, state, "a.st")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_state_that_does_not_fit_is_refused_and_not_loaded(pico):
    network, state = rebuild(pico[1]), _shifted(pico[0])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    faults = {
        "pos_embed: missing": {n: t for n, t in state.items() if n != "pos_embed"},
        "more: only in the file": {**state, "more": torch.ones(1)},
        r"norm.bias: \[3\] vs \[64\]": {**state, "norm.bias": torch.ones(3)},
        r"norm.bias: \[64, 1\] vs \[64\]": {**state, "norm.bias": torch.ones(64, 1)},
    }
    for fault, damaged in faults.items():
        with pytest.raises(MismatchError, match=f"^a.st: 1 tensor does not fit.*{fault}"):
            load(network, damaged, "a.st")
        after = network.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize(
    ("name", "classes"),
    [("test_vit", 3), ("test_vit", 5), ("deit_tiny_distilled_patch16_224", 5)],
)
def test_a_start_brings_its_backbone_and_its_head_where_that_fits(name, classes):
    source, _ = create(NetworkOptions(name, 3, img_size=32))
    network, model = create(NetworkOptions(name, classes, img_size=32))
    state, before = _shifted(source), {n: t.clone() for n, t in network.state_dict().items()}
    new = start_from(network, state, model, "base.st")
    heads = {n for n in before if n.startswith("head")}
    assert set(new) == (set() if classes == 3 else heads)
    for tensor, value in network.state_dict().items():
        assert torch.equal(value, before[tensor] if tensor in new else state[tensor])


def test_a_start_without_a_head_brings_its_backbone(pico):
    network = rebuild(pico[1])
    state = {n: t for n, t in _shifted(pico[0]).items() if not n.startswith("head")}
    assert start_from(network, state, pico[1], "base.st") == ("head.weight", "head.bias")
    assert torch.equal(network.state_dict()["norm.bias"], state["norm.bias"])


def test_a_start_of_another_backbone_is_refused(pico):
    network = rebuild(pico[1])
    for options in (
        NetworkOptions("test_vit", 3, img_size=64),
        NetworkOptions("test_vit", 3, img_size=32, in_chans=1),
        NetworkOptions("test_vit", 3, img_size=32, args={"depth": 2}),
        NetworkOptions("test_vit2", 3, img_size=32),
    ):
        source, _ = create(options)
        with pytest.raises(MismatchError, match=r"^base\.st: "):
            start_from(network, source.state_dict(), pico[1], "base.st")


# --- another image size, other channels ---------------------------------------------------------

VIT = {"depth": 1, "embed_dim": 32, "num_heads": 2}
SWIN = {"depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2), "window_size": 8}
POSITIONS, TABLES = "position embeddings resampled from", "tables of relative positions resampled"
ONE, THREE = (f"the first convolution adapted from {a} channels to {b}" for a, b in ("31", "13"))
ADAPTED = {
    "vit": ("vit_tiny_patch16_224", VIT, (64, 3), (96, 1), [f"{POSITIONS} 4x4 to 6x6", ONE]),
    "smaller": ("test_vit", {}, (64, 1), (32, 3), [f"{POSITIONS} 4x4 to 2x2", THREE]),
    "registers": ("test_vit4", {}, (64, 3), (32, 3), [f"{POSITIONS} 4x4 to 2x2"]),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT, (32, 3), (64, 2), None),
    "beit": ("beit_base_patch16_224", VIT, (32, 3), (64, 3), [TABLES]),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, (16, 3), (64, 3), [TABLES]),
    "any size": ("test_convnext", {}, (32, 3), (64, 1), [ONE]),
    "several stems": (
        "fastvit_t8",
        {},
        (64, 3),
        (64, 1),
        [ONE],
    ),
}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # timm's own
@pytest.mark.parametrize("case", ADAPTED)
def test_weights_come_to_another_size_and_other_channels_as_timm_brings_them(case):
    """timm loads the same weights as its own pretrained ones."""
    name, args, (old, channels), (new, others), notes = ADAPTED[case]
    source, model = create(NetworkOptions(name, 3, img_size=old, in_chans=channels, args=args))
    state = _shifted(source)
    network, wanted = reshaped(model, new, others)
    again = create(NetworkOptions(name, 3, img_size=new, in_chans=others, args=args))[1]
    assert wanted == again
    found, told = adapted(state, network, wanted)
    assert notes is None or list(told) == notes
    load(network, found, "base.st")
    cfg = {"state_dict": dict(state), "input_size": (channels, old, old), "num_classes": 3}
    wish = {"num_classes": 3, "in_chans": others, **wanted.model_args}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=cfg, **wish)
    for tensor, value in theirs.state_dict().items():
        assert torch.equal(found[tensor], value), tensor
    outline = {tensor: value.to("meta") for tensor, value in state.items()}
    shapes, same = adapted(outline, network.to("meta"), wanted)
    assert same == told
    assert {n: t.shape for n, t in shapes.items()} == {n: t.shape for n, t in found.items()}


def test_a_network_of_the_same_size_takes_its_weights_as_they_are(pico):
    network, model = reshaped(pico[1], 32, 3)
    assert model == pico[1]
    other, wider = create(NetworkOptions("test_vit", 7, img_size=32))
    state = _shifted(pico[0])
    for target, of in ((network, model), (other, wider)):
        found, notes = adapted(state, target, of)
        assert notes == ()
        assert all(found[name] is tensor for name, tensor in state.items())


def test_another_width_or_depth_is_refused_at_another_size_too(pico):
    state = pico[0].state_dict()
    for name, args in (
        ("test_vit", {"depth": 2}),
        ("test_vit", {"embed_dim": 32}),
        ("test_vit", {"patch_size": 8}),
        ("test_vit2", {}),
    ):
        network, model = create(NetworkOptions(name, 3, img_size=64, in_chans=1, args=args))
        with pytest.raises(MismatchError, match="fit the network"):
            start_from(network, adapted(state, network, model)[0], model, "base.st")


def test_a_table_that_timm_does_not_resample_is_refused():
    with torch.device("meta"):
        source, model = create(NetworkOptions("levit_128s", 3, img_size=64))
        network, wanted = reshaped(model, 128)
    found, notes = adapted(source.state_dict(), network, wanted)
    assert notes == ()
    with pytest.raises(MismatchError, match="attention_biases"):
        load(network, found, "base.st")


def test_channels_of_one_mean_have_one_mean():
    _, model = create(NetworkOptions("test_vit", 3, img_size=32))
    _, grey = reshaped(model, in_chans=1)
    assert grey.pretrained_cfg["mean"] == [sum(model.pretrained_cfg["mean"]) / 3]
    assert (grey.model_args["in_chans"], grey.input_size) == (1, (1, 32, 32))
    _, back = reshaped(grey, in_chans=3)
    assert back.model_args == model.model_args
    with pytest.raises(SpecError, match="--img-size 8 is smaller than one patch"):
        reshaped(model, 8)


# --- images -------------------------------------------------------------------------------------


def test_an_image_of_any_size_becomes_bytes_of_the_networks_size(pico):
    for augment in (False, True):
        look = transform(pico[1], augment=augment)
        for size in ((32, 32), (17, 90), (640, 480)):
            pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
            seen = torch.as_tensor(look(Image.fromarray(pixels)))
            assert seen.dtype == torch.uint8
            assert tuple(seen.shape) == (3, 32, 32)


def test_evaluation_sees_the_same_image_twice(pico):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    look = transform(pico[1], augment=False)
    first, second = (torch.as_tensor(look(Image.fromarray(pixels))) for _ in range(2))
    assert torch.equal(first, second)


def test_normalising_is_timms_own_arithmetic():
    model = Model("none", 2, {}, {"mean": [0.5, 0.25, 0.1], "std": [0.5, 0.2, 0.3]})
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    seen = normalise(model)(images)
    assert seen.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip((0.5, 0.25, 0.1), (0.5, 0.2, 0.3), strict=True)):
        expected = [(value / 255 - mean) / std for value in range(256)]
        assert seen[1, channel].reshape(-1).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_first_line_of_a_fault_is_its_type_when_it_says_nothing():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


class Portal(BaseHTTPRequestHandler):
    """Answers whatever it is asked."""

    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, format, *args):  # noqa: A002
        """Keep quiet."""


@pytest.mark.parametrize("kind", ["silent", "closed", "answering"])
def test_without_a_network_the_hub_is_not_asked_again_and_again(kind, monkeypatch):
    """A connection alone says nothing: firewalls and proxies take it and never answer."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "_PATIENCE", 5.0 if kind == "answering" else 0.5)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: None)
    if kind == "answering":
        server = HTTPServer(("127.0.0.1", 0), Portal)
        place = server.socket
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        place = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{place.getsockname()[1]}")
    if kind == "closed":
        place.close()
    began = time.monotonic()
    build._create_model("test_vit", 2, {}, pretrained=True)
    assert constants.HF_HUB_OFFLINE is (kind != "answering")
    assert time.monotonic() - began < 4
    if kind == "answering":
        server.shutdown()
        server.server_close()
    place.close()
