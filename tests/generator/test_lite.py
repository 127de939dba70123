"""The lite generator: its steps against its teacher-forced pass, its search against brute force, its logits by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from builders.generator_checks import check_steps_equal_the_teacher_forced_pass
from builders.tiny_lite import (
    LEVELS,
    SETTINGS,
    SIZE,
    SMALL,
    WordReader,
    make_codebooks,
    make_lite,
    make_memory,
)
from voken.decoding.beam import beam_search
from voken.decoding.trie import VokenTrie
from voken.encoders.text_reader import TextReader
from voken.errors import ConfigError, CorruptArtifactError
from voken.generator.interface import Generator
from voken.generator.lite import LiteGenerator
from voken.training.sides import CachedTextReader

TEXTS = ["a red cat", "dog", "two small birds on the hill", "a", "under heavy rain"]


def every_sequence() -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(SIZE), repeat=LEVELS)))


def sequence_scores(model: LiteGenerator, texts: list[str], sequences: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        logits = model.teacher_forced(model.encode(texts), sequences.expand(len(texts), *sequences.shape))
    log_prob = logits.double().log_softmax(-1).gather(-1, sequences.expand(len(texts), -1, -1)[..., None])
    return log_prob.squeeze(-1).sum(-1).numpy()


def test_it_is_a_generator_and_its_reader_a_reader():
    assert isinstance(make_lite(), Generator)
    assert isinstance(WordReader(), TextReader)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_steps_equal_the_teacher_forced_pass(name, shared):
    check_steps_equal_the_teacher_forced_pass(make_lite(shared=shared, **SETTINGS[name]), TEXTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_level_does_not_see_the_vokens_from_it_on(name):
    model = make_lite(**SETTINGS[name])
    sequences = torch.tensor([[[0, 1, 2], [0, 1, 4], [0, 3, 2]]])
    with torch.no_grad():
        logits = model.teacher_forced(model.encode(TEXTS[:1]), sequences)[0]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[0, :2], logits[2, :2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0, 2], logits[2, 2])


@pytest.mark.parametrize("name", SETTINGS)
def test_search_at_full_width_equals_brute_force(name):
    model = make_lite(**SETTINGS[name])
    images = every_sequence()[np.random.default_rng(0).permutation(SIZE**LEVELS)[:60]].numpy()
    trie = VokenTrie.from_vokens(images, SIZE)
    leaves = torch.from_numpy(trie.leaf_vokens(np.arange(trie.sequences))).long()
    scores = sequence_scores(model, TEXTS, leaves)
    result = beam_search(model, trie, TEXTS, beams=60)
    np.testing.assert_array_equal(result.leaf, np.argsort(-scores, axis=1, kind="stable"))
    np.testing.assert_allclose(result.log_prob, -np.sort(-scores, axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_probabilities_of_all_sequences_sum_to_one(name):
    total = np.exp(sequence_scores(make_lite(**SETTINGS[name]), TEXTS, every_sequence())).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_query_alone_equals_the_query_in_a_batch(name):
    model = make_lite(**SETTINGS[name])
    together = sequence_scores(model, TEXTS, every_sequence())
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(sequence_scores(model, [text], every_sequence())[0], together[row], atol=1e-4)


def test_an_empty_text_has_finite_logits():
    for name in SETTINGS:
        scores = sequence_scores(make_lite(**SETTINGS[name]), ["", "a red cat"], every_sequence())
        assert np.isfinite(scores).all(), name
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_model_is_the_same(tmp_path, name):
    model = make_lite(**SETTINGS[name])
    model.save(tmp_path)
    loaded = LiteGenerator.load(tmp_path, WordReader())
    assert loaded.config == model.config
    assert not loaded.training
    np.testing.assert_array_equal(
        sequence_scores(loaded, TEXTS, every_sequence()), sequence_scores(model, TEXTS, every_sequence())
    )


def test_a_damaged_settings_file_is_refused(tmp_path):
    make_lite().save(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"config\.json"):
        LiteGenerator.load(tmp_path, WordReader())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_weight_gets_a_gradient_and_the_codebook_none(name):
    model = make_lite(**SETTINGS[name]).train()
    model.teacher_forced(model.encode(TEXTS), every_sequence().expand(len(TEXTS), -1, -1)).log_softmax(-1)[
        ..., 0
    ].sum().backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert bool(weight.grad.abs().sum() > 0), weight_name
    assert not model.entries.requires_grad
    assert "entries" not in dict(model.named_parameters())


@pytest.mark.parametrize("name", SETTINGS)
def test_parameter_groups_hold_each_weight_once(name):
    model = make_lite(**SETTINGS[name])
    groups = model.parameter_groups()
    held = [id(weight) for group in groups for weight in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for weight in model.parameters()}
    decayed = {id(weight) for group in groups if group.get("weight_decay", 1) for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in decayed}
    assert "read.weight" in names
    assert not any("bias" in name or "norm" in name or "voken" in name or "place" in name for name in names)


def test_rows_keep_the_codebooks_angles():
    """Copied rows: the same inner products as the codebook's, but for one factor, at either width."""
    for width in (8, 12):
        torch.manual_seed(0)
        model = LiteGenerator(WordReader(), make_codebooks(), dataclasses.replace(SMALL, width=width, heads=2))
        for level, entries in enumerate(make_codebooks()):
            rows = model.voken_in[level].detach().numpy()
            ratio = (rows @ rows.T) / (entries @ entries.T)
            np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)


