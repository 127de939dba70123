"""The files in a tar archive of a stranger, one after another, whatever is wrong with some of them.

    for member in tar_members(Path("00000.tar"), limit=lambda name: 1 << 20):
        ...                                 # Member(name, content), or Skipped with the reason

Python's tarfile stops at the first damaged header, and reads headers of any length into memory. Here a damaged stretch
is named, the search for the next header goes on behind it, and nothing longer than the caller's limit is read. Nothing
is written, and links, devices and sparse files are refused.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voken.data.skipped import CANNOT_READ, Skipped

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_LONGEST_HEADER = 1 << 16
"""Of the extended headers that hold long names; the longest path of a system is 4,096 bytes."""
_HEADERS = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME}
_IGNORED = {tarfile.DIRTYPE, tarfile.GNUTYPE_LONGLINK}


@dataclass(frozen=True)
class Member:
    """A file of an archive."""

    name: str
    content: bytes


def tar_members(path: Path, *, limit: Callable[[str], int]) -> Iterator[Member | Skipped]:
    """The files of an uncompressed archive in their order, and what cannot be used of it, with the reason.

    `limit` says of a file's name how many bytes it may have; files of 0 are passed over in silence.
    """
    try:
        with path.open("rb") as file:
            yield from _members(path, file, limit)
    except OSError as error:
        yield Skipped(str(path), f"{CANNOT_READ} ({error.strerror or error})")


def _members(path: Path, file: BinaryIO, limit: Callable[[str], int]) -> Iterator[Member | Skipped]:
    size = os.fstat(file.fileno()).st_size
    damaged_from: int | None = None
    extended: dict[str, str] = {}
    ended, offset, last = False, 0, ""
    while offset + _BLOCK <= size:
        file.seek(offset)
        block = file.read(_BLOCK)
        if block == _ZEROS:
            ended, offset = True, offset + _BLOCK
            continue
        header = _header(block)
        if header is None:
            damaged_from, offset = offset if damaged_from is None else damaged_from, offset + _BLOCK
            continue
        if damaged_from is not None:
            yield _damage(path, damaged_from, offset, last)
        damaged_from, ended = None, False
        start, offset = offset + _BLOCK, offset + _BLOCK + -(-header.size // _BLOCK) * _BLOCK
        is_whole = start + header.size <= size
        if header.type in _HEADERS:
            content = file.read(header.size) if is_whole and header.size <= _LONGEST_HEADER else b""
            if header.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = content.rstrip(b"\0").decode("utf-8", "replace")
            elif header.type != tarfile.XGLTYPE:
                extended |= _records(content)
            continue
        name, is_sparse = extended.get("path", header.name), any(key.startswith("GNU.sparse") for key in extended)
        has_other_size = "size" in extended
        if header.type != tarfile.GNUTYPE_LONGLINK:
            extended, last = {}, name
        if header.type in _IGNORED or not (most := limit(name)):
            continue
        place = f"{path}/{name}"
        if not header.isreg() or header.issparse() or is_sparse or has_other_size:
            yield Skipped(place, "not a plain file")
        elif not is_whole:
            yield Skipped(place, f"cut off: {max(size - start, 0):,} of {header.size:,} bytes are there")
        elif header.size > most:
            yield Skipped(place, f"{header.size:,} bytes, over the limit of {most:,}")
        else:
            yield Member(name, file.read(header.size))
    if damaged_from is not None:
        yield _damage(path, damaged_from, size, last)
    elif not ended and offset <= size:
        yield Skipped(str(path), f"cut off after {last}: the archive has no end" if last else "this is no tar archive")


def _header(block: bytes) -> tarfile.TarInfo | None:
    """The header in a block whose checksum is right; None for any other block."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _records(content: bytes) -> dict[str, str]:
    """The records of an extended header, each "LENGTH KEY=VALUE" and a line feed; those before the first odd one."""
    records: dict[str, str] = {}
    while content:
        length, space, _ = content.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 6 else 0
        key, equals, value = content[len(length) + 1 : end - 1].partition(b"=")
        if not space or not equals or not len(length) + 1 < end <= len(content):
            break
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        content = content[end:]
    return records


def _damage(path: Path, start: int, end: int, last: str) -> Skipped:
    where = f" after {last}" if last else ""
    return Skipped(str(path), f"damaged{where}: bytes {start:,} to {end:,} are no files of a tar archive")
