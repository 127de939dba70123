"""Small pictures, made when they are first asked for and kept on the disk up to a limit.

    1f/1f0c…-256.webp    one of at most 256 pixels a side; its name tells the file, its size and its time, so that a
                         file that has changed has another

Any number of processes may share the folder. What was not asked for the longest goes first. A cache that cannot be
written to costs time and nothing else.
"""

from __future__ import annotations

import io
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

from voken.serve.picture_file import PictureFile

MEDIA_TYPE = "image/webp"
_QUALITY = 80
_EFFORT = 2
"""Of WebP's 0 to 6: what more would save is a few percent."""
_SWEPT_TO = 0.9
_TOUCHED_EVERY = 3_600.0
"""Seconds after which a use is noted again, as the file's time."""


class Thumbnails:
    """In `folder`, at most `megabytes` of them; 0 keeps none. Any thread may use it."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        self._most = megabytes << 20
        self._sweeping = threading.Lock()
        self._bytes: int | None = None
        """On the disk, as far as this process knows; None before it has looked."""

    def get(self, picture: PictureFile, side: int) -> bytes:
        """A WebP of at most `side` pixels a side, never enlarged. Raises `PictureError`."""
        place = self._folder / picture.mark[:2] / f"{picture.mark}-{side}.webp"
        if self._most and (kept := _kept(place)):
            return kept
        image = picture.picture.image()
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        written = io.BytesIO()
        image.save(written, "WEBP", quality=_QUALITY, method=_EFFORT)
        made = written.getvalue()
        if self._most:
            self._keep(place, made)
        return made

    def _keep(self, place: Path, made: bytes) -> None:
        partial = place.with_name(f".{place.name}.partial-{os.getpid()}-{threading.get_ident()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.parent.mkdir(exist_ok=True, mode=0o700)
            partial.write_bytes(made)
            partial.replace(place)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            return
        with self._sweeping:
            if self._bytes is not None:
                self._bytes += len(made)
            if self._bytes is None or self._bytes > self._most:
                self._bytes = self._sweep()

    def _sweep(self) -> int:
        """Remove the least used where there is too much; how many bytes are left."""
        found = sorted(_files(self._folder))
        total = sum(size for _, size, _ in found)
        if total > self._most:
            for _, size, path in found:
                if total <= _SWEPT_TO * self._most:
                    break
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    continue
                total -= size
        return total


def _kept(place: Path) -> bytes | None:
    try:
        content = place.read_bytes()
        # a power cut may leave a name without its content
        if content[:4] != b"RIFF" or int.from_bytes(content[4:8], "little") + 8 != len(content):
            return None
        now = time.time()
        if now - place.stat().st_mtime > _TOUCHED_EVERY:
            os.utime(place, (now, now))
        return content
    except OSError:
        return None


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Time, bytes and path of each; those that go meanwhile are passed over."""
    found = []
    for path in folder.glob("??/*"):
        try:
            said = path.stat()
        except OSError:
            continue
        found.append((said.st_mtime, said.st_size, path))
    return found
