"""Confidence of hits: the fit beside scikit-learn's, what it promises beside what comes, searches beside arrays."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import no_match
from builders.tiny_model import paint_many, tiny_model
from voken.collection.snapshot import Snapshot
from voken.config import ReadOutWeights, RunConfig, SearchConfig, preset
from voken.data.captions import CaptionedImage, Dataset, read_dataset
from voken.errors import ConfigError
from voken.model.calibration import Calibration, ReadOutCalibration, Threshold
from voken.model.compiled import CompiledModel, search_from_dict
from voken.model.model import Model, search_to_dict
from voken.search.readouts import ReadOut
from voken.search.searcher import Searcher
from voken.training.choose import (
    Answers,
    Cases,
    calibrate,
    choose_thresholds,
    logistic,
    recall_and_silence,
    validation_answers,
    wilson_lower,
)
from voken.training.fit import fit
from voken.training.sides import side_of

ONE = ReadOutCalibration(
    "voken",
    2.0,
    bias=-1.0,
    score=0.7,
    mass=-0.4,
    mean_cosine=1.5,
    thresholds=(Threshold(0.5, 0.4, 0.61, 0.3, 0.8), Threshold(0.8, 0.9, 0.85, 0.1, 0.95)),
)
CALIBRATION = Calibration(prior=0.5, queries=60, concepts=30, pool=30, right=1.2, beams=4, readouts=(ONE,))
VOKEN = ReadOut("voken", 2.0, ONE)


def by_hand(one, log_prob, cosine, shared):
    """One answer's confidences, as the module docstring says it, in plain Python."""
    probability = [np.exp(p) / s for p, s in zip(log_prob, shared, strict=True)]
    mass = np.log(sum(probability))
    mean = sum(p * c for p, c in zip(probability, cosine, strict=True)) / sum(probability)
    scores = [p + one.cosine_weight * c for p, c in zip(log_prob, cosine, strict=True)]
    logits = [one.bias + one.score * score + one.mass * mass + one.mean_cosine * mean for score in scores]
    return [1 / (1 + np.exp(-logit)) for logit in logits]


def drawn_answers(queries=80, pool=60, *, seed=0, each=2, skill=4.0):
    """Every concept one picture and `each` queries; right pictures score higher; the beams reach half of the pool."""
    random = np.random.default_rng(seed)
    relevant = np.zeros((queries, pool), bool)
    relevant[np.arange(queries), np.arange(queries) // each % pool] = True
    cosine = (random.normal(size=(queries, pool)) * 0.1 + relevant * 0.1).astype(np.float32)
    log_prob = (random.normal(size=(queries, pool)) * 2 - 12 + relevant * skill).astype(np.float32)
    log_prob[log_prob < np.median(log_prob, axis=1, keepdims=True)] = -np.inf
    leaf = random.integers(0, pool * 3, pool)
    _, first, place = np.unique(leaf, return_index=True, return_inverse=True)
    log_prob = log_prob[:, first[place]]  # pictures of one sequence have its probability
    return Answers(log_prob, cosine, leaf, relevant, np.arange(pool))


def random_cases(random, concepts=50, each=5, hits=3, scatter=1.0):
    """Hits whose confidence is right on average over concepts; those of one concept are wrong together."""
    group = np.repeat(np.arange(concepts), each)
    logit = random.normal(size=(len(group), hits)) * 1.5 - 1 - np.arange(hits)
    lucky = (random.normal(size=concepts) * scatter)[group][:, None]
    right = random.random(logit.shape) < 1 / (1 + np.exp(-logit - lucky))
    nothing = np.zeros_like(right)
    cases = Cases(
        features=np.zeros((2 * len(group), hits, 3)),
        right=np.concatenate([right, nothing]),
        is_hit=np.concatenate([~nothing, nothing]),
        present=np.repeat([True, False], len(group)),
        groups=np.concatenate([group, group]),
    )
    return cases, np.concatenate([1 / (1 + np.exp(-logit)), nothing])


def test_the_fit_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 3)) * [30.0, 2.0, 0.1] + [-200.0, -9.0, 0.3]
    scaled = (features - [-200.0, -9.0, 0.3]) / [30.0, 2.0, 0.1]
    right = random.random(500) < 1 / (1 + np.exp(-(scaled @ [1.5, -0.5, 0.2] - 2)))
    weights = random.random(500) + 0.5
    mean = np.average(features, axis=0, weights=weights)
    spread = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit((features - mean) / spread, right, weights)
    expected = peer.predict_proba((features - mean) / spread)[:, 1]
    result = logistic(features, right, weights)
    np.testing.assert_allclose(1 / (1 + np.exp(-(result[0] + features @ result[1:]))), expected, rtol=1e-5)
    np.testing.assert_allclose(result[1:] * spread, peer.coef_[0], rtol=1e-5)


