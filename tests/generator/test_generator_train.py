"""Training the generator: it learns, it chooses by validation, and interrupted runs end where uninterrupted ones do."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import tiny_llama, tiny_t5
from voken import optimisation
from voken.config import GeneratorConfig
from voken.decoding.beam import beam_search, beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.encoders.text_reader import TextStates
from voken.errors import EmptyDataError, ResumeError
from voken.generator import train
from voken.generator.lite import LiteGenerator
from voken.generator.llama import LlamaGenerator, Lora
from voken.generator.t5 import T5Generator
from voken.generator.train import (
    CandidateSearch,
    SoftTargets,
    ValidationQueries,
    VokenPairs,
    cosine_bias,
    train_generator,
    validation_recall,
)
from voken.metrics import first_relevant, mean_recall

CONCEPTS, PICTURES, LEVELS, SIZE, DIM = 12, 60, 3, 6, 10
WORDS = ["a", "red", "blue", "cat", "dog", "on", "the", "hill", "under", "rain", "with", "two"]
"""One word a concept; known to the tiny T5 and Llama tokenizers too."""
NOISE = ["small", "birds"]
SMALL = GeneratorConfig(
    family="lite",
    width=16,
    layers=1,
    heads=2,
    dropout=0.1,
    query_vector=True,
    discrimination="none",
    discrimination_epochs=2,
    discrimination_beams=4,
    epochs=20,
    batch_size=20,
    learning_rate=0.01,
    patience=0,
    autocast=False,
)


class ConceptReader:
    """Reads a text into the fixed directions of its words."""

    text_width = dim = DIM

    def __init__(self) -> None:
        directions = torch.randn(len(WORDS) + len(NOISE), DIM, generator=torch.Generator().manual_seed(2))
        directions[len(WORDS) :] *= 0.2
        self.directions = dict(zip([*WORDS, *NOISE], directions, strict=True))

    def read_texts(self, texts, *, max_tokens):
        words = [text.split()[:max_tokens] for text in texts]
        tokens = torch.zeros(len(texts), max(map(len, words)), DIM)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        for row, text in enumerate(words):
            tokens[row, : len(text)] = torch.stack([self.directions[word] for word in text])
            mask[row, : len(text)] = True
        return TextStates(tokens, mask, torch.nn.functional.normalize(tokens.sum(1), dim=-1))


def make_codebooks() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(LEVELS, SIZE, DIM)).astype(np.float32) / 10


def make_model(seed: int = 0, **settings) -> LiteGenerator:
    torch.manual_seed(seed)
    return LiteGenerator(ConceptReader(), make_codebooks(), dataclasses.replace(SMALL, **settings))


def picture_vokens() -> np.ndarray:
    """The first two vokens tell the concept, the third is the picture's own (two pictures of a concept share one)."""
    concept = np.arange(PICTURES) % CONCEPTS
    return np.stack([concept % SIZE, concept // SIZE, (np.arange(PICTURES) // CONCEPTS) % 4], 1).astype(np.int32)


def make_soft(entries: np.ndarray) -> SoftTargets:
    """Most weight on the entry, the rest on its neighbour."""
    pairs = np.stack([entries, (entries + 1) % SIZE], -1)
    return SoftTargets(pairs.astype(np.int32), np.broadcast_to(np.float32([0.9, 0.1]), pairs.shape).copy())


def make_pairs(*, soft: bool = False, text_soft: bool = False, teacher: bool = False) -> VokenPairs:
    texts = [f"{WORDS[concept]} {noise}" for concept in range(CONCEPTS) for noise in NOISE]
    concepts = np.arange(PICTURES) % CONCEPTS
    pairs = [(picture, 2 * (picture % CONCEPTS) + which) for picture in range(PICTURES) for which in range(2)]
    vectors = ConceptReader().read_texts(texts, max_tokens=9).vectors.numpy()
    vokens = picture_vokens()
    return VokenPairs(
        texts=texts,
        vokens=vokens,
        concepts=concepts,
        pairs=np.array(pairs),
        soft=make_soft(vokens) if soft else None,
        text_soft=make_soft(vokens[np.arange(len(texts)) // 2]) if text_soft else None,
        text_vectors=vectors if teacher else None,
        rebuilt_vectors=vectors[2 * concepts] if teacher else None,
    )


def make_validation() -> ValidationQueries:
    relevant = [(query, picture) for query in range(CONCEPTS) for picture in range(query, PICTURES, CONCEPTS)]
    return ValidationQueries(texts=WORDS, vokens=picture_vokens(), relevant=np.array(relevant))


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def assert_same_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


VARIANTS = {
    "none": {},
    "joint": {"discrimination": "joint"},
    "staged": {"discrimination": "staged"},
    "soft": {"targets": "soft"},
    "soft, joint": {"targets": "soft", "discrimination": "joint"},
    "distillation": {"discrimination": "joint", "distillation_weight": 1.0},
    "text only": {"text_only_weight": 0.5},
    "soft, staged, text only, distillation": {
        "targets": "soft",
        "discrimination": "staged",
        "text_only_weight": 0.5,
        "distillation_weight": 1.0,
    },
    "bf16": {"autocast": True},
    "query point": {"point_epochs": 5},
    "query point, staged": {"point_epochs": 5, "discrimination": "staged", "generation_beside_discrimination": True},
    "no query vector": {"query_vector": False, "epochs": 30},
}


def pairs_for(settings: dict) -> VokenPairs:
    return make_pairs(
        soft=settings.get("targets") == "soft",
        text_soft="text_only_weight" in settings,
        teacher="distillation_weight" in settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_training_learns(name):
    model = make_model(**VARIANTS[name])
    history = train_generator(model, pairs_for(VARIANTS[name]), make_validation(), model.config, seed=0)
    generation = [record for record in history.epochs if record.stage == "generation"]
    assert generation[-1].loss < 0.7 * generation[0].loss
    assert history.untrained_recall < 0.6
    assert history.epochs[history.best].recall > 0.9
    bias = cosine_bias(model)
    recall = validation_recall(model, make_validation(), bias=lambda trie: bias)
    assert recall == pytest.approx(history.epochs[history.best].recall)
    assert not model.training
    stages = [record.stage for record in history.epochs]
    later = 2 if VARIANTS[name].get("discrimination") == "staged" else 0
    assert (
        stages
        == ["query point"] * model.config.point_epochs
        + ["generation"] * model.config.epochs
        + ["discrimination"] * later
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def first_loss(pairs: VokenPairs, **settings) -> float:
    """What the trainer records for one epoch of one batch, which it sees before the first update."""
    model = make_model(epochs=1, batch_size=1000, dropout=0.0, **settings)
    return train_generator(model, pairs, make_validation(), model.config, seed=0).epochs[0].loss


def logits_by_text(texts: list[str], sequences: np.ndarray) -> np.ndarray:
    model = make_model().eval()
    with torch.no_grad():
        prefixes = torch.from_numpy(sequences).long().expand(len(texts), -1, -1)
        return model.teacher_forced(model.encode(texts), prefixes).double().numpy()


def one_caption_a_picture(pairs: VokenPairs) -> VokenPairs:
    """So that what an epoch draws is known beforehand."""
    return dataclasses.replace(pairs, pairs=pairs.pairs[::2])


def test_generation_loss_is_recorded_by_hand():
    pairs = one_caption_a_picture(make_pairs())
    logits = logits_by_text(list(pairs.texts), pairs.vokens)
    total = 0.0
    for picture, text in pairs.pairs:
        log_prob = log_softmax(logits[text, picture] / 0.5)
        total -= sum(log_prob[level, pairs.vokens[picture, level]] for level in range(LEVELS))
    assert first_loss(pairs) == pytest.approx(total / PICTURES, rel=1e-5)


def test_text_only_loss_is_added_by_hand():
    pairs = one_caption_a_picture(make_pairs(text_soft=True))
    entries = pairs.text_soft.entries[:, :, 0]
    logits = logits_by_text(list(pairs.texts), entries)
    total = 0.0
    for _, text in pairs.pairs:
        log_prob = log_softmax(logits[text, text] / 0.5)
        for level, voken in enumerate(entries[text]):
            total -= 0.9 * log_prob[level, voken] + 0.1 * log_prob[level, (voken + 1) % SIZE]
    plain, both = first_loss(pairs), first_loss(pairs, text_only_weight=0.25)
    assert both - plain == pytest.approx(0.25 * total / PICTURES, rel=1e-4)


def test_discrimination_loss_is_added_by_hand():
    """With as many beams as sequences, the list is every sequence but those of the concept."""
    pairs = one_caption_a_picture(make_pairs())
    sequences = np.unique(pairs.vokens, axis=0)
    logits = log_softmax(logits_by_text(list(pairs.texts), sequences))
    scores = np.take_along_axis(logits, sequences[None, :, :, None].astype(np.int64), -1)[..., 0].sum(-1)
    total = 0.0
    for picture, text in pairs.pairs:
        positives = [tuple(pairs.vokens[other]) for other in range(picture % CONCEPTS, PICTURES, CONCEPTS)]
        negatives = [scores[text, row] for row in range(len(sequences)) if tuple(sequences[row]) not in positives]
        positive = scores[text, [tuple(row) for row in sequences].index(tuple(pairs.vokens[picture]))]
        total += np.log(np.exp([positive, *negatives]).sum()) - positive
    plain = first_loss(pairs)
    both = first_loss(pairs, discrimination="joint", discrimination_weight=0.5, discrimination_beams=len(sequences))
    assert both - plain == pytest.approx(0.5 * total / PICTURES, rel=1e-4)


def point_scores_by_hand(
    model: LiteGenerator, texts: list[str], sequences: np.ndarray, weight: float = 0.4
) -> np.ndarray:
    """Similarity × (<t, ẑ> - weight × ‖ẑ‖²), in double precision."""
    books = make_codebooks().astype(np.float64)
    rebuilt = sum(books[level][sequences[:, level]] for level in range(LEVELS))
    points = model.prefill(texts).query_point.double().numpy()
    return float(model.similarity.detach()[0]) * (points @ rebuilt.T - weight * np.square(rebuilt).sum(1))


def test_at_the_start_the_scores_of_query_points_are_those_of_the_beam_search():
    model = make_model(point_epochs=1)
    torch.nn.init.normal_(model.point_out.weight)
    model.eval()
    trie = VokenTrie.from_vokens(picture_vokens(), SIZE)
    beams = beam_search(model, trie, WORDS, trie.sequences, bias=cosine_bias(model))
    searched = np.zeros((len(WORDS), trie.sequences))
    np.put_along_axis(searched, beams.leaf, beams.log_prob, 1)
    sequences = trie.leaf_vokens(np.arange(trie.sequences))
    with torch.no_grad():
        points = model.query_points(WORDS, model.read_vectors(WORDS))
        scores = model.point_scores(points, torch.from_numpy(sequences).long()).numpy()
    np.testing.assert_allclose(scores, point_scores_by_hand(model, WORDS, sequences), rtol=1e-4, atol=1e-4)
    centred = (part - part.mean(1, keepdims=True) for part in (scores, searched))
    np.testing.assert_allclose(*centred, atol=1e-4)
    assert not np.allclose(model.prefill(WORDS).query_point, make_model().eval().prefill(WORDS).query_point)


def test_the_query_point_is_trained_on_all_sequences_at_once():
    """The first loss by hand: of all sequences, those of the query's concept are left out, but for its own."""
    pairs = one_caption_a_picture(make_pairs())
    settings = {"point_epochs": 1, "epochs": 0, "dropout": 0.0, "batch_size": PICTURES}
    model = make_model(**settings)
    validation = make_validation()
    history = train_generator(model, pairs, validation, model.config, seed=0)
    untrained = make_model(**settings).eval()
    sequences = np.unique(pairs.vokens, axis=0)

    def loss(similarity: float, weight: float) -> float:
        untrained.similarity.data.fill_(similarity)
        scores = point_scores_by_hand(untrained, list(pairs.texts), sequences, weight)
        total = 0.0
        for picture, text in pairs.pairs:
            related = {tuple(pairs.vokens[other]) for other in range(picture % CONCEPTS, PICTURES, CONCEPTS)}
            own = tuple(pairs.vokens[picture])
            kept = [row for row, sequence in enumerate(sequences) if tuple(sequence) not in related - {own}]
            at = [tuple(sequence) for sequence in sequences].index(own)
            total += np.log(np.exp(scores[text, kept]).sum()) - scores[text, at]
        return total / PICTURES

    def recall(weight: float) -> float:
        scores = point_scores_by_hand(untrained, WORDS, validation.vokens, weight)
        return mean_recall(first_relevant(scores, validation.is_relevant))

    best = min((5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0), key=lambda similarity: loss(similarity, 0.4))
    untrained.similarity.data.fill_(best)
    weight = max((0.4, 0.3, 0.2, 0.1, 0.0), key=recall)
    assert model.length_weight == weight
    assert [record.stage for record in history.epochs] == ["query point"]
    assert history.epochs[0].loss == pytest.approx(loss(best, weight), rel=1e-4), "it starts with the best of each grid"
    assert not model.voken_out.any()


def test_lists_of_the_query_point_hold_the_batch_if_not_all_fit():
    pairs = make_pairs()
    candidates = CandidateSearch(pairs, SIZE)
    batch = pairs.pairs[:7]
    leaves = candidates.leaves_beside(batch, 15, seed=3)
    assert len(leaves) == 15 < candidates.trie.sequences
    own, right = candidates.right_answers(batch, leaves)
    vokens = candidates.vokens_of(leaves)
    np.testing.assert_array_equal(vokens[own], pairs.vokens[batch[:, 0]])
    for row, (picture, _) in enumerate(batch):
        related = {tuple(pairs.vokens[other]) for other in range(picture % CONCEPTS, PICTURES, CONCEPTS)}
        expected = [tuple(sequence) in related - {tuple(pairs.vokens[picture])} for sequence in vokens]
        assert right[row].tolist() == expected


def test_one_seed_gives_one_result_and_another_another():
    results = []
    for seed in (3, 3, 4):
        model = make_model(discrimination="joint", epochs=2)
        history = train_generator(model, make_pairs(), ValidationQueries([], picture_vokens(), np.empty((0, 2), int)),
                                  model.config, seed=seed)  # fmt: skip
        results.append((history, weights_of(model)))
    assert results[0][0] == results[1][0]
    assert_same_weights(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]


def test_without_validation_the_last_epoch_is_kept():
    model = make_model(epochs=3)
    nothing = ValidationQueries([], picture_vokens(), np.empty((0, 2), int))
    history = train_generator(model, make_pairs(), nothing, model.config, seed=0)
    assert history.best == 2


def test_training_that_only_harms_is_undone():
    model = make_model()
    train_generator(model, make_pairs(), make_validation(), model.config, seed=0)
    before = weights_of(model)
    ruinous = dataclasses.replace(model.config, learning_rate=30.0, epochs=3, gradient_clip=1e9)
    history = train_generator(model, make_pairs(), make_validation(), ruinous, seed=0)
    assert history.best == -1
    assert history.untrained_recall > max(record.recall for record in history.epochs)
    assert_same_weights(weights_of(model), before)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 1), (3, 3), (0, 6)])
def test_patience_ends_a_run_that_does_not_improve(patience, epochs):
    model = make_model(learning_rate=0.0, patience=patience, epochs=6)
    history = train_generator(model, make_pairs(), make_validation(), model.config, seed=0)
    assert len(history.epochs) == epochs


def test_the_codebook_is_not_trained():
    model = make_model()
    train_generator(model, make_pairs(), make_validation(), model.config, seed=0)
    np.testing.assert_array_equal(model.entries.numpy(), make_codebooks())


def test_no_pairs_are_refused():
    pairs = dataclasses.replace(make_pairs(), pairs=np.empty((0, 2), int))
    with pytest.raises(EmptyDataError, match="no picture of the train split has a caption"):
        train_generator(make_model(), pairs, make_validation(), SMALL, seed=0)


def test_an_epoch_draws_each_picture_once_and_any_of_its_captions():
    pairs = make_pairs()
    draws = [pairs.draw(np.random.default_rng(seed)) for seed in range(20)]
    valid = {tuple(row) for row in pairs.pairs.tolist()}
    for drawn in draws:
        assert sorted(drawn[:, 0]) == list(range(PICTURES))
        assert {tuple(row) for row in drawn.tolist()} <= valid
    assert {tuple(row) for drawn in draws for row in drawn.tolist()} == valid
    assert len({tuple(drawn[:, 0]) for drawn in draws}) == 20, "the order differs"


class StoppedError(Exception):
    pass


def stop_at(calls: int):
    """A progress listener that ends the run at its n-th call."""
    count = itertools.count(1)

    def listen(what: str, done: int, total: int) -> None:
        if next(count) == calls:
            raise StoppedError

    return listen


RESUMED = {"discrimination": "staged", "targets": "soft", "distillation_weight": 1.0, "text_only_weight": 0.5}
RESUMED |= {"epochs": 2, "discrimination_epochs": 2}
STEPS = 12
"""Of a run with these settings: three a epoch, two epochs a stage."""


def run(checkpoints: Path | None, progress=train.no_progress, seed: int = 0, **settings):
    model = make_model(**RESUMED | settings)
    pairs = make_pairs(soft=True, text_soft=True, teacher=True)
    history = train_generator(
        model, pairs, make_validation(), model.config, seed=seed, checkpoints=checkpoints, progress=progress
    )
    return history, weights_of(model)


@pytest.mark.parametrize("discrimination", ["staged", "joint"])
@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, step, discrimination):
    """StoppedError within an epoch, between epochs or between stages, with a checkpoint at every step."""
    expected = run(None, discrimination=discrimination)
    monkeypatch.setattr(train, "_CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(StoppedError):
        run(tmp_path / "state", stop_at(step), discrimination=discrimination)
    result = run(tmp_path / "state", discrimination=discrimination)
    assert result[0] == expected[0]
    assert_same_weights(result[1], expected[1])


@pytest.mark.parametrize("seconds", [-1.0, 60.0])
def test_a_run_stopped_again_and_again_equals_uninterrupted(tmp_path, monkeypatch, seconds):
    """At every second step; where checkpoints are a minute apart, at every fourth, which is past an epoch's end."""
    expected = run(None)
    monkeypatch.setattr(train, "_CHECKPOINT_SECONDS", seconds)
    stops = 0
    while True:
        try:
            result = run(tmp_path / "state", stop_at(2 if seconds < 0 else 4))
            break
        except StoppedError:
            stops += 1
            assert stops < 2 * STEPS
    assert stops > 2
    assert result[0] == expected[0]
    assert_same_weights(result[1], expected[1])


def test_patience_is_the_same_after_a_stop(tmp_path, monkeypatch):
    settings = {"learning_rate": 0.0, "patience": 2, "epochs": 5}
    expected = run(None, **settings)
    monkeypatch.setattr(train, "_CHECKPOINT_SECONDS", -1.0)
    for step in (4, 3, 3):
        with pytest.raises(StoppedError):
            run(tmp_path / "state", stop_at(step), **settings)
    result = run(tmp_path / "state", **settings)
    assert [record.stage for record in result[0].epochs] == ["generation"] * 2 + ["discrimination"] * 2
    assert result[0] == expected[0]


def test_a_finished_run_started_again_changes_nothing(tmp_path):
    expected = run(tmp_path / "state")
    calls: list[int] = []
    result = run(tmp_path / "state", lambda *_: calls.append(1))
    assert result[0] == expected[0]
    assert_same_weights(result[1], expected[1])
    assert not calls


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"seed": 1}, {"epochs": 3}])
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change):
    run(tmp_path / "state")
    with pytest.raises(ResumeError, match="state: is the checkpoint of a run with other settings or data"):
        run(tmp_path / "state", **change)


