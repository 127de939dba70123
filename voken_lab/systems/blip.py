"""Frozen BLIP models from transformers: a scorer of pairs, for a one-tower system, and a captioner.

Both are loaded by a hub name or from a folder.

Li et al. 2022, "BLIP: bootstrapping language-image pre-training", section 3.1: the image-grounded text encoder and its
match head score a pair, and the image-grounded text decoder writes captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor

from voken.data.images import open_image
from voken.errors import ArtifactError, ConfigError, DataError, EmptyDataError
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

_MATCHER = "Salesforce/blip-itm-base-coco"
_CAPTIONER = "Salesforce/blip-image-captioning-base"


class BlipScorer:
    """A BLIP image-text-matching checkpoint. `bind` makes it a scorer of the pictures of one pool.

    It runs in full precision on a CPU and with autocast on a GPU. Texts are cut to `max_tokens`, which is 35 in the
    authors' retrieval.

    `first_token` replaces the first token of every text. None leaves [CLS], as transformers'
    `BlipForImageTextRetrieval` does. The authors' training and retrieval start texts with [ENC], which has the number
    30523 in their checkpoints, even if the tokenizer saved with a checkpoint lacks it.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        images: Any,
        texts: Any,
        *,
        batch_size: int = 32,
        max_tokens: int = 35,
        first_token: int | None = None,
    ) -> None:
        config = model.config.text_config
        if first_token is not None and not 0 <= first_token < config.vocab_size:
            raise ConfigError(f"first_token is {first_token}, but {name} has tokens 0 to {config.vocab_size - 1}.")
        if batch_size < 1 or max_tokens < 2:
            raise ConfigError(f"batch_size is {batch_size} and max_tokens {max_tokens}; they must be at least 1 and 2.")
        self.name = name
        self.batch_size = batch_size
        self.max_tokens = min(max_tokens, int(config.max_position_embeddings))
        self.first_token = first_token
        self._model = model.eval().requires_grad_(False)
        self._images = images
        self._texts = texts

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        max_tokens: int = 35,
        first_token: int | None = None,
    ) -> Self:
        """Load a checkpoint by hub name, such as "Salesforce/blip-itm-base-coco", or from a folder.

        `device` None is the CPU. Weights are read from safetensors only. Raises `ArtifactError` if the checkpoint is
        not in the folder, or the hub cannot be reached and no copy is cached; `ConfigError` if it is of another family
        or has no match head.
        """
        from transformers import BlipForImageTextRetrieval

        parts = _load(BlipForImageTextRetrieval, checkpoint, device, like=_MATCHER)
        return cls(checkpoint, *parts, batch_size=batch_size, max_tokens=max_tokens, first_token=first_token)

    def bind(self, paths: Sequence[str | Path], *, half: bool = False) -> BlipPool:
        """A scorer of texts with the pictures in these files. Row i of the scorer is file i.

        `half` stores pictures in half precision: they take half the memory, and scores differ in about the third digit.
        """
        return BlipPool(self, paths, half=half)

    @property
    def picture_shape(self) -> tuple[int, int]:
        """The number of states that are stored per picture, which is its patches plus one, and their width."""
        _, patches, width = self._model.vision_model.embeddings.position_embedding.shape
        return int(patches), int(width)

    @torch.inference_mode()
    def read_images(self, images: Sequence[Image]) -> Float[Tensor, "images patches width"]:
        """The states of pictures, computed as one batch. They are on the model's device."""
        pixels = self._images(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        with _autocast(self._model):
            states: Tensor = self._model.vision_model(pixel_values=pixels.to(self._model.device)).last_hidden_state
        return states.float()

    @torch.inference_mode()
    def match(self, text: str, images: Float[Tensor, "images patches width"]) -> Float[np.ndarray, " images"]:
        """Probabilities that the text fits each picture of a batch from `read_images`.

        They are float64, because different probabilities near 1 would be equal in single precision.
        """
        device = self._model.device
        tokens = self._texts([text], truncation=True, max_length=self.max_tokens, return_tensors="pt")["input_ids"]
        if self.first_token is not None:
            tokens[:, 0] = self.first_token
        with _autocast(self._model):
            states = self._model.text_encoder(
                input_ids=tokens.expand(len(images), -1).to(device),
                attention_mask=torch.ones(len(images), tokens.shape[1], dtype=torch.int64, device=device),
                encoder_hidden_states=images.to(device).float(),
                encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.int64, device=device),
            ).last_hidden_state
            logits = self._model.itm_head(states[:, 0])
        return np.asarray(logits.double().softmax(-1)[:, 1].cpu().numpy())


