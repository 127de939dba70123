"""The cross-encoder on a toy set whose right ranking is known, and where the two-tower cannot know it."""

import dataclasses

import numpy as np
import pytest
import torch

from voken.encoders.text_reader import TextStates
from voken.errors import (
    ArtifactError,
    ArtifactVersionError,
    ConfigError,
    CorruptArtifactError,
    DataError,
    EmptyDataError,
)
from voken_lab.systems.cross_encoder import (
    CrossEncoder,
    CrossEncoderConfig,
    CrossEncoderScorer,
    MatchingPairs,
    train_cross_encoder,
)
from voken_lab.systems.one_tower import OneTower, Reranked
from voken_lab.systems.two_tower import TwoTower

COLOURS, THINGS = 6, 6
NAMES = [f"{colour} {thing}" for colour in range(COLOURS) for thing in range(THINGS)]
WORDS = np.random.default_rng(5).normal(size=(2, max(COLOURS, THINGS), 10)).astype(np.float32)
LOOKS = np.random.default_rng(6).normal(size=(2, max(COLOURS, THINGS), 12)).astype(np.float32)
CONFIG = CrossEncoderConfig(
    width=32,
    heads=2,
    picture_tokens=2,
    dropout=0.0,
    feature_dropout=0.0,
    hard_negatives=4,
    random_negatives=2,
    nearest=12,
    epochs=5,
    batch_size=16,
    learning_rate=3e-3,
    patience=5,
)


class Reader:
    """Two token states a text, "3 4" for the fourth colour and the fifth thing; its vector knows the colour alone."""

    text_width = 10
    dim = COLOURS

    def __init__(self):
        self.read = 0

    def read_texts(self, texts, *, max_tokens):
        self.read += len(texts)
        numbers = np.array([[int(word) for word in text.split()] for text in texts])
        tokens = np.stack(
            [WORDS[0][numbers[:, 0]], WORDS[1][numbers[:, 1]], np.full((len(numbers), 10), 9.0, np.float32)], 1
        )
        mask = torch.tensor([[True, True, False]] * len(numbers))  # the last is padding, and arbitrary
        return TextStates(torch.from_numpy(tokens), mask, torch.eye(COLOURS)[numbers[:, 0]])