def be_killed(folder: Path) -> None:
    """Train in this process and die by SIGKILL within the second epoch, as a checkpoint is being written."""
    train._CHECKPOINT_SECONDS = -1.0
    write_json, saves = optimisation.artifact.write_json, itertools.count(1)

    def write_and_die(path: Path, value: object) -> None:
        if path.name == "place.json" and next(saves) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    optimisation.artifact.write_json = write_and_die
    run(folder)


@pytest.mark.slow
def test_a_killed_process_resumed_equals_uninterrupted(tmp_path):
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    script = f"import sys; sys.path[:0] = {folders}; import conftest, test_generator_train; "
    script += f"from pathlib import Path; test_generator_train.be_killed(Path({str(tmp_path / 'state')!r}))"
    process = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    calls: list[int] = []
    result = run(tmp_path / "state", lambda _, process, __: calls.append(process))
    assert calls[0] == 5, "four steps had been saved"
    expected = run(None)
    assert result[0] == expected[0]
    assert_same_weights(result[1], expected[1])


def t5(folder: Path):
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        tiny_t5.make_checkpoint(checkpoint, "t5")
    return T5Generator.from_pretrained(checkpoint, make_codebooks(), dropout=0.1)


def llama(folder: Path):
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        tiny_llama.make_checkpoint(checkpoint, "untied")
    return LlamaGenerator.from_pretrained(checkpoint, make_codebooks(), lora=Lora(rank=3, alpha=5, dropout=0.1))


