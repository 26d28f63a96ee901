"""Training through rounding: the number trained is the number shipped, and no trace stays."""

import copy
import random
from itertools import product

import numpy as np
import pytest
import torch
from test_targets import model_with
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from qvec_cli.model.build import NetworkOptions, create
from qvec_cli.model.qat import float_forward, plain_name, prepare, strip
from qvec_cli.model.targets import of_network
from qvec_cli.quant.scales import fake_quantize, rtn
from qvec_cli.specs import Granularity, Grid, Scale, ScaleDtype

GRIDS = [
    *(
        Grid(bits, granularity)
        for bits in range(2, 9)
        for granularity in (Granularity.TENSOR, Granularity.CHANNEL)
    ),
    *(Grid(bits, Granularity.GROUP, 16) for bits in range(2, 9)),
    *(Grid(bits, scale=scale) for scale in (Scale.MSE, Scale.MSE_FULL) for bits in (2, 3, 8)),
    *(Grid(bits, scale=Scale.HQQ) for bits in (2, 3)),
    *(
        Grid(bits, *kind, scale, symmetric=False, scale_dtype=dtype)
        for bits, dtype in ((2, ScaleDtype.FLOAT32), (3, ScaleDtype.FLOAT16))
        for kind in ((Granularity.CHANNEL, None), (Granularity.GROUP, 16))
        for scale in (Scale.ABSMAX, Scale.MSE, Scale.HQQ)
    ),
]

FEW = [
    Grid(2),
    Grid(8, Granularity.TENSOR),
    Grid(4, Granularity.GROUP, 16),
    Grid(3, scale=Scale.MSE),
    Grid(3, Granularity.GROUP, 16, symmetric=False, scale_dtype=ScaleDtype.FLOAT16),
]


