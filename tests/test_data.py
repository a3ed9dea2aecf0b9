"""Data sets: sizes, order, fingerprints, readers of the original file formats, and augmentation. Without network."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import Files, picture, write
from toys import logged

from paperlib.config.load import load_profile
from paperlib.config.schema import Profile
from paperlib.data import CIFAR10_CLASSES, Dataset, Split, augment, load_dataset, make_dataset
from paperlib.data import dataset as module
from paperlib.data.idx_files import read_idx
from paperlib.data.splits import balanced_order
from paperlib.errors import DataError, InputError

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    module._loaded.clear()


def profile(**data: Any) -> Profile:
    base = load_profile("digits")
    return dataclasses.replace(base, data=dataclasses.replace(base.data, **data))


def tiny(name: str = "cifar10", **data: Any) -> Profile:
    return profile(**{"name": name, "train": 0, "validation": 10, "test": 0, **data})


def load_from(path: Path, monkeypatch: pytest.MonkeyPatch, config: Profile | None = None) -> Dataset:
    """Load from ``path`` without the copy in memory."""
    monkeypatch.setenv("PAPERLIB_DATA", str(path))
    module._loaded.clear()
    return load_dataset(config or tiny())


# Digits ---------------------------------------------------------------------------------------------------------------


def test_digits_have_the_sizes_range_and_type_of_their_profile() -> None:
    data = load_dataset(profile())
    assert [len(getattr(data, name)) for name in SPLITS] == [1257, 180, 360]
    assert data.label == "digits" and data.shape == (1, 8, 8) and data.classes == tuple("0123456789")
    for name in SPLITS:
        split = getattr(data, name)
        assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert float(split.images.min()) == 0 and float(split.images.max()) == 1
    assert data.mean == pytest.approx([float(data.train.images.mean())], abs=1e-5)
    assert data.std == pytest.approx([float(data.train.images.std())], abs=1e-3)


def test_the_splits_of_digits_hold_every_image_once() -> None:
    from sklearn.datasets import load_digits

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        return sorted(i.astype(np.float32).tobytes() + bytes([c]) for i, c in zip(images, labels, strict=True))

    data, bunch = load_dataset(profile()), load_digits()
    images = torch.cat([getattr(data, name).images for name in SPLITS])[:, 0].numpy()
    labels = torch.cat([getattr(data, name).labels for name in SPLITS]).numpy()
    assert rows(images, labels) == rows(bunch.images / 16, bunch.target)


def test_every_prefix_of_a_split_is_balanced() -> None:
    data = load_dataset(profile())
    for name in SPLITS:
        split = getattr(data, name)
        shares = split.labels.bincount() / len(split)
        for n in (10, 37, 100, len(split)):
            counts = split.first(n).labels.bincount(minlength=10)
            assert int(counts.sum()) == n and int(counts.min()) >= 1
            assert float((counts - n * shares).abs().max()) <= 1


def test_a_larger_training_set_contains_the_smaller_one_and_does_not_change_the_other_splits() -> None:
    small, large = load_dataset(profile(train=100)), load_dataset(profile(train=500))
    assert torch.equal(small.train.images, large.train.images[:100])
    assert torch.equal(small.test.images, large.test.images)
    assert torch.equal(small.validation.labels, large.validation.labels)
    assert small.fingerprint != large.fingerprint


def test_loading_is_deterministic_and_kept_in_memory() -> None:
    first = load_dataset(profile())
    again = load_dataset(profile(crop=0, flip=True))  # augmentation is not part of the data
    assert again.train.images is first.train.images
    module._loaded.clear()
    fresh = load_dataset(profile())
    assert fresh.train.images is not first.train.images and torch.equal(fresh.train.images, first.train.images)
    assert fresh.fingerprint == first.fingerprint == "digits:49b26c177d8bf42e"


def test_the_fingerprint_depends_on_pixels_labels_class_names_splits_and_seed() -> None:
    data = load_dataset(profile())
    parts = (data.train, data.validation, data.test)
    prints = {data.fingerprint, load_dataset(profile(split_seed=1)).fingerprint}
    assert make_dataset("digits", data.classes, *parts).fingerprint == data.fingerprint
    for i, part in enumerate(parts):
        images, labels = part.images.clone(), part.labels.clone()
        images[3, 0, 4, 4] = 1 - images[3, 0, 4, 4] + 1e-6 if images[3, 0, 4, 4] > 0 else 1.0
        labels[5] = (labels[5] + 1) % 10
        for changed in (Split(images, part.labels), Split(part.images, labels)):
            new = [changed if j == i else other for j, other in enumerate(parts)]
            prints.add(make_dataset("digits", data.classes, *new).fingerprint)
    prints.add(make_dataset("digits", data.classes[::-1], *parts).fingerprint)
    prints.add(make_dataset("digits", data.classes, data.train, data.test, data.validation).fingerprint)
    assert len(prints) == 10


def test_too_few_images_are_an_error_with_the_numbers() -> None:
    for change, message in (
        ({"test": 1798}, "data.test=1798: only 1797"),
        ({"validation": 1438}, "data.validation=1438: only 1437"),
        ({"train": 1258}, "data.train=1258: only 1257"),
        ({"validation": 1437}, "0 train images"),
        ({"test": 9}, "9 test images, .* at least 10"),
        ({"test": 0}, "data.test=0: digits has no official test split"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(profile(**change))


def test_first_and_to() -> None:
    data = load_dataset(profile())
    assert len(data.test.first(0)) == 0 and len(data.test.first(360)) == 360
    with pytest.raises(DataError, match="first 361 of 360"):
        data.test.first(361)
    with pytest.raises(DataError):
        data.test.first(-1)
    moved = data.to("meta")
    assert moved.train.images.device.type == moved.test.labels.device.type == "meta"
    assert moved.fingerprint == data.fingerprint and len(moved.train) == 1257


def test_make_dataset_refuses_invalid_images_and_labels() -> None:
    data = load_dataset(profile())
    for invalid in (data.test.images * 255, data.test.images[:, 0], data.test.images.double().mul(torch.nan)):
        with pytest.raises((InputError, ArithmeticError)):
            make_dataset("digits", data.classes, data.train, data.validation, Split(invalid, data.test.labels))
    with pytest.raises(DataError, match="unknown"):
        make_dataset("digits", data.classes, data.train, data.validation, Split(data.test.images, data.test.labels + 1))


# Proportional samples -------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=10), st.integers(0, 5), st.data())
def test_prefixes_of_unbalanced_classes_are_proportional(counts: list[int], seed: int, draw: st.DataObject) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(labels, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    n = draw.draw(st.integers(len(counts), len(labels)))
    sample = np.bincount(labels[order[:n]], minlength=len(counts))
    assert sample.min() >= 1
    # Webster's method deviates by more than one image only if small classes were raised to one image.
    assert np.abs(sample - n * np.array(counts) / len(labels)).max() <= 1 + (len(counts) - 1) / 2


# CIFAR-10 as class-named images ---------------------------------------------------------------------------------------


def pictures(kind: str = "PNG", top: str = "") -> Files:
    """Three training and two test images of each class; the seed of an image is its class and number."""
    suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
    return {
        f"{top}{split}/{name}/{i:04}.{suffix}": picture(1000 * (split == "test") + 10 * c + i, kind)
        for split, count in (("train", 3), ("test", 2))
        for c, name in enumerate(CIFAR10_CLASSES)
        for i in range(count)
    }


@pytest.mark.parametrize("name", ["folder", "a.tar.xz", "a.zip"])
def test_pixels_and_classes_are_read_exactly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_from(write(tmp_path / name, pictures()), monkeypatch)
    assert data.label == "cifar10-png" and data.fingerprint.startswith("cifar10-png:")
    assert data.classes == CIFAR10_CLASSES and data.shape == (3, 32, 32) and len(data.mean) == len(data.std) == 3
    assert [len(getattr(data, split)) for split in SPLITS] == [20, 10, 20]
    labels = {
        (image * 255).round().byte().permute(1, 2, 0).numpy().tobytes(): int(label)
        for image, label in zip(data.test.images, data.test.labels, strict=True)
    }
    for c in range(10):
        for i in range(2):
            pixels = np.random.default_rng(1000 + 10 * c + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            assert labels[pixels.tobytes()] == c


def test_the_fingerprint_does_not_depend_on_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_files = {
        "README.md": b"hello",
        "labels/train.csv": b"1",
        "train/cat/._0001.png": b"no image",
        "notes/a/b.png": b"",
    }
    files = pictures()
    reversed_files = {name: files[name] for name in reversed(files)}
    sources = [
        write(tmp_path / "a.tar.xz", files),
        write(tmp_path / "b.tar", {f"./{name}": content for name, content in reversed_files.items()}),
        write(tmp_path / "c.zip", {f"cifar/{name}": content for name, content in (files | other_files).items()}),
        write(tmp_path / "d", reversed_files | other_files),
    ]
    assert len({load_from(source, monkeypatch).fingerprint for source in sources}) == 1


def test_jpeg_is_labelled_by_its_content_not_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_from(write(tmp_path / "a.tar.xz", pictures("JPEG")), monkeypatch).label == "cifar10-jpeg"
    disguised = {name.replace(".jpg", ".png"): content for name, content in pictures("JPEG").items()}
    assert load_from(write(tmp_path / "b.zip", disguised), monkeypatch).label == "cifar10-jpeg"


def test_official_test_split_and_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.tar", pictures())
    data = load_from(source, monkeypatch, tiny(test=10, train=10))
    assert [getattr(data, name).labels.bincount().tolist() for name in SPLITS] == [[1] * 10] * 3
    for name, count, available in (("test", 21, 20), ("validation", 31, 30), ("train", 21, 20)):
        with pytest.raises(DataError, match=f"data.{name}={count}: only {available} images"):
            load_from(source, monkeypatch, tiny(**{name: count}))


@pytest.mark.parametrize("name", ["folder", "a.tar.xz"])
def test_decoded_images_are_cached_by_content(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / name, pictures("JPEG"))
    first = load_from(source, monkeypatch)
    cache = list((tmp_path / "home" / "data" / "cache").iterdir())
    assert [path.suffix for path in cache] == [".safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("paperlib.data.class_folders.decode_images", None)  # decoding again would fail
        patch.setattr("paperlib.data.class_folders.list_archive", None)  # unpacking too
        moved = source.rename(tmp_path / f"moved-{name}")
        assert load_from(moved, patch).fingerprint == first.fingerprint

    good = cache[0].read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for damaged in (b"", b"nonsense", good[:-100], bytes(flipped)):
        cache[0].write_bytes(damaged)
        lines: list[str] = []
        with logged(lines.append):
            again = load_from(moved, monkeypatch)
        assert again.fingerprint == first.fingerprint and again.label == "cifar10-jpeg"
        assert "damaged" in lines[0] and list(cache[0].parent.iterdir()) == cache
        lines.clear()
        with logged(lines.append):
            assert load_from(moved, monkeypatch).fingerprint == first.fingerprint and not lines


def test_another_image_in_the_same_place_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.zip", pictures())
    first = load_from(source, monkeypatch)
    write(source, pictures() | {"test/cat/0000.png": picture(7)})
    assert load_dataset(tiny()).fingerprint != first.fingerprint  # the copy in memory is not used


def test_a_cache_that_cannot_be_written_is_only_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    assert len(load_from(write(tmp_path / "a.zip", pictures()), monkeypatch).test) == 20
    assert "could not be cached" in log_lines[-1]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.xz", "a.tar.gz", "a.zip"])
def test_an_archive_truncated_anywhere_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / name, pictures())
    content = source.read_bytes()
    between_members = 512 * (1 + -(-len(picture(0)) // 512)) * 40 if name == "a.tar" else len(content) - 1
    for length in (0, 100, len(content) // 2, between_members):
        source.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{name} is truncated"):
            load_from(source, monkeypatch)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 255
    source.write_bytes(damaged)
    if name != "a.tar":  # a plain tar has no checksum
        with pytest.raises(DataError, match="damaged"):
            load_from(source, monkeypatch)
    assert not (tmp_path / "home").exists()


def test_the_error_names_the_last_member_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.tar", pictures())
    source.write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"noticed after train/.*png"):
        load_from(source, monkeypatch)


def without(files: Files, part: str) -> Files:
    return {name: content for name, content in files.items() if part not in name}


INVALID: list[tuple[Callable[[Files], Files], str]] = [
    (lambda f: f | {"train/lion/1.png": picture(1)}, r"train/.*unknown \['lion'\]"),
    (lambda f: f | {"test/Cat/1.png": picture(1)}, r"test/.*unknown \['Cat'\]"),
    (lambda f: without(f, "train/ship"), r"train/.*missing \['ship'\]"),
    (lambda f: without(f, "test/"), "test/.*missing"),
    (lambda f: f | {"train/cat/0000.png": picture(1, size=(32, 33))}, "train/cat/0000.png is 32x33 pixels"),
    (lambda f: f | {"train/cat/0000.png": picture(1)[:-40]}, "train/cat/0000.png cannot be decoded"),
    (lambda f: f | {"train/cat/0000.png": b"text"}, "train/cat/0000.png cannot be decoded"),
]


@pytest.mark.parametrize("name", ["folder", "a.zip"])
def test_other_images_than_those_of_cifar10_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, (change, message) in enumerate(INVALID):
        with pytest.raises(DataError, match=message):
            load_from(write(tmp_path / str(i) / name, change(pictures())), monkeypatch)
    assert not (tmp_path / "home").exists()  # incomplete data are not cached


def test_a_failed_download_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", unreachable)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", unreachable)
    monkeypatch.setattr("paperlib.paths.data_source", lambda: tmp_path / "raw")
    for name in ("cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"):
        message = f"{name}: could not be downloaded: network is unreachable. PAPERLIB_DATA may"
        with pytest.raises(DataError, match=message):
            load_dataset(tiny(name))
        assert log_lines.pop() == f"{name}: downloading into raw" and not log_lines


# The exact formats of torchvision -------------------------------------------------------------------------------------


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's original files with four images of each class per batch; their checksums replace torchvision's."""
    from torchvision.datasets import CIFAR10

    folder, rng = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for attribute in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(CIFAR10, attribute):
            labels = rng.permutation(np.repeat(np.arange(10), 4))
            pixels = rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
            pixels[:, 2] = labels[:, None, None]  # blue is the class, which detects exchanged axes
            (folder / name).write_bytes(pickle.dumps({"data": pixels.reshape(40, -1), "labels": labels.tolist()}))
            sums.append([name, md5(folder / name)])
        monkeypatch.setattr(CIFAR10, attribute, sums)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    return folder


