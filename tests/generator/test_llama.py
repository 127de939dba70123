"""The Llama generator against plain transformers: same weights, its own forward pass and its own `generate`."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch

from builders.generator_checks import check_search_equals_transformers, check_teacher_forcing_equals_stepping
from builders.tiny_llama import KINDS, LEVELS, SIZE, WORDS, make_checkpoint, make_codebooks, make_llama
from voken.decoding.beam import beam_search
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, CorruptArtifactError, MissingExtraError
from voken.generator.interface import Generator
from voken.generator.llama import LlamaGenerator, Lora

torch.set_num_threads(1)
TEXTS = ["a red cat", "two small birds on the hill under rain", "dog"]
LORAS = [None, Lora(rank=3, alpha=5, dropout=0.1)]


def make_trie(images: int = 25) -> VokenTrie:
    return VokenTrie.from_vokens(np.random.default_rng(2).integers(0, SIZE, (images, LEVELS)), SIZE)


def plain_log_probs(plain, model: LlamaGenerator, text: str, sequences: np.ndarray) -> torch.Tensor:
    """Log-probabilities from transformers' forward pass over prompt and sequence, without a cache."""
    prompt = model.reader([text], torch.device("cpu")).tokens
    vokens = torch.from_numpy(sequences).long()
    tokens = torch.cat([prompt.expand(len(sequences), -1), vokens + len(WORDS)], dim=1)
    with torch.no_grad():
        logits = plain(input_ids=tokens).logits[:, prompt.shape[1] - 1 : -1, len(WORDS) :]
    return logits.log_softmax(-1).gather(2, vokens.unsqueeze(-1)).squeeze(-1).sum(1)


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_transformers(tmp_path, kind, lora):
    model, trie = make_llama(tmp_path, kind, lora=lora, separator="picture :"), make_trie()
    assert model.vocabulary.tied == (kind == "tied")
    check_search_equals_transformers(
        model,
        model.to_transformers(),
        trie,
        TEXTS,
        words=len(WORDS),
        log_probs=plain_log_probs,
        sequence_start=lambda tokens: tokens.shape[1],  # after the prompt
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kept_weights_are_the_checkpoints(tmp_path, kind):
    """After the prompt, the checkpoint's own head on our state gives the untouched checkpoint's next word."""
    from transformers import AutoModelForCausalLM

    model = make_llama(tmp_path, kind)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    with torch.no_grad():
        state = model.encode(TEXTS)
        for query, text in enumerate(TEXTS):
            expected = original(input_ids=model.reader([text], torch.device("cpu")).tokens).logits[0, -1]
            torch.testing.assert_close(original.lm_head(state.last[query]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_teacher_forcing_equals_stepping(tmp_path, shared):
    model, trie = make_llama(tmp_path, "untied", shared=shared, lora=LORAS[1]), make_trie()
    check_teacher_forcing_equals_stepping(model, trie, TEXTS)


def test_one_level_needs_the_prompt_alone(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "tied")
    model = LlamaGenerator.from_pretrained(checkpoint, make_codebooks()[:1]).eval()
    trie = VokenTrie.from_vokens(np.arange(SIZE)[:, None], SIZE)
    result = beam_search(model, trie, TEXTS, SIZE)
    with torch.no_grad():
        forced = model(TEXTS, torch.zeros(3, 1, dtype=torch.long))[:, 0].log_softmax(-1)
    np.testing.assert_allclose(result.log_prob, forced.sort(dim=1, descending=True).values, atol=1e-5)


def test_padding_does_not_matter(tmp_path):
    model, trie = make_llama(tmp_path, "untied"), make_trie()
    together = beam_search(model, trie, TEXTS, 5)
    for query, text in enumerate(TEXTS):
        alone = beam_search(model, trie, [text], 5)
        assert (alone.leaf[0] == together.leaf[query]).all()
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[query], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_does_not_matter(tmp_path, side):
    model = make_llama(tmp_path, "tied")
    model.reader.tokenizer.padding_side = model.reader.tokenizer.truncation_side = side
    tokens = model.reader(TEXTS, torch.device("cpu"))
    assert tokens.tokens[2].tolist() == [0, WORDS.index("dog")] + [0] * 7
    assert tokens.mask.sum(dim=1).tolist() == [4, 9, 2]


def test_separator_survives_truncation(tmp_path):
    model = make_llama(tmp_path, "tied", separator="picture :", max_query_tokens=5)
    tokens = model.reader(["two small birds on the hill", ""], torch.device("cpu"))
    ends = [WORDS.index("picture"), WORDS.index(":")]
    assert tokens.tokens[0].tolist() == [0, WORDS.index("two"), WORDS.index("small"), *ends]
    assert tokens.tokens[1, :3].tolist() == [0, *ends]
    with pytest.raises(ConfigError, match="max_query_tokens 3"):
        LlamaGenerator.from_pretrained(
            tmp_path / "checkpoint", make_codebooks(), separator="picture :", max_query_tokens=3
        )


def test_prompts_are_read_once_and_shared_by_their_beams(tmp_path):
    model = make_llama(tmp_path, "tied")
    rows = []
    model.transformer.layers[0].mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1]))
    beams = torch.zeros(len(TEXTS), 4, dtype=torch.long)
    with torch.no_grad():
        state = model.prefill(TEXTS)
        _, after = model.step(state, None, None)
        _, after = model.step(after, beams, beams)
        _, after = model.step(after, beams, beams)
    assert rows == [(3, 9), (3, 4, 1), (3, 4, 1)]
    assert all(a is b and len(a) == len(TEXTS) for a, b in zip(after.prompt_keys, state.prompt_keys, strict=True))


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_adapters_and_vokens_only(tmp_path, kind, lora):
    model = make_llama(tmp_path, kind, lora=lora).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    vokens = torch.tensor([[0, 1, 2], [3, 4, 5], [1, 1, 1]])
    torch.nn.functional.cross_entropy(model(TEXTS, vokens).flatten(0, 1), vokens.flatten()).backward()
    touched = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    trained = {name for name in before if ".lora_" in name or name.startswith("vocabulary.")}
    assert touched == trained
    assert len(trained) == (1 if kind == "tied" else 2) + (0 if lora is None else 2 * 7 * 2)
    torch.optim.AdamW(model.parameter_groups(), lr=0.1, weight_decay=0.1).step()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == trained
    grouped = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == len(trained)
    assert isinstance(model, Generator)