def test_the_fit_stands_what_tells_nothing_and_what_tells_all():
    features = np.array([[3.0, -1.0], [3.0, -2.0], [3.0, 1.0], [3.0, 2.0]])
    right = np.array([False, False, True, True])
    result = logistic(features, right, np.ones(4))
    assert np.isfinite(result).all()
    assert result[1] == 0
    assert result[2] > 0
    alike = logistic(features, np.zeros(4, bool), np.ones(4))
    assert 1 / (1 + np.exp(-alike[0])) < 0.1


def test_the_bound_is_wilsons():
    from scipy.stats import binomtest

    for right, count in ((7, 10), (10, 10), (1, 40), (180, 200)):
        expected = binomtest(right, count).proportion_ci(0.95, method="wilson").low
        result = wilson_lower(np.array([right / count]), np.array([float(count)]))
        assert result[0] == pytest.approx(expected, abs=1e-4)


def test_confidence_by_hand():
    log_prob, cosine, shared = [-3.0, -3.0, -5.0, -9.0], [0.4, 0.4, 0.9, -0.2], [2, 2, 1, 1]
    expected = by_hand(ONE, log_prob, cosine, shared)
    result = VOKEN.confidence(np.array(log_prob), np.array(cosine), np.array(shared))
    np.testing.assert_allclose(result, expected)
    # what was not found counts for nothing, whatever stands beside it; and many queries are asked at once
    padded = np.array([[*log_prob, -np.inf], [-np.inf] * 5])
    many = VOKEN.confidence(padded, np.array([[*cosine, 0.7]] * 2), np.array([[*shared, 1]] * 2))
    np.testing.assert_allclose(many[0], [*expected, 0.0])
    assert not many[1].any()
    assert VOKEN.confidence(np.zeros(0), np.zeros(0)).shape == (0,)
    with pytest.raises(ConfigError, match="'vector' is not calibrated"):
        ReadOut.calibrated("vector", 2.0, CALIBRATION).confidence(np.zeros(1), np.zeros(1))


def test_confidence_stands_numbers_of_any_size():
    result = VOKEN.confidence(np.array([-1e4, -2e4, -3e38]), np.array([1.0, -1.0, 0.0]))
    assert np.isfinite(result).all()
    assert ((result >= 0) & (result <= 1)).all()


def test_thresholds_are_those_of_the_table():
    thresholds = {0.3: 0.4, 0.5: 0.4, 0.6: 0.9, 0.8: 0.9, 0.9: None}
    assert {precision: VOKEN.threshold(precision) for precision in thresholds} == thresholds
    for outside in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="precision"):
            VOKEN.threshold(outside)
    assert ReadOut.calibrated("voken", 2.0, CALIBRATION) == VOKEN
    assert ReadOut.calibrated("voken", 3.0, CALIBRATION).calibration is None
    assert ReadOut.calibrated("vector", 2.0, CALIBRATION).calibration is None


def test_a_calibration_survives_json():
    everything = SearchConfig(precision="int8"), ReadOutWeights(2.0, 3.0), CALIBRATION
    assert search_from_dict(json.loads(json.dumps(search_to_dict(*everything)))) == everything
    old = dataclasses.asdict(SearchConfig())  # a model from before there was calibration
    assert search_from_dict(old) == (SearchConfig(), ReadOutWeights(), None)


