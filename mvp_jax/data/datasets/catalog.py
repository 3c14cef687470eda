"""The data sets that are known by name: what they hold, who has them, and how they are used here.

Names, splits and features are those of tensorflow-datasets 4.9.10, of which no part is needed to read this table.
"""

import dataclasses
import difflib

SMALL = 1_500_000_000
"""How many bytes of uint8 images a data set may have to be kept in memory, or on a device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """What the library knows of a data set before it is read.

    Attributes:
        tfds: the builder in tensorflow-datasets, with its configuration; `None`: the data set is read from a folder.
        home: the address of its description, and its licence where that is plain.
        classes: how many classes it has.
        train: the builder's name of the split to learn from.
        valid: the builder's name of the official validation split; `None`: there is none.
        test: the builder's name of the split to report on; `None`: there is none. It is the official test split; of
            ImageNet and Tiny ImageNet, whose test images have no public labels, the validation split.
        counts: how many images `train`, `valid` and `test` have.
        label: the feature with the class.
        coarse: the feature with the superclass; `None`: there are no superclasses.
        class_names: the names of the classes in their order, if the builder has none; `()`: the builder has them.
        name_of: a text feature with the name of an example's class, if the builder only numbers the classes.
        native: `(H, W)` of all images; `None`: images differ in size.
        channels: 3 for RGB, 1 for grey.
        size: the side of the square that images are resized to by default.
        mean: the published mean of the training images in [0, 1], by channel; `None`: it is computed.
        std: their published standard deviation, by channel; `None`: it is computed.
        manual: whether the files have to be downloaded by hand, after an agreement.
        layout: what the folder looks like, if the data set is read from one.
    """

    tfds: str | None
    home: str
    classes: int
    train: str = "train"
    valid: str | None = None
    test: str | None = "test"
    counts: tuple[int, int, int]
    label: str = "label"
    coarse: str | None = None
    class_names: tuple[str, ...] = ()
    name_of: str | None = None
    native: tuple[int, int] | None = None
    channels: int = 3
    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    manual: bool = False
    layout: str = ""

    def bytes_at(self, size: int | None = None) -> int:
        """Returns how many bytes all images have as uint8.

        Args:
            size: the side of the images; `None`: `self.size`.

        >>> CATALOG["cifar10"].bytes_at()
        184320000
        """
        return sum(self.counts) * (size or self.size) ** 2 * self.channels

    def small(self, size: int | None = None) -> bool:
        """Returns whether the images are few enough to be kept in memory.

        Args:
            size: the side of the images; `None`: `self.size`.

        >>> CATALOG["svhn"].small(), CATALOG["imagenet"].small(), CATALOG["imagenet"].small(32)
        (True, False, False)
        """
        return self.bytes_at(size) <= SMALL


_SIGNS = (
    "speed limit 20 km/h",
    "speed limit 30 km/h",
    "speed limit 50 km/h",
    "speed limit 60 km/h",
    "speed limit 70 km/h",
    "speed limit 80 km/h",
    "end of speed limit 80 km/h",
    "speed limit 100 km/h",
    "speed limit 120 km/h",
    "no passing",
    "no passing for heavy vehicles",
    "right of way at the next crossing",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no heavy vehicles",
    "no entry",
    "danger",
    "bend to the left",
    "bend to the right",
    "double bend",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road work",
    "traffic lights",
    "pedestrians",
    "children",
    "bicycles",
    "snow or ice",
    "wild animals",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "straight ahead only",
    "straight ahead or right",
    "straight ahead or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end of no passing for heavy vehicles",
)

CATALOG: dict[str, CatalogEntry] = {
    # Means and deviations without a note are those of the training images, as they are widely quoted.
    "cifar10": CatalogEntry(
        tfds="cifar10",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        classes=10,
        counts=(50_000, 0, 10_000),
        native=(32, 32),
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": CatalogEntry(
        tfds="cifar100",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        classes=100,
        counts=(50_000, 0, 10_000),
        coarse="coarse_label",
        native=(32, 32),
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    # The further, easier images of the split "extra" are left out.
    "svhn": CatalogEntry(
        tfds="svhn_cropped",
        home="http://ufldl.stanford.edu/housenumbers (non-commercial use)",
        classes=10,
        counts=(73_257, 0, 26_032),
        native=(32, 32),
        size=32,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    ),
    "mnist": CatalogEntry(
        tfds="mnist",
        home="http://yann.lecun.com/exdb/mnist",
        classes=10,
        counts=(60_000, 0, 10_000),
        native=(28, 28),
        channels=1,
        size=28,
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": CatalogEntry(
        tfds="fashion_mnist",
        home="https://github.com/zalandoresearch/fashion-mnist (MIT)",
        classes=10,
        counts=(60_000, 0, 10_000),
        native=(28, 28),
        channels=1,
        size=28,
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "gtsrb": CatalogEntry(
        tfds=None,
        home="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        classes=43,
        counts=(39_209, 0, 12_630),
        class_names=_SIGNS,
        size=32,
        layout="Train/00000 to Train/00042 (or Final_Training/Images/...) with *.ppm or *.png, and Test "
        "(Final_Test/Images) with GT-final_test.csv: unpack GTSRB_Final_Training_Images.zip, "
        "GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip into one folder",
    ),
    "cars": CatalogEntry(
        tfds="cars196",
        home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        classes=196,
        counts=(8_144, 0, 8_041),
        size=224,
    ),
    "cub200": CatalogEntry(
        tfds="caltech_birds2011",
        home="https://www.vision.caltech.edu/datasets/cub_200_2011",
        classes=200,
        counts=(5_994, 0, 5_794),
        name_of="label_name",
        size=224,
    ),
    "pets": CatalogEntry(
        tfds="oxford_iiit_pet",
        home="https://www.robots.ox.ac.uk/~vgg/data/pets (CC BY-SA 4.0)",
        classes=37,
        counts=(3_680, 0, 3_669),
        coarse="species",
        size=224,
    ),
    "flowers": CatalogEntry(
        tfds="oxford_flowers102",
        home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        classes=102,
        valid="validation",
        counts=(1_020, 1_020, 6_149),
        size=224,
    ),
    # The builder calls the published test split "validation".
    "food101": CatalogEntry(
        tfds="food101",
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        classes=101,
        test="validation",
        counts=(75_750, 0, 25_250),
        size=224,
    ),
    "eurosat": CatalogEntry(
        tfds="eurosat/rgb",
        home="https://github.com/phelber/eurosat (MIT)",
        classes=10,
        test=None,
        counts=(27_000, 0, 0),
        native=(64, 64),
        size=64,
    ),
    # The splits are the first of the ten that were published.
    "dtd": CatalogEntry(
        tfds="dtd",
        home="https://www.robots.ox.ac.uk/~vgg/data/dtd",
        classes=47,
        valid="validation",
        counts=(1_880, 1_880, 1_880),
        size=224,
    ),
    "tiny_imagenet": CatalogEntry(
        tfds=None,
        home="http://cs231n.stanford.edu/tiny-imagenet-200.zip (terms of ImageNet)",
        classes=200,
        test="val",
        counts=(100_000, 0, 10_000),
        native=(64, 64),
        size=64,
        layout="train/n01443537/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt, and words.txt: unpack "
        "tiny-imagenet-200.zip",
    ),
    # Mean and deviation as in torchvision's documentation of its models.
    "imagenet": CatalogEntry(
        tfds="imagenet2012",
        home="https://image-net.org (non-commercial research, by agreement)",
        classes=1000,
        test="validation",
        counts=(1_281_167, 0, 50_000),
        size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        manual=True,
    ),
}
"""The known data sets by their short names."""


def find(name: str) -> CatalogEntry:
    """Returns the catalogue's entry of a data set.

    Args:
        name: its short name.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.

    >>> find("cifar_10")
    Traceback (most recent call last):
    ValueError: unknown data set 'cifar_10'; did you mean 'cifar10' or 'cifar100'? Known are ...
    """
    if name in CATALOG:
        return CATALOG[name]
    # People also know them by their builder's name.
    builders = {e.tfds.partition("/")[0]: short for short, e in CATALOG.items() if e.tfds}
    near = difflib.get_close_matches(name.lower(), [*CATALOG, *builders], n=3, cutoff=0.6)
    guesses = list(dict.fromkeys(builders.get(n, n) for n in near))
    meant = f"did you mean {' or '.join(map(repr, guesses))}? " if guesses else ""
    raise ValueError(f"unknown data set {name!r}; {meant}Known are {sorted(CATALOG)}")
