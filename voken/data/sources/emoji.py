"""Emoji as a data set: each concept is drawn by several vendors, and has names and keywords that people wrote.

Pictures are the SVGs of redistributable emoji sets (npm, one small package per set). Captions are the CLDR label, the
Unicode name, the short names of several services, and the keywords of CLDR (npm `emojibase-data`) and `emojilib`. The
keywords are captions as lists, and single keywords are captions if few emoji share them. No text is generated from a
template. Skin tones are left out. Emoji that differ only by gender, direction or hour are one *family*, and a split
never separates a family. Results on emoji say nothing about photographs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voken.data.captions import CaptionedImage, Dataset, write_dataset
from voken.data.skipped import Skipped
from voken.data.sources import npm
from voken.data.sources.iconset import Drawing, IconSet, draw, read_icon_set
from voken.data.splits import resplit
from voken.errors import ConfigError, DataError
from voken.progress import Progress, no_progress

EMOJIBASE = ("emojibase-data", "17.0.0")
EMOJILIB = ("emojilib", "4.0.3")

VENDORS: Mapping[str, str] = {
    "noto": "1.2.9",
    "fluent-emoji-flat": "1.2.6",
    "twemoji": "1.2.5",
    "noto-v1": "1.2.5",
    "emojione": "1.2.3",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione-monotone": "1.2.1",
    "fxemoji": "1.2.2",
    "fluent-emoji": "1.2.7",
}
"""The vendors whose licences allow renders to be redistributed (Apache-2.0, MIT, CC-BY-4.0): versions of packages."""

DEMO_VENDORS = ("noto", "fluent-emoji-flat")
"""The vendors of the demo: a few megabytes together, under Apache-2.0 and MIT."""

_SHORTCODES = ("cldr", "emojibase", "github", "joypixels", "iamcal")
_FLAGS, _COMPONENTS = 9, 2
_KEYWORDS = 6
_RARE, _RARE_KEYWORDS = 3, 4
_GENDERED = frozenset(
    ["man", "men", "woman", "women", "person", "people", "boy", "girl", "boys", "girls", "adult", "child"]
)
_ONE_FAMILY = {
    "mrs claus": "santa claus",
    "mx claus": "santa claus",
    "prince": "royalty",
    "princess": "royalty",
    "person with crown": "royalty",
    "merman": "merperson",
    "mermaid": "merperson",
    "old": "older",
}


@dataclass(frozen=True)
class _Emoji:
    code: str
    concept: str
    family: str
    captions: tuple[str, ...]


def build(
    destination: Path,
    *,
    seed: int = 0,
    size: int = 128,
    vendors: Sequence[str] = tuple(VENDORS),
    flags: bool = False,
    validation_concepts: int = 200,
    test_concepts: int = 400,
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress = no_progress,
) -> Dataset:
    """Draw the emoji into `destination/images` and describe them in `destination/metadata.jsonl`.

    `size` is the side in pixels; `folder` stores the npm tarballs (default: the user's cache). `test_concepts`
    and `validation_concepts` are numbers of concepts, with the drawings of all vendors; the others are in train. An
    interrupted run continues where it was. `read_dataset(destination)` reads the result. Drawings that the renderer
    refused, blank pictures and exact repeats are in `skipped` of the returned data set. Raises DataError if npm or a
    package fails.
    """
    unknown = [vendor for vendor in vendors if vendor not in VENDORS]
    if unknown or not vendors:
        raise ConfigError(f"unknown emoji vendors {unknown}; choose among {', '.join(VENDORS)}")
    emoji, unicode_names = _read_emoji(folder, flags=flags)
    sets = []
    for count, vendor in enumerate(vendors):
        progress("fetch emoji", count, len(vendors))
        sets.append(read_icon_set(f"@iconify-json/{vendor}", VENDORS[vendor], folder))
    codes = _name_codes(emoji, sets, unicode_names)
    root = Path(destination).absolute()
    drawings: list[Drawing] = []
    sources: list[tuple[_Emoji, IconSet]] = []
    for icon_set in sets:
        names = _icons_by_code(icon_set, codes)
        (root / "images" / icon_set.prefix).mkdir(parents=True, exist_ok=True)
        for character in emoji:
            svg = icon_set.svg(names[character.code], size) if character.code in names else None
            if svg is not None:
                drawings.append(Drawing(svg, root / "images" / icon_set.prefix / f"{character.code}-{size}.png"))
                sources.append((character, icon_set))
    images: list[CaptionedImage] = []
    skipped: list[Skipped] = []
    seen: set[tuple[str, str]] = set()
    results = zip(sources, draw(drawings, workers=workers), strict=True)
    for count, ((drawn_emoji, icon_set), drawn) in enumerate(results, start=1):
        progress("draw emoji", count, len(drawings))
        file_name = drawn.path.relative_to(root).as_posix()
        reason = drawn.reason or ("near blank" if drawn.blank else "")
        # a picture that another vendor has drawn in the same way is left out
        if not reason and (drawn_emoji.concept, drawn.digest) in seen:
            reason = "exact repeat"
        if reason:
            skipped.append(Skipped(file_name, reason))
            continue
        seen.add((drawn_emoji.concept, drawn.digest))
        images.append(
            CaptionedImage(
                image_id=file_name,
                path=drawn.path,
                captions=drawn_emoji.captions,
                concept=drawn_emoji.concept,
                licence=icon_set.licence,
                family=drawn_emoji.family,
                vendor=icon_set.prefix,
            )
        )
    dataset = Dataset(root.name, root, tuple(images))
    split = resplit(dataset, seed=seed, test_concepts=test_concepts, validation_concepts=validation_concepts)
    return replace(write_dataset(root, root.name, split.images), skipped=tuple(skipped))


def family_of(label: str) -> str:
    """The family of a CLDR label: the label without gender, direction and hour.

    >>> family_of("woman farmer"), family_of("man walking: facing right"), family_of("kiss: man, man")
    ('farmer', 'walking', 'kiss')
    """
    lowered = label.lower().replace(".", "").replace("’", "'")
    if re.search(r"\b(o'clock|thirty)\b", lowered):
        return "clock time"
    head, colon, tail = lowered.partition(":")
    if colon and (head in {"family", "kiss", "couple with heart", "keycap", "flag"} or tail.startswith(" facing")):
        lowered = head
    lowered = _ONE_FAMILY.get(lowered, lowered)
    words = [word for word in re.findall(r"[\w'-]+", lowered) if word not in _GENDERED]
    family = " ".join(words) or "person"
    return _ONE_FAMILY.get(family, family)


def _read_emoji(folder: Path | None, *, flags: bool) -> tuple[list[_Emoji], dict[str, str]]:
    base = npm.fetch(*EMOJIBASE, folder)
    files = {"en/data.json", "meta/unicode-names.json", *(f"en/shortcodes/{name}.json" for name in _SHORTCODES)}
    parts = dict(npm.members(base, lambda name: name in files))
    lib = npm.fetch(*EMOJILIB, folder)
    try:
        data = json.loads(parts["en/data.json"])
        short = [json.loads(parts.get(f"en/shortcodes/{name}.json", b"{}")) for name in _SHORTCODES]
        unicode_names = json.loads(parts.get("meta/unicode-names.json", b"{}"))
        keywords = {
            _code("-".join(f"{ord(character):x}" for character in emoji)): words
            for emoji, words in json.loads(npm.read_member(lib, "dist/emoji-en-US.json")).items()
        }
        names = {_code(code): name for code, name in unicode_names.items() if isinstance(name, str)}
        records = {
            _code(record["hexcode"]): record
            for record in data
            if record.get("group") not in ({None, _COMPONENTS} if flags else {None, _COMPONENTS, _FLAGS})
        }
        lists = {
            code: (_words(record.get("tags", [])), _words(keywords.get(code, [])[1:]))
            for code, record in records.items()
        }
        counts = Counter(word for tags, others in lists.values() for word in {*tags, *others})
        emoji = []
        for code, record in records.items():
            short_names = [name for table in short for name in _listed(table.get(record["hexcode"], []))]
            phrases = [record["label"], names.get(code, "").lower(), *short_names]
            captions = _captions(phrases, lists[code], counts)
            emoji.append(_Emoji(code, record["label"], family_of(record["label"]), captions))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{base} or {lib}: not the expected emoji data ({error!r})") from error
    return emoji, names


def _words(keywords: Iterable[str]) -> list[str]:
    spaced = (word.replace("_", " ").strip() for word in keywords)
    return [word for word in spaced if re.search(r"[a-z]{2}", word.lower())]


def _captions(
    phrases: Iterable[str], lists: tuple[Sequence[str], Sequence[str]], counts: Mapping[str, int]
) -> tuple[str, ...]:
    """The names, the keywords that few emoji share, and the two lists of keywords, without repeats."""
    phrases = [re.sub(r"[_-]+", " ", phrase).strip() for phrase in phrases]
    rare = [word for words in lists for word in words if counts[word] <= _RARE][:_RARE_KEYWORDS]
    joined = [", ".join(words[:_KEYWORDS]) for words in lists]
    captions: dict[str, str] = {}
    for phrase in [*phrases, *rare, *joined]:
        key = " ".join(re.findall(r"\w+", phrase.casefold()))
        if re.search(r"[a-z]{2}", key):
            captions.setdefault(key, phrase)
    return tuple(captions.values())


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _code(hexcode: str) -> str:
    """The code in lower case, without the variation selector, which only half of the sources write."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _name_codes(emoji: Sequence[_Emoji], sets: Iterable[IconSet], unicode_names: Mapping[str, str]) -> dict[str, str]:
    """The code of each emoji by its squashed name, for sets that list their icons by name and not by code point."""
    all_codes = {character.code for character in emoji}
    codes: dict[str, str] = {}
    for character in emoji:
        codes.setdefault(_squashed(character.concept), character.code)
    for icon_set in sets:
        by_name = {name: _code(code) for code, name in icon_set.chars.items() if _code(code) in all_codes}
        for name, code in by_name.items():
            codes.setdefault(_squashed(name), code)
        for alias, parent in icon_set.aliases.items():
            if parent in by_name:
                codes.setdefault(_squashed(alias), by_name[parent])
    for code, name in unicode_names.items():
        if code in all_codes:
            codes.setdefault(_squashed(name), code)
    return codes


def _icons_by_code(icon_set: IconSet, codes: Mapping[str, str]) -> dict[str, str]:
    if icon_set.chars:
        return {_code(code): name for code, name in icon_set.chars.items()}
    names: dict[str, str] = {}
    for name in [*icon_set.names, *icon_set.aliases]:
        code = codes.get(_squashed(name))
        if code is not None:
            names.setdefault(code, name)
    return names
