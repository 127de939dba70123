"""Which fields of a picture's metadata say where it was taken.

They are recognised by their names, however these are written: `GPSLatitude`, `exif.gps.lat`, `location`, `camera_lng`,
`geotag`. A place in a text, such as a caption or the name of a town, is not recognised.
"""

from __future__ import annotations

import re
from typing import Any

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_STARTS = ("gps", "geotag", "geoloc", "geohash", "geocod", "geopos", "latitud", "longitud", "coordinate", "location")
_WORDS = {
    "geo", "lat", "latlon", "latlng", "latlong", "lon", "lng", "lonlat", "lnglat", "coord", "coords",
    "altitude", "elevation",
}  # fmt: skip


def is_location(name: str) -> bool:
    """Whether a field of this name says where a picture was taken.

    >>> [is_location(name) for name in ("GPSLatitude", "camera_lat", "flat", "relation")]
    [True, True, False, False]
    """
    words = [word.casefold() for word in _WORD.findall(name)]
    # "long" alone is a longitude; in "long_title" it is not
    return words == ["long"] or any(word in _WORDS or word.startswith(_STARTS) for word in words)


def without_location(value: Any) -> Any:
    """A value of JSON without the fields, at any depth, that say where a picture was taken."""
    if isinstance(value, dict):
        return {name: without_location(item) for name, item in value.items() if not is_location(name)}
    if isinstance(value, list):
        return [without_location(item) for item in value]
    return value
