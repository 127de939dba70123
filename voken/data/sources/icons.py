"""Icons as data sets: tagged icons for quality, all icons for scale.

`build` draws tagged icons. People wrote the names, other names and tags of their concepts (npm `lucide-static`,
`@mdi/svg`, `@tabler/icons`). Each concept is drawn by several vendors: by those sets, and by the other redistributable
sets of `@iconify/json` that have an icon of that name. No text is generated from a template. A tag that many icons
share describes none of them, and occurs only in the list of keywords.

`build_all` draws every icon of every redistributable set, for measurements at scale. Its only caption is its name.

All icons are black on white. Results on them say nothing about photographs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from voken.data.captions import CaptionedImage, Dataset, write_dataset
from voken.data.skipped import Skipped
from voken.data.sources import npm
from voken.data.sources.iconset import Drawing, IconSet, draw, parse_icon_set
from voken.data.splits import resplit
from voken.errors import DataError
from voken.progress import Progress, no_progress

ICONIFY = ("@iconify/json", "2.2.535")
LUCIDE = ("lucide-static", "1.62.0")
MDI = ("@mdi/svg", "7.4.47")
TABLER = ("@tabler/icons", "3.51.0")

LICENCES = frozenset(
    {"Apache-2.0", "MIT", "ISC", "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "Unlicense", "BSD-3-Clause", "0BSD"}
)
"""Licences that allow renders to be redistributed, also commercially."""

MIN_TEXTS = 3
"""A concept with fewer texts is left out."""

_NOT_ICONS = frozenset({"Logos", "Emoji"})
_TAGGED_SETS = ("lucide", "mdi", "tabler")
_RARE = 5
_MAX_TEXTS = 12
_KEYWORDS = 5


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


_STYLES = frozenset(
    _words("""
    alt baseline bold broken bulk duo duotone fill filled light line linear mini outline outlined regular round
    rounded sharp small solid thin tone twotone two variant
    """)
)
# words that icon sets add to the name of a thing: "account plus", "account off"
_BADGES = frozenset(
    _words("""
    off on plus minus check checked x cancel remove alert edit cog lock unlock search question exclamation pause
    play stop star heart up down left right top bottom multiple circle box square badge outline dollar bolt code pin
    share refresh sync clock key marker info warning settings add close slash disabled open rounded
    """)
)


@dataclass
class _Concept:
    name: str
    others: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    family: str = ""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Icon:
    concept: str
    prefix: str
    name: str
    svg: str
    licence: str


def build(
    destination: Path,
    *,
    seed: int = 0,
    size: int = 64,
    per_concept: int = 8,
    max_pictures: int = 40_000,
    validation_concepts: int = 500,
    test_concepts: int = 1_000,
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress = no_progress,
) -> Dataset:
    """Draw the tagged icons into `destination/images` and describe them in `destination/metadata.jsonl`.

    There are at most `per_concept` pictures per concept, chosen by `seed`, those of different vendors first, and at
    most `max_pictures` in all. The other arguments, the result and the errors are those of `emoji.build`.
    """
    concepts = _read_concepts(folder)
    tarball = npm.fetch(*ICONIFY, folder)
    candidates: dict[str, list[_Icon]] = {}
    for icon_set in _sets(tarball, progress):
        for name in icon_set.names:
            concept = _concept_of(name, concepts)
            svg = icon_set.svg(name, size) if concept else None
            if concept and svg is not None and _drawable(name, svg):
                icon = _Icon(concept, icon_set.prefix, name, svg, icon_set.licence)
                candidates.setdefault(concept, []).append(icon)
    ranked = [(rank, icon) for group in candidates.values() for rank, icon in enumerate(_by_vendors(group, seed))]
    chosen = [icon for rank, icon in sorted(ranked, key=lambda pair: pair[0]) if rank < per_concept][:max_pictures]
    images, skipped = _draw_all(Path(destination), chosen, size, workers, progress)
    described = tuple(
        replace(image, captions=concepts[image.concept].captions, family=concepts[image.concept].family)
        for image in images
    )
    root = Path(destination).absolute()
    drawn = Dataset(root.name, root, tuple(sorted(described, key=lambda image: (image.concept, image.image_id))))
    split = resplit(drawn, seed=seed, test_concepts=test_concepts, validation_concepts=validation_concepts)
    return replace(write_dataset(root, root.name, split.images), skipped=tuple(skipped))


def build_all(
    destination: Path,
    *,
    seed: int = 0,
    size: int = 64,
    limit: int | None = None,
    every_licence: bool = False,
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress = no_progress,
) -> Dataset:
    """Draw every icon of every redistributable set, or `limit` of them, chosen by `seed`: the data set for scale.

    The only caption of a picture is its name in words. Pictures with the same name are one concept. All pictures are in
    the split "test", because nothing is trained on them. Some 270,000 pictures of 64 pixels are drawn in about 20
    minutes on one core. With `every_licence` all sets are drawn, also emoji, logos and sets in colour, whatever their
    licence: some 370,000 pictures for local measurements, which may not be redistributed. The other arguments, the
    result and the errors are those of `emoji.build`.
    """
    tarball = npm.fetch(*ICONIFY, folder)
    candidates = [
        _Icon(words, icon_set.prefix, name, svg, icon_set.licence)
        for icon_set in _sets(tarball, progress, every_licence=every_licence)
        for name in icon_set.names
        if (words := _plain_name(name))
        and (svg := icon_set.svg(name, size)) is not None
        and _drawable(name, svg)
        and (every_licence or not name.startswith("brand-"))
    ]
    if limit is not None:
        candidates = sorted(candidates, key=lambda icon: _draw_key(seed, icon))[:limit]
    images, skipped = _draw_all(Path(destination), candidates, size, workers, progress)
    root = Path(destination).absolute()
    named = [replace(image, captions=(image.concept,), split="test") for image in images]
    return replace(write_dataset(root, root.name, named), skipped=tuple(skipped))


def _sets(tarball: Path, progress: Progress, *, every_licence: bool = False) -> Iterator[IconSet]:
    """Yield the redistributable sets in one colour, one at a time, because all sets together would fill the memory."""
    for number, (name, content) in enumerate(npm.members(tarball, lambda name: name.startswith("json/"))):
        progress("read icon sets", number + 1, 0)
        # the few very large sets are pictures in colour, not icons
        if len(content) > 60_000_000:
            continue
        icon_set = parse_icon_set(content, f"{tarball}: {name}")
        if every_licence:
            yield icon_set
        elif icon_set.licence in LICENCES and not icon_set.palette and icon_set.category not in _NOT_ICONS:
            if "brands" in icon_set.prefix:
                continue
            yield icon_set


def _drawable(name: str, svg: str) -> bool:
    """Whether an icon is not animated, because the first frame is often empty, and its name is a good file name."""
    return "<animate" not in svg and re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) is not None


def _draw_key(seed: int, icon: _Icon) -> bytes:
    return blake2b(f"{seed}:{icon.prefix}:{icon.name}".encode(), digest_size=8).digest()


def _by_vendors(group: Iterable[_Icon], seed: int) -> list[_Icon]:
    """Order icons: one of every set before a second of any, those of tagged sets first, and else at random."""
    counts: Counter[str] = Counter()
    turns: list[tuple[int, bool, bytes, _Icon]] = []
    for icon in sorted(group, key=lambda icon: _draw_key(seed, icon)):
        turns.append((counts[icon.prefix], icon.prefix not in _TAGGED_SETS, _draw_key(seed, icon), icon))
        counts[icon.prefix] += 1
    return [icon for *_, icon in sorted(turns, key=lambda turn: turn[:3])]


def _draw_all(
    destination: Path, chosen: Sequence[_Icon], size: int, workers: int, progress: Progress
) -> tuple[list[CaptionedImage], list[Skipped]]:
    root = destination.absolute()
    folders = {icon.prefix: root / "images" / icon.prefix for icon in chosen}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    drawings = [Drawing(icon.svg, folders[icon.prefix] / f"{icon.name}-{size}.png", grey=True) for icon in chosen]
    images: list[CaptionedImage] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    results = zip(chosen, draw(drawings, workers=workers), strict=True)
    for count, (icon, drawn) in enumerate(results, start=1):
        progress("draw icons", count, len(chosen))
        file_name = drawn.path.relative_to(root).as_posix()
        reason = drawn.reason or ("near blank" if drawn.blank else "")
        if not reason and drawn.digest in seen:
            reason = "exact repeat"
        if reason:
            skipped.append(Skipped(file_name, reason))
            continue
        seen.add(drawn.digest)
        images.append(
            CaptionedImage(file_name, drawn.path, concept=icon.concept, licence=icon.licence, vendor=icon.prefix)
        )
    return images, skipped


def _is_style(word: str) -> bool:
    return word in _STYLES or re.fullmatch(r"\d+(px)?", word) is not None


def _plain_name(name: str) -> str:
    """The name in words, without the style and the number at its end.

    >>> _plain_name("arrow-left-2-filled")
    'arrow left'
    """
    words = _words(name)
    while len(words) > 1 and _is_style(words[-1]):
        words.pop()
    return " ".join(words)


def _concept_of(name: str, concepts: dict[str, _Concept]) -> str:
    """The tagged concept that an icon shows: its name, without styles if necessary. "" if there is no such concept."""
    words = _words(name)
    for start in range(len(words)):
        for end in range(len(words), start, -1):
            if " ".join(words[start:end]) in concepts:
                return " ".join(words[start:end])
            if not _is_style(words[end - 1]):
                break
        if not _is_style(words[start]):
            break
    return ""


def family_of(concept: str) -> str:
    """A concept's family: its name without badges. `account plus` and `account off` are of the family `account`."""
    words = concept.split()
    while len(words) > 1 and words[-1] in _BADGES:
        words.pop()
    while len(words) > 1 and words[0] in {"badge", "circle", "square"}:
        words.pop(0)
    return " ".join(words)


