"""LlamaIndex and Haystack get what the collection's own search gives."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Pipeline
from llama_index.core.schema import ImageNode, QueryBundle

from builders.collections import make_collection
from builders.saved_search import make_model
from builders.tiny_model import paint_many, tiny_model
from voken import Collection
from voken.data.captions import read_dataset
from voken.errors import ConfigError
from voken.haystack import VokenRetriever as HaystackRetriever
from voken.llama_index import VokenRetriever as LlamaIndexRetriever


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    records = [{"title": "A title", "place": 1}, {"description": ["one", "two"]}, {"note": "only a note"}]
    lines = [
        {"file_name": path.relative_to(root).as_posix(), **records[place % len(records)]}
        for place, path in enumerate(paint_many(root / "old", 9))
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    collection = tmp_path_factory.mktemp("collections") / "c"
    make_collection(collection, read_dataset(pictures), tiny_model())
    return collection


@pytest.fixture(scope="module")
def saved(pictures, tmp_path_factory):
    """A collection that names its model, which is saved."""
    root = tmp_path_factory.mktemp("saved")
    make_model().save(root / "model")
    Collection.index(root / "c", pictures, root / "model")
    return root / "c"


def expected(photos, hits):
    return [
        (
            hit.image_id,
            hit.score,
            photos.picture(hit.image_id).metadata
            | {
                "id": hit.image_id,
                "path": hit.path,
                "score": hit.score,
                "confidence": None,
                "vokens": list(hit.vokens),
            },
        )
        for hit in hits
    ]


def test_llama_index_gets_the_hits_in_their_order(folder):
    retriever = LlamaIndexRetriever.open(folder, model=tiny_model(), k=5)
    with retriever.collection as photos:
        hits = photos.search("red and blue", 5)
        for found in (
            retriever.retrieve("red and blue"),
            retriever.retrieve(QueryBundle("red and blue")),
            asyncio.run(retriever.aretrieve("red and blue")),
        ):
            assert [(one.node.node_id, one.score, one.node.metadata) for one in found] == expected(photos, hits)
            assert [one.node.image_path for one in found] == [hit.path for hit in hits]
            assert all(isinstance(one.node, ImageNode) for one in found)
        filtered = LlamaIndexRetriever(photos, k=50, where=["note~only"], content_field="note").retrieve("red")
        assert {one.node.text for one in filtered} == {"only a note"}
        matching = photos.search("red", 50, where=["note~only"])
        assert [one.node.node_id for one in filtered] == [hit.image_id for hit in matching] != []
        with pytest.raises(ConfigError, match="not calibrated"):
            LlamaIndexRetriever(photos, threshold=0.5).retrieve("red")


def test_haystack_runs_saves_and_loads_a_pipeline(saved):
    pipeline = Pipeline()
    pipeline.add_component("pictures", HaystackRetriever(saved, k=5))
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=["voken.haystack"])
    component = pipeline.get_component("pictures")
    documents = pipeline.run({"pictures": {"query": "red and blue"}})["pictures"]["documents"]
    with component.collection as photos:
        hits = photos.search("red and blue", 5)
        assert [(one.id, one.score, one.meta) for one in documents] == expected(photos, hits)
        again = asyncio.run(component.run_async("red and blue", k=2))["documents"]
        assert [one.id for one in again] == [hit.image_id for hit in hits[:2]]
        some = component.run("red", k=50, where=["note~only"])["documents"]
        assert [one.id for one in some] == [hit.image_id for hit in photos.search("red", 50, where=["note~only"])] != []
        assert {one.content for one in some} == {one.id for one in some}  # no field describes them
        described = component.run("red", k=50, where=["place=1"])["documents"]
        assert {one.content for one in described} == {"A title"}
        with pytest.raises(ConfigError, match="write FIELD=VALUE"):
            component.run("red", where=["nonsense"])


@pytest.mark.parametrize(
    ("module", "hidden", "extra"),
    [("llama_index", "llama_index.core", "llama-index"), ("haystack", "haystack", "haystack")],
)
def test_without_the_framework_the_remedy_is_named(module, hidden, extra):
    code = (
        f"import sys\nsys.modules[{hidden!r}] = None\n"
        "from voken.errors import MissingExtraError\n"
        f"try:\n    import voken.{module}\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert f'pip install "voken-search[{extra}]"' in output
