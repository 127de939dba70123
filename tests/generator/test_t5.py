"""The T5 generator against plain transformers: same weights, its own forward pass and its own `generate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.generator_checks import check_search_equals_transformers, check_teacher_forcing_equals_stepping
from builders.tiny_t5 import KINDS, LEVELS, SIZE, WORDS, make_checkpoint, make_codebooks, make_t5
from voken.decoding.beam import beam_search
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError
from voken.generator.interface import Generator
from voken.generator.t5 import T5Generator

torch.set_num_threads(1)
TEXTS = ["a red cat", "two small birds on the hill under rain", "dog"]


def make_trie(images: int = 25) -> VokenTrie:
    return VokenTrie.from_vokens(np.random.default_rng(2).integers(0, SIZE, (images, LEVELS)), SIZE)


def plain_log_probs(plain, model: T5Generator, text: str, sequences: np.ndarray) -> torch.Tensor:
    """Log-probabilities from transformers' forward pass over whole sequences, without a cache."""
    inputs = model.reader([text], torch.device("cpu"))
    count = len(sequences)
    tokens = torch.from_numpy(sequences).long() + len(WORDS)
    with torch.no_grad():
        logits = plain(
            input_ids=inputs.tokens.expand(count, -1),
            attention_mask=inputs.mask.long().expand(count, -1),
            decoder_input_ids=torch.cat([torch.zeros(count, 1, dtype=torch.long), tokens[:, :-1]], dim=1),
        ).logits[:, :, len(WORDS) :]
    return logits.log_softmax(-1).gather(2, (tokens - len(WORDS)).unsqueeze(-1)).squeeze(-1).sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_transformers(tmp_path, kind):
    model, trie = make_t5(tmp_path, kind), make_trie()
    check_search_equals_transformers(
        model,
        model.to_transformers(),
        trie,
        TEXTS,
        words=len(WORDS),
        log_probs=plain_log_probs,
        sequence_start=lambda tokens: 1,  # after the decoder's start token
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kept_weights_are_the_checkpoints(tmp_path, kind):
    """Logits over words from our decoder, with the checkpoint's own head, are those of the untouched checkpoint."""
    from transformers import AutoModelForSeq2SeqLM

    model = make_t5(tmp_path, kind)
    original = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint").eval()
    assert model.vocabulary.tied == ("untied" not in kind)
    inputs = model.reader(["a red dog"], torch.device("cpu"))
    with torch.no_grad():
        expected = original(input_ids=inputs.tokens, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
        hidden, _ = model._decode(model._start(1, 1), model.encode(["a red dog"]))
        torch.testing.assert_close(original.lm_head(hidden[:, 0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_teacher_forcing_equals_stepping(tmp_path, shared):
    model, trie = make_t5(tmp_path, "t5 untied gated", shared=shared), make_trie()
    check_teacher_forcing_equals_stepping(model, trie, TEXTS)


def test_a_table_a_level_is_used_at_its_level(tmp_path):
    """With one table a level, swapping rows of a level's table swaps that level's logits and no other's."""
    model = make_t5(tmp_path, "t5 untied gated", shared=False)
    vokens = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 5, 5]])
    with torch.no_grad():
        before = model(TEXTS, vokens)
        model.vocabulary.head[1] = model.vocabulary.head[1].flip(0)
        after = model(TEXTS, vokens)
        torch.testing.assert_close(after[:, 1], before[:, 1].flip(-1))
        torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
        model.vocabulary.embeddings[1, 4] += 1.0  # read where 4 was taken at level 2, which level 3 alone sees
        changed = (model(TEXTS, vokens) - after).abs().amax(dim=-1) > 1e-6
    assert changed.tolist() == [[False, False, False], [False, False, True], [False, False, False]]


def test_padding_does_not_matter(tmp_path):
    model, trie = make_t5(tmp_path, "t5"), make_trie()
    together = beam_search(model, trie, TEXTS, 5)
    for query, text in enumerate(TEXTS):
        alone = beam_search(model, trie, [text], 5)
        assert (alone.leaf[0] == together.leaf[query]).all()
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[query], atol=1e-5)


def test_a_plain_model_leaves_this_one_as_it_was(tmp_path):
    model = make_t5(tmp_path, "t5")
    words = model.config.vocab_size
    assert len(model.to_transformers().lm_head.weight) == len(model.to_transformers().lm_head.weight) == words + SIZE
    assert model.config.vocab_size == words
    model.save(tmp_path / "saved")
    assert T5Generator.load(tmp_path / "saved").config.vocab_size == words


def test_many_queries_are_read_as_one_is(tmp_path):
    """More than are read in one part, lengths mixed."""
    model = make_t5(tmp_path, "t5")
    texts = [" ".join(np.random.default_rng(row).choice(WORDS[3:], 1 + row * 7 % 11)) for row in range(40)]
    together = model.prefill(texts)
    for row, text in enumerate(texts):
        alone = model.prefill([text])
        length = int(together.mask[row].sum())
        assert length == alone.mask.shape[3]
        for values, expected in zip(together.cross_values, alone.cross_values, strict=True):
            torch.testing.assert_close(values[row, :, :length], expected[0], atol=1e-5, rtol=1e-4)


def test_queries_are_read_once_and_shared_by_their_beams(tmp_path):
    model, trie = make_t5(tmp_path, "t5"), make_trie()
    calls = []
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.k.register_forward_hook(lambda *_: calls.append("k"))
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    beam_search(model, trie, TEXTS, 8)
    assert sorted(calls) == ["encoder", "k", "k"]
    state = model.prefill(TEXTS)
    beams = torch.zeros(len(TEXTS), 4, dtype=torch.long)
    with torch.no_grad():
        _, after = model.step(state, None, None)
        _, after = model.step(after, beams, beams)
    assert after.keys.shape[2] == 4
    assert all(a is b and len(a) == len(TEXTS) for a, b in zip(after.cross_keys, state.cross_keys, strict=True))


def test_long_and_empty_queries(tmp_path):
    model = make_t5(tmp_path, "t5", max_query_tokens=4)
    with torch.no_grad():
        long, cut = model.encode(["a red cat on the hill"]), model.encode(["a red cat"])
        torch.testing.assert_close(long.cross_keys[0], cut.cross_keys[0])
        vokens = torch.zeros(2, 3, dtype=torch.long)
        assert torch.isfinite(model(["", "a red cat"], vokens)).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_is_the_same(tmp_path, kind, shared, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model, trie = make_t5(tmp_path, kind, shared=shared, max_query_tokens=5), make_trie()
    model.save(tmp_path / "saved")
    loaded = T5Generator.load(tmp_path / "saved")
    assert not loaded.training
    assert loaded.reader.max_tokens == 5
    mine, theirs = beam_search(model, trie, TEXTS, 6), beam_search(loaded, trie, TEXTS, 6)
    assert (mine.leaf == theirs.leaf).all()
    assert (mine.log_prob == theirs.log_prob).all()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_everything_is_trained_once(tmp_path):
    model = make_t5(tmp_path, "mt5 untied gated").train()
    vokens = torch.tensor([[0, 1, 2], [3, 4, 5], [1, 1, 1]])
    loss = torch.nn.functional.cross_entropy(model(TEXTS, vokens).flatten(0, 1), vokens.flatten())
    loss.backward()
    grouped = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == len(list(model.parameters()))
    # Only cross-attention's unused position tables could be without; T5's decoder has none.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert isinstance(model, Generator)
    torch.optim.AdamW(model.parameter_groups(), lr=1e-2, weight_decay=0.1).step()


def test_training_learns(tmp_path):
    model, trie = make_t5(tmp_path, "t5", dropout=0.0).train(), make_trie()
    target = torch.from_numpy(trie.leaf_vokens(np.array([4, 9, 14])).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(TEXTS, target).flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    assert beam_search(model.eval(), trie, TEXTS, 3).leaf[:, 0].tolist() == [4, 9, 14]


def test_dropout_replaces_the_checkpoints(tmp_path):
    model = make_t5(tmp_path, "t5", dropout=0.45)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.45}
    assert model.config.dropout_rate == 0.45


@pytest.mark.parametrize("width", [16, 7, 40])
def test_voken_rows_keep_the_codebooks_angles(tmp_path, width):
    """An orthonormal map and one scale keep the angles between rows, except onto a narrower space."""
    codebooks = make_codebooks(width)
    model = make_t5(tmp_path, "t5 untied gated", codebooks=codebooks, shared=False)
    words = model.encoder.embed_tokens.weight.detach().square().mean(dtype=torch.float64) ** 0.5
    for level in range(LEVELS):
        rows = model.vocabulary.embeddings[level].detach().numpy()
        assert np.sqrt(np.mean(rows**2)) == pytest.approx(float(words), rel=1e-4)
        if width <= 16:
            mine, theirs = rows @ rows.T, codebooks[level] @ codebooks[level].T
            np.testing.assert_allclose(mine / np.linalg.norm(mine), theirs / np.linalg.norm(theirs), atol=1e-5)
    head = model.vocabulary.head.detach().numpy()
    np.testing.assert_allclose(head * (rows[0, 0] / head[-1, 0, 0]), model.vocabulary.embeddings.detach(), rtol=1e-3)


def test_random_voken_rows_depend_on_the_seed_alone(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "t5")

    def rows(seed, codebooks):
        model = T5Generator.from_pretrained(checkpoint, codebooks, copy_embeddings=False, seed=seed)
        return model.vocabulary.embeddings

    assert torch.equal(rows(1, make_codebooks()), rows(1, make_codebooks() * 2 + 1))
    assert not torch.equal(rows(1, make_codebooks()), rows(2, make_codebooks()))


def test_what_cannot_be_opened_is_said(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for missing in (str(tmp_path / "none"), "someone/no-such-model-anywhere"):
        with pytest.raises(ConfigError, match="Pass a folder"):
            T5Generator.from_pretrained(missing, make_codebooks())
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "t5")
    with pytest.raises(ConfigError, match="max_query_tokens 1"):
        T5Generator.from_pretrained(checkpoint, make_codebooks(), max_query_tokens=1)
    with pytest.raises(ConfigError, match="all zeros"):
        T5Generator.from_pretrained(checkpoint, make_codebooks() * 0)
    with pytest.raises(ConfigError, match="shape"):
        T5Generator.from_pretrained(checkpoint, make_codebooks()[0])
    with pytest.raises(ConfigError, match="one codebook per level"):
        T5Generator.from_pretrained(checkpoint, make_codebooks(), shared=False).to_transformers()
    (checkpoint / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ConfigError, match="Pass a folder"):
        T5Generator.from_pretrained(checkpoint, make_codebooks())
    (checkpoint / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="Pass a folder"):
        T5Generator.from_pretrained(checkpoint, make_codebooks())


def test_another_architecture_is_refused(tmp_path):
    from transformers import BartConfig

    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a bart checkpoint"):
        T5Generator.from_pretrained(tmp_path, make_codebooks())


def test_damaged_folders_are_named(tmp_path):
    model = make_t5(tmp_path, "t5")
    saved = tmp_path / "saved"
    with pytest.raises(CorruptArtifactError, match=r"generator\.json"):
        T5Generator.load(saved)
    model.save(saved)
    header = (saved / "generator.json").read_text()
    (saved / "generator.json").write_text(header.replace('"format": 1', '"format": 7'))
    with pytest.raises(ArtifactVersionError, match="7"):
        T5Generator.load(saved)
    (saved / "generator.json").write_text(header.replace('"t5"', '"llama"'))
    with pytest.raises(ArtifactVersionError, match="llama"):
        T5Generator.load(saved)
    (saved / "generator.json").write_text(header.replace('"codebook_size": 6', '"codebook_size": 7'))
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        T5Generator.load(saved)
    (saved / "generator.json").write_text(header)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        T5Generator.load(saved)