class BlipPool:
    """A `BlipScorer` bound to picture files: a `PairScorer` (see `voken_lab.systems.one_tower`).

    A picture is read when it is first needed and stays in memory: 1.8 MB each at the usual 384 pixels, or half that.
    `bytes_per_picture` is the exact number. Raises `EmptyDataError` without pictures.
    """

    def __init__(self, scorer: BlipScorer, paths: Sequence[str | Path], *, half: bool = False) -> None:
        if not len(paths):
            raise EmptyDataError("There is no picture to search.")
        self._scorer = scorer
        self._paths = [Path(path) for path in paths]
        self._states: dict[int, Tensor] = {}
        self._type = torch.float16 if half else torch.float32
        patches, width = scorer.picture_shape
        self.bytes_per_picture = float(self._type.itemsize * patches * width)

    def encode(self, rows: Int[np.ndarray, " pictures"] | None = None, *, progress: Progress = no_progress) -> None:
        """Read the pictures at `rows` (None reads all) that are not yet in memory. `score` calls it for its rows.

        Raises `PictureError` for a file that cannot be used as a picture, `DataError` for a row outside the pool.
        """
        distinct_rows = range(len(self._paths)) if rows is None else dict.fromkeys(np.asarray(rows).tolist())
        missing = [row for row in distinct_rows if row not in self._states]
        if missing and not 0 <= min(missing) <= max(missing) < len(self._paths):
            raise DataError(f"Rows {min(missing)} to {max(missing)} do not all exist: there are {len(self._paths)}.")
        step = self._scorer.batch_size
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            states = self._scorer.read_images([open_image(self._paths[row]) for row in batch]).to("cpu", self._type)
            # The states are copied, because a view would keep its whole batch in memory.
            self._states.update(zip(batch, (state.clone() for state in states), strict=True))
            progress("BLIP: pictures", start + len(batch), len(missing))

    def score(self, text: str, rows: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, " pictures"]:
        """Probabilities that the text fits the pictures at `rows`, float64. Raises as `encode` does."""
        self.encode(rows)
        row_list, step = np.asarray(rows).tolist(), self._scorer.batch_size
        batches = [row_list[start : start + step] for start in range(0, len(row_list), step)]
        scores = [self._scorer.match(text, torch.stack([self._states[row] for row in batch])) for batch in batches]
        return np.concatenate(scores) if scores else np.zeros(0)


@dataclass(frozen=True)
class CaptionStyle:
    """How captions are written; `top_p` and `beams` default to those of BLIP's released code."""

    method: Literal["nucleus", "beam"] = "nucleus"
    """Nucleus sampling gives varied captions, which train better (section 4.3 of BLIP); a beam search likely ones."""
    top_p: float = 0.9
    beams: int = 3
    """Used only by a beam search, which has at least as many beams as captions are requested."""
    repetition_penalty: float = 1.0
    min_tokens: int = 5
    max_tokens: int = 30

    def __post_init__(self) -> None:
        if self.method not in ("nucleus", "beam"):
            raise ConfigError(f"method: {self.method!r} is not 'nucleus' or 'beam'.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not a share above 0 and at most 1.")
        if self.beams < 1 or not 0 <= self.min_tokens <= self.max_tokens or self.max_tokens < 1:
            raise ConfigError("beams and max_tokens are 1 or more, and min_tokens between 0 and max_tokens.")