def test_training_learns(tmp_path):
    model, trie = make_llama(tmp_path, "untied", lora=Lora(rank=4, dropout=0.0)).train(), make_trie()
    target = torch.from_numpy(trie.leaf_vokens(np.array([4, 9, 14])).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=2e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(TEXTS, target).flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    assert beam_search(model.eval(), trie, TEXTS, 3).leaf[:, 0].tolist() == [4, 9, 14]


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_is_the_same(tmp_path, kind, lora, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    options = {"lora": lora, "shared": kind == "tied", "separator": "picture :", "max_query_tokens": 7}
    model, trie = make_llama(tmp_path, kind, **options), make_trie()
    model.save(tmp_path / "saved")
    mine = beam_search(model, trie, TEXTS, 6)

    unmerged = LlamaGenerator.load(tmp_path / "saved", merge=False)
    assert not unmerged.training
    assert (unmerged.reader.separator, unmerged.reader.max_tokens, unmerged.lora) == ("picture :", 7, lora)
    theirs = beam_search(unmerged, trie, TEXTS, 6)
    assert (mine.leaf == theirs.leaf).all()
    assert (mine.log_prob == theirs.log_prob).all()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name, weight in unmerged.named_parameters() if weight.requires_grad} == trained

    without_peft(monkeypatch)
    merged = LlamaGenerator.load(tmp_path / "saved")
    theirs = beam_search(merged, trie, TEXTS, 6)
    assert (mine.leaf == theirs.leaf).all()
    np.testing.assert_allclose(mine.log_prob, theirs.log_prob, atol=1e-4)
    assert all(name.startswith("vocabulary.") for name, weight in merged.named_parameters() if weight.requires_grad)
    assert not any("lora" in name for name, _ in merged.named_modules())
    merged.save(tmp_path / "again")
    again = LlamaGenerator.load(tmp_path / "again")
    assert (beam_search(again, trie, TEXTS, 6).log_prob == theirs.log_prob).all()


def without_peft(monkeypatch) -> None:
    real = builtins.__import__

    def refusing(name, *arguments, **options):
        if name.partition(".")[0] == "peft":
            raise ImportError("no peft here")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_a_missing_extra_names_its_install_command(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path, "tied")
    without_peft(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"voken-search\[train\]"):
        LlamaGenerator.from_pretrained(checkpoint, make_codebooks(), lora=Lora())


def test_what_cannot_be_opened_is_said(tmp_path, monkeypatch):
    import huggingface_hub.constants
    from transformers import GPT2Config, GPT2LMHeadModel

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for missing in (str(tmp_path / "none"), "someone/no-such-model-anywhere"):
        with pytest.raises(ConfigError, match="Pass a folder"):
            LlamaGenerator.from_pretrained(missing, make_codebooks())
    config = GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="is a gpt2 checkpoint"):
        LlamaGenerator.from_pretrained(tmp_path / "gpt2", make_codebooks())
    with pytest.raises(ConfigError, match="one codebook per level"):
        make_llama(tmp_path, "tied", shared=False).to_transformers()


def test_damaged_folders_are_named(tmp_path):
    model, saved = make_llama(tmp_path, "tied", lora=LORAS[1]), tmp_path / "saved"
    model.save(saved)
    (saved / "adapter.safetensors").unlink()
    with pytest.raises(CorruptArtifactError, match=r"adapter\.safetensors"):
        LlamaGenerator.load(saved)
