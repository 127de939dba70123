"""Reads icon sets in the Iconify JSON format, and draws their SVGs as pictures.

In this format (see the package `@iconify/types`) `icons` maps a name to an SVG body with its box, `aliases` maps a name
to a parent with flips and quarter turns, `chars` maps code points to names, and `info` holds the licence and whether
the set has a palette.
"""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from voken.data.sources import npm
from voken.errors import DataError, MissingExtraError

_MAX_PARENTS = 8


@dataclass(frozen=True)
class IconSet:
    """A set of icons by one vendor, named `prefix`, under one licence, with its SPDX name if it has one."""

    prefix: str
    licence: str
    category: str
    palette: bool
    raw: dict[str, Any] = field(repr=False)
    chars: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """The names of the icons, without aliases and hidden icons."""
        return [name for name, icon in self.raw["icons"].items() if not icon.get("hidden")]

    @property
    def aliases(self) -> dict[str, str]:
        """The parent of each alias."""
        return {name: alias["parent"] for name, alias in self.raw.get("aliases", {}).items()}

    def svg(self, name: str, size: int) -> str | None:
        """An icon or alias as an SVG of `size` × `size` pixels, in black unless it has a colour.

        The whole box is fitted into the square. Returns None if the set has no such icon.
        """
        turns, horizontal, vertical = 0, False, False
        icon: dict[str, Any] | None = None
        for _ in range(_MAX_PARENTS):
            entry = self.raw["icons"].get(name)
            step = entry if entry is not None else self.raw.get("aliases", {}).get(name)
            if step is None:
                return None
            turns += int(step.get("rotate", 0))
            horizontal ^= bool(step.get("hFlip"))
            vertical ^= bool(step.get("vFlip"))
            if entry is not None:
                icon = entry
                break
            name = step["parent"]
        if icon is None:
            return None
        left, top, width, height = (
            float(icon.get(key, self.raw.get(key, default)))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        middle = (left + width / 2, top + height / 2)
        moves = []
        if turns % 4:
            moves.append(f"rotate({90 * (turns % 4)} {middle[0]} {middle[1]})")
        if horizontal or vertical:
            x, y = (-1 if horizontal else 1), (-1 if vertical else 1)
            moves.append(f"translate({middle[0] * (1 - x)} {middle[1] * (1 - y)}) scale({x} {y})")
        body = f'<g transform="{" ".join(moves)}">{icon["body"]}</g>' if moves else icon["body"]
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000000" '
            f'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}">{body}</svg>'
        )


def parse_icon_set(content: bytes, place: str, *, info: bytes | None = None, chars: bytes | None = None) -> IconSet:
    """Read an icon set from JSON. The small packages have `info` and `chars` in separate files.

    Raises DataError, which names `place`.
    """
    try:
        raw = json.loads(content)
        about = json.loads(info) if info is not None else raw.get("info", {})
        codes = json.loads(chars) if chars is not None else raw.get("chars", {})
        licence = about.get("license", {})
        return IconSet(
            prefix=raw["prefix"],
            licence=licence.get("spdx") or licence.get("title", ""),
            category=about.get("category", ""),
            palette=bool(about.get("palette", False)),
            raw={**raw, "icons": dict(raw["icons"])},
            chars=dict(codes),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: not an Iconify icon set ({error!r})") from error


def read_icon_set(package: str, version: str, folder: Path | None = None) -> IconSet:
    """The icon set of a small package, `@iconify-json/<prefix>`, which is downloaded on first use."""
    tarball = npm.fetch(package, version, folder)
    parts = dict(npm.members(tarball, lambda name: name in {"icons.json", "info.json", "chars.json"}))
    if "icons.json" not in parts:
        raise DataError(f"{tarball}: holds no icons.json; the package is not the expected one.")
    return parse_icon_set(parts["icons.json"], str(tarball), info=parts.get("info.json"), chars=parts.get("chars.json"))


@dataclass(frozen=True)
class Drawing:
    """An SVG, and the PNG file to draw it to. `grey` means a single channel."""

    svg: str
    path: Path
    grey: bool = False


@dataclass(frozen=True)
class Drawn:
    """The result of a drawing. `reason` says why there is no file; it is empty if there is one.

    `blank` means that the picture shows nearly nothing. `digest` is equal for equal pixels.
    """

    path: Path
    reason: str = ""
    blank: bool = False
    digest: str = ""


def draw(drawings: Iterable[Drawing], *, workers: int = 1) -> Iterator[Drawn]:
    """Render every drawing on white, in order. Existing files are not rendered again.

    More than one of `workers` are processes, because the renderer holds the interpreter's lock. The calling script must
    then guard its entry with `if __name__ == "__main__"`.
    """
    if workers <= 1:
        yield from map(_draw_one, drawings)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw_one, drawings, chunksize=64)


def _draw_one(drawing: Drawing) -> Drawn:
    if drawing.path.is_file():
        try:
            with Image.open(drawing.path) as existing:
                existing.load()
                return _examine(existing, drawing.path)
        except (OSError, UnidentifiedImageError, SyntaxError):
            drawing.path.unlink(missing_ok=True)
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise MissingExtraError("resvg-py", "data") from None
    try:
        png = svg_to_bytes(svg_string=drawing.svg, background="#ffffff", skip_system_fonts=True)
    except ValueError as error:
        return Drawn(drawing.path, reason=f"the renderer refused it ({error})")
    with Image.open(io.BytesIO(png)) as rendered:
        picture = rendered.convert("L" if drawing.grey else "RGB")
    draft = drawing.path.with_name(drawing.path.name + ".part")
    picture.save(draft, format="PNG")
    draft.replace(drawing.path)
    return _examine(picture, drawing.path)


def _examine(picture: Image.Image, path: Path) -> Drawn:
    grey = picture.convert("L").tobytes()
    mean = sum(grey) / len(grey)
    return Drawn(
        path,
        blank=max(grey) - min(grey) < 32 or not 1.0 <= mean <= 254.0,
        digest=blake2b(picture.tobytes(), digest_size=16, person=picture.mode.encode()).hexdigest(),
    )
