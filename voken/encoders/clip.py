"""CLIP and SigLIP checkpoints as frozen encoders, through transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from voken.artifact import storage_errors, write_json
from voken.encoders.preparation import PicturePreparation
from voken.encoders.prompts import AS_TYPED, PromptChoice, check_prompt, with_prompt
from voken.encoders.text_reader import TextStates
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError
from voken.shapes import Float

Family = Literal["clip", "siglip"]
_EXAMPLES = {"clip": "openai/clip-vit-base-patch32", "siglip": "google/siglip-base-patch16-224"}
_HUB_SECONDS = 10.0


class HubEncoder:
    """A CLIP or SigLIP checkpoint as an `Encoder`. It runs in full precision on a CPU, with autocast on a GPU.

    Texts are cut to the longest length that the model reads. SigLIP's texts are padded to it, as in its training.
    """

    def __init__(self, name: str, family: Family, model: Any, images: Any, texts: Any, *, batch_size: int = 32) -> None:
        self.name = name
        self.family: Family = family
        self.batch_size = batch_size
        self.model = model.eval().requires_grad_(False)
        """The model of transformers."""
        self._images = images
        self.tokenizer = texts
        """The tokenizer of transformers."""
        self.prompt = AS_TYPED
        """The words around every text that is encoded (see `voken.encoders.prompts`)."""
        self.prompt_choice: PromptChoice | None = None
        """How the prompt was chosen; None if it was not."""
        self.max_tokens = int(model.config.text_config.max_position_embeddings)
        """Tokens of a text that are read, special ones included."""

    @classmethod
    def from_pretrained(
        cls, checkpoint: str, family: Family = "clip", *, device: str | torch.device | None = None
    ) -> Self:
        """Load a checkpoint by hub name or from a folder. `device` None is the CPU.

        Raises `ArtifactError` if the folder does not hold all of it, or if neither the hub nor the local cache provides
        it; `ConfigError` if no checkpoint is named, or one of another family.
        """
        if not checkpoint:
            raise ConfigError(
                f"encoder.checkpoint is missing: name the folder or the hub name of a {family} model, e.g. "
                f"--set encoder.checkpoint={_EXAMPLES[family]}."
            )
        from transformers import AutoTokenizer

        with _checkpoint_errors(checkpoint) as local:
            model_type = _model_type(checkpoint, local)
            _refuse_naflex(checkpoint, model_type)
            if model_type != family:
                raise ConfigError(
                    f"{checkpoint}: is a {model_type} model, not {family}. Set encoder.family to match it."
                )
            model_class, image_class = _classes(family)
            model = model_class.from_pretrained(
                checkpoint, local_files_only=local, dtype=torch.float32, use_safetensors=True
            )
            images = image_class.from_pretrained(checkpoint, local_files_only=local)
            texts = AutoTokenizer.from_pretrained(checkpoint, local_files_only=local, trust_remote_code=False)
        return cls(checkpoint, family, model.to(torch.device(device or "cpu")), images, texts)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        config = self.model.config
        return int(config.projection_dim if self.family == "clip" else config.vision_config.hidden_size)

    @cached_property
    def preparation(self) -> PicturePreparation:
        """How pictures become pixels. Raises `ConfigError` if voken does not know what the image processor does."""
        return PicturePreparation.of_processor(json.loads(self._images.to_json_string()))

    @property
    def least_side(self) -> int:
        """See `voken.encoders.interface.PreparingEncoder`."""
        return self.preparation.least_side

    def prepare(self, image: Image) -> Image:
        """The part of a picture that is read, in its final size."""
        return self.preparation.prepare(image)

    @cached_property
    def fingerprint(self) -> str:
        """A hexadecimal digest of the family, all weights, and how pictures and texts are prepared, but for the prompt,
        on which no vector of a picture depends."""
        digest = hashlib.sha256(self.family.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(self._images.to_json_string().encode())
        digest.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        return digest.hexdigest()[:32]

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of pictures."""
        return self.encode_prepared([self.prepare(image) for image in images])

    def encode_prepared(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of pictures that `prepare` returned."""
        return self._unit_rows(self._image_vectors(batch) for batch in self._batches(images))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of texts."""
        return self._unit_rows(self._text_vectors(list(batch)) for batch in self._batches(texts))

    @property
    def text_width(self) -> int:
        """Width of a token state (see `voken.encoders.text_reader`)."""
        return int(self.model.config.text_config.hidden_size)

    @torch.no_grad()  # not inference mode: its tensors cannot be used in a loss
    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """Token states of the text tower's last layer, and unit vectors, from the same pass."""
        tokens = self._tokens(list(texts), min(max_tokens, self.max_tokens))
        with self._precision():
            outputs = self.model.get_text_features(**self._model_inputs(tokens))
        vectors = functional.normalize(outputs.pooler_output.float(), dim=-1)
        return TextStates(outputs.last_hidden_state, tokens["attention_mask"].bool(), vectors)

    def save(self, folder: Path) -> None:
        """Write the whole model into `folder`, so that a model trained with it never needs the hub again."""
        folder = Path(folder)
        with storage_errors(folder):
            for part in (self.model, self._images, self.tokenizer):
                part.save_pretrained(folder / "checkpoint")
        description: dict[str, Any] = {
            "family": self.family,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "prompt": self.prompt,
        }
        if self.prompt_choice is not None:
            description["prompts_on_validation"] = self.prompt_choice.recalls
        write_json(folder / "config.json", description)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Read what `save` wrote. Raises `CorruptArtifactError` if a file is missing or differs from what was saved."""
        folder = Path(folder)
        try:
            description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            encoder = cls.from_pretrained(str(folder / "checkpoint"), description["family"], device=device)
            encoder.prompt = check_prompt(str(description.get("prompt", AS_TYPED)))
            if recalls := description.get("prompts_on_validation"):
                encoder.prompt_choice = PromptChoice(
                    encoder.prompt, {str(prompt): tuple(map(float, values)) for prompt, values in recalls.items()}
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactError, ConfigError) as error:
            raise CorruptArtifactError(
                f"{folder}: the saved encoder cannot be read ({error}). Restore it from a copy or create it again."
            ) from error
        encoder.name = description["name"]
        if description.get("fingerprint") != encoder.fingerprint:
            raise CorruptArtifactError(
                f"{folder}: the weights differ from those saved. Restore the folder from a copy or create it again."
            )
        return encoder

    @torch.inference_mode()
    def _image_vectors(self, images: Sequence[Image]) -> Tensor:
        preparation = self.preparation
        pixels = torch.from_numpy(preparation.scaled(preparation.pixels(images))).to(self.model.device)
        with self._precision():
            return cast(Tensor, self.model.get_image_features(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def _text_vectors(self, texts: list[str]) -> Tensor:
        with self._precision():
            outputs = self.model.get_text_features(**self._model_inputs(self._tokens(texts, self.max_tokens)))
        return cast(Tensor, outputs.pooler_output)

    def _tokens(self, texts: list[str], max_tokens: int) -> Any:
        return self.tokenizer(
            with_prompt(self.prompt, texts),
            padding="max_length" if self.family == "siglip" else "longest",
            truncation=True,
            max_length=self.max_tokens if self.family == "siglip" else max_tokens,
            return_tensors="pt",
            return_attention_mask=True,
        ).to(self.model.device)

    def _model_inputs(self, tokens: Any) -> dict[str, Tensor]:
        # SigLIP was trained to attend to padding.
        names = ("input_ids",) if self.family == "siglip" else ("input_ids", "attention_mask")
        return {name: tokens[name] for name in names}

    def _precision(self) -> torch.autocast:
        kind = self.model.device.type
        return torch.autocast(kind, enabled=kind == "cuda")

    def _batches(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        return (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))

    def _unit_rows(self, parts: Iterator[Tensor]) -> np.ndarray:
        unit = [functional.normalize(part.float(), dim=-1).cpu().numpy() for part in parts]
        return np.concatenate([np.empty((0, self.dim), dtype=np.float32), *unit])


def family_of(checkpoint: str) -> str:
    """The kind of model in a checkpoint, by hub name or folder, as transformers names it: "clip", "siglip", "bert" …

    Raises `ArtifactError` if there is no checkpoint, or if the hub does not provide it; `ConfigError` for a SigLIP 2
    model for pictures of any proportions.
    """
    with _checkpoint_errors(checkpoint) as local:
        model_type = _model_type(checkpoint, local)
    _refuse_naflex(checkpoint, model_type)
    return model_type


def _refuse_naflex(checkpoint: str, model_type: str) -> None:
    """transformers calls the SigLIP 2 models of one picture size "siglip", and only the others "siglip2"."""
    if model_type == "siglip2":
        raise ConfigError(
            f"{checkpoint}: is a SigLIP 2 model for pictures of any proportions (NaFlex), which voken does not read. "
            "Give one with a fixed picture size, such as google/siglip2-base-patch16-224."
        )


@contextmanager
def _checkpoint_errors(checkpoint: str) -> Iterator[bool]:
    """Yield whether only local files may be used. What transformers raises for the checkpoint is an `ArtifactError`."""
    is_folder = Path(checkpoint).is_dir()
    silence = "" if is_folder else _hub_silence(checkpoint)
    try:
        yield is_folder or bool(silence)
    except (OSError, ValueError, SafetensorError) as error:
        problem = "The folder does not hold all of the model" if is_folder else "The hub did not provide it"
        reason = silence or (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{checkpoint}: {problem} ({reason}). Pass a folder that holds the model, its tokenizer and its image "
            "processor, as save_pretrained writes them."
        ) from error


def _model_type(checkpoint: str, local: bool) -> str:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=local, trust_remote_code=False)
    return str(config.model_type)


def _hub_silence(name: str) -> str:
    """Why the hub cannot be asked for a model; "" if it answers. transformers alone would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except (HfHubHTTPError, HFValidationError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    except Exception as error:  # of the client for HTTP, whichever it is, or of the offline mode
        return f"it cannot be reached: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return ""


def _classes(family: Family) -> tuple[Any, Any]:
    # these image processors need no torchvision
    if family == "clip":
        from transformers import CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPModel, CLIPImageProcessorPil
    from transformers import SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipModel, SiglipImageProcessorPil
