"""Proxy images: shared between their sources, counted, and told from the receiver's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Drawer, draw
from PIL import Image

from qvec_cli.checkpoint.read import Checkpoint
from qvec_cli.errors import DataError, SpecError
from qvec_cli.inputs.files import model_of, opened
from qvec_cli.inputs.images import Proxies, ProxyOptions, find_proxies, is_own
from qvec_cli.specs import DataUse, Loading, Silence


def found(drawer: Drawer, *specs: object, samples: int = 8) -> Proxies:
    with opened(drawer.receiver, Silence()) as theta:
        return find_proxies(
            theta, model_of(theta), ProxyOptions(tuple(map(str, specs)), samples), Silence()
        )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    folder.mkdir()
    for place in range(6):
        Image.fromarray(np.full((8, 8), 40 * place, np.uint8)).save(folder / f"{place}.png")
    return folder


@pytest.mark.parametrize(
    ("samples", "shares"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (17, [6, 6, 5]), (60, [20, 6, 20])]
)
def test_the_images_are_shared_between_the_sources(
    samples: int, shares: list[int], drawer: Drawer, pictures: Path
) -> None:
    proxies = found(drawer, drawer.donor_data, pictures, "noise", samples=samples)
    assert [source.count for source in proxies.sources] == shares
    assert [fact["samples"] for fact in proxies.facts()] == shares
    assert proxies.use.counts == {"proxy": shares[0] + shares[1], "noise": shares[2]}


def test_what_is_decoded_is_what_was_counted(drawer: Drawer, pictures: Path) -> None:
    proxies = found(drawer, pictures, "noise", samples=10)
    images = proxies.decoded(Silence())
    assert images.shape == (10, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert sorted(images[:5].amax(dim=(1, 2, 3)).tolist()) == sorted(
        set(images[:5].flatten(1).amin(1).tolist())
    )
    assert torch.equal(images, found(drawer, pictures, "noise", samples=10).decoded(Silence()))


@pytest.mark.parametrize(
    ("specs", "use", "counts"),
    [
        (("noise",), DataUse.NONE, {"noise": 8}),
        (("donor_data",), DataUse.PROXY_IMAGES, {"proxy": 8}),
        (("donor_data", "noise"), DataUse.PROXY_IMAGES, {"proxy": 4, "noise": 4}),
        (("receiver_data",), DataUse.RECEIVER_IMAGES, {"train": 8}),
        (("donor_data", "receiver_data"), DataUse.RECEIVER_IMAGES, {"proxy": 4, "train": 4}),
        (("donor_data", "PICTURES"), DataUse.PROXY_IMAGES, {"proxy": 8}),
    ],
)
def test_what_images_cost_hangs_on_whose_they_are(
    specs: tuple[str, ...],
    use: DataUse,
    counts: dict[str, int],
    drawer: Drawer,
    pictures: Path,
) -> None:
    named = {"PICTURES": pictures}
    proxies = found(drawer, *(named.get(name, getattr(drawer, name, name)) for name in specs))
    assert proxies.use.level is use
    assert proxies.use.counts == counts
    assert proxies.only_noise is (specs == ("noise",))


def test_a_copy_of_the_receivers_images_is_known_by_its_classes(
    drawer: Drawer, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(drawer.receiver_data, copy)
    next(copy.glob("train/a/*.png")).unlink()
    assert found(drawer, copy).use.level is DataUse.RECEIVER_IMAGES


def own(theta: Checkpoint, spec: object) -> bool:
    return is_own(theta, model_of(theta), str(spec), Loading())


def test_a_data_set_is_the_receivers_own_where_its_card_says_so(drawer: Drawer) -> None:
    with opened(drawer.receiver, Silence()) as theta:
        assert own(theta, drawer.receiver_data)
        assert not own(theta, drawer.donor_data)
        assert not own(theta, "noise")


@pytest.mark.parametrize("card", [SimpleNamespace(data=None), SimpleNamespace(data={})])
def test_a_file_that_does_not_say_its_data_may_know_any_images(card: Any, drawer: Drawer) -> None:
    """They are counted as its own, and not taken out of the pool of a grid."""
    with opened(drawer.receiver, Silence()) as theta:
        model = model_of(theta)
    silent: Any = SimpleNamespace(card=card)
    for spec, use in ((drawer.donor_data, DataUse.RECEIVER_IMAGES), ("noise", DataUse.NONE)):
        wish = ProxyOptions((str(spec),), 8)
        assert find_proxies(silent, model, wish, Silence()).use.level is use
    assert not is_own(silent, model, str(drawer.donor_data), Loading())


@pytest.mark.parametrize(
    ("specs", "samples", "message"),
    [
        ((), 256, "--proxy is missing"),
        (("noise",), 1, "--proxy-samples 1 is too few"),
        (("noise", "pics", "more"), 5, "--proxy-samples 5 is too few"),
        (("noise", "pics", "noise"), 256, "--proxy noise stands twice"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    specs: tuple[str, ...], samples: int, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        ProxyOptions(specs, samples)


def test_one_image_is_refused(drawer: Drawer, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has one image"):
        found(drawer, tmp_path)


def test_a_copy_elsewhere_gives_the_same_images(drawer: Drawer, tmp_path: Path) -> None:
    twin = draw(tmp_path / "twin", ("left", "middle", "right"), 30, 12, seed=0)
    images = [found(drawer, f, samples=20).decoded(Silence()) for f in (twin, drawer.donor_data)]
    assert torch.equal(*images)
