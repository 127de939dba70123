"""Every index against brute force: over the vectors themselves, or over what the codes rebuild."""

import sys

import faiss
import numpy as np
import pytest

from voken.errors import ConfigError, DataError, EmptyDataError, MissingExtraError
from voken_lab.systems.faiss_tower import EncodedPool, FaissTower
from voken_lab.systems.pictures import SearchSystem
from voken_lab.systems.two_tower import TwoTower

pytestmark = pytest.mark.slow

DIM, PICTURES, QUERIES = 16, 500, 9


class Lookup:
    """Texts that are numbers, encoded as rows of a matrix."""

    def __init__(self, vectors):
        self.vectors = np.asarray(vectors)

    def encode_texts(self, texts):
        return self.vectors[[int(text) for text in texts]]


def unit(seed, rows):
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    faiss.omp_set_num_threads(1)


VECTORS, TRAINING, ASKED = unit(0, PICTURES), unit(1, 600), unit(2, QUERIES)
NAMES = [f"p{i}" for i in range(PICTURES)]
TEXTS = [str(i) for i in range(QUERIES)]
ENCODER = Lookup(ASKED)
POOL = EncodedPool(ENCODER, NAMES, VECTORS)


def pool(vectors, names, **more):
    return EncodedPool(ENCODER, names, vectors, **more)


MAKE = {
    "flat": lambda vectors, names, **more: FaissTower.flat(pool(vectors, names, **more)),
    "hnsw": lambda vectors, names, **more: FaissTower.hnsw(
        pool(vectors, names, **more), m=8, ef_construction=100, ef_search=PICTURES
    ),
    "ivf_pq": lambda vectors, names, **more: FaissTower.ivf_pq(
        pool(vectors, names, **more), TRAINING, lists=10, bytes=4, nprobe=10
    ),
    "pq": lambda vectors, names, **more: FaissTower.pq(pool(vectors, names, **more), TRAINING, bytes=4),
    "opq": lambda vectors, names, **more: FaissTower.opq(pool(vectors, names, **more), TRAINING, bytes=4),
    "rq": lambda vectors, names, **more: FaissTower.rq(pool(vectors, names, **more), TRAINING, bytes=3),
}


@pytest.fixture(scope="module")
def towers():
    return {name: make(VECTORS, NAMES) for name, make in MAKE.items()}


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("k", [1, 10, PICTURES])
def test_whole_vectors_are_ranked_as_the_two_tower_ranks_them(towers, kind, k):
    assert isinstance(towers[kind], SearchSystem)
    exact = TwoTower(ENCODER, NAMES, VECTORS).search(TEXTS, k)
    for ours, theirs in zip(towers[kind].search(TEXTS, k), exact, strict=True):
        assert [hit.image_id for hit in ours] == [hit.image_id for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-6)


