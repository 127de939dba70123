"""A collection's own model: made from its pictures when it is created, without captions and without training.

It is saved in the collection. Its codebooks are fitted on the first pictures, and again when there are twice as many
(see `voken.model.untrained`). No picture is encoded again for that: the new vokens come from the stored vectors, or
from the cache of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from voken import artifact
from voken.collection.indexing import SavedModel
from voken.collection.snapshot import Snapshot
from voken.collection.store import FittedModel, Store
from voken.config import EncoderConfig, from_dict
from voken.data.captions import Dataset
from voken.data.images import MAX_PIXELS
from voken.data.skipped import none_usable
from voken.encoders.cache import picture_vectors
from voken.encoders.interface import Encoder
from voken.encoders.prompts import check_prompt
from voken.errors import ConfigError, CorruptArtifactError, EmptyDataError
from voken.model.compiled import encodes_pictures
from voken.progress import Progress, no_progress
from voken.shapes import Float32

if TYPE_CHECKING:
    from voken.collection.indexing import PictureModel
    from voken.encoders.cache import EncodedFiles, VectorCache
    from voken.encoders.interface import PictureEncoder
    from voken.model.model import Model

_FIRST_FIT = 2_048
"""Pictures that are encoded before the first of them can be searched."""
_PROMPT_PICTURES = 1_000
"""Captioned pictures on which the template of queries is chosen."""
_GROWTH = 2
"""The model is fitted again if there are so many times as many pictures."""


def new_store(
    folder: Path,
    dataset: Dataset,
    encoder: str,
    *,
    cache: VectorCache,
    prompt: str = "",
    captioned: Dataset | None = None,
    vectors: bool = True,
    replace: bool = False,
    max_pixels: int = MAX_PIXELS,
    device: str = "cpu",
    threads: int = 0,
    progress: Progress = no_progress,
) -> tuple[Store, PictureModel, FittedModel]:
    """Create a collection without pictures, with a model of its own for those of `dataset`.

    Encodes up to 2,048 of them, drawn at random, into `cache`. With CLIP or SigLIP, `prompt` is the template of
    queries, or else the best one on the validation pictures of `captioned` (see `voken.encoders.prompts`).

    Raises `EmptyDataError` if no picture can be read or none is captioned, and what
    `voken.encoders.frozen.frozen_encoder` and `Store.create` raise.
    """
    from voken.encoders.checkpoints import auto_encoder
    from voken.encoders.frozen import encoder_settings, frozen_encoder
    from voken.model.untrained import untrained_model

    random = np.random.default_rng(0)
    rows = np.sort(random.permutation(len(dataset.images))[:_FIRST_FIT])
    paths = [dataset.images[row].path for row in rows]
    if encoder == "auto":
        encoder = auto_encoder(progress).name
    settings = with_prompt_setting(encoder_settings(encoder, progress), prompt, captioned is not None)
    frozen = frozen_encoder(settings, device)
    with quick_encoder(frozen, device, threads) as quick:
        if captioned is not None:
            options: dict[str, Any] = {"cache": cache, "max_pixels": max_pixels, "workers": threads}
            encode = partial(picture_vectors, quick, progress=progress, **options)
            template = choose_prompt_on(captioned, frozen, encode, progress)
            settings = replace_fields(settings, prompt=template)
        encoded = picture_vectors(quick, paths, cache=cache, max_pixels=max_pixels, workers=threads, progress=progress)
    if not len(encoded.rows):
        raise EmptyDataError(f"{dataset.root}: {none_usable(encoded.skipped)}")
    model = untrained_model(frozen, settings, encoded.vectors, progress=progress)
    fingerprints: list[str] = []

    def save(path: Path) -> str:
        fingerprints.append(model.save(path).fingerprint)
        return fingerprints[0]

    store = Store.create(
        folder,
        root=dataset.root,
        fingerprint="",
        tokenizer=model.tokenizer,
        vectors=model.tokenizer.dim if vectors else 0,
        replace=replace,
        own_model=save,
        fitted=len(encoded.vectors),
    )
    saved = SavedModel(store.snapshot().find_model(), device, threads)
    use_graphs = device == "cpu" and encodes_pictures(saved.folder)
    known = saved if use_graphs else replace_fields(model, fingerprint=fingerprints[0])
    return store, known, _description(model, len(encoded.vectors))


def with_prompt_setting(settings: EncoderConfig, prompt: str, is_chosen: bool = False) -> EncoderConfig:
    """`settings` with the words around queries. Raises `ConfigError` for an encoder without a prompt."""
    if not prompt and not is_chosen:
        return settings
    if settings.family not in ("clip", "siglip"):
        raise ConfigError("--prompt: only CLIP and SigLIP read queries in a template. Leave it out, or give --encoder.")
    return replace_fields(settings, prompt="auto" if is_chosen else check_prompt(prompt))


def choose_prompt_on(
    captioned: Dataset, encoder: Encoder, encode: Callable[[list[Path]], EncodedFiles], progress: Progress
) -> str:
    """Choose the template of an encoder's queries on the validation pictures of a captioned data set, or on all that
    are not for testing if it has no validation split. At most a thousand are read, with one caption each."""
    from voken.encoders.clip import HubEncoder
    from voken.encoders.prompts import PROMPTS, choose_prompt

    assert isinstance(encoder, HubEncoder)
    splits = {image.split for image in captioned.images}
    wanted = {"validation"} if "validation" in splits else splits - {"test"}
    images = [image for image in captioned.images if image.split in wanted and image.captions]
    drawn = np.sort(np.random.default_rng(0).permutation(len(images))[:_PROMPT_PICTURES])
    images = [images[row] for row in drawn]
    encoded = encode([image.path for image in images])
    images = [images[row] for row in encoded.rows]
    if not images:
        raise EmptyDataError(
            f"{captioned.root}: no picture that may be used to choose has a caption. Give a data set with captions, or "
            "a template."
        )
    row_of = {caption: row for row, caption in enumerate(dict.fromkeys(image.captions[0] for image in images))}
    concepts: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        concepts.setdefault(image.concept, []).append(row)
    pairs = {(row, row_of[image.captions[0]]) for image in images for row in concepts[image.concept]}
    choice = choose_prompt(
        encoder,
        list(row_of),
        encoded.vectors,
        np.array(sorted(pairs), np.int64),
        lambda done: progress("templates of queries", done, len(PROMPTS)),
    )
    return choice.template


@contextmanager
def quick_encoder(encoder: Encoder, device: str, threads: int) -> Iterator[PictureEncoder]:
    """The quickest way to encode pictures: on a CPU the graph of CLIP or SigLIP, else `encoder` itself."""
    from voken.encoders.clip import HubEncoder
    from voken.inference.export import export_picture_encoder
    from voken.inference.pictures import PictureGraph

    if device != "cpu" or not isinstance(encoder, HubEncoder):
        yield encoder
        return
    with TemporaryDirectory(prefix="voken-") as folder:
        export_picture_encoder(encoder, Path(folder))
        yield PictureGraph.load(Path(folder), threads=threads)


def fit_again(
    store: Store, model: PictureModel, *, cache: VectorCache | None = None, progress: Progress = no_progress
) -> FittedModel | None:
    """Fit the collection's own model again if it has grown much; returns None if it has not.

    `model` is its model now. The caller holds the lock of the index. Without torch, nothing is fitted: the collection
    keeps the codebooks that it has.
    """
    fitted, snapshot = store.fitted, store.snapshot()
    if not fitted or len(snapshot) < _GROWTH * fitted or find_spec("torch") is None:
        return None
    from voken.model.model import load_encoder
    from voken.model.untrained import MOST_FITTED, untrained_model  # torch: only if there is something to do

    if fitted >= MOST_FITTED:
        return None
    encoder = model.encoder
    if not isinstance(encoder, Encoder):  # that of the engine, which has no texts
        encoder = load_encoder(snapshot.find_model() / "encoder")
    vectors = _vectors_of(snapshot, model, cache, progress)
    renewed = untrained_model(encoder, _encoder_of(snapshot), vectors, progress=progress)

    def vokens_of(current: Snapshot) -> np.ndarray:
        same = current.version == snapshot.version
        return renewed.tokenizer.encode(vectors if same else _vectors_of(current, model, cache, progress))

    used = min(len(snapshot), MOST_FITTED)
    store.recode(renewed.tokenizer, vokens_of, lambda path: renewed.save(path).fingerprint, used)
    return _description(renewed, used)


def check_prompt_is(store: Store, prompt: str) -> None:
    """Raise `ConfigError` if the queries of the collection's model are not read in this template."""
    folder = store.snapshot().find_model() / "encoder"
    has_encoder = (folder / "config.json").is_file()
    known = artifact.read_json(folder / "config.json").get("prompt", "") if has_encoder else ""
    if prompt != known:
        raise ConfigError(
            f"{store.folder}: its queries are read as {known or 'they are typed'}, which cannot be changed. Leave "
            "--prompt out, or create the collection again (--replace)."
        )


