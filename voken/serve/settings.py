"""What a server may be told: where it listens, who may change the collection, and how much is taken at once."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path

from voken.errors import ConfigError


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "voken" / "thumbnails"


@dataclass(frozen=True)
class ServeSettings:
    """Raises `ConfigError` for impossible values."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0: any that is free."""
    hosts: tuple[str, ...] = ()
    """Names it is also known by, where another server passes requests on to it, or many machines can reach it."""
    token: str = field(default="", repr=False)
    """Who knows it may add and remove pictures. Without one nobody may."""
    max_queue: int = 256
    """Queries that may wait."""
    max_body: int = 32 << 20
    """Bytes of one request."""
    max_query_characters: int = 2_000
    max_queries: int = 64
    """In one request."""
    max_k: int = 200
    max_filters: int = 16
    max_files: int = 100
    """In one upload."""
    max_pixels: int = 50_000_000
    """Of a picture that is uploaded."""
    max_forms: int = 32
    """Uploads and searches by picture that may be in hand at once: what they send lies in temporary files."""
    max_pictures_waiting: int = 256
    """Thumbnails, uploads and searches by picture that may wait for a thread."""
    body_seconds: float = 120.0
    """In which a request's body must have come."""
    grace_seconds: float = 20.0
    """In which everything accepted is answered, once the server was told to stop."""
    thumbnail_megabytes: int = 512
    """On the disk; the least used go first."""
    thumbnail_folder: Path = field(default_factory=_cache_folder)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name.startswith("max_") and value < 1:
                raise ConfigError(f"{one.name} {value}: it must be 1 or more.")
            if one.name.endswith("_seconds") and not (0 < value < math.inf):
                raise ConfigError(f"{one.name} {value}: give seconds, more than 0.")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port {self.port}: a port is between 0 and 65535.")
        if self.thumbnail_megabytes < 0:
            raise ConfigError(f"thumbnail_megabytes {self.thumbnail_megabytes}: it must be 0 or more.")
        if not self.host:
            raise ConfigError("host is empty: give 127.0.0.1 for this machine alone, or 0.0.0.0 for every network.")
        if any(not "!" <= character <= "~" for character in self.token):
            raise ConfigError(
                "The token has characters that no header can hold. Use letters, digits and signs of ASCII."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"
