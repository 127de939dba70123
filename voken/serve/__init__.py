"""The HTTP server of a collection. Importing it raises `MissingExtraError` if its libraries are not installed."""

from importlib.util import find_spec

from voken.errors import MissingExtraError

for _library in ("fastapi", "prometheus_client", "python_multipart", "uvicorn", "PIL"):
    if find_spec(_library) is None:
        raise MissingExtraError(_library, "serve")
