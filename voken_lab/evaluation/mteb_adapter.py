"""An adapter that lets mteb's text-to-image tasks measure any voken system.

    import mteb
    from voken_lab.evaluation.mteb_adapter import MtebAdapter

    tasks = mteb.get_tasks(["Flickr30kT2IRetrieval", "MSCOCOT2IRetrieval"])
    mteb.evaluate(MtebAdapter.of_model(Model.load(Path("clip.model"))), tasks)

mteb gives `index` a task's pictures and `search` its queries, and scores the answers itself. Its `hit_rate_at_K` is our
R@K; its `recall_at_K` is the share of all right answers that are hits. docs/how-to/measure.md lists other differences.

Written against the `SearchProtocol` of mteb 2.26. mteb is imported only when it asks for the model's metadata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np

from voken.collection.snapshot import Snapshot
from voken.data.captions import CaptionedImage, Dataset
from voken.encoders.interface import Encoder
from voken.errors import ConfigError, DataError, EmptyDataError, MissingExtraError
from voken.model.model import Model
from voken.progress import Progress, no_progress
from voken.search.hit import Hit
from voken.search.searcher import Searcher
from voken.shapes import Float, Float32
from voken_lab.evaluation.trec import falling_scores
from voken_lab.systems.pictures import SearchSystem
from voken_lab.systems.two_tower import TwoTower

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta
    from PIL.Image import Image

MakeSystem = Callable[[Sequence[str], np.ndarray], SearchSystem]
"""Returns a system that searches the pictures with these ids and vectors (float32, pictures × dim)."""


class PictureEncoder(Protocol):
    """The part of an `Encoder` that pictures need."""

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """One vector per picture."""
        ...


class MtebAdapter:
    """A model of mteb's `SearchProtocol`: mteb calls `index` with pictures, then `search` with queries.

    `make_system` creates a new system for each corpus. mteb stores the scores under `name`, `revision` and `settings`:
    they must differ whenever answers may differ, or mteb's cache returns the scores of another system.

    mteb sees one order of each tie, while our figures are means over all orders. The order of the corpus would favour
    us if the corpus lists right answers first, so the order is drawn from `seed` and the ids alone. The returned scores
    fall strictly, as in TREC files (see `voken_lab.evaluation.trec`), because mteb's scorer is TREC's.
    """

    def __init__(
        self,
        encoder: PictureEncoder,
        make_system: MakeSystem,
        *,
        name: str,
        revision: str = "1",
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: Progress = no_progress,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        self._encoder = encoder
        self._make_system = make_system
        self._name = name
        self._revision = revision
        self._settings = dict(settings or {})
        self._seed = seed
        self._batch_size = batch_size
        self._progress = progress
        self._system: SearchSystem | None = None

    @classmethod
    def of_model(
        cls,
        model: Model,
        *,
        readout: Literal["generate", "voken", "vector"] = "vector",
        beams: int | None = None,
        **options: Any,
    ) -> Self:
        """An adapter of a trained model. Each corpus becomes a collection in memory.

        If `beams` is None, the model's number of beams is used. An answer holds about as many pictures as there are
        beams, so figures at deeper cutoffs are lower. `options` are `seed`, `batch_size` and `progress`.
        """
        search = dataclasses.replace(model.search, readout=readout, beams=beams or model.search.beams)

        def make_system(ids: Sequence[str], vectors: Float32[np.ndarray, "pictures dim"]) -> SearchSystem:
            pictures = Dataset("corpus", Path(), tuple(CaptionedImage(name, Path(name)) for name in ids))
            collection = Snapshot.of_vectors(pictures, vectors, model, keep_vectors=readout == "vector")
            return Searcher(model, collection, search, widen=False)

        return cls(
            model.encoder,
            make_system,
            name=f"voken {model.config.name}",
            revision=model.fingerprint or "not saved",
            settings={"readout": readout, "beams": search.beams, "seed": model.config.seed},
            **options,
        )

    @classmethod
    def two_tower(cls, encoder: Encoder, **options: Any) -> Self:
        """An adapter of exact search over the encoder's vectors, with which a model of that encoder is compared.

        `options` are `seed`, `batch_size` and `progress`.
        """

        def make_system(ids: Sequence[str], vectors: Float32[np.ndarray, "pictures dim"]) -> SearchSystem:
            return TwoTower(encoder, ids, vectors)

        return cls(encoder, make_system, name=f"two-tower {encoder.name}", revision=encoder.fingerprint, **options)

    def index(self, corpus: Any, **_ignored: Any) -> None:
        """Read the pictures of `corpus`: a `datasets.Dataset` whose rows have an "id" and an "image".

        The other arguments that mteb passes (`task_metadata`, `hf_split`, …) are ignored. Raises `DataError` if
        pictures or ids are missing or an id occurs twice, `EmptyDataError` without a row.
        """
        missing = {"id", "image"} - set(corpus.column_names)
        if missing:
            raise DataError(
                f"The task's documents have no {' and no '.join(sorted(missing))}, only "
                f"{', '.join(corpus.column_names)}. Choose a text-to-image task."
            )
        if not len(corpus):
            raise EmptyDataError("The task has no picture to index.")
        ids = [str(name) for name in corpus["id"]]
        vectors = []
        for start in range(0, len(ids), self._batch_size):
            pictures = corpus[start : start + self._batch_size]["image"]
            for place, picture in enumerate(pictures, start=start):
                if picture is None:
                    raise DataError(f"Document {ids[place]!r} of the task has no picture. Choose a text-to-image task.")
            vectors.append(np.asarray(self._encoder.encode_images(pictures), dtype=np.float32))
            self._progress("pictures", start + len(pictures), len(ids))
        self._system = self._make_system(ids, np.concatenate(vectors))
        self._count = len(ids)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Any = None, **_ignored: Any
    ) -> dict[str, dict[str, float]]:
        """For each query (rows with an "id" and a "text") at most `top_k` pictures and their scores.

        Every query has an entry, even if it has no hit. A task's instruction is not read. Raises `ConfigError` if
        `index` was not called, and for `top_ranked`, because reranking mteb's candidates is not supported.
        """
        if self._system is None:
            raise ConfigError("search was called before index. Pass the adapter to mteb.evaluate, which calls both.")
        if top_ranked is not None:
            raise ConfigError("The task asks to rerank pictures. Choose a task whose name ends in Retrieval.")
        names, texts = [str(name) for name in queries["id"]], list(queries["text"])
        for name, text in zip(names, texts, strict=True):
            if not isinstance(text, str):
                raise DataError(f"Query {name!r} is not text but {type(text).__name__}. Choose a text-to-image task.")
        scores_by_query: dict[str, dict[str, float]] = {}
        for start in range(0, len(names), self._batch_size):
            batch = slice(start, start + self._batch_size)
            answers = self._system.search(texts[batch], min(top_k, self._count))
            for name, hits in zip(names[batch], answers, strict=True):
                ranked = sorted(hits, key=self._rank_key)
                scores = falling_scores([hit.score for hit in ranked], name)
                scores_by_query[name] = {hit.image_id: float(score) for hit, score in zip(ranked, scores, strict=True)}
            self._progress("queries", len(scores_by_query), len(names))
        return scores_by_query

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The model's metadata, as mteb stores it. Raises `MissingExtraError` without mteb."""
        try:
            from mteb.models.model_meta import ModelMeta
        except ImportError:
            raise MissingExtraError("mteb", "mteb") from None
        return ModelMeta.create_empty(
            {
                "name": f"voken/{self._name.replace(' ', '-').replace('/', '-')}",
                "revision": self._revision,
                "modalities": ["text", "image"],
                "experiment_kwargs": self._settings or None,
            }
        )

    def _rank_key(self, hit: Hit) -> tuple[float, bytes]:
        key = f"{self._seed}\0{hit.image_id}".encode("utf-8", "surrogatepass")
        return -hit.score, blake2b(key, digest_size=8).digest()
