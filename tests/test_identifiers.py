"""A search for identifiers equals transformers' own `generate` with a list of allowed tokens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import tiny_llama, tiny_t5
from voken.errors import ConfigError, CorruptArtifactError
from voken.identifiers import Decoder, Identifiers, export_checkpoint

torch.set_num_threads(1)
TEXTS = ["a red cat", "two small birds on the hill under rain", "dog"]
LONGEST, END = 5, 1
KINDS = [*tiny_t5.KINDS, *(f"llama {kind}" for kind in tiny_llama.KINDS)]


def random_identifiers(vocabulary, end, count=40, seed=0):
    """Crowded, so that beams compete, with rows that share an identifier; with `end`, of 1 to 5 tokens."""
    random = np.random.default_rng(seed)
    words = np.array([word for word in range(vocabulary) if word != END])[:7]
    lengths = random.integers(1, LONGEST, count) if end else np.full(count, LONGEST)
    return [random.choice(words, length).tolist() + [END] * end for length in lengths]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A checkpoint and its decoder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param.startswith("llama"):
        checkpoint = tiny_llama.make_checkpoint(folder / "model", request.param.removeprefix("llama "))
        export_checkpoint(checkpoint, folder / "engine", longest=LONGEST, separator="picture :")
    else:
        checkpoint = tiny_t5.make_checkpoint(folder / "model", request.param)
        export_checkpoint(checkpoint, folder / "engine", longest=LONGEST)
    return checkpoint, Decoder.load(folder / "engine", threads=1)


def generate(checkpoint, text, sequences, beams, length_penalty=0.0):
    """Transformers' answer: sequences without padding, and their scores."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    llama = AutoConfig.from_pretrained(checkpoint).model_type == "llama"
    model = (AutoModelForCausalLM if llama else AutoModelForSeq2SeqLM).from_pretrained(checkpoint).eval()
    tokens = AutoTokenizer.from_pretrained(checkpoint)(f"{text} picture :" if llama else text, return_tensors="pt")
    start = tokens.input_ids.shape[1] if llama else 1
    ending = sequences[0][-1] == END

    def allowed(_, written):
        prefix = written[start:].tolist()
        return sorted({s[len(prefix)] for s in sequences if s[: len(prefix)] == prefix and len(s) > len(prefix)}) or [
            END
        ]

    model.generation_config.pad_token_id = 2
    model.generation_config.eos_token_id = END if ending else None
    output = model.generate(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=LONGEST,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping="never",
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = []
    for row, score in zip(output.sequences[:, start:].tolist(), output.sequences_scores.tolist(), strict=True):
        written = tuple(row[: row.index(END) + 1] if ending and END in row else row)
        if score > -1e3 and list(written) in sequences:
            answers.append((written, score))
    return answers


@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize("beams", [2, 5, 30])
def test_it_equals_generate(exported, end, beams):
    checkpoint, decoder = exported
    sequences = random_identifiers(decoder.vocabulary_size, end is not None)
    identifiers = decoder.identifiers(sequences, end=end)
    for text, answers in zip(TEXTS, decoder.search(TEXTS, identifiers, beams), strict=True):
        expected = generate(checkpoint, text, sequences, beams)
        assert len(expected) > 1
        assert [answer.tokens for answer in answers] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([answer.log_prob for answer in answers], [s for _, s in expected], atol=1e-3)
        for answer in answers:
            rows = tuple(row for row, tokens in enumerate(sequences) if tuple(tokens) == answer.tokens)
            assert answer.rows == rows


def test_a_length_penalty_is_that_of_generate(exported):
    checkpoint, decoder = exported
    sequences = random_identifiers(decoder.vocabulary_size, True)
    (answers,) = decoder.search(TEXTS[:1], decoder.identifiers(sequences, end=END), 6, length_penalty=1.0)
    expected = generate(checkpoint, TEXTS[0], sequences, 6, length_penalty=1.0)
    assert [answer.tokens for answer in answers] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([answer.log_prob for answer in answers], [s for _, s in expected], atol=1e-3)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    export_checkpoint(tiny_t5.make_checkpoint(folder / "model", "t5"), folder / "engine", longest=LONGEST)
    return Decoder.load(folder / "engine", threads=1)


@pytest.mark.parametrize("end", [None, END])
def test_filters_and_changes_give_the_answers_of_a_new_set(decoder, end):
    sequences = random_identifiers(decoder.vocabulary_size, end is not None)
    new = random_identifiers(decoder.vocabulary_size, end is not None, count=9, seed=7)
    every = decoder.identifiers(sequences, end=end)

    def answers(identifiers):
        return decoder.search(TEXTS, identifiers, 50)

    changed = every.without([0, 3, 11]).plus(new)
    assert len(changed) == len(every) - 3 + 9
    assert changed.rows[-9:] == list(range(40, 49))
    expected = {(tuple(tokens), row) for row, tokens in enumerate([*sequences, *new]) if row not in (0, 3, 11)}
    for of_text in answers(changed):
        assert {(answer.tokens, row) for answer in of_text for row in answer.rows} == expected
    few = every.only([5, 6, 7, 1000])
    assert few.rows == [5, 6, 7]
    alone = answers(decoder.identifiers(sequences[5:8], end=end))
    for filtered, of_text in zip(answers(few), alone, strict=True):
        assert [(a.tokens, [row - 5 for row in a.rows]) for a in filtered] == [
            (a.tokens, list(a.rows)) for a in of_text
        ]
    assert every.plus(new, first_row=100).rows[-9:] == list(range(100, 109))
    for empty in (every.only([]), every.without(range(40)), decoder.identifiers([], end=end)):
        assert answers(empty) == [[], [], []]
        assert empty.plus(new).rows == list(range(9))
    assert decoder.search([], every) == []


def test_a_matrix_is_a_list_of_lists(decoder):
    sequences = random_identifiers(decoder.vocabulary_size, False)
    listed, matrix = decoder.identifiers(sequences), decoder.identifiers(np.array(sequences, dtype=np.int16))
    assert decoder.search(TEXTS, matrix, 6) == decoder.search(TEXTS, listed, 6)


def test_batches_answer_as_single_texts_do(decoder):
    identifiers = decoder.identifiers(random_identifiers(decoder.vocabulary_size, True), end=END)
    together = decoder.search(TEXTS, identifiers, 4)
    for text, answers in zip(TEXTS, together, strict=True):
        (alone,) = decoder.search([text], identifiers, 4)
        assert [answer.tokens for answer in alone] == [answer.tokens for answer in answers]


@pytest.mark.parametrize(
    ("tokens", "end", "message"),
    [
        ([[2, 3]], None, "Identifier 0 has 2 tokens, not 5"),
        ([[2, 1], [2, 3]], 1, "Identifier 1 does not end with"),
        ([[2, 1, 3, 1]], 1, "Identifier 0 does not end with its first end token"),
        ([[]], 1, "Identifier 0 does not end with"),
        ([[2, 3, 4, 5, 6, 1]], 1, "more than 5"),
        ([[2, 3, 4, 5, 99]], None, "token 99 is not in 0 … 16"),
        ([[2, -3, 1]], 1, "token -3 is not in"),
    ],
)
def test_identifiers_that_do_not_fit_are_an_error(decoder, tokens, end, message):
    with pytest.raises(ConfigError, match=message):
        decoder.identifiers(tokens, end=end)


def test_other_things_that_do_not_fit_are_an_error(decoder, tmp_path):
    identifiers = decoder.identifiers([[2, 3, END]], end=END)
    with pytest.raises(ConfigError, match="rows up to 0 are there"):
        identifiers.plus([[3, END]], first_row=0)
    with pytest.raises(ConfigError, match="beams 0"):
        decoder.search(["x"], identifiers, 0)
    other = Identifiers.of([[2, END]], longest=3, vocabulary_size=decoder.vocabulary_size, end=END)
    with pytest.raises(ConfigError, match="Make the identifiers with this model"):
        decoder.search(["x"], other)
    with pytest.raises(CorruptArtifactError):
        Decoder.load(tmp_path)
    with pytest.raises(ConfigError, match="1 token or more"):
        export_checkpoint(tmp_path, tmp_path / "engine", longest=0)
    with pytest.raises(ConfigError, match="this folder"):
        export_checkpoint(tmp_path, tmp_path / "engine", longest=4)
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="is a gpt2 checkpoint"):
        export_checkpoint(tmp_path / "gpt", tmp_path / "engine", longest=4)


def test_a_search_needs_no_torch(decoder):
    code = (
        "import sys\n"
        "import builders.search_only\n"
        "from voken.identifiers import Decoder\n"
        "decoder = Decoder.load(sys.argv[1], threads=1)\n"
        "print(decoder.search(['a cat'], decoder.identifiers([[2, 3, 1], [4, 1]], end=1))[0][0].rows)\n"
    )
    command = [sys.executable, "-c", code, str(decoder._engine.folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd="tests")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() in ("(0,)", "(1,)")


def test_the_examples_of_the_docs_run(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[1] / "docs" / "how-to" / "identifiers.md"
    examples = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    tiny_t5.make_checkpoint(tmp_path / "my-t5", "t5")
    tiny_llama.make_checkpoint(tmp_path / "my-llama", "tied")
    exec(compile(examples[0], str(page), "exec"), {})
    assert sorted(line.split(" -")[0] for line in capsys.readouterr().out.splitlines()) == [
        "dog on the hill",
        "red cat",
        "two small birds",
    ]
    exec(compile(examples[1], str(page), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert sum(line.startswith("(2, 3) -") for line in lines) == 1