def test_query_vector_adds_inner_products_by_hand():
    """Without rows and biases, level 1 is s₁ ⟨W t, e⟩ and level 2 is ⟨s₂ W t − r₂ e₁, e⟩."""
    model = make_lite()
    model.voken_out.data.zero_()
    model.bias.data.zero_()
    codebooks = make_codebooks().astype(np.float64)
    vector = model._reader.read_texts(["dog"], max_tokens=9).vectors[0].double().numpy()
    point = model.to_code.weight.detach().double().numpy() @ vector
    similarity, repetition = model.similarity.tolist(), model.repetition.tolist()
    with torch.no_grad():
        logits = model.teacher_forced(model.encode(["dog"]), torch.tensor([[[2, 0, 0]]]))[0, 0].numpy()
    np.testing.assert_allclose(logits[0], codebooks[0] @ point * similarity[0], rtol=1e-4, atol=1e-4)
    expected = codebooks[1] @ (similarity[1] * point - repetition[1] * codebooks[0][2])
    np.testing.assert_allclose(logits[1], expected, rtol=1e-4, atol=1e-4)


def test_memory_by_hand_and_without_own_captions_while_they_are_owned():
    model = make_lite(memory_weight=0.7, memory_temperature=0.2)
    vector = model._reader.read_texts(["dog"], max_tokens=9).vectors[0].double().numpy()

    def point(rows: list[int]) -> np.ndarray:
        weights = np.exp(make_memory().vectors[rows].astype(np.float64) @ vector / 0.2)
        recalled = weights / weights.sum() @ make_memory().pictures[rows]
        return model.to_code.weight.detach().double().numpy() @ vector + 0.7 * recalled / np.linalg.norm(recalled)

    def first_logits() -> np.ndarray:
        return model.encode(["dog"]).query_point[0].detach().numpy()

    model.memorize(make_memory(own_captions={"dog": np.array([0, 2])}))
    np.testing.assert_allclose(first_logits(), point([1, 3]), rtol=1e-4, atol=1e-5)
    model.end_training()
    np.testing.assert_allclose(first_logits(), point([0, 1, 2, 3]), rtol=1e-4, atol=1e-5)
    model.memorize(make_memory(own_captions={"dog": np.arange(4)}))
    expected = model.to_code.weight.detach().double().numpy() @ vector
    np.testing.assert_allclose(first_logits(), expected, rtol=1e-4, atol=1e-5)


def test_another_reader_stands_in_while_training():
    model = make_lite()
    expected = model.encode(TEXTS).query_point
    remembered = CachedTextReader(WordReader(), TEXTS, max_tokens=model.config.max_query_tokens)
    model.begin_training(remembered)
    torch.testing.assert_close(model.encode(TEXTS).query_point, expected)
    model._reader = None
    model.encode(TEXTS)
    model.end_training()
    with pytest.raises(AttributeError):
        model.encode(TEXTS)


def test_dropout_acts_in_training_only():
    model = make_lite()
    sequence = torch.tensor([[[1, 2, 3]]])

    def logits() -> torch.Tensor:
        return model.teacher_forced(model.encode(["dog"]), sequence).detach()

    assert torch.equal(logits(), logits())
    model.train()
    assert not torch.equal(logits(), logits())


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"generator\.width 12 is not a multiple of generator\.heads 5"):
        make_lite(heads=5)


def test_remembered_texts_are_what_the_reader_reads():
    reader = WordReader()
    remembered = CachedTextReader(reader, [*TEXTS, "dog"], max_tokens=4, batch_size=2)
    for texts in (TEXTS, TEXTS[3:4], ["dog", "a red cat", "dog"], ["never seen", "dog"]):
        for length in (4, 2):
            fresh, cached = (source.read_texts(texts, max_tokens=length) for source in (reader, remembered))
            assert torch.equal(cached.mask, fresh.mask)
            torch.testing.assert_close(cached.vectors, fresh.vectors)
            torch.testing.assert_close(
                cached.tokens[cached.mask].float(), fresh.tokens[fresh.mask], rtol=1e-3, atol=1e-3
            )
    assert (remembered.text_width, remembered.dim) == (reader.text_width, reader.dim)
