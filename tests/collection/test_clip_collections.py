"""A collection over CLIP or SigLIP: made with torch, then indexed and searched without it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from builders.tiny_hub import make_clip, make_siglip
from builders.untrained import paint_noise
from voken import Collection
from voken.collection.indexing import SavedModel
from voken.collection.store import Store
from voken.model import untrained
from voken.model.compiled import CompiledPictureSide
from voken.model.model import PictureSide

WITHOUT_TORCH = """
import json, sys
from builders import search_only
search_only.HIDDEN.discard("PIL")
from voken import Collection
folder, like = sys.argv[1:]
report = Collection.index(folder)
with Collection.open(folder) as photos:
    hits = photos.search("a red dog", 20)
    assert photos.can_encode
    pictures = photos.search_picture(like, 3)
    mixed = photos.combine(like="000.png", plus=["a dog:2"], minus=["a cat"], k=4)
loaded = sorted(name for name in ("torch", "transformers", "onnx", "safetensors") if name in sys.modules)
print(json.dumps({
    "added": report.added, "fitted": report.fitted, "loaded": loaded,
    "words": [[hit.image_id, hit.score] for hit in hits], "pictures": [hit.image_id for hit in pictures],
    "mixed": [hit.image_id for hit in mixed],
}))
"""


@pytest.fixture(params=[("clip", make_clip), ("siglip", make_siglip)], ids=["clip", "siglip"])
def photos(request, tmp_path, monkeypatch):
    monkeypatch.setattr(untrained, "_MIXTURES", 200)
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "photos"
    checkpoint.mkdir()
    request.param[1](checkpoint)
    paint_noise(folder, range(6))
    Collection.index(folder, encoder=str(checkpoint))
    return folder


def without_torch(folder, like):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), str(like)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="tests")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_more_pictures_are_indexed_and_searched_without_torch(photos):
    paint_noise(photos, range(6, 10))
    answer = without_torch(photos, photos / "008.png")
    assert answer["loaded"] == []
    assert answer["added"] == 4
    assert answer["pictures"][0] == "008.png"
    model = Store.open(photos / ".voken").snapshot().find_model()
    encoder = PictureSide.load(model).encoder
    from voken.data.images import open_image

    names = [f"{number:03}.png" for number in range(10)]
    vectors = encoder.encode_images([open_image(photos / name) for name in names])
    cosines = vectors @ encoder.encode_texts(["a red dog"])[0]
    assert [name for name, _ in answer["words"]] == [names[place] for place in np.argsort(-cosines)]
    dog, cat = encoder.encode_texts(["a dog", "a cat"])
    order = np.argsort(-(vectors @ (vectors[0] + 2 * dog - cat)))
    assert answer["mixed"] == [names[place] for place in order if place][:4]


def test_vokens_are_those_of_torch(photos):
    model = Store.open(photos / ".voken").snapshot().find_model()
    torch_side, side = PictureSide.load(model), CompiledPictureSide.load(model)
    assert isinstance(SavedModel(model)._model, CompiledPictureSide)
    assert (side.fingerprint, side.encoder.fingerprint) == (torch_side.fingerprint, torch_side.encoder.fingerprint)
    vectors = np.random.default_rng(0).normal(size=(300, side.encoder.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vokens, expected = side.tokenizer.encode(vectors), torch_side.tokenizer.encode(vectors)
    # so few pictures leave many entries equal: what counts is how near the sequences come
    near = [(torch_side.tokenizer.decode(rows) * vectors).sum(axis=1) for rows in (vokens, expected)]
    np.testing.assert_allclose(*near, atol=1e-3)
    np.testing.assert_allclose(side.tokenizer.decode(expected), torch_side.tokenizer.decode(expected), atol=1e-5)
    assert (side.tokenizer.levels, side.tokenizer.codebook_size, side.tokenizer.dim) == (16, 256, side.encoder.dim)


def test_a_folder_that_has_grown_is_fitted_again_with_torch(photos):
    paint_noise(photos, range(6, 13))
    assert without_torch(photos, photos / "008.png")["fitted"] is None
    report = Collection.index(photos)
    assert (report.fitted.pictures, report.unchanged) == (13, 13)
    answer = without_torch(photos, photos / "011.png")
    assert (answer["added"], answer["pictures"][0]) == (0, "011.png")


def test_without_pillow_the_smallest_extra_is_named(photos):
    command = (
        "import builders.search_only, sys\n"
        "from voken import Collection\n"
        "from voken.errors import MissingExtraError\n"
        "folder = sys.argv[1]\n"
        "calls = [lambda: Collection.index(folder), lambda: Collection.index(folder + '.new', folder)]\n"
        "calls += [lambda: Collection.open(folder).search_picture(folder + '/000.png')]\n"
        "for call in calls:\n"
        "    try:\n        call()\n    except MissingExtraError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", command, str(photos)], capture_output=True, text=True, cwd="tests")
    pillow = 'PIL, which reads pictures, is not installed. Install it with: pip install "voken-search[pictures]"'
    assert done.stdout.splitlines() == [
        pillow,
        'torch, which makes the model of a new collection, is not installed. Install it with: pip install "voken-search'
        '[train]"',
        pillow,
    ], done.stderr