def test_settings_are_written_as_before_there_was_calibration():
    assert "calibration" not in RunConfig().to_dict()["search"]
    config = RunConfig(search=SearchConfig(voken_weight=1.0))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_sequence_counts_its_pictures_that_are_there():
    log_prob = np.array([[-1.0, -1.0, -2.0], [-np.inf, -np.inf, -3.0]])
    relevant = np.array([[True, False, False], [False, False, True]])
    answers = Answers(log_prob, np.zeros((2, 3)), np.array([7, 7, 9]), relevant, np.arange(3))
    assert answers.shared.tolist() == [[2, 2, 1], [1, 1, 1]]
    assert answers.groups.tolist() == [0, 2]
    without = answers.without_right_pictures()
    assert without.shared.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert without.log_prob.tolist() == [[-np.inf, -1.0, -2.0], [-np.inf, -np.inf, -np.inf]]
    assert not without.relevant.any()


def test_cases_by_hand():
    log_prob = np.array([[-4.0, -1.0, -2.0, -np.inf]])
    cosine = np.array([[0.9, 0.1, 0.2, 0.99]])
    right = np.array([[False, True, False, False]])
    result = Cases.of(Answers(log_prob, cosine, np.arange(4), right, np.arange(4)), ReadOut("generate", 10.0), hits=3)
    assert result.present.tolist() == [True, False]
    np.testing.assert_allclose(result.features[0, :, 0], [5.0, 0.0, 0.0])  # -4 + 9; then -1 + 1 and -2 + 2
    assert result.right.tolist() == [[False, True, False], [False, False, False]]
    assert result.is_hit.tolist() == [[True, True, True], [True, True, False]]
    np.testing.assert_allclose(result.features[0, :, 1], np.log(np.exp([-4.0, -1.0, -2.0]).sum()))
    np.testing.assert_allclose(result.features[1, :2, 1], np.log(np.exp([-4.0, -2.0]).sum()))
    weights = result.weights(0.25)
    assert weights[0, 0] / weights[1, 0] == pytest.approx(1 / 3)
    assert weights.sum() == pytest.approx(result.is_hit.sum())
    assert weights[1, 2] == 0


@pytest.mark.parametrize("readout", ["generate", "voken", "vector"])
def test_without_the_right_pictures_is_a_search_of_a_collection_without_them(readout, tmp_path):
    """At full width, where no beam is lost."""
    paths = paint_many(tmp_path, 24)
    model = tiny_model(levels=3, search=SearchConfig(beams=1000))
    images = tuple(CaptionedImage(path.name, path) for path in paths)
    vectors = model.encoder.encode_images([Image.open(path) for path in paths])
    texts = ["red", "a green thing", "blue"]
    one = ReadOutCalibration(readout, {"generate": 0.0, "voken": 2.0, "vector": 3.0}[readout], -2.0, 0.5, -0.7, 1.0)
    model = dataclasses.replace(model, calibration=dataclasses.replace(CALIBRATION, readouts=(one,)))
    search = dataclasses.replace(model.search, readout=readout)
    vokens = model.tokenizer.encode(vectors)
    _, leaf = np.unique(vokens, axis=0, return_inverse=True)
    log_prob = np.array([[model.generator.log_prob(text, row) for row in vokens.tolist()] for text in texts])
    seen = vectors.astype(np.float16).astype(np.float32) if readout == "vector" else model.tokenizer.decode(vokens)
    relevant = np.zeros((3, 24), bool)
    relevant[0, [2, 14]], relevant[1, 5], relevant[2, 20] = True, True, True  # 2 and 14 share a sequence
    answers = Answers(log_prob, model.encoder.encode_texts(texts) @ seen.T, leaf.reshape(-1), relevant, np.arange(24))
    assert leaf.reshape(-1)[2] == leaf.reshape(-1)[14]
    for case in (answers, answers.without_right_pictures()):
        sure = ReadOut(readout, one.cosine_weight, one).confidence(case.log_prob, case.cosine, case.shared)
        for row, text in enumerate(texts):
            columns = np.flatnonzero(np.isfinite(case.log_prob[row]))
            pool = Dataset("pool", tmp_path, tuple(images[place] for place in columns))
            searcher = Searcher(model, Snapshot.of_vectors(pool, vectors[columns], model), search)
            (hits,) = searcher.search([text], 24)
            assert len(hits) == len(columns) > 20
            expected = {images[place].image_id: sure[row, place] for place in columns}
            np.testing.assert_allclose(
                [hit.confidence for hit in hits], [expected[hit.image_id] for hit in hits], rtol=1e-4
            )


