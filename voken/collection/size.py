"""What a collection takes, part by part."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CollectionSize:
    """Bytes of the arrays of a collection, in memory or in its files; file headers are not counted."""

    pictures: int
    trie_levels: int
    """The voken sequences: nodes of every level and where their children start."""
    picture_numbers: int
    """Which pictures each sequence has."""
    ids: int
    """0 where ids are the picture numbers."""
    paths: int
    """0 where paths are the ids."""
    vectors: int
    """0 where they are not stored."""
    files: int = 0
    """Size, time and hash of each file: what tells whether it changed."""
    metadata: int = 0

    @property
    def index(self) -> int:
        """What a search reads: trie, picture numbers and vectors."""
        return self.trie_levels + self.picture_numbers + self.vectors

    @property
    def total(self) -> int:
        """All parts."""
        return self.index + self.ids + self.paths + self.files + self.metadata
