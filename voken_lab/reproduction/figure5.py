"""Figure 5 of the paper: pairs of a pool's pictures by how much of their sequences they share, chosen by nobody."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voken.shapes import Bool, Int
from voken_lab.evaluation.shared_vokens import shared_vokens
from voken_lab.reproduction.tables import markdown_row

_CONSIDERED = 2000
_READ = 2000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PairGroup:
    """All pairs that share as much, and the few of them to show."""

    shared: int
    """Vokens that both begin with."""
    total: int
    shown: tuple[tuple[int, int], ...]
    """By row. Pictures come by the hash of their ids, and none twice."""
    overlap: float | None
    """Words that the captions of both hold, as a share of those that either holds; the mean over (a sample of) all
    pairs of the group, shown or not. None without pairs."""


def measure(pictures: Sequence[Mapping[str, Any]], track: str) -> dict[str, Any]:
    """The groups as JSON; a pair is the ids, captions and vokens of two. `pictures`: a cell's sequences.json."""
    groups = pairs_of(pictures)
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


def as_markdown(found: dict[str, Any]) -> str:
    """A line a group: what its sequences share, and how alike the captions are."""
    lines = [f"**{found['title']}** — {found['track']}", ""]
    heads = ["vokens that both begin with", "pairs", "overlap of the captions' words", "first pair"]
    lines += [markdown_row(heads), markdown_row(["---:", "---:", "---:", "---"])]
    for group in found["groups"]:
        overlap = "–" if group["overlap"] is None else f"{100 * group['overlap']:.1f} %"
        pair = [" / ".join(picture["captions"][:1]) for picture in group["shown"][0]] if group["shown"] else []
        shared = "none, at any level" if group["shared"] == 0 else f"{group['shared']:,}"
        lines.append(markdown_row([shared, f"{group['total']:,}", overlap, "; ".join(pair) or "–"]))
    return "\n".join([*lines, "", "Pictures of the pool, AVG, the first seed; pairs by the hash of their ids."])


def pairs_of(pictures: Sequence[Mapping[str, Any]]) -> tuple[PairGroup, ...]:
    """`pairs_by_vokens` of what a cell's sequences.json holds."""
    vokens = np.array([picture["vokens"] for picture in pictures], dtype=np.int64)
    return pairs_by_vokens(
        [str(picture["id"]) for picture in pictures], [picture["captions"] for picture in pictures], vokens
    )


def pairs_by_vokens(
    ids: Sequence[str], captions: Sequence[Sequence[str]], vokens: Int[np.ndarray, "pictures M"], *, count: int = 4
) -> tuple[PairGroup, ...]:
    """Groups: no voken alike at any level; the first alike and not the second; the longest beginning that two different
    sequences share, all but the last voken where there is such a pair; all.

    Groups that are one and the same stand once. Of a large pool the first 2,000 pictures by the hash of their ids are
    compared. Which pairs are shown depends on ids and vokens alone, not on the pictures or captions.
    """
    order = sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row].encode()).hexdigest())[:_CONSIDERED]
    alike, shared = shared_vokens(vokens[order])
    levels = vokens.shape[1]
    words = [frozenset(_WORD.findall(" ".join(captions[row]).casefold())) for row in order]

    def group(length: int, members: Bool[np.ndarray, "pictures pictures"]) -> PairGroup:
        # column before row: the pair whose later picture comes first by the hash
        later, earlier = np.nonzero(np.tril(members, -1))
        taken: set[int] = set()
        shown: list[tuple[int, int]] = []
        for one, other in zip(earlier.tolist(), later.tolist(), strict=True):
            if len(shown) == count:
                break
            if one not in taken and other not in taken:
                taken |= {one, other}
                shown.append((order[one], order[other]))
        read = np.arange(len(later))
        if len(read) > _READ:
            read = np.random.default_rng(0).choice(len(later), _READ, replace=False)
        overlaps = [_overlap(words[earlier[place]], words[later[place]]) for place in read.tolist()]
        return PairGroup(length, len(later), tuple(shown), float(np.mean(overlaps)) if overlaps else None)

    longest = int(shared[shared < levels].max(initial=0))
    lengths = sorted({1, longest, levels} - {0})
    return (group(0, alike == 0), *(group(length, shared == length) for length in lengths))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)