@pytest.mark.parametrize("make", [t5, llama])
def test_the_other_families_train_and_resume(tmp_path, monkeypatch, make):
    """The same trainer; with LoRA a checkpoint holds only what is trained."""
    config = dataclasses.replace(SMALL, epochs=2, discrimination="joint", learning_rate=0.003)
    model = make(tmp_path)
    before = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    expected = train_generator(model, make_pairs(), make_validation(), config, seed=0)
    assert expected.epochs[1].loss < expected.epochs[0].loss
    for name, weight in model.named_parameters():
        assert name not in before or torch.equal(weight, before[name]), name
    monkeypatch.setattr(train, "_CHECKPOINT_SECONDS", -1.0)
    arguments = (make_pairs(), make_validation(), config)
    with pytest.raises(StoppedError):
        train_generator(make(tmp_path), *arguments, seed=0, checkpoints=tmp_path / "state", progress=stop_at(5))
    resumed = make(tmp_path)
    assert train_generator(resumed, *arguments, seed=0, checkpoints=tmp_path / "state") == expected
    assert_same_weights(weights_of(resumed), weights_of(model))


@pytest.mark.parametrize("beams", [1, 2, 4, 50])
def test_candidates(beams):
    model = make_model().eval()
    pairs = make_pairs()
    search = CandidateSearch(pairs, SIZE)
    images = np.arange(0, PICTURES, 7)
    batch = np.stack([images, 2 * (images % CONCEPTS)], 1)
    texts = [pairs.texts[row] for row in batch[:, 1]]
    with torch.no_grad():
        candidates = search.find(model, model.encode(texts), batch, beams)
        state_again = model.encode(texts)
    assert candidates.vokens.shape[:2] == candidates.rows.shape == candidates.usable.shape
    assert candidates.rows.shape[1] <= beams
    np.testing.assert_array_equal(candidates.rows[:, 0], images)
    np.testing.assert_array_equal(candidates.vokens, pairs.vokens[candidates.rows])
    assert candidates.usable[:, 0].all()
    beams_found = beam_search_from_state(model, state_again, search.trie, beams)
    for row, image in enumerate(images):
        right = {tuple(pairs.vokens[other]) for other in range(image % CONCEPTS, PICTURES, CONCEPTS)}
        listed = [tuple(vokens) for vokens in candidates.vokens[row][candidates.usable[row]].tolist()]
        expected = [
            tuple(vokens)
            for vokens, leaf in zip(beams_found.vokens[row].tolist(), beams_found.leaf[row], strict=True)
            if leaf >= 0 and tuple(vokens) not in right
        ][: beams - 1]
        assert listed == [tuple(pairs.vokens[image].tolist()), *expected]
        assert len(listed) == len(set(listed))


