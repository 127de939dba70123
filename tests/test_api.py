"""A collection as a program uses it, followed as it changes, and what it says of its own answers."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from builders.collections import make_collection
from builders.tiny_model import COLOURS, paint, paint_many, tiny_model
from voken import Collection
from voken.api import info as describe
from voken.collection.doctor import examine
from voken.collection.filters import parse_all
from voken.collection.indexing import SavedModel
from voken.collection.store import Store
from voken.data.captions import read_dataset
from voken.decoding.nearest import NearestSequences
from voken.errors import ArtifactError, BusyError, ConfigError, DataError, PictureError
from voken.search.searcher import Searcher


@pytest.fixture
def model():
    return tiny_model(levels=3)


@pytest.fixture
def photos(tmp_path, model):
    folder = tmp_path / "in"
    files = [*paint_many(folder / "old", 10), *paint_many(folder / "new", 8, seed=1)]
    rows = [{"file_name": path.relative_to(folder).as_posix(), "place": n} for n, path in enumerate(files)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_collection(tmp_path / "c", read_dataset(folder), model)
    with Collection.open(tmp_path / "c", model=model) as opened:
        yield opened


def names(hits):
    return [hit.image_id for hit in hits]


def test_searching_one_many_and_from_an_event_loop(photos, model):
    searcher = Searcher(model, photos.store.snapshot())
    expected = searcher.search(["red", "blue sky"], 5)
    assert photos.search("red", 5) == expected[0]
    assert photos.search_many(["red", "blue sky"], 5) == expected
    assert asyncio.run(photos.asearch(["red", "blue sky"], 5)) == expected
    assert len(photos) == 18
    assert photos.readout == "vector"
    assert photos.fields == ["date", "folder", "place"]
    assert not photos.calibrated
    with pytest.raises(ConfigError, match="not calibrated"):
        photos.search("red", threshold=0.5)
    photos.close()
    with pytest.raises(BusyError):
        photos.search("red")


@pytest.mark.parametrize("where", [["folder=new"], ["place<4"], ["folder=old", "place!=2", "place>=1"]])
def test_a_filter_searches_as_if_only_these_were_there(photos, model, tmp_path, where):
    """All that it lets through are ranked as in a collection of their own: no beam is lost to the others."""
    every = photos.search("green grass", 50)
    filtered = photos.search("green grass", 50, where=where)
    passes = {"folder=new": lambda n: n >= 10, "place<4": lambda n: n < 4}.get(
        where[0], lambda n: n in {1, *range(3, 10)}
    )
    places = {hit.image_id: photos.picture(hit.image_id).metadata["place"] for hit in every}
    assert sorted(names(filtered)) == sorted(name for name, place in places.items() if passes(place))
    score = {hit.image_id: hit.score for hit in every}
    for hit in filtered:
        assert hit.score == pytest.approx(score[hit.image_id], abs=1e-4)
    # few beams too, where a filter afterwards would leave nothing
    few = photos.search("green grass", 1, where=where)
    assert names(few) == names(filtered)[:1] or few[0].score == pytest.approx(filtered[0].score, abs=2.0)
    assert photos.search("green grass", 5, where=["folder=nowhere"]) == []
    with pytest.raises(ConfigError, match="write FIELD=VALUE"):
        photos.search("green grass", where=["nonsense"])


def test_what_is_added_and_removed_is_found_and_not_found(photos, tmp_path):
    first = photos.version
    new = paint(tmp_path / "in" / "new" / "pink.png", (250, 120, 160))
    change = photos.add([new, tmp_path / "none.png"], metadata=[{"place": 99}, {}])
    assert (change.added, names(photos.search("pink", 50, where=["place=99"]))) == (("new/pink.png",), ["new/pink.png"])
    assert [one.path for one in change.skipped] == [str(tmp_path / "none.png")]
    assert photos.version == change.version > first
    assert photos.picture("new/pink.png").path == new
    change = photos.remove(["old/p001.png", "nobody"], paths=[new])
    assert sorted(change.removed) == ["new/pink.png", "old/p001.png"]
    assert not {"new/pink.png", "old/p001.png"} & set(names(photos.search("pink", 50)))
    assert len(photos) == 17
    for name in ("new/pink.png", "old/p001.png", "../secret"):
        with pytest.raises(DataError, match="no picture"):
            photos.picture(name)
    before = names(photos.search("red", 50))
    assert photos.compact()
    assert not photos.compact()
    assert names(photos.search("red", 50)) == before


def test_another_process_is_followed(photos, tmp_path):
    code = (
        "import sys; from pathlib import Path; from voken.collection.store import Store\n"
        f"print(Store.open(Path({str(photos.folder)!r})).commit(remove=['old/p000.png']).version)"
    )
    assert "old/p000.png" in names(photos.search("red", 50))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    photos.searcher.refresh()  # what else happens 0.2 s later
    assert "old/p000.png" not in names(photos.search("red", 50))


def test_searches_go_on_while_it_changes(photos, tmp_path):
    """Each answer is that of one version: a pair that is added and removed together is never seen parted."""
    pair = [paint(tmp_path / "in" / f"{name}.png", (1, 250, 249)) for name in ("one", "two")]
    wrong, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            ids = set(names(photos.search("green", 50)))
            if len(ids & {"one.png", "two.png"}) == 1:
                wrong.append(ids)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        photos.add(pair)
        photos.remove(["one.png", "two.png"])
        photos.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("vectors", [True, False])
def test_pictures_like_a_picture(tmp_path, model, vectors):
    folder = tmp_path / "in"
    for place, colour in enumerate([(250, 5, 5), (240, 20, 10), (5, 5, 250), (90, 91, 92), (10, 250, 10)]):
        paint(folder / f"{place}.png", colour)
    make_collection(tmp_path / "c", read_dataset(folder), model, vectors=vectors)
    photos = Collection.open(tmp_path / "c", model=model)
    like = photos.similar("0.png", 3)
    assert "0.png" not in names(like)
    if vectors:  # without, pictures of one sequence cannot be told apart
        assert like[0].image_id == "1.png"
        vectors_of = {n: model.encoder.encode_images([_open(folder / f"{n}.png")])[0] for n in range(5)}
        assert like[0].score == pytest.approx(float(vectors_of[0] @ vectors_of[1]), abs=2e-3)
    assert len(photos.similar("0.png", 50)) == 4
    query_picture = paint(tmp_path / "asked.png", (245, 12, 8))
    hits = photos.search_picture(query_picture, 5)
    assert {hit.image_id for hit in hits[:2]} <= {"0.png", "1.png"} or not vectors
    vector = model.encoder.encode_images([_open(query_picture)])
    assert hits == photos.searcher.like_vector(model.tokenizer.code_vectors(vector)[0], vector[0], 5)
    assert len(photos.search_picture(query_picture, 5, where=["folder=x"])) == 0
    with pytest.raises(DataError, match="no picture"):
        photos.similar("none.png")
    with pytest.raises(ConfigError, match="ask for 1 or more"):
        photos.similar("0.png", 0)
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(PictureError, match="not a picture"):
        photos.search_picture(tmp_path / "bad.png")


def _open(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def test_the_nearest_sequences_are_the_nearest():
    """At full width the scores are the squared distances, computed here one by one."""
    from voken.decoding.beam import beam_search_from_state
    from voken.decoding.trie import VokenTrie

    random = np.random.default_rng(0)
    books = random.normal(size=(3, 5, 4)).astype(np.float32)
    sequences = np.unique(random.integers(0, 5, (40, 3)), axis=0)
    points = random.normal(size=(2, 4)).astype(np.float32)
    walker = NearestSequences(books)
    trie = VokenTrie.from_vokens(sequences, 5)
    beams = beam_search_from_state(walker, walker.prefill(points), trie, len(sequences))
    sums = np.stack([sum(books[level][one[level]] for level in range(3)) for one in sequences])
    np.testing.assert_allclose(walker.of_sequences(sequences), sums, rtol=1e-5)
    for query, point in enumerate(points):
        gained = (point**2).sum() - ((point - sums) ** 2).sum(1)
        order = np.argsort(-gained)
        np.testing.assert_allclose(beams.log_prob[query], gained[order], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(beams.vokens[query], sequences[order])


def test_why_says_what_the_generator_wrote(photos, model):
    text = "red and white"
    hits = photos.search(text, 6)
    whys = photos.explain(text, hits)
    vokens = photos.store.snapshot().vokens
    for hit, why in zip(hits, whys, strict=True):
        assert why.log_prob == pytest.approx(model.generator.log_prob(text, hit.vokens), abs=1e-4)
        prefix = []
        for step, voken in zip(why.levels, hit.vokens, strict=True):
            logits = model.generator.logits(text, prefix)
            assert step.voken == voken
            assert step.rank == 1 + int((logits > logits[voken]).sum())
            log_total = np.log(np.exp(logits.astype(np.float64)).sum())
            assert step.log_prob == pytest.approx(logits[voken] - log_total, abs=1e-4)
            prefix.append(voken)
            assert step.pictures == sum(tuple(row[: len(prefix)]) == tuple(prefix) for row in vokens.tolist())
        vector = model.encoder.encode_images([_open(hit.path)])[0]
        assert why.cosine == pytest.approx(float(vector @ model.encoder.encode_texts([text])[0]), abs=2e-3)
    ranks = [why.beam_rank for why in whys]
    assert min(rank for rank in ranks if rank) == 1
    assert sorted(whys, key=lambda why: -why.log_prob)[0].beam_rank == 1
    assert photos.explain(text, []) == []
    # of a picture that has been removed since, what can be said is said
    photos.remove([hits[0].image_id])
    gone = photos.explain(text, hits[:1])[0]
    assert gone.cosine is None
    assert gone.log_prob == pytest.approx(whys[0].log_prob)


def test_the_doctor_finds_what_is_wrong(photos, tmp_path, model):
    def levels():
        return {one.what: one.level for one in examine(photos.folder)}

    before = levels()  # the model lies in no folder here, which is the one thing wrong
    (wrong,) = [what for what, level in before.items() if level == "wrong"]
    assert "was made with a model that was not saved, which is not there. Name the model's folder" in wrong
    assert any("every picture's file exists" in what for what in before)
    (tmp_path / "in" / "old" / "p000.png").unlink()
    paint(tmp_path / "in" / "old" / "p001.png", COLOURS["grey"])
    before = levels()
    assert any(what.startswith("1 files of pictures no longer exist") for what in before)
    assert any(what.startswith("1 files of pictures have changed") for what in before)
    (photos.folder / ".base-000009.partial-1").mkdir()
    assert any("leftovers" in what for what in levels())
    vectors = photos.folder / "base-000001" / "vectors.npy"
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    (wrong,) = examine(photos.folder)
    assert (wrong.level, "vectors.npy: differs from what was saved" in wrong.what) == ("wrong", True)


def test_filters_are_kept_for_the_version_they_were_made_for(photos, tmp_path):
    assert len(photos.search("red", 50, where=["folder=new"])) == 8
    photos.remove(["new/p000.png"])
    assert len(photos.search("red", 50, where=["folder=new"])) == 7
    for place in range(20):
        assert len(photos.search("red", 50, where=[f"place={place}"])) <= 1
    assert len(photos.searcher._pools) <= 10
    assert parse_all(["folder=new"])[0].field == "folder"
    assert Store.open(photos.folder).snapshot().version == photos.version


def test_index_makes_a_collection_and_brings_it_up_to_date(tmp_path, model):
    folder, path = tmp_path / "in", tmp_path / "c"
    paint_many(folder, 4)
    (folder / "torn.png").write_bytes(b"no")
    calls = []
    report = Collection.index(path, folder, model, vectors=False, progress=lambda *call: calls.append(call))
    assert (report.pictures, report.added, report.changes, report.with_vectors) == (4, 4, 4, False)
    assert [Path(file.path).name for file in report.skipped] == ["torn.png"]
    assert ("pictures to vectors", 5, 5) in calls
    assert report.sequences == Collection.open(path, model=model).info().sequences
    paint(folder / "new.png", COLOURS["red"])
    report = Collection.index(path, str(folder), model)
    assert (report.added, report.unchanged, report.pictures, report.with_vectors) == (1, 4, 5, False)
    report = Collection.index(path, folder, model, replace=True)
    assert (report.added, report.unchanged, report.with_vectors) == (5, 0, True)


def test_watch_reports_each_change_and_goes_on_after_a_fault(tmp_path, model, monkeypatch):
    folder = tmp_path / "in"
    pictures = paint_many(folder, 4)

    def changes(root, without):
        assert (root, without) == (folder, tmp_path / "c")
        paint(folder / "new.png", COLOURS["red"])
        yield {folder / "new.png"}
        contents = {path: path.read_bytes() for path in folder.iterdir()}
        for path in contents:
            path.unlink()
        yield set(contents)
        for path, content in contents.items():
            path.write_bytes(content)
        yield set(contents)

    monkeypatch.setattr("voken.collection.watching.folder_changes", changes)
    for name, value in (("_model", model), ("fingerprint", model.fingerprint)):
        monkeypatch.setattr(SavedModel, name, value)
    first, second, fault, last = Collection.watch(tmp_path / "c", folder, tmp_path / "model")
    assert (first.added, second.added) == (4, 1)
    assert "and no picture" in str(fault)
    assert isinstance(fault, DataError)
    assert last.pictures == len(pictures) + 1


def test_info_says_what_a_collection_is(photos):
    info = photos.info()
    assert (info.pictures, info.version, info.added, info.removed) == (18, photos.version, 0, 0)
    assert (info.levels, info.model, info.fields) == (3, None, ("date", "folder", "place"))
    photos.remove(["old/p000.png"])
    info = describe(photos.folder)
    assert (info.pictures, info.removed) == (17, 1)
    assert info.size.index + info.size.ids + info.size.paths + info.size.files + info.size.metadata == info.size.total


def test_a_collection_is_changed_without_its_model(photos, tmp_path):
    opened = Collection.open(photos.folder, load=False)
    assert "old/p000.png" in opened
    assert len(opened) == 18
    outside = tmp_path / "in" / "old" / "p001.png"
    change = opened.remove(["old/p000.png", "nobody"], paths=[outside, "nowhere.png"])
    assert change.removed == ("old/p000.png", "old/p001.png")
    assert change.absent == ("nobody", "nowhere.png")
    assert "old/p000.png" not in opened
    assert opened.compact()
    with pytest.raises(ArtifactError, match="made with a model that was not saved"):
        opened.search("red")


def test_read_out_and_beams_are_what_the_caller_asks_for(photos, model):
    opened = Collection.open(photos.folder, model=model, readout="generate", beams=3)
    assert opened.readout == "generate"
    assert opened.searcher.search_config.beams == 3
    assert opened.search("red", 5) != photos.search("red", 5)
    with pytest.raises(ConfigError, match="'best' is not generate, voken or vector"):
        Collection.open(photos.folder, model=model, readout="best")
    with pytest.raises(ConfigError, match="not calibrated"):
        photos.search("red", precision=0.9)
