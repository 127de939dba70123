"""A hit as frameworks of retrieval want it: a text that describes the picture, and fields.

This module knows none of the frameworks; `voken.langchain`, `voken.llama_index` and `voken.haystack` use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from voken.api import Collection, Hit

CAPTION_FIELDS = ("caption", "description", "alt", "title", "text", "concept", "name")
"""Metadata fields that may describe a picture, in the order in which they are tried."""


@dataclass(frozen=True)
class HitDocument:
    """The text and the fields of a hit."""

    content: str
    fields: dict[str, Any]
    """All fields of the picture's metadata, and the hit's `id`, `path`, `score`, `confidence` (None if the model is not
    calibrated) and `vokens`, which replace fields of the same names."""


def hit_document(collection: Collection, hit: Hit, content_field: str | None = None) -> HitDocument:
    """Describe a hit of `collection` by `content_field`, or else by the first of `CAPTION_FIELDS` that its picture has.

    A picture without such a field is described by its id.
    """
    metadata = collection.metadata(hit.image_id)
    names = CAPTION_FIELDS if content_field is None else (content_field,)
    content = next((metadata[name] for name in names if metadata.get(name)), hit.image_id)
    return HitDocument(
        "; ".join(map(str, content)) if isinstance(content, list) else str(content),
        {
            **metadata,
            "id": hit.image_id,
            "path": hit.path,
            "score": hit.score,
            "confidence": hit.confidence,
            "vokens": list(hit.vokens),
        },
    )