def test_confidence_never_rises_below_a_hit():
    answers = drawn_answers()
    calibration, _ = calibrate({ReadOut("voken", 3.0): answers, ReadOut("vector", 8.0): answers}, beams=30)
    for readout, weight in (("voken", 3.0), ("vector", 8.0)):
        read_out = ReadOut.calibrated(readout, weight, calibration)
        sure = read_out.confidence(answers.log_prob, answers.cosine, answers.shared)
        score = np.where(np.isfinite(answers.log_prob), answers.log_prob + weight * answers.cosine, -np.inf)
        order = np.argsort(-score, axis=1)
        assert (np.diff(np.take_along_axis(sure, order, 1), axis=1) <= 1e-12).all()
        assert read_out.calibration.score > 0
        assert (read_out.calibration.mean_cosine == 0) == (readout == "vector")


def test_where_the_score_misleads_it_is_left_out():
    answers = drawn_answers(skill=-4.0)
    answers = dataclasses.replace(answers, log_prob=np.where(np.isinf(answers.log_prob), -14.0, answers.log_prob))
    worse = dataclasses.replace(answers, cosine=np.zeros_like(answers.cosine))
    cases = Cases.of(worse, ReadOut("generate"), hits=60)
    assert cases.features[cases.right][:, 0].mean() < cases.features[cases.is_hit & ~cases.right][:, 0].mean()
    # the first ten hold no right hit to learn from; turned round, they hold little else
    turned = dataclasses.replace(worse, cosine=worse.log_prob, log_prob=np.full_like(worse.log_prob, -9.0))
    calibration, report = calibrate({ReadOut("generate", -1.0): turned}, beams=60)
    assert calibration is not None, report
    assert calibration.readouts[0].score >= 0


@pytest.mark.parametrize("prior", [0.2, 0.5])
def test_what_is_promised_comes_true_for_other_concepts(prior):
    calibration, report = calibrate({ReadOut("voken", 3.0): drawn_answers(400, 200)}, beams=100, prior=prior)
    fresh = drawn_answers(2000, 200, seed=5)
    cases = Cases.of(fresh, ReadOut("voken", 3.0))
    weights = cases.weights(prior)
    one = calibration.readouts[0]
    logit = one.bias + cases.features @ [one.score, one.mass, one.mean_cosine]
    sure = np.where(cases.is_hit, 1 / (1 + np.exp(-logit)), 0.0)
    assert (weights * sure).sum() == pytest.approx((weights * cases.right).sum(), rel=0.1)
    for low, high in itertools.pairwise([0.0, 0.2, 0.5, 1.0]):
        inside = weights * ((sure >= low) & (sure < high))
        if inside.sum() > 100:
            assert abs((inside * (sure - cases.right)).sum() / inside.sum()) < 0.08
    assert report["voken"]["log_loss"] < report["voken"]["log_loss_of_a_constant"]
    assert (
        calibration.prior,
        calibration.queries,
        calibration.concepts,
        calibration.pool,
        calibration.right,
        calibration.beams,
    ) == (
        prior,
        400,
        200,
        200,
        1.0,
        100,
    )


def test_where_search_is_good_thresholds_keep_their_word_and_most_answers():
    calibration, _ = calibrate({ReadOut("voken", 3.0): drawn_answers(400, 200, skill=10.0)}, beams=100)
    fresh = drawn_answers(2000, 200, seed=5, skill=10.0)
    cases = Cases.of(fresh, ReadOut("voken", 3.0))
    one = calibration.readouts[0]
    logit = one.bias + cases.features @ [one.score, one.mass, one.mean_cosine]
    sure = np.where(cases.is_hit, 1 / (1 + np.exp(-logit)), 0.0)
    assert {0.1, 0.3, 0.5, 0.7} <= {threshold.precision for threshold in one.thresholds}
    for threshold in one.thresholds:
        above = cases.is_hit & (sure >= threshold.confidence)
        assert cases.right[above].mean() >= threshold.precision
        recall, silence = recall_and_silence(cases, sure, threshold.confidence)
        assert recall > 0.6
        assert silence == pytest.approx(threshold.silence, abs=0.1)


