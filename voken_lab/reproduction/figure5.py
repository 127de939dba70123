"""Figure 5 of the paper: pairs of the pool's pictures, grouped by how much of their sequences they share.

A rule chooses the pairs, so that nobody can pick those that look best.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voken.metrics import shared_vokens
from voken.shapes import Bool, Int
from voken_lab.reproduction.results import NO_VALUE, markdown_table

_MAX_PICTURES = 2000
_MAX_OVERLAPS = 2000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PairGroup:
    """The pairs that share the same number of vokens: how many there are, and the few that are shown."""

    shared: int
    """Number of equal vokens that both sequences begin with."""
    total: int
    shown: tuple[tuple[int, int], ...]
    """Pairs of rows, in the order of the hashes of the pictures' ids; no picture twice."""
    overlap: float | None
    """The words that the captions of both pictures have, as a share of the words that either's have. It is the mean
    over all pairs of the group, or over a sample of 2,000; None without pairs."""


def measure(pictures: Sequence[Mapping[str, Any]], track: str) -> dict[str, Any]:
    """The figure as JSON. `pictures` is a cell's sequences.json; a pair holds what is shown of two of them."""
    groups = pair_groups_of(pictures)
    shown = [
        [[{name: pictures[row][name] for name in ("id", "captions", "vokens")} for row in pair] for pair in group.shown]
        for group in groups
    ]
    return {
        "figure": "figure5",
        "title": "Figure 5. What vokens say",
        "track": track,
        "groups": [asdict(group) | {"shown": pairs} for group, pairs in zip(groups, shown, strict=True)],
    }


def as_markdown(figure: dict[str, Any]) -> str:
    """The figure as a Markdown table, one row per group: what the sequences share, and how similar the captions are."""
    heads = ["equal vokens at the start", "pairs", "overlap of the captions' words", "first pair"]
    rows = []
    for group in figure["groups"]:
        overlap = NO_VALUE if group["overlap"] is None else f"{100 * group['overlap']:.1f} %"
        pair = [" / ".join(picture["captions"][:1]) for picture in group["shown"][0]] if group["shown"] else []
        shared = "none, at any level" if group["shared"] == 0 else f"{group['shared']:,}"
        rows.append([shared, f"{group['total']:,}", overlap, "; ".join(pair) or NO_VALUE])
    note = "Pictures of the pool and their sequences in AVG, first seed; pairs in the order of the hashes of their ids."
    return "\n".join([f"**{figure['title']}** — {figure['track']}", "", *markdown_table(heads, rows), "", note])


def pair_groups_of(pictures: Sequence[Mapping[str, Any]]) -> tuple[PairGroup, ...]:
    """`pair_groups` of the pictures in a cell's sequences.json."""
    vokens = np.array([picture["vokens"] for picture in pictures], dtype=np.int64)
    return pair_groups([str(picture["id"]) for picture in pictures], [p["captions"] for p in pictures], vokens)


def pair_groups(
    ids: Sequence[str], captions: Sequence[Sequence[str]], vokens: Int[np.ndarray, "pictures M"], *, count: int = 4
) -> tuple[PairGroup, ...]:
    """Four groups of pairs, by what the two sequences share.

    They have no equal voken at any level; only the first voken in common; the longest common start of two different
    sequences (all but the last voken, if there is such a pair); or they are equal. Equal groups appear once.

    In a large pool only the first 2,000 pictures by the hash of their ids are compared. The pairs that are shown depend
    on ids and vokens only, not on pictures or captions.
    """
    order = sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row].encode()).hexdigest())[:_MAX_PICTURES]
    equal_levels, shared = shared_vokens(vokens[order])
    levels = vokens.shape[1]
    words = [frozenset(_WORD.findall(" ".join(captions[row]).casefold())) for row in order]

    def group(length: int, members: Bool[np.ndarray, "pictures pictures"]) -> PairGroup:
        # Pairs come in the order of their later picture by the hash.
        later, earlier = np.nonzero(np.tril(members, -1))
        used: set[int] = set()
        shown: list[tuple[int, int]] = []
        for first, second in zip(earlier.tolist(), later.tolist(), strict=True):
            if len(shown) == count:
                break
            if first not in used and second not in used:
                used |= {first, second}
                shown.append((order[first], order[second]))
        sample = np.arange(len(later))
        if len(sample) > _MAX_OVERLAPS:
            sample = np.random.default_rng(0).choice(len(later), _MAX_OVERLAPS, replace=False)
        overlaps = [_overlap(words[earlier[place]], words[later[place]]) for place in sample.tolist()]
        return PairGroup(length, len(later), tuple(shown), float(np.mean(overlaps)) if overlaps else None)

    longest = int(shared[shared < levels].max(initial=0))
    lengths = sorted({1, longest, levels} - {0})
    return (group(0, equal_levels == 0), *(group(length, shared == length) for length in lengths))


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / max(len(first | second), 1)