def test_a_list_is_full_if_the_search_returned_its_positive():
    model, pairs = make_model().eval(), make_pairs()
    own = np.arange(PICTURES)
    texts = [str(row) for row in own]  # a concept and a text for every picture: only the positive itself is right
    pairs = dataclasses.replace(pairs, concepts=own, pairs=np.stack([own] * 2, 1), texts=texts)
    search = CandidateSearch(pairs, SIZE)
    with torch.no_grad():
        state = model.encode(["a small"])
        best = beam_search_from_state(model, state, search.trie, 4).vokens[0].tolist()
        positive = int((pairs.vokens == best[0]).all(1).argmax())
        lists = search.find(model, model.encode(["a small"]), np.array([[positive, positive]]), 4)
    assert lists.usable.tolist() == [[True] * 4]
    assert lists.vokens[0].tolist() == best


def test_pictures_with_the_query_as_their_caption_are_no_negatives():
    pairs = make_pairs()
    texts = [*pairs.texts, pairs.texts[0]]  # the last row repeats text 0
    extra = np.array([[1, len(texts) - 1], [13, 0]])  # two pictures of concept 1 have text 0 too, under either row
    pairs = dataclasses.replace(pairs, texts=texts, pairs=np.concatenate([pairs.pairs, extra]))
    model, search = make_model().eval(), CandidateSearch(pairs, SIZE)
    with torch.no_grad():
        lists = search.find(model, model.encode([texts[0]] * 2), np.array([[0, 0], [0, 1]]), 50)
    listed = [{tuple(row) for row in lists.vokens[query][lists.usable[query]].tolist()} for query in range(2)]
    same_text = {tuple(pairs.vokens[picture].tolist()) for picture in (1, 13)}
    assert not same_text & listed[0]
    assert same_text <= listed[1], "text 1 is not their caption"