def check_encoder(store: Store, encoder: str) -> None:
    """Raise `ConfigError` if the collection was not made with this encoder."""
    snapshot = store.snapshot()
    name = encoder_name(_encoder_of(snapshot))
    if encoder not in (name, "auto"):
        raise ConfigError(
            f"{store.folder}: was made with the encoder {name}, not with {encoder}. Leave --encoder out, or create the "
            "collection again (--replace)."
        )


def encoder_name(settings: EncoderConfig) -> str:
    """How a user names an encoder: its family if it is built in, else its checkpoint."""
    return settings.checkpoint or settings.family


def _description(model: Model, pictures: int) -> FittedModel:
    tokenizer = model.tokenizer
    encoder = model.config.encoder
    return FittedModel(
        encoder_name(encoder), tokenizer.levels, tokenizer.codebook_size, pictures, prompt=encoder.prompt
    )


def _encoder_of(snapshot: Snapshot) -> EncoderConfig:
    path = snapshot.find_model() / "config.json"
    try:
        settings = from_dict(EncoderConfig, artifact.read_json(path)["run"]["encoder"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CorruptArtifactError(f"{path}: does not describe a model ({error}).") from error
    assert isinstance(settings, EncoderConfig)
    return settings


def _vectors_of(
    snapshot: Snapshot, model: PictureModel, cache: VectorCache | None, progress: Progress
) -> Float32[np.ndarray, "pictures dim"]:
    """The vectors of all pictures, in the order of the rows: stored, cached, or else rebuilt from the vokens."""
    rows = snapshot.rows
    if snapshot.vectors is not None:
        return np.asarray(snapshot.vectors[rows], dtype=np.float32)
    vectors: np.ndarray = model.tokenizer.decode(snapshot.vokens)
    if cache is not None and snapshot.facts is not None:
        hashes: Sequence[str] = [bytes(digest).hex() for digest in snapshot.facts[rows]["hash"]]
        cached = cache.get_many(model.encoder.fingerprint, list(dict.fromkeys(hashes)))
        for place, digest in enumerate(hashes):
            if digest in cached:
                vectors[place] = cached[digest]
    return vectors
