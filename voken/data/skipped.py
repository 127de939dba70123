"""Reports of pictures that could not be used. This module is separate so that it can be imported without Pillow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CANNOT_READ = "cannot be read"
CANNOT_LIST = "cannot be listed"
OVER_LIMIT = "pixels, over the limit of"
INSTALL = "To read it: pip install"


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why."""

    path: str
    reason: str

    @property
    def may_pass(self) -> bool:
        """Whether the reason is not the file's content, so that the same file may be usable later."""
        return self.reason.startswith((CANNOT_READ, CANNOT_LIST)) or INSTALL in self.reason

    def is_within(self, max_pixels: int) -> bool:
        """False if the picture was refused by another limit than `max_pixels`."""
        return OVER_LIMIT not in self.reason or self.reason.endswith(f" {max_pixels:,}")


def by_reason(skipped: Iterable[Skipped]) -> dict[str, list[Skipped]]:
    """What was left out, by reason, the commonest reason first."""
    groups: dict[str, list[Skipped]] = {}
    for file in skipped:
        groups.setdefault(file.reason, []).append(file)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))
