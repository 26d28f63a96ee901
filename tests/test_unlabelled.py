"""Images without labels: any folder of pictures, noise, or what --data takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from qvec_cli.data.datasets import any_split, open_unlabelled
from qvec_cli.data.noise import COUNT
from qvec_cli.errors import DataError, QvecError, SpecError

SIDE = 32


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def test_a_folder_of_pictures_is_one_split_in_the_order_of_names(tmp_path: Path) -> None:
    for place, name in enumerate(("b.png", "a.png", "deep/er/c.jpg", "d.PNG")):
        picture(tmp_path / "pics" / name, 60 * place)
    (tmp_path / "pics" / "notes.txt").write_text("not a picture")
    picture(tmp_path / "pics" / ".hidden" / "e.png")
    task = open_unlabelled(str(tmp_path / "pics"), None, SIDE)
    assert task.name == "pics"
    assert [*task.splits] == ["train"]
    samples = any_split(task)
    assert [np.asarray(samples.load(i)).max() // 60 for i in (0, 1, 3)] == [1, 0, 2]
    assert len(samples) == 4


def test_its_identity_is_its_pictures_and_not_its_place(tmp_path: Path) -> None:
    digests = []
    for place in ("one/pics", "two/pics", "three/pics"):
        picture(tmp_path / place / "a.png")
        picture(tmp_path / place / ("c.png" if "three" in place else "b.png"))
        digests.append(open_unlabelled(str(tmp_path / place), None, SIDE).digest)
    assert digests[0] == digests[1] != digests[2]


def test_links_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "away" / "a.png")
    folder = tmp_path / "pics"
    folder.mkdir()
    (folder / "there").symlink_to(tmp_path / "away")
    (folder / "b.png").symlink_to(tmp_path / "away" / "a.png")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        assert len(any_split(open_unlabelled(str(place), None, SIDE))) == 2


@pytest.mark.parametrize("others", [(), ("a.txt", "b.bin")])
def test_a_folder_without_a_picture_is_refused(others: tuple[str, ...], tmp_path: Path) -> None:
    for name in others:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="this folder has no image") as fault:
        open_unlabelled(str(tmp_path), None, SIDE)
    assert str(tmp_path) in str(fault.value)
    assert all(Path(name).suffix in str(fault.value) for name in others)


def test_a_folder_with_splits_is_read_as_a_data_set(tmp_path: Path) -> None:
    folder = draw(tmp_path / "bars", ("a", "b"), 20, 3, seed=0)
    task = open_unlabelled(str(folder), None, SIDE)
    assert task.classes == ("a", "b")
    assert len(any_split(task)) == 36  # a tenth is its validation


def test_of_a_data_set_that_has_no_train_split_the_first_is_taken(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "test" / "a" / "0.png")
    assert len(any_split(open_unlabelled(str(tmp_path / "set"), None, SIDE))) == 1


def test_of_a_train_split_that_cannot_be_used_otherwise_the_images_are_taken(
    tmp_path: Path,
) -> None:
    """Too few to draw validation from, or a class without any; without an image, another split."""
    folder = draw(tmp_path / "bars", ("a", "b"), 2, 3, seed=0)
    assert len(any_split(open_unlabelled(str(folder), None, SIDE))) == 4
    for file in (folder / "train" / "a").iterdir():
        file.unlink()
    assert len(any_split(open_unlabelled(str(folder), None, SIDE))) == 2
    for file in (folder / "train" / "b").iterdir():
        file.unlink()
    assert len(any_split(open_unlabelled(str(folder), None, SIDE))) == 6


def test_noise_is_noise_of_the_networks_size() -> None:
    samples = any_split(open_unlabelled("noise", None, SIDE))
    assert len(samples) == COUNT
    assert samples.load(0).size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("spec", "kind"), [("nosie", SpecError), ("no/such/folder", DataError), ("", QvecError)]
)
def test_what_nothing_is_called_is_refused(spec: str, kind: type[QvecError]) -> None:
    with pytest.raises(kind):
        open_unlabelled(spec, None, SIDE)