def _read_concepts(folder: Path | None) -> dict[str, _Concept]:
    lucide, mdi, tabler = (npm.fetch(*package, folder) for package in (LUCIDE, MDI, TABLER))
    concepts: dict[str, _Concept] = {}
    brands: set[str] = set()

    def add(name: str, others: Iterable[str], tags: Iterable[str], brand: bool) -> None:
        concept = _concept_name(name)
        if brand:
            brands.add(concept)
        described = concepts.setdefault(concept, _Concept(concept))
        described.others += [_concept_name(other) for other in others]
        described.tags += [" ".join(_words(str(tag))) for tag in tags]

    try:
        for name, tags in json.loads(npm.read_member(lucide, "tags.json")).items():
            add(name, (), tags, False)
        for record in json.loads(npm.read_member(mdi, "meta.json")):
            brand = bool({"Brand / Logo", "Alpha / Numeric"} & set(record["tags"]))
            add(record["name"], record["aliases"], (), brand)
        for name, record in json.loads(npm.read_member(tabler, "icons.json")).items():
            brand = record["category"] in {"Brand", "Letters", "Numbers"}
            add(name, (), record.get("tags", ()), brand)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{lucide}, {mdi} or {tabler}: not the expected icon data ({error!r})") from error
    usable = {name: concepts[name] for name in concepts if name not in brands and re.search("[a-z]{2}", name)}
    _describe(usable)
    return {name: concept for name, concept in usable.items() if len(concept.captions) >= MIN_TEXTS}