class Attention(nn.Module):
    """What open_clip is built of: a fused projection, and a classifier."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True)
        self.fc = nn.Linear(32, 48)
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        seen, _ = self.attn(x, x, x, need_weights=False)
        return self.head(functional.gelu(self.fc(seen)).mean(1))


def _vit():
    network, model = create(NetworkOptions("test_vit", 3, img_size=32))
    return network, model, torch.randn(4, 3, 32, 32)


def _attention():
    return Attention(), model_with("head"), torch.randn(4, 5, 32)


NETWORKS = {"vit": _vit, "attention": _attention}


@pytest.fixture(params=NETWORKS)
def made(request):
    """A network, its configuration and a batch."""
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.fixture
def grids(made):
    """All of them for the small network, one of each kind for the larger one."""
    return GRIDS if isinstance(made[0], Attention) else FEW


def _post_training(network, model, grid):
    """The network as it is shipped: quantized codes, loaded into plain weights."""
    state = network.state_dict()
    for name in of_network(network, model):
        state[name] = torch.from_numpy(rtn(state[name].numpy(), grid).weight())
    shipped = copy.deepcopy(network)
    shipped.load_state_dict(state)
    return shipped


def _same_forward(made, grid, *, training):
    network, model, batch = made
    network = copy.deepcopy(network)
    shipped = _post_training(network, model, grid).train(training)
    plain = network.train(training)(batch)
    prepare(network, model, grid)
    assert torch.equal(network(batch), shipped(batch)), grid
    assert not torch.equal(network(batch), plain), grid
    with torch.no_grad():
        assert torch.equal(network(batch), shipped(batch)), grid


def test_the_number_trained_is_the_number_shipped(made, grids):
    for place, grid in enumerate(grids):
        _same_forward(made, grid, training=place % 2 == 0)


@pytest.mark.slow
def test_the_number_trained_is_the_number_shipped_on_every_grid_in_either_mode(made):
    for grid, training in product(GRIDS, (False, True)):
        _same_forward(made, grid, training=training)


def test_every_target_and_nothing_else_is_shown_on_its_grid(made, grids):
    original, model, _ = made
    targets = of_network(original, model)
    for grid in grids:
        network = copy.deepcopy(original)
        before = {name: tensor.clone() for name, tensor in network.named_parameters()}
        prepare(network, model, grid)
        wrapped = []
        for name, value in before.items():
            place, _, attribute = name.rpartition(".")
            module = network.get_submodule(place)
            expected = fake_quantize(value, grid) if name in targets else value
            assert torch.equal(getattr(module, attribute), expected), grid
            if parametrize.is_parametrized(module, attribute):
                wrapped.append(name)
        assert sorted(wrapped) == sorted(targets)


def test_the_gradient_passes_straight_through_every_weight():
    for grid in GRIDS:
        weight = torch.randn(6, 32) * torch.logspace(-9, 3, 6)[:, None]
        layer = nn.Linear(32, 6)
        layer.weight.data.copy_(weight)
        prepare(layer, model_with("none"), grid)
        upstream = torch.randn(6, 32)
        (layer.weight * upstream).sum().backward()
        assert torch.equal(layer.parametrizations.weight.original.grad, upstream), grid


def test_a_weight_whose_code_is_clamped_has_its_gradient_too():
    layer = nn.Linear(32, 6)
    latent = layer.weight.detach().clone()
    prepare(layer, model_with("none"), Grid(2, scale=Scale.MSE))
    assert (layer.weight.abs().amax(1) < latent.abs().amax(1)).all()
    upstream = torch.randn(6, 32)
    (layer.weight * upstream).sum().backward()
    assert torch.equal(layer.parametrizations.weight.original.grad, upstream)


def test_the_gradient_of_a_network_is_that_at_its_quantized_weights(made):
    network, model, batch = made
    shipped = _post_training(network, model, Grid(3))
    shipped(batch).square().sum().backward()
    prepare(network, model, Grid(3))
    network(batch).square().sum().backward()
    theirs = dict(shipped.named_parameters())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, theirs[plain_name(name)].grad)


def test_wrapping_and_stripping_leaves_the_network_as_it_was(made):
    network, model, batch = made
    before = copy.deepcopy(network)
    for grid in GRIDS:  # one after the other, on one network
        prepare(network, model, grid)
        strip(network)
    ours, theirs = network.state_dict(), before.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(parametrize.is_parametrized(module) for module in network.modules())
    assert [type(m) for m in network.modules()] == [type(m) for m in before.modules()]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in network.parameters())
    assert torch.equal(network(batch), before(batch))


def test_what_is_stripped_after_training_is_the_latent_weight(made):
    network, model, batch = made
    prepare(network, model, Grid(2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(batch).square().sum().backward()
    optimizer.step()
    latent = {plain_name(name): p.detach().clone() for name, p in network.named_parameters()}
    shown = network(batch)
    strip(network)
    ours = network.state_dict()
    assert set(latent) <= set(ours)
    assert all(torch.equal(ours[name], latent[name]) for name in latent)
    assert not torch.equal(network(batch), shown)
    assert torch.equal(_post_training(network, model, Grid(2))(batch), shown)


def test_stripping_twice_or_a_plain_network_changes_nothing(made):
    network, model, _ = made
    names = list(network.state_dict())
    strip(network)
    assert list(network.state_dict()) == names
    prepare(network, model, Grid())
    strip(network)
    strip(network)
    assert set(network.state_dict()) == set(names)


def test_names_without_wrappers_are_the_plain_ones(made):
    network, model, _ = made
    plain = set(network.state_dict())
    prepare(network, model, Grid())
    assert {plain_name(name) for name in network.state_dict()} == plain
    assert all(plain_name(name) == name for name in plain)


def test_wrapping_training_and_stripping_draw_no_random_number(made):
    network, model, batch = made
    network.eval()  # dropout would draw
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    prepare(network, model, Grid())
    network(batch).sum().backward()
    with float_forward(network):
        network(batch)
    strip(network)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == str(states[2])


def test_inside_float_forward_the_latent_weights_compute(made):
    network, model, batch = made
    plain = network(batch)
    with float_forward(network) as wrapped:
        assert not wrapped
    prepare(network, model, Grid(2))
    quantized = network(batch)
    with float_forward(network) as wrapped:
        assert wrapped
        assert torch.equal(network(batch), plain)
    assert torch.equal(network(batch), quantized)


def test_after_a_fault_inside_float_forward_weights_are_quantized_again(made):
    network, model, batch = made
    prepare(network, model, Grid(2))
    quantized = network(batch)
    with pytest.raises(KeyboardInterrupt), float_forward(network):
        raise KeyboardInterrupt
    assert torch.equal(network(batch), quantized)


def test_the_scale_follows_the_weights():
    layer = nn.Linear(16, 4)
    prepare(layer, model_with("none"), Grid(3))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(2)
    assert torch.equal(layer.weight, before * 2)


class Tied(nn.Module):
    """One module in two places, as in CoaT."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


def test_a_module_in_two_places_is_quantized_once_and_shipped_in_both():
    network, model = Tied(), model_with("none")
    batch = torch.randn(3, 16)
    shipped = _post_training(network, model, Grid(3))
    prepare(network, model, Grid(3))
    assert len(network.first.parametrizations.weight) == 1
    assert torch.equal(network(batch), shipped(batch))
    strip(network)
    assert set(network.state_dict()) == set(Tied().state_dict())
