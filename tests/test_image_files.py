"""Image files, folders, archives and paths: decoded exactly, or refused with an error that names the file."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import Files, encoded, picture, png, write, write_zip
from PIL import Image
from toys import logged

from paperlib.config.load import load_profile as load
from paperlib.config.schema import Profile, parse_profile
from paperlib.config.serialise import to_table
from paperlib.data import Dataset, archives, dataset, decoding, is_here, load_dataset
from paperlib.data.image_files import READ_SUFFIXES, UNREAD_SUFFIXES, decode_image
from paperlib.errors import DataError, PaperlibError

SIDE = 8
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
GREY_16 = RNG.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
COLOUR_16 = RNG.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
BITS = GREY > 127
FINGERPRINT = "images:f8d6c7e8cbad3af1"  # of the images of `pets`
RGB = Image.fromarray(COLOUR)
PALETTE = RGB.quantize(16)
OPAQUE, HOLE = np.full((SIDE, SIDE), 255, np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
HOLE[3, 4] = 254  # one transparent pixel


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    dataset._loaded.clear()


def decoded(content: bytes, name: str = "cat/1.png") -> np.ndarray:
    pixels, _ = decode_image(content, name, lambda width, height: None)
    return pixels


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3)


def colour(values: np.ndarray) -> np.ndarray:
    return values.transpose(2, 0, 1)


def with_alpha(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(alpha))
    return image


def tiff(values: np.ndarray, mode: str, **options: Any) -> bytes:
    return encoded(Image.frombytes(mode, values.shape[1::-1], values.tobytes()), "TIFF", **options)


# One image file -------------------------------------------------------------------------------------------------------

DECODED: dict[str, tuple[bytes, np.ndarray]] = {
    "black and white": (encoded(Image.fromarray(BITS)), grey(BITS * np.uint8(255))),
    "grey": (encoded(Image.fromarray(GREY)), grey(GREY)),
    "2 bits": (png(GREY >> 6, 2, 0), grey((GREY >> 6) * 85)),
    "4 bits": (png(GREY >> 4, 4, 0), grey((GREY >> 4) * 17)),
    "opaque grey": (encoded(with_alpha(Image.fromarray(GREY), OPAQUE)), grey(GREY)),
    "opaque colour": (encoded(with_alpha(RGB, OPAQUE)), colour(COLOUR)),
    "palette": (encoded(PALETTE), colour(np.asarray(PALETTE.convert("RGB")))),
    "opaque palette": (encoded(PALETTE, transparency=b"\xff" * 16), colour(np.asarray(PALETTE.convert("RGB")))),
    "colour key of no pixel": (encoded(Image.fromarray(GREY | 1), transparency=0), grey(GREY | 1)),
    "16-bit grey PNG": (encoded(Image.fromarray(GREY_16)), grey((GREY_16 >> 8).astype(np.uint8))),
    "16-bit colour PNG": (png(COLOUR_16, 16, 2), colour((COLOUR_16 >> 8).astype(np.uint8))),
    "16-bit TIFF": (tiff(GREY_16, "I;16"), grey((GREY_16 >> 8).astype(np.uint8))),
    "16-bit big-endian TIFF": (tiff(GREY_16.byteswap(), "I;16B"), grey((GREY_16 >> 8).astype(np.uint8))),
    "white-is-zero TIFF": (tiff(GREY, "L", tiffinfo={262: 0}), grey(GREY)),
    "BMP": (encoded(RGB, "BMP"), colour(COLOUR)),
    "grey BMP": (encoded(Image.fromarray(GREY), "BMP"), grey(GREY)),
    "TIFF": (encoded(RGB, "TIFF", compression="tiff_lzw"), colour(COLOUR)),
    "GIF": (encoded(Image.fromarray(GREY), "GIF"), grey(GREY)),
    "lossless WebP": (encoded(RGB, "WEBP", lossless=True), colour(COLOUR)),
}


def test_pixels_are_decoded_exactly() -> None:
    for kind, (content, pixels) in DECODED.items():
        assert np.array_equal(decoded(content), pixels), kind


def frames(kind: str, **options: Any) -> bytes:
    more = [Image.fromarray(255 - COLOUR)]
    return encoded(RGB, kind, save_all=True, append_images=more, **options)


def bomb() -> bytes:
    """A PNG file whose header states 50,000 x 50,000 pixels."""
    content = bytearray(picture(0))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(content)


REFUSED: dict[str, tuple[bytes, str]] = {
    "transparent grey": (
        encoded(with_alpha(Image.fromarray(GREY), HOLE)),
        "transparent pixels; put it on a back",
    ),
    "transparent colour": (encoded(with_alpha(RGB, HOLE)), "transparent pixels"),
    "transparent WebP": (encoded(with_alpha(RGB, HOLE), "WEBP", lossless=True), "transparent pixels"),
    "transparent palette entry": (encoded(PALETTE, transparency=int(np.asarray(PALETTE)[0, 0])), "transparent pixels"),
    "transparent GIF": (encoded(PALETTE, "GIF", transparency=int(np.asarray(PALETTE)[0, 0])), "transparent pixels"),
    "grey colour key": (encoded(Image.fromarray(GREY), transparency=int(GREY[0, 0])), "transparent pixels"),
    "RGB colour key": (encoded(RGB, transparency=tuple(map(int, COLOUR[0, 0]))), "transparent pixels"),
    "2-bit colour key": (png(GREY >> 6, 2, 0, tRNS=b"\0\1"), "a transparent colour in other than 8 bits"),
    "16-bit colour key": (png(GREY_16, 16, 0, tRNS=b"\1\1"), "a transparent colour in other than 8 bits"),
    "CMYK JPEG": (encoded(RGB.convert("CMYK"), "JPEG"), "mode CMYK, .*convert it to RGB"),
    "CMYK TIFF": (encoded(RGB.convert("CMYK"), "TIFF"), "mode CMYK"),
    "YCbCr TIFF": (encoded(RGB.convert("YCbCr"), "TIFF"), "mode YCbCr"),
    "LAB TIFF": (tiff(COLOUR, "LAB"), "mode LAB"),
    "32-bit TIFF": (tiff(GREY_16.astype(np.int32), "I"), "mode I,"),
    "float TIFF": (tiff(GREY_16.astype(np.float32), "F"), "mode F,"),
    "16-bit white-is-zero TIFF": (
        tiff(GREY_16, "I;16").replace(b"\x06\x01\x03\x00\x01\0\0\0\x01\0", b"\x06\x01\x03\x00\x01\0\0\0\0\0"),
        "white-is-zero or 12-bit samples; save it as",
    ),
    "animated GIF": (frames("GIF"), "holds 2 images .*save the one you mean"),
    "animated PNG": (frames("PNG"), "holds 2 images"),
    "animated WebP": (frames("WEBP", lossless=True), "holds 2 images"),
    "pages": (frames("TIFF"), "holds 2 images"),
    "multi-picture JPEG": (frames("MPO"), "holds 2 images"),
    "text": (b"no image at all", "cannot be decoded"),
    "empty": (b"", "cannot be decoded"),
    "another format": (encoded(RGB, "PPM"), "cannot be decoded .it is none of PNG, JPEG"),
    "decompression bomb": (bomb(), "cannot be decoded"),
    **{
        f"truncated {kind}": (picture(1, kind)[: -len(picture(1, kind)) // 3], "cannot be decoded")
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
    },
}


def test_other_files_are_refused_with_their_name() -> None:
    for kind, (content, message) in REFUSED.items():
        with pytest.raises(DataError) as caught:
            decoded(content)
        assert re.match(rf"cat/1\.png .*{message}", str(caught.value)), kind


ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),  # stored rotated by 90 degrees to the left
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_images_of_every_orientation_are_decoded_upright(kind: str) -> None:
    upright = np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)) // 32 * 32  # blocks, which JPEG changes little
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    for orientation, store in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(store(upright)))
        pixels = decoded(encoded(stored, kind, exif=exif, **options)).astype(int)
        assert np.abs(pixels - colour(upright)).max() <= (4 if kind == "JPEG" else 0), orientation


def test_a_16_bit_image_is_decoded_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decoded(encoded(Image.fromarray(np.rot90(GREY_16)), exif=exif))
    assert np.array_equal(pixels, grey((GREY_16 >> 8).astype(np.uint8)))


# Folders --------------------------------------------------------------------------------------------------------------


def pets(count: int = 8, classes: tuple[str, ...] = ("ant", "bee", "cow"), top: str = "", side: int = SIDE) -> Files:
    """Colour images of three classes of the user."""
    return {
        f"{top}{name}/{i:02}.png": picture(100 * c + i, size=(side, side))
        for c, name in enumerate(classes)
        for i in range(count)
    }


def profile(**data: Any) -> Profile:
    table = to_table(load("digits"))
    table["data"] |= {"name": "images", "train": 0, "validation": 3, "test": 6, **data}
    return parse_profile(table)


def load_from(path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str] | None = None, **data: Any) -> Dataset:
    monkeypatch.setenv("PAPERLIB_DATA", str(path))
    with logged([].append if lines is None else lines.append):
        return load_dataset(profile(**data))


def without(files: Files, part: str) -> Files:
    return {name: content for name, content in files.items() if part not in name}


EQUIVALENT: dict[str, Callable[[Files], Files]] = {
    "as they are": lambda f: f,
    "a folder around": lambda f: {f"pets/{name}": content for name, content in f.items()},
    "hidden files": lambda f: f | {"ant/.DS_Store": b"", "ant/._00.png": b"", ".trash/ant/1.png": b"", ".x.heic": b""},
    "macOS and NAS folders": lambda f: f | {"__MACOSX/ant/1.png": b"", "@eaDir/ant/1.png": b""},
    "other files": lambda f: (
        f | {"README.txt": b"", "ant/Thumbs.db": b"", "ant/desktop.ini": b"", "ant/names.csv": b""}
    ),
}


@pytest.mark.parametrize("name", ["folder", "a.zip", "a.tar"])
def test_the_same_images_have_one_fingerprint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, change in EQUIVALENT.items():
        lines: list[str] = []
        data = load_from(write(tmp_path / kind / name, change(pets())), monkeypatch, lines)
        assert data.label == "images" and data.classes == ("ant", "bee", "cow") and data.shape == (3, SIDE, SIDE)
        assert [len(split) for split in (data.train, data.validation, data.test)] == [15, 3, 6]
        assert data.fingerprint == FINGERPRINT, kind
        assert any("ignored" in line for line in lines) == (kind == "other files"), kind


def test_the_suffix_does_not_decide_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in [*READ_SUFFIXES, ".PNG", ".JpG", ".TIFF"]:
        files = {name.replace(".png", suffix): content for name, content in pets().items()}
        assert load_from(write(tmp_path / suffix / "folder", files), monkeypatch).fingerprint == FINGERPRINT, suffix


@pytest.mark.parametrize("name", ["folder", "a.zip", "a.tar"])
def test_images_of_unread_formats_are_refused_and_not_ignored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".heic", ".AVIF", ".svg", ".jfif"):
        assert suffix.lower() in UNREAD_SUFFIXES
        source = write(tmp_path / suffix / name, pets() | {f"bee/x{suffix}": b"?"})
        with pytest.raises(DataError, match=f"bee/x{suffix}: files of this kind are not read; save it as PNG"):
            load_from(source, monkeypatch)


def in_splits(train: Files, test: Files) -> Files:
    return {f"train/{k}": v for k, v in train.items()} | {f"test/{k}": v for k, v in test.items()}


REFUSED_FILES: dict[str, tuple[Files, str]] = {
    "nothing": ({"notes.txt": b""}, r"holds no images; expected <class>/<file>"),
    "one class": (pets(classes=("ant",)), "one class only, 'ant'; at least two"),
    "another size": (
        pets() | {"bee/07.png": picture(1, size=(9, 9))},
        "bee/07.png is 9x9 pixels, expected 8x8, unlike ant/00",
    ),
    "not square": (
        pets() | {"ant/00.png": picture(1, size=(8, 9))},
        "ant/00.png is 8x9 pixels; .*square images: crop or",
    ),
    "too small": (pets(side=7), "is 7x7 pixels; sides of 8 to 512"),
    "too large": (pets(1, side=513), "is 513x513 pixels; sides of 8 to 512"),
    "an image in no class": (
        pets() | {"x.png": picture(1)},
        "x.png lies in no class folder; expected <class>/<file>",
    ),
    "an image below a class": (
        pets() | {"ant/more/x.png": picture(1)},
        "ant/more/x.png lies below a class folder",
    ),
    "no train": ({f"test/{k}": v for k, v in pets().items()}, "holds test/ and no train/"),
    "other classes": (
        in_splits(pets(), pets(classes=("ant", "bee"))),
        r"different classes: \['cow'\] in one of them",
    ),
    "no class in train": (
        in_splits(pets(), pets()) | {"train/x.png": picture(1)},
        "train/x.png lies in no class folder",
    ),
    "unprintable class": (pets(classes=("ant", "bee\n")), r"class folder 'bee\\n': its name cannot be printed"),
    "damaged": (pets() | {"bee/03.png": b"?"}, "bee/03.png cannot be decoded"),
    "flat": (
        {k: encoded(Image.new("L", (8, 8), 7)) for k in pets()},
        "channel 0 has one value in all training images",
    ),
}


@pytest.mark.parametrize("name", ["folder", "a.zip"])
def test_a_folder_or_archive_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, (files, message) in REFUSED_FILES.items():
        with pytest.raises(DataError) as caught:
            load_from(write(tmp_path / kind / name, files), monkeypatch)
        error = str(caught.value)
        assert error.startswith("images:") and "\n" not in error and re.search(message, error), kind


def test_requests_for_too_many_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "folder", pets())
    for sizes, message in (
        ({"test": 25}, "data.test=25: only 24 images are available"),
        ({"test": 0}, "data.test=0: images has no official test split"),
        ({"validation": 19}, "data.validation=19: only 18 images are available"),
        ({"train": 16}, "data.train=16: only 15 images are available"),
        ({"test": 2}, r"2 test images, with classes \[.\] absent"),
    ):
        with pytest.raises(DataError, match=message):
            load_from(folder, monkeypatch, **sizes)


def test_grey_images_have_one_channel_and_one_coloured_pixel_makes_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: encoded(Image.open(io.BytesIO(content)).convert("L")) for name, content in pets().items()}
    as_colour = {name: encoded(Image.open(io.BytesIO(content)).convert("RGB")) for name, content in files.items()}
    one, three = (load_from(write(tmp_path / f"a{i}.zip", f), monkeypatch) for i, f in enumerate((files, as_colour)))
    assert one.shape == (1, SIDE, SIDE) and one.fingerprint == three.fingerprint
    image = Image.open(io.BytesIO(as_colour["cow/00.png"]))
    image.putpixel((0, 0), (1, 2, 3))
    data = load_from(write(tmp_path / "b.zip", as_colour | {"cow/00.png": encoded(image)}), monkeypatch)
    assert data.shape == (3, SIDE, SIDE)


def test_test_folder_is_the_test_split_and_other_folders_are_named_as_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, lines = in_splits(pets(), pets(2)), []
    data = load_from(write(tmp_path / "a.zip", files | {"val/ant/1.png": picture(1)}), monkeypatch, lines, test=0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [21, 3, 6]
    assert any("ignored 1 other files, such as val/ant/1.png" in line for line in lines)
    train_only = load_from(write(tmp_path / "b.zip", without(files, "test/")), monkeypatch)
    assert [len(split) for split in (train_only.train, train_only.validation, train_only.test)] == [15, 3, 6]
    in_class = pets(classes=("car", "train"))  # a class may be called train
    assert load_from(write(tmp_path / "c.zip", in_class), monkeypatch).classes == ("car", "train")


def test_an_empty_class_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "folder", pets())
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match="class folder dog holds no images; remove it"):
        load_from(folder, monkeypatch)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "broken link": (link("nowhere.png"), "is a link without target; repair or remove it"),
    "circle of links": (link("strange.png"), "is a link without target"),
    "pipe": (lambda path: os.mkfifo(path), "is no regular file"),
}


def test_links_without_target_and_pipes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "folder", in_splits(pets(), pets()))
    path = folder / "train" / "ant" / "strange.png"
    for make, message in NO_FILES.values():
        make(path)
        for name in ("images", "cifar10"):
            with pytest.raises(DataError, match=f"{name}: train/ant/strange.png {message}"):
                load_from(folder, monkeypatch, name=name)
        path.unlink()


def test_links_are_followed_and_circles_of_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path / "elsewhere", pets())
    linked = tmp_path / "linked"
    (linked / "ant").mkdir(parents=True)
    for path in (files / "ant").iterdir():
        (linked / "ant" / path.name).symlink_to(path)
    for name in ("bee", "cow"):
        (linked / name).symlink_to(files / name)
    assert load_from(linked, monkeypatch).fingerprint == load_from(files, monkeypatch).fingerprint
    (linked / "ant" / "again").symlink_to(linked)
    with pytest.raises(DataError, match="ant/again is a link to a folder above it"):
        load_from(linked, monkeypatch)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "replaced": lambda path: path.write_bytes(picture(77, size=(SIDE, SIDE))),
    "deleted": lambda path: path.unlink(),
    "added": lambda path: (path.parent / "new.png").write_bytes(picture(77, size=(SIDE, SIDE))),
}


def test_a_change_below_the_folder_is_noticed_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "folder", in_splits(pets(), pets()))
    for kind, change in CHANGES.items():
        before = load_from(folder, monkeypatch, test=0)
        assert load_from(folder, monkeypatch, test=0).train.images is before.train.images
        change(folder / "train" / "bee" / "03.png")
        assert load_from(folder, monkeypatch, test=0).fingerprint != before.fingerprint, kind


def test_a_replaced_file_of_the_same_size_and_time_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name.replace(".png", ".bmp"): encoded(Image.open(io.BytesIO(c)), "BMP") for name, c in pets().items()}
    folder = write(tmp_path / "folder", files)
    before, path = load_from(folder, monkeypatch), folder / "bee" / "03.bmp"
    status = path.stat()
    path.write_bytes(picture(77, "BMP", (SIDE, SIDE)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert load_from(folder, monkeypatch).fingerprint != before.fingerprint


# Archives -------------------------------------------------------------------------------------------------------------


def patched(change: Callable[[zipfile.ZipInfo], None], name: str = "bee/03.png") -> Callable[[Path], Path]:
    """A zip whose directory has a changed entry for one member."""

    def make(path: Path) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in pets().items():
                archive.writestr(member, content)
            change(archive.getinfo(name))
        return path

    return make


def encrypted(info: zipfile.ZipInfo) -> None:
    info.flag_bits |= 1


def by_method_97(info: zipfile.ZipInfo) -> None:
    info.compress_type = 97


def a_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def smaller(info: zipfile.ZipInfo) -> None:
    info.file_size //= 2


def linked_tar(kind: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        write(path, pets())
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("bee/link.png")
            info.type, info.linkname = kind, "bee/03.png"
            tar.addfile(info)
        return path

    return make


def changed_images(change: Callable[[Files], Files]) -> Callable[[Path], Path]:
    return lambda path: write(path, change(pets()))


def twice(path: Path) -> Path:
    write(path, pets())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("./bee/03.png")
        tar.addfile(info)
    return path


def content(value: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(value)


REFUSED_ARCHIVES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "encrypted": ("a.zip", patched(encrypted), "bee/03.png is encrypted; repack the archive without a password"),
    "unknown method": ("a.zip", patched(by_method_97), "bee/03.png is packed by method 97; repack it with deflate"),
    "a lie about the size": ("a.zip", patched(smaller), "truncated, damaged"),
    "link in a zip": ("a.zip", patched(a_link), "bee/03.png is a link"),
    "symbolic link": ("a.tar", linked_tar(tarfile.SYMTYPE), "bee/link.png is a link"),
    "hard link": ("a.tar", linked_tar(tarfile.LNKTYPE), "bee/link.png is a link"),
    "device": ("a.tar", linked_tar(tarfile.CHRTYPE), "bee/link.png is a link or no regular file"),
    "..": ("a.tar", changed_images(lambda f: f | {"../../ant/x.png": b""}), "points outside the archive"),
    ".. inside": ("a.zip", changed_images(lambda f: f | {"ant/../../ant/x.png": b""}), "points outside the archive"),
    "absolute": ("a.tar", changed_images(lambda f: f | {"/ant/x.png": b""}), "points outside the archive"),
    "backslashes and ..": (
        "a.zip",
        changed_images(lambda f: f | {"..\\ant\\x.png": b""}),
        "points outside the archive",
    ),
    "drive letter": ("a.zip", changed_images(lambda f: f | {"C:\\ant\\x.png": b""}), "points outside the archive"),
    "an image twice": ("a.tar", twice, "bee/03.png is there twice; remove one of the two"),
    "7-Zip": ("a.7z", content(b"7z\xbc\xaf\x27\x1c" + b"?" * 600), "is a 7-Zip archive, which is not read; repack it"),
    "RAR": ("a.zip", content(b"Rar!" + b"?" * 600), "is a RAR archive"),
    "Zstandard": ("a.tar.zst", content(b"\x28\xb5\x2f\xfd" + b"?" * 600), "is a Zstandard archive"),
    "no archive": ("notes.txt", content(b"text"), r"notes.txt is neither a folder nor an archive \(.zip"),
    "another name": ("a.tar", content(b"text" * 500), "a.tar is truncated, damaged or not an archive"),
    "empty": ("a.zip", content(b""), "a.zip is truncated, damaged or not an archive"),
    "torchvision's own": (
        "cifar-10-python.tar.gz",
        lambda path: write(path, {"cifar-10-batches-py/data_batch_1": b"\x80"}),
        "holds no images but cifar-10-batches-py/: unpack it, and name the folder around that one",
    ),
}


def test_an_archive_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, (name, make, message) in REFUSED_ARCHIVES.items():
        data = "cifar10" if name.startswith("cifar") else "images"
        folder = tmp_path / re.sub(r"\W", "-", kind) / "inner"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        make(folder / name)
        with pytest.raises(DataError) as caught:
            load_from(folder / name, monkeypatch, name=data)
        assert str(caught.value).startswith(f"{data}: {name}") and re.search(message, str(caught.value)), kind
        assert [path.name for path in folder.iterdir()] == [name], "nothing is unpacked"
        assert len(list(folder.parent.iterdir())) == 1 and not (tmp_path / "home").exists(), kind


READ_ARCHIVES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{kind: (f"a.tar.{kind}", changed_images(lambda f: f)) for kind in ("gz", "bz2", "xz")},
    "backslashes": ("a.zip", changed_images(lambda f: {name.replace("/", "\\"): c for name, c in f.items()})),
    "backslashes and a folder around": (
        "a.zip",
        changed_images(
            lambda f: {"pets\\": b"", "pets\\ant\\": b""} | {f"pets\\{k}".replace("/", "\\"): c for k, c in f.items()}
        ),
    ),
    "another suffix": ("images.dat", lambda path: write_zip(path, pets())),
    "no suffix": ("images.tar", lambda path: write(path, pets()).rename(path.with_suffix(""))),
    "what points outside is no image": ("a.tar", changed_images(lambda f: f | {"../notes.txt": b"no"})),
}


def test_archives_of_every_format_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, (name, make) in READ_ARCHIVES.items():
        (tmp_path / kind).mkdir()
        assert load_from(make(tmp_path / kind / name), monkeypatch).fingerprint == FINGERPRINT, kind


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"])
def test_a_decompression_bomb_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MIN_LIMIT", 1 << 20)
    monkeypatch.setattr(archives, "BLOCK", 1 << 10)
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 30)
    for member in ("ant/x.png", "notes.txt"):
        source = write(tmp_path / member[:3] / name, pets(1) | {member: b"\0" * (2 << 20)})
        assert source.stat().st_size * archives.MAX_RATIO < 2 << 20
        if name == "a.zip" and member == "notes.txt":  # only the images of a zip are unpacked
            continue
        with pytest.raises(DataError, match=r"more than .* MiB, too much for its size; is it a decompression bomb"):
            load_from(source, monkeypatch)


def test_a_file_too_large_for_an_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (archives, decoding):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 1 << 20)
    for name in ("folder", "a.tar", "a.zip"):
        source = write(tmp_path / name, pets() | {"bee/03.png": picture(1, "BMP", (600, 600))})
        with pytest.raises(DataError, match=r"bee/03\.png holds more than 1 MiB, too many for an image file"):
            load_from(source, monkeypatch)


def test_images_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 24 * 3 * 64 - 1)
    with pytest.raises(DataError, match=r"24 such images take .* GB: resize all of them"):
        load_from(write(tmp_path / "a.zip", pets()), monkeypatch)


# Paths ----------------------------------------------------------------------------------------------------------------

NAMES = ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "images"]


def test_a_path_that_does_not_exist_is_repeated_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    for setting in ("no/such/folder", "no-such.zip", "~no-such-user/images", "file.txt/below"):
        monkeypatch.setenv("PAPERLIB_DATA", setting)
        for name in NAMES:
            with pytest.raises(PaperlibError, match=f"^PAPERLIB_DATA={setting}: ") as caught:
                load_dataset(profile(name=name))
            assert "batches" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_that_is_neither_folder_nor_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in NAMES:
        with pytest.raises(DataError, match=r"PAPERLIB_DATA=.*pipe: neither a folder nor a regular file"):
            load_from(tmp_path / "pipe", monkeypatch, name=name)


def test_an_archive_is_refused_for_torchvisions_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "a.zip", pets())
    for name in NAMES:
        if name not in ("images", "cifar10"):
            message = rf"{name}: a\.zip cannot be read as {name}; unpack it .* PAPERLIB_DATA may"
            with pytest.raises(DataError, match=message):
                load_from(archive, monkeypatch, name=name)


def test_images_require_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="images: set PAPERLIB_DATA to the folder or archive"):
        load_dataset(profile())


def test_digits_ignore_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("no/such/folder", "~no-such-user/images"):
        monkeypatch.setenv("PAPERLIB_DATA", setting)
        assert len(load_dataset(load("digits")).test) == 360


def test_is_here_does_not_read_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def available() -> list[str]:
        return [name for name in NAMES if is_here(profile(name=name))]

    monkeypatch.setattr("paperlib.paths.data_source", lambda: tmp_path)
    assert available() == []
    write(tmp_path / "train" / "ant", {"1.png": b""})
    assert available() == ["cifar10"]  # in data/raw; the user's own images need the variable
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    assert available() == ["cifar10", "images"]