class BlipCaptioner:
    """A BLIP captioning checkpoint. It runs in full precision on a CPU and with autocast on a GPU."""

    def __init__(self, name: str, model: Any, images: Any, texts: Any, *, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        self.name = name
        self.batch_size = batch_size
        self._model = model.eval().requires_grad_(False)
        self._images = images
        self._texts = texts

    @classmethod
    def from_pretrained(
        cls, checkpoint: str, *, device: str | torch.device | None = None, batch_size: int = 16
    ) -> Self:
        """Load a checkpoint by hub name, such as "Salesforce/blip-image-captioning-base", or from a folder.

        Raises as `BlipScorer.from_pretrained` does; `ConfigError` also if the checkpoint cannot write captions.
        """
        from transformers import BlipForConditionalGeneration

        parts = _load(BlipForConditionalGeneration, checkpoint, device, like=_CAPTIONER)
        return cls(checkpoint, *parts, batch_size=batch_size)

    def caption(
        self,
        images: Sequence[Image],
        *,
        captions_each: int = 1,
        seed: int = 0,
        style: CaptionStyle = CaptionStyle(),
        progress: Progress = no_progress,
    ) -> list[list[str]]:
        """`captions_each` captions per picture, in the order of the pictures. A beam search gives the likeliest first.

        Sampled captions may repeat. The same call with the same `batch_size` returns the same captions; a picture's
        sampled captions also depend on the rest of its batch. Raises `ConfigError` for `captions_each` under 1.
        """
        if captions_each < 1:
            raise ConfigError(f"captions_each must be at least 1, not {captions_each}.")
        captions: list[list[str]] = []
        for start in range(0, len(images), self.batch_size):
            batch = [image.convert("RGB") for image in images[start : start + self.batch_size]]
            batch_seed = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
            texts = self._write(batch, captions_each, style, batch_seed)
            captions += [texts[row : row + captions_each] for row in range(0, len(texts), captions_each)]
            progress("BLIP: captions", len(captions), len(images))
        return captions

    @torch.inference_mode()
    def _write(self, images: list[Image], captions_each: int, style: CaptionStyle, seed: int) -> list[str]:
        device = self._model.device
        pixels = self._images(images=images, return_tensors="pt")["pixel_values"].to(device)
        if style.method == "beam":
            sampling: dict[str, Any] = {"do_sample": False, "num_beams": max(style.beams, captions_each)}
        else:
            sampling = {"do_sample": True, "num_beams": 1, "top_p": style.top_p, "top_k": 0}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _autocast(self._model):
            torch.manual_seed(seed)
            tokens = self._model.generate(
                pixel_values=pixels,
                num_return_sequences=captions_each,
                repetition_penalty=style.repetition_penalty,
                min_new_tokens=style.min_tokens,
                max_new_tokens=style.max_tokens,
                **sampling,
            )
        return [text.strip() for text in self._texts.batch_decode(tokens, skip_special_tokens=True)]


def _load(model_class: Any, checkpoint: str, device: str | torch.device | None, *, like: str) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer of a checkpoint."""
    from transformers import AutoConfig, AutoTokenizer

    # This image processor needs no torchvision.
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    local = Path(checkpoint).is_dir()
    try:
        model_type = AutoConfig.from_pretrained(checkpoint, local_files_only=local).model_type
        if model_type != "blip":
            raise ConfigError(f"{checkpoint}: is a {model_type} model, not blip. Pass a checkpoint like {like}.")
        model, loading = model_class.from_pretrained(
            checkpoint, local_files_only=local, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        images = BlipImageProcessorPil.from_pretrained(checkpoint, local_files_only=local)
        texts = AutoTokenizer.from_pretrained(checkpoint, local_files_only=local)
        if len(texts) <= len(texts.all_special_tokens):
            # transformers creates an empty tokenizer if the checkpoint has none.
            raise OSError("its tokenizer has no words")
    except (OSError, ValueError, SafetensorError) as error:
        where = "The folder does not hold the whole model" if local else "It could not be loaded from the hub"
        raise ArtifactError(
            f"{checkpoint}: {where} ({str(error).splitlines()[0]}). Pass a folder that holds the model as "
            "safetensors, its tokenizer and its image processor, as save_pretrained writes them."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        # transformers would fill the missing weights with random numbers.
        raise ConfigError(
            f"{checkpoint}: has no weights for {missing[0]} and {len(missing) - 1} more, so it was trained for "
            f"another task. Pass a checkpoint like {like}."
        )
    return model.to(torch.device(device or "cpu")), images, texts


def _autocast(model: Any) -> torch.autocast:
    device_type = model.device.type
    return torch.autocast(device_type, enabled=device_type == "cuda")