def toy(seed, each=8, shuffled=False):
    """Pictures that show a colour and a thing, with some noise; vectors that tell the colour alone."""
    random = np.random.default_rng(seed)
    concepts = np.repeat(np.arange(COLOURS * THINGS), each)
    colour, thing = concepts // THINGS, concepts % THINGS
    features = np.concatenate([LOOKS[0][colour], LOOKS[1][thing]], axis=1)
    features += 0.3 * random.normal(size=features.shape).astype(np.float32)
    captions = random.permutation(concepts) if shuffled else concepts
    pairs = np.stack([np.arange(len(concepts)), captions], axis=1)
    texts = np.eye(COLOURS, dtype=np.float32)[np.arange(COLOURS * THINGS) // THINGS]
    return MatchingPairs(features, np.eye(COLOURS, dtype=np.float32)[colour], texts, NAMES, pairs, concepts.tolist())


@pytest.fixture(scope="module")
def run():
    return train_cross_encoder(Reader(), toy(1), CONFIG, seed=0, validation=toy(2))


def share_first(hits_of, data):
    """Share of the texts whose first hit shows the right concept."""
    return np.mean([data.concepts[int(hits[0].image_id)] == row for row, hits in enumerate(hits_of)])


def systems(model, data):
    ids = [str(row) for row in range(len(data.images))]
    scorer = CrossEncoderScorer(model, Reader(), data.features, data.images)
    two = TwoTower(TextVectors(), ids, data.images)
    return two, OneTower(scorer, ids), Reranked(two, scorer, ids, depth=48)


class TextVectors:
    def encode_texts(self, texts):
        return Reader().read_texts(texts, max_tokens=8).vectors.numpy()


def test_it_learns_what_the_two_tower_cannot_know(run):
    test = toy(3)
    two, one, reranked = (system.search(NAMES, 10) for system in systems(run.model, test))
    assert share_first(two, test) == pytest.approx(1 / THINGS)  # it knows the colour, and ties break by order
    assert share_first(one, test) > 0.95
    assert share_first(reranked, test) > 0.95
    assert run.history[0].epoch == 0
    assert run.history[0].recall_1 == pytest.approx(1 / THINGS)  # expected over the ties
    assert run.best.recall_1 > 0.95
    assert not run.model.training


def test_shuffled_captions_teach_nothing():
    train = toy(1, shuffled=True)
    # each picture is its own concept, so that no negative is spared
    train = dataclasses.replace(train, concepts=list(range(len(train.images))))
    run = train_cross_encoder(Reader(), train, CONFIG, seed=0)
    test = toy(3)
    _, one, reranked = systems(run.model, test)
    # 1 / 6 know the colour by the two-tower and guess the thing
    assert share_first(one.search(NAMES, 1), test) < 0.3
    assert share_first(reranked.search(NAMES, 1), test) < 0.3


def test_untrained_it_ranks_as_the_two_tower():
    model = CrossEncoder(CONFIG, features=24, text_width=10).eval()
    data = toy(3)
    two, one, reranked = (system.search(NAMES[::5], 288) for system in systems(model, data))
    for hits_of_system in (one, reranked):
        assert [[hit.image_id for hit in hits] for hits in hits_of_system] == [
            [hit.image_id for hit in hits] for hits in two
        ]


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_randomness_alone():
    config = dataclasses.replace(CONFIG, epochs=1, dropout=0.2, feature_dropout=0.2)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    runs = [train_cross_encoder(Reader(), toy(1, each=2), config, seed=seed) for seed in (3, 3, 4)]
    torch.testing.assert_close(torch.rand(1), before)
    weights = [run.model.up.weight for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("layers", [1, 2])
def test_scores_do_not_depend_on_batches_and_equal_a_pair_at_a_time(layers):
    torch.manual_seed(0)
    model = CrossEncoder(dataclasses.replace(CONFIG, layers=layers), features=24, text_width=10).eval()
    torch.nn.init.normal_(model.down.weight)
    data, reader = toy(3, each=1), Reader()
    scorer = CrossEncoderScorer(model, reader, data.features, data.images, batch_size=7)
    whole = scorer.score("2 3", np.arange(36))
    assert reader.read == 1
    assert whole.shape == (36,)
    assert np.ptp(whole) > 0.1
    some = np.array([30, 2, 2])
    np.testing.assert_allclose(scorer.score("2 3", some), whole[some], atol=1e-5)
    assert scorer.score("2 3", np.arange(0)).shape == (0,)
    states = Reader().read_texts(["2 3"], max_tokens=8)
    for row in (0, 17):
        with torch.no_grad():
            # without the padding, and with one picture
            tokens, mask = model.text_tokens(states.tokens[:, :2], states.mask[:, :2])
            pictures = model.picture_tokens(torch.from_numpy(data.features[row : row + 1]))
            single = float(model(tokens, mask, pictures[None]))
        cosine = float(states.vectors[0].numpy() @ data.images[row])
        assert whole[row] == pytest.approx(single + float(model.base_weight) * cosine, abs=1e-4)


def test_several_texts_at_once_equal_one_at_a_time():
    torch.manual_seed(1)
    model = CrossEncoder(dataclasses.replace(CONFIG, layers=2), features=24, text_width=10).eval()
    torch.nn.init.normal_(model.down.weight)
    states = Reader().read_texts(["0 1", "2 3", "4 5"], max_tokens=8)
    features = torch.from_numpy(toy(3, each=1).features[:12])
    with torch.no_grad():
        tokens, mask = model.text_tokens(states.tokens, states.mask)
        pictures = model.picture_tokens(features).view(3, 4, 2, 32)
        together = model(tokens, mask, pictures)
        alone = [model(tokens[[row]], mask[[row]], pictures[[row]])[0] for row in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_negatives_are_near_and_never_right():
    from voken_lab.systems.cross_encoder import _Negatives

    random = np.random.default_rng(0)
    texts = random.normal(size=(9, 4)).astype(np.float32)
    images = random.normal(size=(30, 4)).astype(np.float32)
    concepts = [f"c{row % 10}" for row in range(30)]
    # text t stands beside pictures of concept t; text 0 also beside those of concept 5; text 8 beside nothing
    pairs = np.array([(row, row % 10) for row in range(30) if row % 10 < 8] + [(5, 0)])
    data = MatchingPairs(images, images, texts, [f"t{row}" for row in range(9)], pairs, concepts)
    config = dataclasses.replace(CONFIG, nearest=5, hard_negatives=40, random_negatives=40)
    drawn = _Negatives(data, config).draw(np.arange(8), random)
    for text in range(8):
        right = {row for row in range(30) if row % 10 == text or (text == 0 and row % 10 == 5)}
        wrong = sorted(set(range(30)) - right, key=lambda row: -texts[text] @ images[row])
        assert set(drawn[text, :40].tolist()) == set(wrong[:5])
        others = set(drawn[text, 40:].tolist())
        assert not others & right
        assert len(others - {-1}) > 10


def test_a_set_of_one_concept_has_no_negatives_and_still_trains():
    one = toy(1)
    one = dataclasses.replace(one, concepts=["same"] * len(one.images))
    run = train_cross_encoder(Reader(), one, dataclasses.replace(CONFIG, epochs=1), seed=0)
    assert all(bool(weight.isfinite().all()) for weight in run.model.parameters())


def test_training_stops_when_validation_no_longer_gets_better():
    config = dataclasses.replace(CONFIG, epochs=9, patience=2, learning_rate=0.0)
    calls = []
    run = train_cross_encoder(
        Reader(), toy(1, each=1), config, seed=0, validation=toy(2), progress=lambda *call: calls.append(call)
    )
    assert run.best.epoch == 0
    assert [epoch.epoch for epoch in run.history] == [0, 1, 2]
    assert calls[0] == ("cross-encoder: batches", 1, 27)
    assert calls[-1] == ("cross-encoder: batches", 6, 27)


def test_without_validation_the_last_epoch_is_kept():
    config = dataclasses.replace(CONFIG, epochs=2, base_in_training=3.0)
    run = train_cross_encoder(Reader(), toy(1, each=1), config, seed=0)
    assert run.best.epoch == 2
    assert np.isnan(run.best.recall)
    assert float(run.model.base_weight) == 3.0


def test_a_saved_model_gives_the_same_scores(run, tmp_path):
    run.model.save(tmp_path / "cross")
    loaded = CrossEncoder.load(tmp_path / "cross")
    assert loaded.config == CONFIG
    data, rows = toy(3), np.arange(50)
    scores = [
        CrossEncoderScorer(model, Reader(), data.features, data.images).score("1 2", rows)
        for model in (run.model, loaded)
    ]
    np.testing.assert_array_equal(*scores)
    with pytest.raises(ArtifactError, match="already exists"):
        run.model.save(tmp_path / "cross")
    run.model.save(tmp_path / "cross", replace=True)


@pytest.mark.parametrize("damage", ["changed", "missing", "nothing", "other kind", "other shape"])
def test_damage_is_told(run, tmp_path, damage):
    from voken import artifact

    folder = tmp_path / "cross"
    run.model.save(folder)
    expected = CorruptArtifactError
    if damage == "changed":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "nothing":
        folder, expected = tmp_path / "none", ArtifactError
    elif damage == "other kind":
        folder, expected = tmp_path / "other", ArtifactVersionError
        with artifact.writing(folder, kind="model", version=1):
            pass
    else:
        weights = (folder / "model.safetensors").read_bytes()
        described = artifact.read_json(folder / "config.json")
        with artifact.writing(folder, kind="cross-encoder", version=1, replace=True) as partial:
            (partial / "model.safetensors").write_bytes(weights)
            artifact.write_json(partial / "config.json", described | {"features": 3})
    with pytest.raises(expected, match=folder.name):
        CrossEncoder.load(folder)


def test_what_does_not_fit_together_is_refused(run):
    data = toy(3)
    with pytest.raises(ConfigError, match="24 features"):
        CrossEncoderScorer(run.model, Reader(), data.images, data.images)
    with pytest.raises(ConfigError, match="width 6, the pictures' 24"):
        CrossEncoderScorer(run.model, Reader(), data.features, data.features)
    with pytest.raises(DataError, match="must be one per picture"):
        CrossEncoderScorer(run.model, Reader(), data.features, data.images[1:])
    with pytest.raises(EmptyDataError, match="caption"):
        dataclasses.replace(data, pairs=np.zeros((0, 2), dtype=np.int64))
    with pytest.raises(ConfigError, match="of each per picture"):
        dataclasses.replace(data, concepts=["a"])
    with pytest.raises(ConfigError, match="1 captions and 36 vectors"):
        dataclasses.replace(data, captions=["a"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 30, "heads": 4},
        {"layers": 0},
        {"epochs": 0},
        {"hard_negatives": 0, "random_negatives": 0},
        {"base_in_training": -1.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="cross-encoder"):
        CrossEncoder(dataclasses.replace(CONFIG, **wrong), features=3, text_width=3)
