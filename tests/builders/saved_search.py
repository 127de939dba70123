"""A model with an engine, and a collection made with it, saved in one folder: what `voken search` opens."""

from pathlib import Path

import numpy as np

from builders.tiny_lite import DIM, make_whole_model
from voken.collection.snapshot import Snapshot
from voken.collection.store import Store
from voken.config import SearchConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.model.model import Model

PICTURES = 60


def make_model(*, layers: tuple[int, ...] = (), precision="float32") -> Model:
    return make_whole_model(SearchConfig(beams=7, precision=precision), layers=layers)


def make_collection(model: Model) -> Snapshot:
    vectors = np.random.default_rng(0).normal(size=(PICTURES, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    images = tuple(CaptionedImage(f"p{row}", Path(f"/pictures/p{row}.png")) for row in range(PICTURES))
    return Snapshot.of_vectors(Dataset("pictures", Path("/pictures"), images), vectors, model)


def save_search(folder: Path) -> Path:
    """Write `model` and `collection` into a folder; the collection's pictures have no files."""
    model = make_model().save(folder / "model")
    collection = make_collection(model)
    Store.create(
        folder / "collection",
        root=collection.root,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        vectors=model.tokenizer.dim,
        model_folder=folder / "model",
        base=collection.base,
    )
    return folder
