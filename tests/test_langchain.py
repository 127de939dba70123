"""The retriever gives what the collection's own search gives, as documents."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from builders.collections import make_collection
from builders.tiny_model import paint_many, tiny_model
from voken import Collection
from voken.data.captions import read_dataset
from voken.errors import ConfigError
from voken.langchain import VokenRetriever
from voken.model.calibration import Calibration, ReadOutCalibration

SURE = Calibration(
    prior=0.5, queries=50, concepts=50, pool=50, right=1.0, beams=4,
    readouts=(ReadOutCalibration("vector", 3.0, bias=1.0, score=1.0, mass=0.0, mean_cosine=0.0),),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 pictures; what their metadata says differs."""
    root = tmp_path_factory.mktemp("pictures")
    records = [
        {"title": "A title", "place": 1},
        {"concept": "last resort", "title": "the title wins", "score": "not a hit's"},
        {"description": ["one", "two"], "note": "mine"},
        {"note": "only a note"},
    ]
    lines = [
        {"file_name": path.relative_to(root).as_posix(), **records[place % len(records)]}
        for place, path in enumerate(paint_many(root / "old", 12))
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    collection = tmp_path_factory.mktemp("collections") / "c"
    make_collection(collection, read_dataset(root), tiny_model())
    return collection


@pytest.fixture
def photos(folder):
    with Collection.open(folder, model=tiny_model(calibration=SURE)) as opened:
        yield opened


def as_pairs(documents):
    return [(one.metadata["id"], one.metadata["score"]) for one in documents]


def of_hits(hits):
    return [(hit.image_id, hit.score) for hit in hits]


def test_documents_are_the_hits_in_their_order(photos):
    documents = VokenRetriever(collection=photos, k=5).invoke("red and blue")
    hits = photos.search("red and blue", 5)
    assert len(documents) == 5
    for document, hit in zip(documents, hits, strict=True):
        assert isinstance(document, Document)
        metadata = photos.picture(hit.image_id).metadata
        assert document.id == hit.image_id
        assert document.metadata == metadata | {
            "id": hit.image_id,
            "path": hit.path,
            "score": hit.score,
            "confidence": hit.confidence,
            "vokens": list(hit.vokens),
        }
        assert 0 < document.metadata["confidence"] < 1
        json.dumps(document.metadata)  # as tracers and stores do


def test_the_content_is_what_is_said_of_the_picture(photos):
    contents = {one.id: one.page_content for one in VokenRetriever(collection=photos, k=50).invoke("red")}
    assert [contents[f"old/p{place:03d}.png"] for place in range(4)] == [
        "A title",
        "the title wins",
        "one; two",
        "old/p003.png",
    ]
    contents = {
        one.id: one.page_content for one in VokenRetriever(collection=photos, k=50, content_field="note").invoke("red")
    }
    assert [contents[f"old/p{place:03d}.png"] for place in range(4)] == [
        "old/p000.png",
        "old/p001.png",
        "mine",
        "only a note",
    ]


def test_k_where_and_threshold_are_the_searchs_own(photos):
    every = photos.search("green", 50)
    middle = sorted(hit.confidence for hit in every)[6]
    where = ["note~only"]
    retriever = VokenRetriever(collection=photos, k=4, where=where, threshold=middle)
    expected = photos.search("green", 4, where=where, threshold=middle)
    assert as_pairs(retriever.invoke("green")) == of_hits(expected)
    assert 0 < len(expected) < len(photos.search("green", 4, where=where))
    # one call may ask otherwise
    assert as_pairs(retriever.invoke("green", k=1, threshold=0.0)) == of_hits(photos.search("green", 1, where=where))
    assert as_pairs(retriever.invoke("green", k=50, where=[], threshold=0.0)) == of_hits(every)
    assert retriever.invoke("green", threshold=1.0) == []


def test_sync_async_and_batches_agree(photos):
    retriever = VokenRetriever(collection=photos, k=3)
    queries = ["red", "blue sky", "white", "grey green"]
    expected = [of_hits(hits) for hits in photos.search_many(queries, 3)]

    async def together():
        one_by_one = await asyncio.gather(*(retriever.ainvoke(query) for query in queries))
        return one_by_one, await retriever.abatch(queries), await retriever.ainvoke("red", k=1, where=["place=1"])

    one_by_one, batch, filtered = asyncio.run(together())
    for answers in (one_by_one, batch, retriever.batch(queries), list(map(retriever.invoke, queries))):
        assert [as_pairs(documents) for documents in answers] == expected
    assert as_pairs(filtered) == of_hits(photos.search("red", 1, where=["place=1"]))
    with ThreadPoolExecutor(8) as threads:
        for place, answers in enumerate(threads.map(retriever.invoke, queries * 8)):
            assert as_pairs(answers) == expected[place % len(queries)]


def test_it_stands_in_a_chain(photos):
    chain = VokenRetriever(collection=photos, k=2) | RunnableLambda(
        lambda documents: " and ".join(one.metadata["path"] for one in documents)
    )
    assert chain.invoke("red") == " and ".join(hit.path for hit in photos.search("red", 2))


def test_opening_by_path_and_what_is_refused(folder):
    retriever = VokenRetriever.open(folder, model=tiny_model(), k=2)
    with retriever.collection as photos:
        assert as_pairs(retriever.invoke("red")) == of_hits(photos.search("red", 2))
        with pytest.raises(ConfigError, match="not calibrated"):
            retriever.invoke("red", threshold=0.5)
        with pytest.raises(ConfigError, match="write FIELD=VALUE"):
            asyncio.run(retriever.ainvoke("red", where=["nonsense"]))
        with pytest.raises(ConfigError, match="empty"):
            retriever.invoke(" ")
        with pytest.raises(ValidationError):  # a text is no list of filters
            VokenRetriever(collection=photos, where="folder=old")


def test_without_langchain_the_remedy_is_named():
    code = (
        "import sys\nsys.modules['langchain_core'] = None\n"
        "from voken.errors import MissingExtraError\n"
        "try:\n    import voken.langchain\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 'pip install "voken-search[langchain]"' in output
