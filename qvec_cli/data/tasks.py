"""The 22 tasks of the paper (arXiv:2604.03420), and where each of them can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from types import MappingProxyType

_TRAIN = {"split": "train"}

_TEST = {"split": "test"}

_DIGITS = tuple("0123456789")

_MNIST_FILES = ("train", "t10k")


@dataclass(frozen=True, slots=True)
class Hub:
    """A copy on the Hugging Face hub, the one that the paper's code loads; train is "train"."""

    id: str
    image: str = "image"  # column
    label: str = "label"  # column
    test: str = "test"  # name of the split
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Vision:
    """A class of torchvision.datasets."""

    name: str
    place: str  # what it looks for inside --data-dir
    train: tuple[Mapping[str, object], ...] = (_TRAIN,)  # arguments; several sets are joined
    test: tuple[Mapping[str, object], ...] = (_TEST,)  # nothing: the class has no splits
    whole: int | None = None  # images of a class without splits, which qvec splits itself
    fetches: bool = True  # its download is known to work


@dataclass(frozen=True, slots=True)
class PaperTask:
    """One task; validation is drawn from its train images, also where an official val exists."""

    name: str
    classes: int
    epochs: int  # of the paper
    train: int  # images, before validation is drawn
    test: int
    source: str  # where to get it by hand
    hub: Hub
    vision: Vision | None = None
    names: tuple[str, ...] | None = None  # of the classes, in the official numbering
    idx: tuple[str, ...] = ()  # stems of its idx files: train, test
    first_label: int = 0  # in the original files
    sideways: bool = False  # the original files hold transposed images
    tests_on_val: bool = False  # its official test is what others call validation
    split_folders: bool = False  # torchvision's folder looks like an image folder


def _train_flag(name: str, place: str, *, fetches: bool = True) -> Vision:
    """A torchvision class with ``train=True`` and ``train=False``."""
    return Vision(name, place, ({"train": True},), ({"train": False},), fetches=fetches)


def _letters(*, train: bool) -> Mapping[str, object]:
    return {"split": "letters", "train": train}


