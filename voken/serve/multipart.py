"""Files and fields as browsers' forms send them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from voken.serve.refusals import RefusedError
from voken.serve.workers import Slots

_MULTIPART = "multipart/form-data"
_FIELD_BYTES = 65_536
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/tiff", "image/avif", "image/bmp")


@dataclass(frozen=True)
class Parts:
    """What came."""

    form: FormData

    def file(self, name: str) -> UploadFile:
        """The only file of that name. Raises `RefusedError` where there is none, or something else as well."""
        (file,) = self.files(name)
        return file

    def files(self, name: str) -> list[UploadFile]:
        """All files of that name, one at least. Raises `RefusedError`."""
        found = self.form.getlist(name)
        files = [one for one in found if isinstance(one, UploadFile)]
        others = sorted({key for key, value in self.form.multi_items() if isinstance(value, UploadFile)} - {name})
        if not files or len(files) < len(found) or others:
            raise RefusedError(
                422, f"{name}: a file is missing. Send pictures as files in a {_MULTIPART} field {name!r}."
            )
        return files

    @property
    def fields(self) -> dict[str, Any]:
        """Everything but the files; `filters` as a list."""
        texts = [(name, value) for name, value in self.form.multi_items() if isinstance(value, str)]
        found: dict[str, Any] = {}
        for name, value in texts:
            if name == "filters":
                found.setdefault(name, []).append(value)
            elif name in found:
                raise RefusedError(422, f"{name}: it stands twice. Give it once.")
            else:
                found[name] = value
        return found


@asynccontextmanager
async def parts(request: Request, slots: Slots, *, files: int, fields: int) -> AsyncIterator[Parts]:
    """What a form sends, with limits on how many; its temporary files go at the end.

    Raises `BusyError` where no slot is free, and `RefusedError`; starlette raises its own for what is no form.
    """
    if media_type(request) != _MULTIPART:
        raise RefusedError(415, f"Send the files as {_MULTIPART}, as a form does.")
    with slots.take():
        async with request.form(max_files=files, max_fields=fields, max_part_size=_FIELD_BYTES) as form:
            yield Parts(form)


def media_type(request: Request) -> str:
    """Of the body, as its header says, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def multipart_body(name: str, fields: dict[str, Any], *, many: bool) -> dict[str, Any]:
    """Of a form with pictures in `name`, for the documentation. Of many, those that are none are skipped."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    if many:
        file = {"type": "array", "items": file, "minItems": 1}
    schema = {
        "type": "object",
        "properties": {name: file, **fields},
        "required": [name],
        "additionalProperties": False,
    }
    said: dict[str, Any] = {"schema": schema}
    if not many:
        said["encoding"] = {name: {"contentType": ", ".join(_PICTURES)}}
    return {"required": True, "content": {_MULTIPART: said}}