def test_original_cifar10_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_batches(tmp_path / "raw", monkeypatch)
    data = load_from(folder.parent, monkeypatch)
    assert data.label == "cifar10" and data.classes == CIFAR10_CLASSES and data.shape == (3, 32, 32)
    assert [len(getattr(data, name)) for name in SPLITS] == [190, 10, 40]
    for name in SPLITS:
        split = getattr(data, name)
        assert torch.equal((split.images[:, 2, 7, 9] * 255).round().long(), split.labels)
    assert load_from(folder, monkeypatch).fingerprint == data.fingerprint  # the inner folder
    monkeypatch.setattr("paperlib.paths.data_source", lambda: folder.parent)
    monkeypatch.delenv("PAPERLIB_DATA")
    module._loaded.clear()
    assert load_dataset(tiny()).fingerprint == data.fingerprint  # existing files are not downloaded again


def test_a_batch_with_another_md5_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_batches(tmp_path / "raw", monkeypatch)
    unpickled = tmp_path / "unpickled"

    class TouchWhenUnpickled:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (unpickled,))

    (folder / "test_batch").write_bytes(pickle.dumps(TouchWhenUnpickled()))
    with pytest.raises(DataError, match="missing or damaged"):
        load_from(folder.parent, monkeypatch)
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch is not in cifar-10-batches-py"):
        load_from(folder.parent, monkeypatch)
    assert not unpickled.exists()


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SVHN's two files with few images, digit 0 written as 10 as in the original."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir()
    counts, sums = [5, 14, 11, 8, 7, 7, 6, 6, 5, 5], dict(SVHN.split_list)
    for split, seed in (("train", 1), ("test", 2)):
        digits = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), counts))
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, len(digits)), dtype=np.uint8)
        pixels[3, 5, 1] = digits  # row 3, column 5, green
        path = root / f"{split}_32x32.mat"
        savemat(path, {"X": pixels, "y": np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]})
        sums[split] = [SVHN.split_list[split][0], path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", sums)
    return root


def test_svhn_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_svhn(tmp_path / "raw", monkeypatch)
    data = load_from(root, monkeypatch, tiny("svhn", test=37))
    assert data.label == "svhn" and data.shape == (3, 32, 32) and data.classes == tuple("0123456789")
    assert [len(getattr(data, name)) for name in SPLITS] == [64, 10, 37]
    for name in SPLITS:
        split = getattr(data, name)
        assert torch.equal((split.images[:, 1, 3, 5] * 255).round().long(), split.labels)
    halves = torch.tensor([5, 14, 11, 8, 7, 7, 6, 6, 5, 5]) / 2
    assert float((data.test.labels.bincount() - halves).abs().max()) <= 0.5
    assert data.validation.labels.bincount().tolist() == [1] * 10


def test_damaged_or_missing_svhn_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_svhn(tmp_path / "raw", monkeypatch)
    content = (root / "test_32x32.mat").read_bytes()
    (root / "test_32x32.mat").write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"svhn: .*MD5.*train_32x32.mat and test_32x32.mat"):
        load_from(root, monkeypatch, tiny("svhn"))
    (root / "train_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"train_32x32\.mat is not in raw"):
        load_from(root, monkeypatch, tiny("svhn"))


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100's original files with three training and two test images of each class; blue is the class."""
    from torchvision.datasets import CIFAR100

    folder, rng = root / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for attribute, name, count in (("train_list", "train", 3), ("test_list", "test", 2)):
        labels = rng.permutation(np.repeat(np.arange(100), count))
        pixels = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
        pixels[:, 2] = labels[:, None, None]
        entry = {"data": pixels.reshape(len(labels), -1), "fine_labels": labels.tolist(), "coarse_labels": [0]}
        (folder / name).write_bytes(pickle.dumps(entry))
        monkeypatch.setattr(CIFAR100, attribute, [[name, md5(folder / name)]])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i:02}" for i in range(100)]}))
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(folder / "meta")})
    return folder