def expected_recall(order: list[int], leaf: np.ndarray, answer: int, cut: int) -> float:
    """Over every order of the pictures within each leaf, how often `answer` is among the first `cut`."""
    rows = [[picture for picture in range(len(leaf)) if leaf[picture] == at] for at in order]
    ranked = [list(itertools.chain(*choice)) for choice in itertools.product(*map(itertools.permutations, rows))]
    return float(np.mean([answer in pictures[:cut] for pictures in ranked]))


def test_validation_recall_equals_brute_force():
    """One right answer a query, pictures that share sequences, every order of ties written out."""
    model = make_model().eval()
    vokens = np.array([[0, 0, 1], [0, 0, 1], [3, 1, 0], [2, 2, 2], [0, 0, 1], [5, 0, 4], [5, 0, 4]], np.int32)
    texts = WORDS[:5]
    answers = [4, 2, 5, 0, 3]
    sequences, leaf = np.unique(vokens, axis=0, return_inverse=True)
    logits = log_softmax(logits_by_text(texts, sequences))
    scores = np.take_along_axis(logits, sequences[None, :, :, None].astype(np.int64), -1)[..., 0].sum(-1)
    expected = [
        expected_recall(np.argsort(-scores[row]).tolist(), leaf, answer, cut)
        for row, answer in enumerate(answers)
        for cut in (1, 5, 10)
    ]
    validation = ValidationQueries(texts, vokens, np.stack([np.arange(5), answers], 1))
    assert validation_recall(model, validation) == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1


def test_validation_recall_counts_any_of_several_answers():
    """Every picture right: found at once. No picture right: never."""
    model = make_model().eval()
    vokens = picture_vokens()
    pairs = np.array(list(itertools.product(range(2), range(PICTURES))))
    assert validation_recall(model, ValidationQueries(WORDS[:2], vokens, pairs)) == 1.0
    assert validation_recall(model, ValidationQueries(WORDS[:2], vokens, pairs[:0])) == 0.0
