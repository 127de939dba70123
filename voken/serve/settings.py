"""Settings of a server: where it listens, who may change the collection, and how much it accepts at once."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from voken.config import user_cache
from voken.errors import ConfigError


@dataclass(frozen=True)
class ServeSettings:
    """The settings of a server. Impossible values raise `ConfigError`."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0 for any free port."""
    hosts: tuple[str, ...] = ()
    """Other names of the server, needed behind a proxy or if other machines can reach it."""
    token: str = field(default="", repr=False)
    """Clients that send it may add and remove pictures. If it is empty, nobody may."""
    max_queue: int = 256
    """The number of queries that may wait."""
    max_body: int = 32 << 20
    """Bytes per request."""
    max_query_characters: int = 2_000
    max_queries: int = 64
    """Per request."""
    max_k: int = 200
    max_filters: int = 16
    max_files: int = 100
    """Per upload."""
    max_page: int = 500
    """Pictures, or folders, per page of a list."""
    max_export: int = 500
    """Files per archive."""
    max_export_bytes: int = 1 << 30
    """Bytes of the files in an archive, all together."""
    max_listed_ids: int = 10_000
    """Paths per exported list."""
    max_pixels: int = 50_000_000
    """Per uploaded picture, and per picture that is searched with."""
    max_forms: int = 32
    """Uploads at the same time, and as many searches by picture. Their files are temporary files."""
    max_pictures_waiting: int = 256
    """Thumbnails, uploads and searches by picture that may wait for a thread."""
    max_connections: int = 512
    """At the same time. If there are more, the oldest without the token is closed."""
    max_open_bytes: int = 64 << 20
    """Of the bodies that are arriving without the token, all together; files are on disk and do not count."""
    body_seconds: float = 120.0
    """The time in which the body of a request with the token must arrive."""
    open_body_seconds: float = 60.0
    """The time in which the body of any other request must arrive."""
    wrong_token_seconds: float = 1.0
    """The time after which a wrong token is answered."""
    grace_seconds: float = 20.0
    """The time to answer accepted requests after the server was stopped."""
    strip_location: bool = False
    """Whether pictures are sent without the place, the time and whatever else their files tell beside the pixels, and
    their metadata without the fields that say where they were taken. `Collection.open` must get the same value."""
    follow_links: bool = False
    """Whether pictures are sent whose files are links that lead out of the folder of the pictures."""
    thumbnail_megabytes: int = 512
    """The size of the thumbnail cache on disk; the least recently used thumbnails are deleted first."""
    thumbnail_folder: Path = field(default_factory=partial(user_cache, "thumbnails"))

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("max_") and value < 1:
                raise ConfigError(f"{name} is {value}. It must be 1 or more.")
            if name.endswith("_seconds") and not (0 < value < math.inf):
                raise ConfigError(f"{name} is {value}. It must be a number of seconds above 0.")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}. It must be between 0 and 65535.")
        if self.thumbnail_megabytes < 0:
            raise ConfigError(f"thumbnail_megabytes is {self.thumbnail_megabytes}. It must be 0 or more.")
        if not self.host:
            raise ConfigError("host is empty. Use 127.0.0.1 for this machine alone, or 0.0.0.0 for all networks.")
        if any(not "!" <= character <= "~" for character in self.token):
            raise ConfigError(
                "The token has characters that a header cannot hold. Use ASCII letters, digits and punctuation."
            )

    def has_token(self, authorization: str) -> bool:
        """Whether a header `Authorization` holds the server's token. Takes as long for a token that is nearly right."""
        scheme, _, given = authorization.partition(" ")
        right = secrets.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        return bool(self.token) and scheme.lower() == "bearer" and right

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"