def test_cifar100_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar100(tmp_path / "raw", monkeypatch)
    data = load_from(folder.parent, monkeypatch, tiny("cifar100", validation=100))
    assert data.label == "cifar100" and data.shape == (3, 32, 32) and data.classes[42] == "class 42"
    assert [len(getattr(data, name)) for name in SPLITS] == [200, 100, 200]
    for name in SPLITS:
        split = getattr(data, name)
        assert torch.equal((split.images[:, 2, 7, 9] * 255).round().long(), split.labels)
    assert load_from(folder, monkeypatch, tiny("cifar100", validation=100)).fingerprint == data.fingerprint


def test_no_file_of_cifar100_with_another_md5_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar100(tmp_path / "raw", monkeypatch)
    unpickled = tmp_path / "unpickled"

    class TouchWhenUnpickled:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (unpickled,))

    for file in ("train", "test", "meta"):
        original = (folder / file).read_bytes()
        (folder / file).write_bytes(pickle.dumps(TouchWhenUnpickled()))
        with pytest.raises(DataError, match="cifar100: files in raw are missing or damaged"):
            load_from(folder.parent, monkeypatch, tiny("cifar100", validation=100))
        (folder / file).write_bytes(original)
    assert not unpickled.exists()


def write_mnist(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST's or Fashion-MNIST's four files with few images; the pixel in row 3, column 5 is the class."""
    from torchvision import datasets

    folder.mkdir(parents=True)
    counts, sums = [5, 14, 11, 8, 7, 7, 6, 6, 5, 5], []
    for part, seed in (("train", 1), ("t10k", 2)):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), counts)).astype(np.uint8)
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        pixels[:, 3, 5] = labels
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))
            sums.append((path.name, md5(path)))
    monkeypatch.setattr({"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name], "resources", sums)
    return folder


MNIST = [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]


@pytest.mark.parametrize(("name", "folder_name"), MNIST)
def test_mnist_in_its_exact_format(
    name: str, folder_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_mnist(tmp_path / "raw" / folder_name / "raw", name, monkeypatch)
    data = load_from(tmp_path / "raw", monkeypatch, tiny(name))
    assert data.label == name and data.shape == (1, 28, 28)
    assert data.classes[0] == ("0" if name == "mnist" else "T-shirt/top")
    assert [len(getattr(data, split)) for split in SPLITS] == [64, 10, 74]
    for split in SPLITS:
        part = getattr(data, split)
        assert torch.equal((part.images[:, 0, 3, 5] * 255).round().long(), part.labels)
    # PAPERLIB_DATA may also name the folder of the files, or one of them
    for place in (folder, folder / "train-images-idx3-ubyte.gz"):
        assert load_from(place, monkeypatch, tiny(name)).fingerprint == data.fingerprint


@pytest.mark.parametrize(("name", "part"), [("mnist", "train-images-idx3"), ("fashion-mnist", "t10k-labels-idx1")])
def test_damaged_or_missing_files_of_mnist_are_refused(
    name: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_mnist(tmp_path / "raw", name, monkeypatch)
    path = folder / f"{part}-ubyte.gz"
    content = path.read_bytes()
    for damaged in (content[:-1], gzip.compress(b"other values", mtime=0)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{name}: files in raw are missing or damaged"):
            load_from(folder, monkeypatch, tiny(name))
    path.unlink()
    (folder / path.stem).write_bytes(gzip.decompress(content))  # torchvision knows no checksum of unpacked files
    with pytest.raises(DataError, match=rf"{name}: {part}-ubyte\.gz is not in raw"):
        load_from(folder, monkeypatch, tiny(name))


def test_pickles_of_old_torchvision_versions_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "raw" / "MNIST" / "raw", "mnist", monkeypatch)
    old = tmp_path / "raw" / "MNIST" / "processed"
    old.mkdir()
    for file in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.zeros(3)), old / file)
    assert len(load_from(tmp_path / "raw", monkeypatch, tiny("mnist")).test) == 74


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    short, two_axes, other_type = b"\0\0\x08\1\0\0\0\3ab", b"\0\0\x08\3\0\0\0\3abc", b"\0\0\x09\1\0\0\0\3abc"
    for content in (b"", b"\0\0", short, two_axes, other_type):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=r"labels\.gz: not bytes in the IDX format with 1 axes"):
            read_idx(path, 1)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"labels\.gz: truncated or damaged"):
        read_idx(path, 1)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "mnist"])
def test_a_changed_original_file_is_noticed_in_the_same_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = {"cifar10": write_batches, "svhn": write_svhn}.get(name, lambda root, patch: write_mnist(root, name, patch))
    folder, config = write(tmp_path / "raw", monkeypatch), tiny(name)
    load_from(tmp_path / "raw", monkeypatch, config)
    changed = sorted(path for path in folder.iterdir() if "meta" not in path.name)[-1]
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        load_dataset(config)


# Augmentation ---------------------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


batches = st.tuples(st.integers(0, 6), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


@settings(max_examples=40)
@given(batches, st.integers(0, 4), st.booleans(), st.integers(0, 10_000))
def test_augment_keeps_shape_and_range_and_is_seeded(shape: Any, crop: int, flip: bool, seed: int) -> None:
    images = torch.rand(shape, generator=generator(seed))
    before = images.clone()
    out = augment(images, crop=crop, flip=flip, generator=generator(seed))
    assert out.shape == images.shape and out.dtype == images.dtype and out.device == images.device
    assert not out.numel() or (float(out.min()) >= 0 and float(out.max()) <= 1)
    assert torch.equal(images, before)
    assert torch.equal(out, augment(images, crop=crop, flip=flip, generator=generator(seed)))


@settings(max_examples=40)
@given(batches, st.integers(1, 3), st.booleans(), st.integers(0, 10_000))
def test_each_image_is_a_window_of_its_padded_copy(shape: Any, crop: int, flip: bool, seed: int) -> None:
    images = torch.rand(shape, generator=generator(seed)) * 0.9 + 0.1
    height, width = shape[2:]
    padded = torch.nn.functional.pad(images, (crop,) * 4)
    for before, after in zip(padded, augment(images, crop=crop, flip=flip, generator=generator(seed)), strict=True):
        windows = [
            before[:, top : top + height, left : left + width]
            for top in range(2 * crop + 1)
            for left in range(2 * crop + 1)
        ]
        mirrored = [window.flip(2) for window in windows] if flip else []
        assert any(torch.equal(after, window) for window in windows + mirrored)


def test_every_offset_and_both_sides_occur_about_equally_often() -> None:
    images = torch.arange(1, 10).float().reshape(1, 1, 3, 3).div(9).expand(18_000, 1, 3, 3)
    out = augment(images, crop=1, flip=True, generator=generator(0)).flatten(1)
    kinds, counts = np.unique(out.numpy(), axis=0, return_counts=True)
    assert len(kinds) == 18 and 850 < int(counts.min()) <= int(counts.max()) < 1150


def test_flip_mirrors_left_to_right_and_only_that() -> None:
    images = torch.rand(400, 2, 3, 5, generator=generator(0))
    out = augment(images, crop=0, flip=True, generator=generator(1))
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 140 < int(mirrored.sum()) < 260


def test_without_crop_and_flip_the_batch_is_returned_and_nothing_is_drawn() -> None:
    images, g = torch.rand(3, 1, 4, 4), generator(5)
    state = g.get_state()
    assert augment(images, crop=0, flip=False, generator=g) is images
    assert torch.equal(g.get_state(), state)


def test_augment_refuses_a_single_image_and_a_negative_crop() -> None:
    for images, crop in ((torch.rand(3, 8, 8), 1), (torch.rand(1, 3, 8, 8), -1)):
        with pytest.raises(InputError, match="augment: expected images"):
            augment(images, crop=crop, flip=True, generator=generator(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_augment_on_a_gpu_equals_augment_on_the_cpu() -> None:
    images = torch.rand(64, 3, 32, 32, generator=generator(0))
    on_gpu = augment(images.cuda(), crop=4, flip=True, generator=generator(3))
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), augment(images, crop=4, flip=True, generator=generator(3)))