def test_a_rarer_right_answer_is_believed_less():
    answers = drawn_answers(200, 100)
    seldom, often = (calibrate({ReadOut("voken", 3.0): answers}, beams=50, prior=prior)[0] for prior in (0.1, 0.9))
    case = (answers.log_prob, answers.cosine, answers.shared)
    means = [ReadOut.calibrated("voken", 3.0, one).confidence(*case).max(1).mean() for one in (seldom, often)]
    assert 2 * means[0] < means[1]


def test_stated_precisions_are_kept():
    """Over many small validation sets, a threshold falls short of its precision in the population at most rarely."""
    random = np.random.default_rng(0)
    population, sure = random_cases(random, concepts=8000)
    short = dict.fromkeys((0.3, 0.5, 0.7), 0)
    reached = dict.fromkeys(short, 0)
    for _ in range(100):
        for one in choose_thresholds(*random_cases(random), 0.5, tuple(short)):
            above = (sure >= one.confidence) & population.is_hit
            short[one.precision] += population.right[above].mean() < one.precision
            reached[one.precision] += 1
    assert reached[0.5] > 60
    assert max(short.values()) <= 3


def test_thresholds_by_brute_force():
    random = np.random.default_rng(1)
    cases, sure = random_cases(random, concepts=60)
    sure = np.round(sure, 2)  # many ties
    (one,) = choose_thresholds(cases, sure, 0.5, (0.4,))
    reached = []
    for cut in np.unique(sure[cases.is_hit]):
        above = cases.is_hit & (sure >= cut)
        share = np.array([above[cases.groups == group].sum() for group in range(60)], dtype=float)
        count = share.sum() ** 2 / (share**2).sum()
        if count >= 10 and wilson_lower(cases.right[above].mean(keepdims=True), np.array([count]))[0] >= 0.4:
            reached.append(cut)
    assert one.confidence == min(reached)
    above = cases.is_hit & (sure >= one.confidence)
    assert one.measured == pytest.approx(cases.right[above].mean())
    answered = [any(above[row] & cases.right[row]) for row in range(len(above) // 2)]
    assert one.recall == pytest.approx(np.mean(answered))
    assert one.silence == 1.0
    assert recall_and_silence(cases, sure, 2.0) == (0.0, 1.0)


def test_one_lucky_hit_makes_no_threshold():
    right = np.zeros((120, 1), bool)
    right[0] = True
    sure = np.where(right, 0.99, 0.1)
    cases = Cases(np.zeros((120, 1, 3)), right, np.full((120, 1), True), np.arange(120) < 60, np.arange(120) % 60)
    assert choose_thresholds(cases, sure, 0.5) == ()


def test_too_little_is_said():
    none, report = calibrate({ReadOut("voken", 3.0): drawn_answers(49, 60)}, beams=30)
    assert none is None
    assert report["none"].startswith("49 validation queries are too few")
    blind = drawn_answers(80, 60)
    blind = dataclasses.replace(blind, log_prob=np.where(blind.relevant, -np.inf, blind.log_prob))
    none, report = calibrate({ReadOut("voken", 3.0): blind}, beams=30)
    assert none is None
    assert report["none"].startswith("0 validation concepts with a right hit are too few")
    with pytest.raises(ConfigError, match="prior"):
        calibrate({ReadOut("voken", 3.0): blind}, beams=30, prior=1.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Concepts are colours in a place: what training shows of some holds for others."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    lines = []
    colours = {name: random.integers(0, 256, 3) for name in ("red", "green", "blue", "gold", "pink", "grey", "teal")}
    places = {f"{row} {side}": (x, y) for y, row in enumerate(("top", "middle", "low")) for x, side in enumerate("abc")}
    for number, (colour, place) in enumerate(itertools.product(colours, places)):
        split = ("train", "validation", "test", "train")[number % 4]
        image = np.full((24, 24, 3), 255, np.uint8)
        x, y = places[place]
        image[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = colours[colour]
        Image.fromarray(image).save(folder / f"{number}.png")
        words = f"{colour} {place}"
        captions = [words, f"something {colour} at {place}", f"{place}, {colour}", f"a box, {words}"]
        line = {"file_name": f"{number}.png", "captions": captions, "split": split, "concept": words}
        lines.append(line)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(pictures, tmp_path_factory):
    settings = {
        "encoder.image_size": "32",
        "encoder.epochs": "6",
        "encoder.hidden": "32",
        "encoder.dim": "16",
        "tokenizer.codebook_size": "8",
        "tokenizer.levels": "2",
        "generator.width": "16",
        "generator.heads": "2",
        "search.beams": "16",
    }
    return fit(read_dataset(pictures), tmp_path_factory.mktemp("models") / "model", preset("demo").override(settings))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder


def test_a_trained_model_is_calibrated(model, folder):
    calibration = model.calibration
    assert calibration is not None, model.validation["calibration"]
    assert (calibration.prior, calibration.pool, calibration.concepts, calibration.queries, calibration.beams) == (
        0.5,
        16,
        16,
        64,
        16,
    )
    assert [one.readout for one in calibration.readouts] == ["generate", "voken", "vector"]
    assert [one.cosine_weight for one in calibration.readouts] == [0.0, model.weights.voken, model.weights.vector]
    assert set(model.validation["calibration"]) == {"generate", "voken", "vector"}
    assert "calibration" not in model.config.to_dict()["search"]
    for loaded in (Model.load(folder), CompiledModel.load(folder)):
        assert (loaded.search, loaded.weights, loaded.calibration) == (model.search, model.weights, calibration)


def test_a_small_validation_side_is_no_ground(model, pictures):
    validation = read_dataset(pictures).split("validation").images[:3]
    vectors = model.encoder.encode_images([Image.open(image.path) for image in validation])
    answers = validation_answers(model, side_of(validation, vectors, model.encoder.encode_texts))
    calibration, report = calibrate({ReadOut("generate"): answers["generate"]}, beams=16)
    assert calibration is None
    assert report["none"].startswith("12 validation queries")


@pytest.mark.slow
def test_the_benchmark(model, folder, pictures, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = [folder, pictures, "--sizes", "8", "500", "--queries", "40", "--all-pictures", "--threads", "1"]
    no_match.main(list(map(str, [*arguments, "--cache", tmp_path / "cache", "--json", out])))
    report = json.loads(out.read_text())
    rows = {(row["pool"], row["readout"]): row for row in report["rows"]}
    assert list(dict.fromkeys(pool for pool, _ in rows)) == ["8", "16, all pictures"]
    for row in rows.values():
        assert row["falls_with_score"]
        assert row["first_right"] == pytest.approx(row["recall@1"] / 2)
        assert sum(one["weight"] for one in row["bins"]) == pytest.approx(1)
        assert 0 <= row["ece"] <= 1
        assert [at["stated"] for at in row["thresholds"]][-1] == 0.9
    printed = capsys.readouterr().out
    assert "stated precision" in printed
    assert report["command"] in printed
    assert report["machine"]["cpu"] in printed


def test_figures_of_the_benchmark():
    random = np.random.default_rng(0)
    score, positive = np.round(random.normal(size=200), 1), random.random(200) < 0.3
    assert no_match.auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    assert no_match.auroc(score, np.full(200, True)) is None
    sure = np.array([[0.05, 0.95], [1.0, 0.5]])
    right = np.array([[False, True], [False, True]])
    bins = no_match.reliability(sure, right, np.array([[1.0, 1.0], [1.0, 3.0]]))
    assert [one.hits for one in bins] == [1, 1, 2]
    # of the last bin: 0.975 promised, 0.5 came, with a third of the weight
    assert no_match.calibration_error(bins) == pytest.approx((0.05 + 3 * 0.5 + 2 * 0.475) / 6)
