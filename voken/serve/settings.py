"""Settings of a server: where it listens, who may change the collection, and how much it accepts at once."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
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
    """0 for any free port."""
    hosts: tuple[str, ...] = ()
    """Other names of the server, for when a proxy passes requests on to it or other machines can reach it."""
    token: str = field(default="", repr=False)
    """Clients that send it may add and remove pictures. If it is empty, nobody may."""
    max_queue: int = 256
    """Queries that may wait."""
    max_body: int = 32 << 20
    """Bytes per request."""
    max_query_characters: int = 2_000
    max_queries: int = 64
    """Per request."""
    max_k: int = 200
    max_filters: int = 16
    max_files: int = 100
    """Per upload."""
    max_pixels: int = 50_000_000
    """Per uploaded picture."""
    max_forms: int = 32
    """Uploads and searches by picture at once; their files are held in temporary files."""
    max_pictures_waiting: int = 256
    """Thumbnails, uploads and searches by picture that may wait for a thread."""
    body_seconds: float = 120.0
    """Time for a request's body to arrive."""
    grace_seconds: float = 20.0
    """Time to answer everything accepted, after the server was stopped."""
    thumbnail_megabytes: int = 512
    """On the disk; the least recently used go first."""
    thumbnail_folder: Path = field(default_factory=_cache_folder)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("max_") and value < 1:
                raise ConfigError(f"{name} {value}: it must be 1 or more.")
            if name.endswith("_seconds") and not (0 < value < math.inf):
                raise ConfigError(f"{name} {value}: give a number of seconds, more than 0.")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port {self.port}: a port is between 0 and 65535.")
        if self.thumbnail_megabytes < 0:
            raise ConfigError(f"thumbnail_megabytes {self.thumbnail_megabytes}: it must be 0 or more.")
        if not self.host:
            raise ConfigError("host is empty: give 127.0.0.1 for this machine alone, or 0.0.0.0 for all networks.")
        if any(not "!" <= character <= "~" for character in self.token):
            raise ConfigError(
                "The token has characters that no header can hold. Use ASCII letters, digits and punctuation."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"
