"""From captioned pictures to a saved model, with the real built-in encoder on a miniature data set."""

import copy
import dataclasses
import itertools
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from voken.config import RunConfig, preset
from voken.data.captions import read_dataset
from voken.encoders.cache import VectorCache, picture_vectors
from voken.encoders.zero_shot import ClassVectors
from voken.errors import ConfigError, CorruptArtifactError, EmptyDataError, ResumeError, SplitLeakError, StorageError
from voken.generator.lite import CaptionMemory
from voken.image_tokenizer.train import query_metric
from voken.model.compiled import CompiledModel
from voken.model.model import Model
from voken.training import fit as fit_module
from voken.training.fit import fit, prepare
from voken.training.sides import TrainingInputs, caption_memory, side_of, with_pool
from voken.training.training_log import read_log
from voken_lab.evaluation.benchmark import benchmark

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 230), "yellow": (240, 220, 40)}
SHAPES = ("wide bar", "tall bar", "small square")
TINY = preset("demo").override(
    {
        "encoder.image_size": "32",
        "encoder.epochs": "3",
        "encoder.hidden": "16",
        "encoder.dim": "16",
        "tokenizer.codebook_size": "8",
        "tokenizer.levels": "3",
        "generator.epochs": "2",
        "generator.discrimination": "staged",
        "generator.discrimination_epochs": "1",
        "generator.width": "16",
        "generator.heads": "2",
        "generator.batch_size": "8",
        "search.beams": "5",
    }
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve concepts, each drawn twice; two of them are for validation and two for the test."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        for hand in range(2):
            image = Image.new("RGB", (40, 40), "white")
            box = {"wide bar": (2, 15, 38, 25), "tall bar": (15, 2, 25, 38), "small square": (14, 14, 26, 26)}[shape]
            image.paste(COLOURS[colour], tuple(side + hand for side in box))
            name = f"{number}-{hand}.png"
            image.save(folder / name)
            split = {5: "validation", 7: "validation", 9: "test", 2: "test"}.get(number, "train")
            captions = [f"a {colour} {shape}", f"{shape} in {colour}"]
            lines.append({"file_name": name, "captions": captions, "split": split, "concept": f"{colour} {shape}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return VectorCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(pictures, cache, models):
    return fit(read_dataset(pictures), models / "model", TINY, cache=cache)


def test_every_epoch_is_logged_beside_the_model(model, models):
    entries = read_log(models / "model.training.csv")
    assert [(entry.stage, entry.epoch) for entry in entries] == [
        *(("two-tower head", epoch) for epoch in (1, 2, 3)),
        *(
            (f"generator, {stage}", epoch)
            for stage, epoch in (("generation", 1), ("generation", 2), ("discrimination", 1))
        ),
    ]
    history = model.validation["generator"]["epochs"]
    assert [entry.loss for entry in entries[3:]] == pytest.approx([one["loss"] for one in history], rel=1e-5)
    assert all(0 <= entry.validation <= 1 for entry in entries)
    assert any((models / "model.tensorboard").iterdir())  # the tests have TensorBoard


def same(first, second):
    """Equal to the bit in everything learned; in answers up to how memory happens to be aligned."""
    texts = ["a red tall bar", "something blue"]
    for part in ("tokenizer", "generator"):
        weights, others = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert first.encoder.fingerprint == second.encoder.fingerprint
    assert first.search == second.search
    np.testing.assert_allclose(first.query_vectors(texts), second.query_vectors(texts), atol=1e-6)
    return True


def test_a_saved_model_loads_as_it_was(model, tmp_path):
    model.save(tmp_path / "copy")
    loaded = Model.load(tmp_path / "copy")
    assert loaded.config == TINY
    assert loaded.weights == model.weights
    assert loaded.weights.voken is not None
    assert loaded.validation["pictures"] == {"train": 16, "validation": 2}
    assert same(loaded, model)


def test_a_flipped_byte_is_named(model, tmp_path):
    model.save(tmp_path / "copy")
    files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(files) >= 6
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptArtifactError, match=path.name):
            Model.load(tmp_path / "copy")
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    Model.load(tmp_path / "copy")


def test_the_same_seed_gives_the_same_model(model, pictures, cache, tmp_path):
    assert same(fit(read_dataset(pictures), tmp_path / "again", TINY, cache=cache), model)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["two-tower", "k-means", "generator, generation", "generator, discrimination"])
def test_an_interrupted_run_goes_on_and_ends_the_same(moment, model, pictures, cache, tmp_path):
    def interrupt(what, done, total):
        if what.startswith(moment):
            raise KeyboardInterrupt

    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        fit(read_dataset(pictures), out, TINY, cache=cache, progress=interrupt)
    assert not out.exists()
    with pytest.raises(ResumeError, match=r"model\.work"):
        fit(read_dataset(pictures), out, dataclasses.replace(TINY, seed=1), cache=cache)
    assert same(fit(read_dataset(pictures), out, TINY, cache=cache), model)
    assert not (tmp_path / "model.work").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(model, pictures, cache, tmp_path):
    script = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from voken.config import RunConfig
from voken.data.captions import read_dataset
from voken.encoders.cache import VectorCache
from voken.encoders.cache import picture_vectors
from voken.training.fit import fit
import json
def kill(what, done, total):
    if what.startswith("generator, discrimination"):
        os.kill(os.getpid(), signal.SIGKILL)
config = RunConfig.from_dict(json.loads(sys.argv[4]))
fit(read_dataset(Path(sys.argv[1])), Path(sys.argv[2]), config, cache=VectorCache(Path(sys.argv[3])), progress=kill)
"""
    out = tmp_path / "model"
    arguments = [str(pictures), str(out), str(cache.folder), json.dumps(TINY.to_dict())]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert same(fit(read_dataset(pictures), out, TINY, cache=cache), model)


def test_a_full_disk_leaves_nothing_half_saved(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"full\.model.*disk is full"):
        model.save(tmp_path / "full.model")
    assert list(tmp_path.iterdir()) == []


def test_no_captions_say_what_to_do(pictures, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (8, 8)).save(bare / "a.png")
    with pytest.raises(EmptyDataError, match="caption"):
        fit(read_dataset(bare), tmp_path / "model", TINY)


def test_a_leaking_split_is_refused(pictures, cache, tmp_path):
    dataset = read_dataset(pictures)
    first = dataclasses.replace(dataset.images[0], split="test")
    leaking = dataclasses.replace(dataset, images=(first, *dataset.images[1:]))
    with pytest.raises(SplitLeakError, match="red wide bar"):
        fit(leaking, tmp_path / "model", TINY, cache=cache)


def test_without_splits_a_validation_side_is_drawn_by_concept(pictures, cache, tmp_path):
    dataset = read_dataset(pictures)
    unsplit = dataclasses.replace(
        dataset, images=tuple(dataclasses.replace(image, split="") for image in dataset.images)
    )
    counts = fit(unsplit, tmp_path / "model", TINY, cache=cache).validation["pictures"]
    assert counts["validation"] >= 1
    assert counts["train"] >= 18


def test_bad_pictures_are_skipped_and_listed(pictures, cache, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    dataset = read_dataset(pictures)
    bad = dataclasses.replace(dataset.images[0], image_id="bad", path=tmp_path / "bad.jpg")
    with_bad = dataclasses.replace(dataset, images=(*dataset.images, bad))
    skipped = fit(with_bad, tmp_path / "model", TINY, cache=cache).validation["skipped"]
    assert [item["path"] for item in skipped] == [str(tmp_path / "bad.jpg")]


def test_something_in_the_way_is_refused_before_any_work(pictures, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        fit(read_dataset(pictures), tmp_path / "model", TINY)
    assert not (tmp_path / "model.work").exists()


def test_families_that_start_from_a_checkpoint_ask_for_one(pictures, cache, tmp_path):
    with pytest.raises(ConfigError, match=r"generator\.checkpoint"):
        fit(read_dataset(pictures), tmp_path / "m", TINY.override({"generator.family": "t5"}), cache=cache)


def test_caption_memory_by_hand(pictures):
    images = read_dataset(pictures).images[:6]  # three concepts, two hands, two captions each
    codes = np.eye(6, 8, dtype=np.float32)
    side = side_of(images, codes, lambda texts: np.ones((len(texts), 8), np.float32))
    memory = caption_memory(side, codes, size=100, seed=0)
    assert memory.texts == side.captions
    assert memory.related_rows["a red wide bar"].tolist() == [0, 1]
    expected = np.zeros(8)
    expected[:2] = 2**-0.5
    np.testing.assert_allclose(memory.pictures[0], expected, rtol=1e-6)
    assert len(caption_memory(side, codes, size=4, seed=0).texts) == 4


def test_families_are_known_to_both_stages(pictures):
    images = [
        dataclasses.replace(image, family="red" if "red" in image.concept else "")
        for image in read_dataset(pictures).images[:8]
    ]  # three red concepts and a green one
    side = side_of(images, np.eye(8, dtype=np.float32), lambda texts: np.ones((len(texts), 8), np.float32))
    assert side.concepts.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert side.related.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    hidden = caption_memory(side, side.images, size=100, seed=0).related_rows
    assert hidden["a red wide bar"].tolist() == [0, 1, 2, 3, 4, 5], "the captions of the whole family are left out"
    assert hidden["a green wide bar"].tolist() == [6, 7]
    assert dataclasses.replace(side, families=None).related.tolist() == side.concepts.tolist()


def test_the_pool_adds_its_pictures_to_every_part_of_a_side(pictures):
    images = read_dataset(pictures).images[:4]
    side = side_of(images, np.eye(4, 8, dtype=np.float32), lambda texts: np.ones((len(texts), 8), np.float32))
    side = dataclasses.replace(side, views=np.zeros((3, 4, 8), np.float32))
    extended = with_pool(TrainingInputs(None, side, side), np.ones((2, 8), np.float32)).train
    assert extended.families.tolist() == [0, 0, 1, 1, 2, 3]
    assert extended.views.shape == (3, 6, 8)
    assert (extended.views[:, 4:] == 1).all(), "a picture of the pool is its own view"
    assert extended.paired_vectors().views is extended.views


@torch.inference_mode()
def test_a_text_in_training_does_not_see_its_own_concept(model):
    generator = copy.deepcopy(model.generator)
    generator.config = dataclasses.replace(generator.config, memory_weight=0.8)
    vectors = model.encoder.encode_texts(["a red wide bar", "a green wide bar", "a blue tall bar"])
    pictures = np.random.default_rng(0).normal(size=(3, generator.entries.shape[-1])).astype(np.float32)
    generator.memorize(CaptionMemory(["", "", ""], vectors, pictures, {}))
    seen = generator.prefill(["a red wide bar"]).query_point
    generator._related_rows = {"a red wide bar": np.arange(2)}
    alone = generator.prefill(["a red wide bar"]).query_point
    own_code = generator.to_code(torch.from_numpy(vectors[:1]))
    expected = own_code + 0.8 * torch.nn.functional.normalize(generator.memory_pictures[-1:])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen, alone)


def test_the_pool_trains_only_where_that_is_asked_for(pictures, model, cache, tmp_path):
    dataset = read_dataset(pictures)
    assert model.config.protocol == "inductive"
    inputs = prepare(dataset, TINY, tmp_path / "inductive", cache=cache)
    assert len(inputs.train.images) == 16
    seen = prepare(dataset, TINY.override({"protocol": "transductive"}), tmp_path / "transductive", cache=cache)
    pool = picture_vectors(seen.encoder, [image.path for image in dataset.split("test").images], cache=cache).vectors
    np.testing.assert_allclose(seen.train.images, np.concatenate([inputs.train.images, pool]), atol=1e-6)
    # captions are those of training pictures, the nearest first; not one is the pool's own
    assert seen.train.captions == inputs.train.captions
    added = seen.train.pairs[len(inputs.train.pairs) :]
    best = np.argsort(-(pool @ seen.train.texts.T), axis=1)[:, :5]
    assert [set(added[added[:, 0] == 16 + row, 1]) for row in range(len(pool))] == [set(row) for row in best]
    assert len(set(seen.train.concepts[16:])) == len(pool)
    assert not set(seen.train.concepts[16:]) & set(seen.train.concepts[:16])


def test_a_captioners_captions_are_added_beside_those_there(pictures, cache, tmp_path):
    inputs = prepare(read_dataset(pictures), TINY, tmp_path / "work", cache=cache)
    known = inputs.train.captions[3]
    vectors = inputs.train.images[:2]
    extended = with_pool(inputs, vectors, [["a new thing", known, "a new thing"], ["another"]])
    train = extended.train
    assert list(train.captions) == [*inputs.train.captions, "a new thing", "another"]
    count = len(inputs.train.captions)
    added = train.pairs[len(inputs.train.pairs) :].tolist()
    assert added == [[16, count], [16, 3], [17, count + 1]]
    expected = inputs.encoder.encode_texts(["a new thing", "another"])
    np.testing.assert_allclose(train.texts[count:], expected, atol=1e-6)
    assert len(train.images) == 18
    assert len(inputs.train.captions) == count


@pytest.mark.slow
def test_a_transductive_model_says_so_beside_every_number(pictures, cache, tmp_path):
    config = TINY.override({"protocol": "transductive", "encoder.epochs": "1"})
    model = fit(read_dataset(pictures), tmp_path / "model", config, cache=cache)
    assert model.validation["pictures"]["train"] == 20
    rows = benchmark(Model.load(tmp_path / "model"), read_dataset(pictures), cache=cache).rows
    assert {row.conditions.protocol for row in rows} == {"transductive"}
    without = dataclasses.replace(read_dataset(pictures), images=read_dataset(pictures).split("train").images)
    with pytest.raises(EmptyDataError, match="no picture is in split 'test'"):
        fit(without, tmp_path / "other", config, cache=cache)


@pytest.mark.parametrize("name", ["default", "paper", "paper-lite", "demo"])
def test_presets_survive_json(name):
    config = preset(name)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.name == name


def test_an_unknown_preset_names_the_known():
    with pytest.raises(ConfigError, match="paper-lite"):
        preset("papr")


@pytest.mark.slow
def test_the_sentence_encoder_can_be_tuned(model, pictures, cache, tmp_path):
    config = TINY.override({"generator.tune_encoder": "true", "generator.epochs": "1"})
    tuned = fit(read_dataset(pictures), tmp_path / "model", config, cache=cache)
    published = model.encoder.sentences.state_dict()
    assert all(torch.equal(weight, published[name]) for name, weight in tuned.encoder.sentences.state_dict().items())
    if tuned.validation["generator"]["best"] >= 0:
        assert any(
            not torch.equal(weight, published[name]) for name, weight in tuned.generator.text.state_dict().items()
        )
    assert same(Model.load(tmp_path / "model"), tuned)


def test_a_generator_is_trained_over_the_encoder_without_training(pictures, cache, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    vectors = ClassVectors(*(random.normal(size=size).astype(np.float32) / 20 for size in ((1000, 384), 384)))
    monkeypatch.setattr(ClassVectors, "of", lambda *_: vectors)  # the real ones take seconds
    model = fit(read_dataset(pictures), tmp_path / "model", TINY.override({"encoder.family": "photos"}), cache=cache)
    monkeypatch.undo()
    assert len(model.validation["generator"]["epochs"]) > 0
    loaded = Model.load(tmp_path / "model")
    assert same(loaded, model)
    texts = ["a red tall bar", "something blue"]
    engine = CompiledModel.load(tmp_path / "model")
    np.testing.assert_allclose(engine.query_vectors(texts), loaded.query_vectors(texts), atol=1e-4)


@pytest.fixture
def seen_texts(monkeypatch):
    """The texts' vectors that each image tokenizer is trained with."""
    seen = []
    original = fit_module.train_tokenizer

    def train_tokenizer(train, *others, **options):
        seen.append(train.texts)
        return original(train, *others, **options)

    monkeypatch.setattr(fit_module, "train_tokenizer", train_tokenizer)
    return seen


POINT = {
    "tokenizer.query_metric": "0.5",
    "generator.point_epochs": "3",
    "generator.memory_weight": "0.5",
    "generator.discrimination": "none",
    "generator.epochs": "0",
}


def test_a_query_point_that_moves_is_trained_on_vectors_first(pictures, cache, tmp_path, seen_texts, monkeypatch):
    """Its points make the metric of the tokenizer, and the generator's perceptron starts from it."""
    every_epoch_is_better = itertools.count()
    monkeypatch.setattr("voken.generator.train.mean_recall", lambda *_: next(every_epoch_is_better))
    config = TINY.override(POINT)
    model = fit(read_dataset(pictures), tmp_path / "model", config, cache=cache)
    plain = fit(
        read_dataset(pictures), tmp_path / "plain", config.override({"generator.point_epochs": "0"}), cache=cache
    )
    points, vectors = seen_texts
    assert points.shape == (16, model.encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    assert not np.allclose(points, vectors)
    assert [epoch["stage"] for epoch in model.validation["generator"]["epochs"]] == ["query point"]
    for one, texts in ((model, points), (plain, vectors)):
        np.testing.assert_array_equal(one.tokenizer.metric.numpy(), query_metric(texts, 0.5))
    assert same(Model.load(tmp_path / "model"), model)


def test_the_cache_that_is_given_is_used_even_while_empty(pictures, tmp_path):
    cache = VectorCache(tmp_path / "given")
    fit(read_dataset(pictures), tmp_path / "model", TINY, cache=cache)
    assert len(cache) == 18, "pictures of train and one of each validation concept, none of the test"