# With an argument a line the table would be four screens.
# fmt: off
_ROWS = (
    #          task, classes, epochs, train, test; sources
    PaperTask("Cars", 196, 35, 8144, 8041, "https://github.com/pytorch/vision/issues/7545",
              Hub("tanganke/stanford_cars"),
              Vision("StanfordCars", "stanford_cars", fetches=False)),
    PaperTask("DTD", 47, 76, 3760, 1880, "https://www.robots.ox.ac.uk/~vgg/data/dtd",
              Hub("tanganke/dtd"),
              Vision("DTD", "dtd", (_TRAIN, {"split": "val"}))),  # its default, partition 1
    PaperTask("EuroSAT", 10, 12, 21600, 5400, "https://github.com/phelber/EuroSAT",
              Hub("tanganke/eurosat"),
              Vision("EuroSAT", "eurosat", ({},), (), whole=27000)),
    PaperTask("GTSRB", 43, 11, 26640, 12630, "https://benchmark.ini.rub.de",
              Hub("tanganke/gtsrb"),
              Vision("GTSRB", "gtsrb"),
              names=tuple(map(str, range(43)))),
    PaperTask("MNIST", 10, 5, 60000, 10000, "https://ossci-datasets.s3.amazonaws.com/mnist",
              Hub("ylecun/mnist"),
              _train_flag("MNIST", "MNIST/raw"),
              names=_DIGITS, idx=_MNIST_FILES),
    PaperTask("RESISC45", 45, 15, 18900, 6300,
              "https://huggingface.co/datasets/torchgeo/resisc45",
              Hub("tanganke/resisc45")),
    PaperTask("SUN397", 397, 14, 19850, 19850, "https://vision.princeton.edu/projects/2010/SUN",
              Hub("tanganke/sun397"),
              Vision("SUN397", "SUN397", ({},), (), whole=108754, fetches=False)),
    PaperTask("SVHN", 10, 4, 73257, 26032, "http://ufldl.stanford.edu/housenumbers",
              Hub("ufldl-stanford/svhn", config="cropped_digits"),
              Vision("SVHN", "train_32x32.mat"),
              names=_DIGITS),
    PaperTask("CIFAR10", 10, 6, 50000, 10000, "https://www.cs.toronto.edu/~kriz/cifar.html",
              Hub("uoft-cs/cifar10", "img"),
              _train_flag("CIFAR10", "cifar-10-batches-py")),
    PaperTask("CIFAR100", 100, 6, 50000, 10000, "https://www.cs.toronto.edu/~kriz/cifar.html",
              Hub("uoft-cs/cifar100", "img", "fine_label"),
              _train_flag("CIFAR100", "cifar-100-python")),
    PaperTask("STL10", 10, 60, 5000, 8000, "https://cs.stanford.edu/~acoates/stl10",
              Hub("tanganke/stl10"),
              Vision("STL10", "stl10_binary"),
              names=("airplane", "bird", "car", "cat", "deer",
                     "dog", "horse", "monkey", "ship", "truck")),
    PaperTask("Food101", 101, 4, 75750, 25250,
              "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
              Hub("ethz/food101", test="validation"),
              Vision("Food101", "food-101")),
    PaperTask("Flowers102", 102, 147, 1020, 6149,
              "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
              Hub("dpdl-benchmark/oxford_flowers102"),
              Vision("Flowers102", "flowers-102")),
    PaperTask("FER2013", 7, 10, 28709, 7178, "https://www.kaggle.com/datasets/msambare/fer2013",
              Hub("clip-benchmark/wds_fer2013", "jpg", "cls"),
              Vision("FER2013", "fer2013", fetches=False),
              names=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")),
    PaperTask("PCAM", 2, 1, 262144, 32768, "https://github.com/basveeling/pcam",
              Hub("1aurent/PatchCamelyon"),
              Vision("PCAM", "pcam"),
              names=("no_tumor", "tumor")),
    PaperTask("OxfordIIITPet", 37, 82, 3680, 3669, "https://www.robots.ox.ac.uk/~vgg/data/pets",
              Hub("timm/oxford-iiit-pet"),
              Vision("OxfordIIITPet", "oxford-iiit-pet", ({"split": "trainval"},))),
    PaperTask("RenderedSST2", 2, 39, 6920, 1821, "https://github.com/openai/CLIP",
              Hub("nateraw/rendered-sst2"),
              Vision("RenderedSST2", "rendered-sst2"),
              split_folders=True),
    PaperTask("EMNIST", 26, 2, 124800, 20800,
              "https://www.nist.gov/itl/products-and-services/emnist-dataset",
              Hub("tanganke/emnist_letters"),
              Vision("EMNIST", "EMNIST/raw", (_letters(train=True),), (_letters(train=False),)),
              names=tuple(ascii_lowercase), idx=("emnist-letters-train", "emnist-letters-test"),
              first_label=1, sideways=True),
    PaperTask("FashionMNIST", 10, 5, 60000, 10000,
              "https://github.com/zalandoresearch/fashion-mnist",
              Hub("zalando-datasets/fashion_mnist"),
              _train_flag("FashionMNIST", "FashionMNIST/raw"),
              names=("t_shirt_top", "trouser", "pullover", "dress", "coat",
                     "sandal", "shirt", "sneaker", "bag", "ankle_boot"),
              idx=_MNIST_FILES),
    PaperTask("KMNIST", 10, 5, 60000, 10000, "https://github.com/rois-codh/kmnist",
              Hub("tanganke/kmnist"),
              _train_flag("KMNIST", "KMNIST/raw", fetches=False),
              names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), idx=_MNIST_FILES),
    PaperTask("TinyImageNet", 200, 4, 100000, 10000,
              "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
              Hub("zh-plus/tiny-imagenet", test="valid"),
              tests_on_val=True),
    # meta.bin is there once torchvision has unpacked ImageNet's archives, which qvec does not do
    PaperTask("ImageNet", 1000, 1, 1281167, 50000, "https://image-net.org",
              Hub("ILSVRC/imagenet-1k", test="validation"),
              Vision("ImageNet", "meta.bin", test=({"split": "val"},), fetches=False),
              tests_on_val=True),
)

# fmt: on

TASKS: Mapping[str, PaperTask] = MappingProxyType({task.name: task for task in _ROWS})