def _concept_name(name: str) -> str:
    words = _words(name)
    while len(words) > 1 and (words[-1] in {"outline", "variant", "filled"} or words[-1].isdigit()):
        words.pop()
    return " ".join(words)


def _describe(concepts: dict[str, _Concept]) -> None:
    """Set the captions and the family of each concept.

    If another name of a concept is itself a concept, it is not a caption, and the two concepts become one family,
    because people confuse them.
    """
    for concept in concepts.values():
        concept.others = [
            text for text in dict.fromkeys(concept.others) if re.search("[a-z]{2}", text) and text != concept.name
        ]
        concept.tags = [
            text for text in dict.fromkeys(concept.tags) if re.search("[a-z]{2}", text) and text != concept.name
        ]
    counts = Counter(text for concept in concepts.values() for text in {*concept.others, *concept.tags})
    for concept in concepts.values():
        names = [text for text in concept.others if counts[text] <= _RARE and text not in concepts]
        single = [text for text in concept.tags if counts[text] <= _RARE and text not in concepts]
        lists = [
            ", ".join(concept.tags[at : at + _KEYWORDS])
            for at in range(0, min(len(concept.tags), 2 * _KEYWORDS), _KEYWORDS)
        ]
        texts = [concept.name, *names, *single][:_MAX_TEXTS]
        concept.captions = tuple(dict.fromkeys([*texts, *(text for text in lists if ", " in text)]))
        concept.family = family_of(concept.name)
    joined = {concept.family: concept.family for concept in concepts.values()}

    def head(family: str) -> str:
        while joined[family] != family:
            family = joined[family]
        return family

    for concept in concepts.values():
        for other in concept.others:
            if other in concepts:
                first, second = sorted((head(concept.family), head(concepts[other].family)))
                joined[second] = first
    for concept in concepts.values():
        concept.family = head(concept.family)
