"""Reports of pictures that could not be used. This module is separate so that it can be imported without Pillow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CANNOT_READ = "cannot be read"
CANNOT_LIST = "cannot be listed"
OVER_LIMIT = "pixels, over the limit of"
INSTALL = "To read it: pip install"
_REASONS_SHOWN = 3


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


def none_usable(skipped: Sequence[Skipped]) -> str:
    """Says that no picture could be used, with the first reasons and what to do."""
    reasons = "; ".join(f"{file.path}: {file.reason}" for file in skipped[:_REASONS_SHOWN])
    more = f"; and {len(skipped) - _REASONS_SHOWN} more" if len(skipped) > _REASONS_SHOWN else ""
    count = (
        f"None of the {len(skipped)} pictures could be used" if len(skipped) > 1 else "The only picture cannot be used"
    )
    return f"{count} ({reasons}{more}). Give pictures that a viewer can open."
