"""An answer as a list that notebooks show with its pictures.

    photos.search("two dogs on a beach")            # as the last line of a cell

A notebook saves what it shows. So only small pictures go into it, not more than fit on a screen, every text is escaped,
and a picture that cannot be read is a line of text. The list knows nothing about files: it is given the thumbnails.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from voken.search.hit import Hit

SHOWN = 24
"""Hits of one answer that a notebook shows with their pictures."""
MAX_THUMBNAIL_BYTES = 1 << 16

_CARD = "margin:0;width:168px;font:12px/1.4 system-ui,sans-serif;overflow-wrap:anywhere"
_PICTURE = "display:block;max-width:160px;max-height:160px;margin-bottom:4px"


class HitList(list[Hit]):
    """Hits, best first. It is a list in every way, and becomes a plain one when it is copied or pickled."""

    def __init__(self, hits: Iterable[Hit] = (), thumbnail: Callable[[str], bytes | None] | None = None) -> None:
        """`thumbnail` gives the JPEG of a picture by its id, None for one that cannot be read."""
        super().__init__(hits)
        self._thumbnail = thumbnail

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _repr_html_(self) -> str:
        """The HTML that Jupyter shows."""
        if not self:
            return "<p>Nothing matches.</p>"
        cards = "".join(map(self._card, range(min(len(self), SHOWN))))
        more = f"<p>… and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cards}</div>{more}'

    def _card(self, place: int) -> str:
        hit = self[place]
        jpeg = None if self._thumbnail is None else self._thumbnail(hit.image_id)
        image = ""
        if jpeg is not None and len(jpeg) <= MAX_THUMBNAIL_BYTES:
            data = base64.b64encode(jpeg).decode("ascii")
            image = f'<img style="{_PICTURE}" src="data:image/jpeg;base64,{data}" alt="{_text(hit.image_id)}">'
        sure = "" if hit.confidence is None else f", confidence {hit.confidence:.0%}"
        name = f"{image}{place + 1}. {_text(hit.image_id)}<br>score {hit.score:.3f}{sure}"
        return f'<figure style="{_CARD}" title="{_text(hit.path)}">{name}</figure>'


def _text(text: str) -> str:
    """Escaped, with "?" for the parts of file names that are no characters."""
    from html import escape  # only notebooks need it

    return escape(text.encode("utf-8", "replace").decode())
