"""Data sets as tensors in memory, with pixels in [0, 1], in three splits.

| name            | contents and source                                                                             |
|-----------------|-------------------------------------------------------------------------------------------------|
| `digits`        | 1,797 grey digits of 8x8 from scikit-learn (UCI Optical Recognition of Handwritten Digits)      |
| `cifar10`       | 60,000 colour images of 32x32: torchvision's files, or class-named images                       |
| `cifar100`      | 60,000 colour images of 32x32 in 100 classes: torchvision's files                               |
| `svhn`          | 99,289 colour images of 32x32, house numbers: torchvision's files `{train,test}_32x32.mat`      |
| `mnist`         | 70,000 grey images of 28x28, digits: the four `.gz` files that torchvision downloads            |
| `fashion-mnist` | 70,000 grey images of 28x28, clothing: the four `.gz` files that torchvision downloads          |
| `images`        | class-named images of the user, of one square size: a folder or an archive                      |

`PAPERLIB_DATA` names a folder or an archive (`paperlib.data.sources`); without it the files are looked for in, or
downloaded into, `data/raw`. `paperlib.data.class_folders`, `paperlib.data.archives` and `paperlib.data.image_files`
state which folders, archives and image files are read or refused.

CIFAR-10 read from image files is labelled by their format, such as `cifar10-jpeg`, so that its results are never mixed
with those of the original. Archives are not extracted to disk. The original files are pickles: torchvision opens them
only after their MD5 has matched, and nothing else is unpickled.
"""

from paperlib.data.arrays import Arrays
from paperlib.data.augment import augment
from paperlib.data.dataset import Dataset, check_counts, is_here, load_dataset, make_dataset
from paperlib.data.sources import CIFAR10_CLASSES, DIGIT_CLASSES, Source
from paperlib.data.splits import Split

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