@pytest.mark.parametrize("kind", ["pq", "opq", "rq", "ivf_pq"])
def test_codes_are_ranked_by_inner_product_with_what_they_rebuild(towers, kind):
    rebuilt = towers[kind].rebuilt()
    assert rebuilt.shape == VECTORS.shape
    error = np.square(rebuilt - VECTORS).sum(1).mean()
    assert 0.01 < error < 0.7  # of vectors of length 1, in 3 to 4 bytes
    scores = ASKED.astype(np.float64) @ rebuilt.T.astype(np.float64)
    for row, hits in zip(scores, towers[kind].search(TEXTS, PICTURES), strict=True):
        assert sorted(hit.image_id for hit in hits) == sorted(NAMES)
        places = [NAMES.index(hit.image_id) for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(row[places].tolist(), abs=1e-5)
        assert (np.diff(row[places]) < 1e-5).all()


def test_ivf_pq_rebuilds_a_centre_and_the_code_of_what_it_leaves(towers):
    index = towers["ivf_pq"].index
    rebuilt = towers["ivf_pq"].rebuilt()
    centres = index.quantizer.reconstruct_n(0, 10)
    parts = faiss.vector_to_array(index.pq.centroids).reshape(4, 256, DIM // 4)
    nearest = np.argmax(VECTORS @ centres.T, axis=1)  # lists are chosen by inner product, as a query's are
    left = (VECTORS - centres[nearest]).reshape(PICTURES, 4, DIM // 4)
    codes = np.square(left[:, :, None] - parts[None]).sum(-1).argmin(-1)
    expected = centres[nearest] + parts[np.arange(4), codes].reshape(PICTURES, DIM)
    np.testing.assert_allclose(rebuilt, expected, atol=1e-5)


def test_few_lists_hold_few_pictures():
    few = FaissTower.ivf_pq(POOL, TRAINING, lists=100, bytes=4, nprobe=1)
    all_hits = few.search(TEXTS, PICTURES)
    assert all(0 < len(hits) < 50 for hits in all_hits)
    every = {hit.image_id: hit.score for hit in MAKE["ivf_pq"](VECTORS, NAMES).search(TEXTS[:1], PICTURES)[0]}
    assert all(hit.image_id in every for hit in all_hits[0])


@pytest.mark.parametrize("kind", MAKE)
def test_scores_fall_and_equal_ones_come_in_the_order_of_the_pictures(kind):
    few = unit(5, 6)
    which = np.arange(48) % 6
    names = [f"{i:02d}" for i in range(48)]
    for hits in MAKE[kind](few[which], names).search(TEXTS, 48):
        assert len(hits) == 48
        keys = [(-hit.score, hit.image_id) for hit in hits]
        assert keys == sorted(keys)
        if kind not in ("flat", "hnsw"):  # equal codes have one score; whole vectors are summed in faiss's own order
            assert len({hit.score for hit in hits}) <= 6


@pytest.mark.parametrize("kind", MAKE)
def test_hits_carry_paths_and_no_more_come_than_there_are(kind):
    tower = MAKE[kind](VECTORS[:20], NAMES[:20], paths=[f"{name}.png" for name in NAMES[:20]])
    (hits,) = tower.search(["3"], 1000)
    assert len(hits) == 20
    assert all(hit.path == f"{hit.image_id}.png" and hit.vokens == () for hit in hits)
    assert len(tower.search(["3", "4"], 4)[1]) == 4
    assert tower.search([], 4) == []


def test_bytes_are_those_that_faiss_keeps_for_each_picture(towers):
    assert towers["flat"].bytes_per_picture == 4 * DIM
    assert towers["pq"].bytes_per_picture == towers["opq"].bytes_per_picture == 4
    assert towers["rq"].bytes_per_picture == 3
    assert towers["ivf_pq"].bytes_per_picture == 4 + 8
    saved = {name: len(faiss.serialize_index(tower.index)) for name, tower in towers.items()}
    for name, tower in towers.items():
        # the same index of no picture: codebooks, rotation, centres, and a few bytes that name the kind
        empty = faiss.clone_index(tower.index)
        empty.reset()
        bytes_per_picture = (saved[name] - len(faiss.serialize_index(empty))) / PICTURES
        assert tower.bytes_per_picture == pytest.approx(bytes_per_picture, abs=0.5), name
    assert 4 * DIM + 4 * 16 + 12 < towers["hnsw"].bytes_per_picture < 4 * DIM + 4 * 16 * 1.3 + 12


def test_wrong_pictures_and_queries_are_refused_as_the_two_tower_does(towers):
    with pytest.raises(EmptyDataError, match="no picture"):
        EncodedPool(ENCODER, [], np.zeros((0, 2), np.float32))
    with pytest.raises(DataError, match="499 picture ids and 500 vectors"):
        EncodedPool(ENCODER, NAMES[1:], VECTORS)
    with pytest.raises(DataError, match="is there twice"):
        EncodedPool(ENCODER, ["a", "a"], VECTORS[:2])
    holed = VECTORS.copy()
    holed[3, 1] = np.nan
    with pytest.raises(DataError, match="'p3' is not finite"):
        EncodedPool(ENCODER, NAMES, holed)
    for tower in towers.values():
        with pytest.raises(ConfigError, match="1 or more"):
            tower.search(TEXTS, 0)
    narrow = FaissTower.flat(EncodedPool(ENCODER, ["a", "b"], VECTORS[:2, :8].copy()))
    with pytest.raises(DataError, match="8 wide"):
        narrow.search(TEXTS, 1)
    with pytest.raises(DataError, match="not finite for the text '0'"):
        FaissTower.flat(EncodedPool(Lookup(holed[3:]), ["a", "b"], VECTORS[:2])).search(["0"], 1)
    with pytest.raises(DataError, match="1 picture ids and 500 rows"):
        FaissTower(EncodedPool(ENCODER, ["a"], VECTORS[:1]), towers["flat"].index, 1.0)


@pytest.mark.parametrize("kind", ["pq", "opq", "ivf_pq"])
def test_impossible_codes_are_refused_with_what_is_possible(kind):
    more = {"lists": 10, "nprobe": 1} if kind == "ivf_pq" else {}
    make = getattr(FaissTower, kind)
    with pytest.raises(ConfigError, match=r"3 parts do not divide vectors of width 16. Possible: 1, 2, 4, 8, 16\."):
        make(POOL, TRAINING, bytes=3, **more)
    with pytest.raises(ConfigError, match="give 1 or more"):
        make(POOL, TRAINING, bytes=0, **more)


def test_impossible_training_and_settings_are_refused():
    for kind in ("pq", "opq", "rq"):
        make = getattr(FaissTower, kind)
        with pytest.raises(ConfigError, match="255 vectors; one byte per part needs 256 or more"):
            make(POOL, TRAINING[:255], bytes=2)
        assert make(POOL, TRAINING[:256], bytes=2).bytes_per_picture == 2
    with pytest.raises(ConfigError, match="600 vectors for 700 centroids"):
        FaissTower.ivf_pq(POOL, TRAINING, lists=700, bytes=4, nprobe=1)
    for lists, nprobe in ((10, 11), (10, 0), (0, 0)):
        with pytest.raises(ConfigError, match="nprobe"):
            FaissTower.ivf_pq(POOL, TRAINING, lists=lists, bytes=4, nprobe=nprobe)
    with pytest.raises(DataError, match="width 16"):
        FaissTower.pq(POOL, TRAINING[:, :8].copy(), bytes=4)
    with pytest.raises(DataError, match="training vector is not finite"):
        FaissTower.pq(POOL, np.full((300, DIM), np.inf, np.float32), bytes=4)
    for setting in ({"m": 1}, {"ef_construction": 0}, {"ef_search": 0}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            FaissTower.hnsw(POOL, **setting)
    with pytest.raises(ConfigError, match="beams"):
        FaissTower.rq(POOL, TRAINING, bytes=2, beams=0)


def test_without_faiss_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r'pip install "voken-search\[bench\]"'):
        FaissTower.flat(POOL)
