"""Data sets as tensors: read once, split once, kept in memory or on the device, pixels in [0, 1].

| name            | what, and from where                                                                          |
|-----------------|-----------------------------------------------------------------------------------------------|
| `digits`        | 1,797 real grey digits of 8x8 that ship with scikit-learn (UCI Optical Recognition of Digits)   |
| `cifar10`       | 60,000 colour images of 32x32: torchvision's files, or class-named images                       |
| `cifar100`      | 60,000 colour images of 32x32 in 100 classes: torchvision's files                               |
| `svhn`          | 99,289 colour images of 32x32, house numbers: torchvision's files `{train,test}_32x32.mat`      |
| `mnist`         | 70,000 grey images of 28x28, digits: the four `.gz` files that torchvision downloads            |
| `fashion-mnist` | 70,000 grey images of 28x28, clothing: the four `.gz` files that torchvision downloads          |
| `images`        | class-named images of one's own, of one square size: a folder or an archive                     |

`PAPERLIB_DATA` names a folder or an archive (`paperlib.data.sources`); without it the files are looked for in, or
downloaded into, `data/raw`. What is read of a folder or an archive of images, and what is refused, is stated in
`paperlib.data.class_folders` (their places), `paperlib.data.archives` and `paperlib.data.image_files`.

CIFAR-10 read from image files is labelled by their format, such as `cifar10-jpeg`, so that its results never mix with
the original's. Nothing is ever extracted to disk. The original's files are pickles: torchvision opens them only after
their MD5 has matched the known one, and nothing else is unpickled.
"""

from paperlib.data.class_folders import Arrays
from paperlib.data.dataset import Dataset, Split, augment, check_counts, is_here, load_dataset, make_dataset
from paperlib.data.sources import CIFAR10_CLASSES, DIGIT_CLASSES, Source

__all__ = [
    "CIFAR10_CLASSES",
    "DIGIT_CLASSES",
    "Arrays",
    "Dataset",
    "Source",
    "Split",
    "augment",
    "check_counts",
    "is_here",
    "load_dataset",
    "make_dataset",
]
