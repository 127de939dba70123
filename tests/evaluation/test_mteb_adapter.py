"""mteb scores voken on a task of painted pictures as voken scores itself. No hub is asked."""

import itertools
import sys

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SearchProtocol
from PIL import Image

from builders.tiny_model import COLOURS, ColourEncoder, tiny_model
from voken.errors import ConfigError, DataError, EmptyDataError, MissingExtraError
from voken.search.hit import Hit
from voken_lab.evaluation.mteb_adapter import MtebAdapter
from voken_lab.evaluation.protocol import Conditions, Pool, Query, evaluate

TEXTS = ["red", "green", "blue", "white", "red blue", "green red", "blue green", "grey", "white red", "red green blue"]
CUTOFFS = (1, 3, 5, 10)


def random_pictures(count=30):
    """No two of one colour."""
    random = np.random.default_rng(3)
    pixels = [random.integers(0, 256, (4, 4, 3), dtype=np.uint8) // 2 + colour // 2 for colour in palette(count)]
    return {f"picture {i}": Image.fromarray(p.astype(np.uint8)) for i, p in enumerate(pixels)}


def palette(count):
    return np.random.default_rng(1).integers(0, 256, (count, 1, 1, 3))


def relevant_of(names):
    """Right answers drawn at random, one to three a query, the same in both protocols."""
    random = np.random.default_rng(7)
    return {f"query {i}": frozenset(random.choice(names, 1 + i % 3, replace=False).tolist()) for i in range(len(TEXTS))}


class Painted(AbsTaskRetrieval):
    """Ten texts over painted pictures, in memory."""

    metadata = TaskMetadata(
        name="Painted",
        description="Painted pictures.",
        reference="https://example.org",
        dataset={"path": "none", "revision": "none"},
        type="Any2AnyRetrieval",
        category="t2i",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_1",
        date=("2026-01-01", "2026-01-01"),
        domains=[],
        task_subtypes=["Image Text Retrieval"],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        modalities=["text", "image"],
        sample_creation="created",
        bibtex_citation="",
    )

    def load_data(self, num_proc=None, **kwargs):
        pictures = random_pictures()
        relevant = relevant_of(list(pictures))
        queries = Dataset.from_dict({"id": list(relevant), "text": TEXTS})
        corpus = Dataset.from_dict({"id": list(pictures), "image": list(pictures.values())})
        judged = {query: dict.fromkeys(sorted(names), 1) for query, names in relevant.items()}
        split = {"queries": queries, "corpus": corpus, "relevant_docs": judged, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class RecordingAdapter:
    """A system that answers from an adapter's own `make`, kept for the comparison with `evaluate`."""

    def __init__(self, adapter):
        self.adapter, self.system = adapter, None
        make = adapter._make_system

        def keep(ids, vectors):
            self.system = make(ids, vectors)
            return self.system

        adapter._make_system = keep


def scored_by_mteb(adapter):
    result = mteb.evaluate(adapter, Painted(), cache=None, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    return result, scores


def scored_by_us(system):
    names = list(random_pictures())
    relevant = relevant_of(names).items()
    queries = [Query(name, text, right) for (name, right), text in zip(relevant, TEXTS, strict=True)]
    return evaluate(system, queries, Pool(tuple(names)), conditions=Conditions(system="s"), cutoffs=CUTOFFS)


def adapters():
    many = {"levels": 3, "entries": 8}
    return [
        MtebAdapter.two_tower(ColourEncoder(), batch_size=7),
        MtebAdapter.of_model(tiny_model(**many), readout="vector", beams=512),
    ]


@pytest.mark.parametrize("adapter", adapters(), ids=["two-tower", "vector"])
def test_mteb_and_we_count_alike(adapter):
    assert isinstance(adapter, SearchProtocol)
    recorder = RecordingAdapter(adapter)
    _, theirs = scored_by_mteb(adapter)
    ours = scored_by_us(recorder.system)
    for k in CUTOFFS:
        assert theirs[f"hit_rate_at_{k}"] == pytest.approx(ours.recall[k], abs=1e-5)
    assert theirs["mrr_at_10"] == pytest.approx(ours.reciprocal_rank, abs=1e-5)
    assert 0 < ours.recall[1] < ours.recall[10] < 1


def test_mteb_files_scores_under_who_answered():
    model = tiny_model()
    result, _ = scored_by_mteb(MtebAdapter.of_model(model, readout="voken", beams=3))
    assert (result.model_name, result.model_revision) == (f"voken/voken-{model.config.name}", "f1f2f3")
    meta = MtebAdapter.of_model(model, readout="voken", beams=3).mteb_model_meta
    assert meta.experiment_kwargs == {"readout": "voken", "beams": 3, "seed": 0}
    assert MtebAdapter.two_tower(ColourEncoder()).mteb_model_meta.revision == "c010"


def test_the_tasks_it_is_for_are_text_to_image():
    for task in mteb.get_tasks(["Flickr30kT2IRetrieval", "MSCOCOT2IRetrieval"]):
        assert task.metadata.category == "t2i"
        assert set(task.metadata.modalities) == {"text", "image"}


class Tied:
    """Ten pictures, the last five tied at the top."""

    def __init__(self, ids, vectors):
        self.ids = ids

    def search(self, texts, k):
        ranked = [Hit(name, "", 1.0) for name in self.ids[5:]] + [Hit(name, "", 0.5) for name in self.ids[:5]]
        return [ranked[:k] if text != "nothing" else [] for text in texts]


def corpus(ids):
    return Dataset.from_dict({"id": ids, "image": [Image.new("RGB", (2, 2), colour) for colour in colours(len(ids))]})


def colours(count):
    return [list(COLOURS.values())[i % len(COLOURS)] for i in range(count)]


def questions(*texts):
    return Dataset.from_dict({"id": [f"q{i}" for i in range(len(texts))], "text": list(texts)})


@pytest.mark.slow
def test_ties_are_drawn_without_regard_to_the_corpus_and_scores_fall():
    names = [f"d{i}" for i in range(10)]
    first: dict[str, int] = {}
    for seed in range(200):
        answers = []
        for ids in (names, [*names[:5], *names[:4:-1]]):  # the tied ones the other way round
            adapter = MtebAdapter(ColourEncoder(), Tied, name="tied", seed=seed)
            adapter.index(corpus(ids))
            answers.append(adapter.search(questions("a"), top_k=8)["q0"])
        assert list(answers[0])[:5] == list(answers[1])[:5]
        scores = list(answers[0].values())
        assert all(left > right for left, right in itertools.pairwise(scores))
        assert scores[0] == 1.0
        assert scores[4] == pytest.approx(1.0)
        first[next(iter(answers[0]))] = first.get(next(iter(answers[0])), 0) + 1
    assert first.keys() == set(names[5:])
    assert all(20 <= count <= 60 for count in first.values())  # 40 each, expected


def test_a_query_without_an_answer_has_an_entry():
    adapter = MtebAdapter(ColourEncoder(), Tied, name="tied")
    adapter.index(corpus([f"d{i}" for i in range(10)]))
    results = adapter.search(questions("nothing", "a"), top_k=3, task_metadata=None, num_proc=None)
    assert results["q0"] == {}
    assert len(results["q1"]) == 3


def test_what_is_no_text_to_image_task_is_refused():
    adapter = MtebAdapter.two_tower(ColourEncoder())
    with pytest.raises(ConfigError, match="before index"):
        adapter.search(questions("a"), top_k=1)
    with pytest.raises(DataError, match="have no image, only id, text"):
        adapter.index(questions("a"))
    with pytest.raises(EmptyDataError, match="no picture"):
        adapter.index(corpus(["a"]).select([]))
    with pytest.raises(DataError, match="'b' of the task has no picture"):
        adapter.index(Dataset.from_dict({"id": ["a", "b"], "image": [Image.new("RGB", (2, 2)), None]}))
    with pytest.raises(DataError, match="twice"):
        adapter.index(corpus(["a", "a"]))
    adapter.index(corpus(["a", "b"]))
    with pytest.raises(ConfigError, match="rerank"):
        adapter.search(questions("a"), top_k=1, top_ranked={"q0": ["a"]})
    with pytest.raises(DataError, match="'q0' is not text but list"):
        adapter.search(Dataset.from_dict({"id": ["q0"], "text": [["a", "b"]]}), top_k=1)
    with pytest.raises(ConfigError, match="batch_size"):
        MtebAdapter(ColourEncoder(), Tied, name="tied", batch_size=0)


def test_without_mteb_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(MissingExtraError, match=r'pip install "voken-search\[mteb\]"'):
        _ = MtebAdapter.two_tower(ColourEncoder()).mteb_model_meta
