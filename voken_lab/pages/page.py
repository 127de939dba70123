"""Pages that are one HTML file: pictures are data URIs, there is no script, and nothing is fetched.

The templates in `templates/` hold the HTML and the style; they escape every text.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from voken.artifact import storage_errors
from voken.data.images import open_image
from voken.errors import MissingExtraError, PictureError

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup as Markup
except ImportError:
    raise MissingExtraError("jinja2", "data") from None

THUMBNAIL = 96
_EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@dataclass(frozen=True)
class Picture:
    """A picture to show: its file, a description for those who cannot see it, and its vokens."""

    path: Path
    name: str
    vokens: tuple[int, ...]


@dataclass(frozen=True)
class HitCard:
    """One hit of a query."""

    picture: Picture
    score: float
    is_right: bool


@dataclass(frozen=True)
class PairCard:
    """Two pictures. Both begin with `shared` equal vokens; `cosine` is that of their vectors."""

    first: Picture
    second: Picture
    shared: int
    cosine: float | None = None


@dataclass(frozen=True)
class PairSection:
    """Pairs that share the same number of vokens."""

    title: str
    explanation: str
    pairs: tuple[PairCard, ...]


def thumbnail(path: Path, size: int = THUMBNAIL) -> str:
    """The picture as a data URI of a PNG, `size` × `size` pixels; an empty picture if it cannot be read."""
    try:
        image = open_image(path, size=size)
    except PictureError:
        return _EMPTY
    target = io.BytesIO()
    image.quantize(128).save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def render(template: str, **values: object) -> str:
    """The HTML of a template; a template that uses a missing value raises `jinja2.UndefinedError`."""
    return _templates.get_template(template).render(values)


def write_page(path: Path, html: str) -> None:
    """Write a page completely or not at all. Raises `StorageError` if the disk refuses."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(html, encoding="utf-8", errors="replace")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def duration(seconds: float) -> str:
    """Seconds as "61 s", "12 min" or "6 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float | None, form: str = ",.0f") -> str:
    return "–" if value is None else format(value, form)


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.filters |= {"thumbnail": thumbnail, "duration": duration, "number": _number}
