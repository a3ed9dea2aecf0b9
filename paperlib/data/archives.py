"""Images in an archive, read as a stream: nothing is extracted to disk.

| read | refused, with an error that names the member and advises what to do |
|---|---|
| .zip (stored, deflate, bzip2, LZMA), backslashes in names | encrypted members, other methods |
| .tar, .tar.gz, .tar.bz2, .tar.xz, recognised by content and not by suffix | 7-Zip, RAR, Zstandard |
| images with or without one folder around them | images that are links, or whose path is absolute or has .. |
| images of at most `MAX_FILE_BYTES` | more than `MAX_RATIO` times the archive's size (a decompression bomb) |
| | truncated or damaged archives |

Members that are no images, or are hidden, are ignored, even if their paths point outside.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from paperlib import paths
from paperlib.data.image_files import MAX_FILE_BYTES, UNREAD_SUFFIXES, ImageFiles, Parts, is_hidden, is_image, suffix_of
from paperlib.errors import DataError

MAX_RATIO = 200  # unpacked size / packed size; image files are compressed, so real archives have far lower ratios
MIN_LIMIT, MAX_LIMIT = 1 << 28, 1 << 34  # bytes; the limit of the unpacked size lies between these
BLOCK = 1 << 20
STREAMS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
UNREAD = {b"7z\xbc\xaf\x27\x1c": "7-Zip", b"Rar!": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard"}
SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, ValueError, RuntimeError)


def list_archive(path: Path) -> ImageFiles:
    """All images of an archive with their content.

    Raises:
        DataError: the archive is refused (table above); names the archive and the member.
    """
    shown, last = paths.shown(path), ["its start"]
    try:
        with path.open("rb") as file:
            head = file.read(512)
            for start, name in UNREAD.items():
                if head.startswith(start):
                    raise DataError(f"{shown} is a {name} archive, which is not read; repack it as .zip or .tar.xz")
            open_stream = next((stream for start, stream in STREAMS.items() if head.startswith(start)), None)
            file.seek(0)
            if open_stream is not None:
                with open_stream(file, "rb") as stream:
                    return _list_tar(stream, _limit(path), last)
            is_tar = head[257:262] == b"ustar"
            if not is_tar and (head.startswith(b"PK") or zipfile.is_zipfile(file)):
                return _list_zip(file, _limit(path), last)
            if not is_tar and path.suffix.lower() not in SUFFIXES:
                raise DataError(f"{shown} is neither a folder nor an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz)")
            file.seek(0)
            return _list_tar(file, _limit(path), last)
    except DAMAGE as error:
        reason = f"truncated, damaged or not an archive, noticed after {last[0]} ({error})"
        raise DataError(f"{shown} is {reason}; download it again") from error
    except DataError as error:
        raise error if str(error).startswith(shown) else DataError(f"{shown}: {error}") from error


def _limit(path: Path) -> int:
    """The largest allowed unpacked size, in bytes."""
    return min(MAX_LIMIT, max(MIN_LIMIT, MAX_RATIO * path.stat().st_size))


class _Limited:
    """A stream that refuses to read beyond a limit; the sizes that an archive states may be false."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.stream, self.limit, self.tell = stream, limit, stream.tell

    def read(self, size: int) -> bytes:
        _check_total(self.tell() + size, self.limit)
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        _check_total(position, self.limit)
        return self.stream.seek(position)


def _check_total(total: int, limit: int) -> None:
    if total > limit + BLOCK:  # reading goes one block past the end
        raise DataError(
            f"unpacks to more than {limit >> 20} MiB, too much for its size; is it a decompression bomb? If it is not, "
            "unpack it yourself and name the folder"
        )


def _list_tar(stream: IO[bytes], limit: int, last: list[str]) -> ImageFiles:
    files, limited = ImageFiles(), _Limited(stream, limit)
    with tarfile.TarFile(fileobj=limited) as tar:  # type: ignore[arg-type]
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isdir():
                files.folders.add(parts)
            elif _is_image_member(parts, files):
                _check_place(parts, linked=not member.isreg())
                file = tar.extractfile(member)
                assert file is not None  # a regular file
                files.add(parts, _content(file, member.name))
                last[0] = member.name
        if limited.tell() == tar.offset:  # truncated between two members
            raise EOFError("no end-of-archive mark")
        while limited.read(BLOCK):  # to the end, where .xz and .gz verify their checksums
            pass
    return files


def _list_zip(file: IO[bytes], limit: int, last: list[str]) -> ImageFiles:
    files, total = ImageFiles(), 0
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            parts = PurePosixPath(info.filename.replace("\\", "/")).parts  # some Windows tools write backslashes
            if info.is_dir() or info.filename.endswith("\\"):
                files.folders.add(parts)
            elif _is_image_member(parts, files):
                _check_place(parts, linked=stat.S_ISLNK(info.external_attr >> 16))
                if info.flag_bits & 1:
                    raise DataError(f"{info.filename} is encrypted; repack the archive without a password")
                if info.compress_type not in METHODS:
                    raise DataError(f"{info.filename} is packed by method {info.compress_type}; repack it with deflate")
                total += info.file_size
                _check_total(total, limit)
                files.add(parts, _content(archive.open(info), info.filename))
                last[0] = info.filename
    return files


def _is_image_member(parts: Parts, files: ImageFiles) -> bool:
    """True if a member is an image. Other files that are not hidden are added to ``files.ignored``."""
    if not parts or is_hidden(tuple(part for part in parts if part != "..")):
        return False
    if not is_image(parts[-1]):
        files.ignored.append(parts)
        return False
    return True


def _check_place(parts: Parts, linked: bool) -> None:
    name = "/".join(parts)
    if parts[0] == "/" or re.fullmatch("[A-Za-z]:", parts[0]) or ".." in parts:
        raise DataError(f"{name} points outside the archive (an absolute path, or '..'); repack it with relative paths")
    if linked:
        raise DataError(f"{name} is a link or no regular file; repack the archive with the files themselves")


def _content(file: IO[bytes], name: str) -> bytes:
    """The bytes of a member; empty for suffixes that are refused later."""
    with file:
        if suffix_of(name) in UNREAD_SUFFIXES:
            return b""
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{name} holds more than {MAX_FILE_BYTES >> 20} MiB, too many for an image file")
    return content
