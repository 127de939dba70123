"""Responses: JSON, errors as a sentence with a remedy, and the models that document both.

The models are only documentation. Routes return plain dictionaries, because ids may hold lone surrogates (file names
need not be UTF-8), which pydantic refuses, and metadata may hold numbers that JSON cannot represent.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from voken.errors import BusyError, ConfigError, MissingExtraError, PictureError, VokenError
from voken.json_text import json_text

_log = logging.getLogger("voken.serve")

CLIENT_GONE = 499
"""The status of a request whose client has closed the connection."""
_ID, _URL = "trips/2024/dogs.jpg", "/pictures/trips/2024/dogs.jpg"


class JsonResponse(Response):
    """A JSON response in which lone surrogates are escaped, and NaN and infinities are null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See starlette."""
        return json_text(content).encode("ascii")


class RequestError(Exception):
    """Makes the response an error: a status, a sentence that names the remedy, and headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: VokenError, retry_after: int) -> RequestError:
        """The response to an error that the client or the load has caused, or else that of `failure`."""
        if isinstance(error, BusyError):
            return cls(503, one_line(error), {"Retry-After": str(retry_after)})
        if isinstance(error, PictureError):
            return cls(415, f"This is not a usable picture: {error.reason}. Send another.")
        if isinstance(error, ConfigError):
            return cls(422, one_line(error))
        if isinstance(error, MissingExtraError):
            return cls(501, f"This server cannot read pictures. {one_line(error)}")
        return cls.failure(error)

    @classmethod
    def failure(cls, error: BaseException) -> RequestError:
        """A response with status 500. The error is logged, with a number that the client also receives."""
        number = secrets.token_hex(4)
        _log.error("request %s failed", number, exc_info=error)
        sentence = f"The server failed. Try again later; the server's log describes the error as request {number}."
        return cls(500, sentence, {"X-Request-Id": number})

    def response(self) -> Response:
        """The error as a response."""
        return JsonResponse({"error": self.sentence}, self.status, self.headers)


def one_line(error: BaseException) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split())


class Error(BaseModel):
    """Why a request failed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "k: input should be at least 1."}]})
    error: str = Field(description="One or two sentences, with a remedy.")


class About(BaseModel):
    """The collection."""

    name: str
    pictures: int
    version: int = Field(description="Grows with every change.")
    readout: str = Field(description="How hits are ranked: generate, voken or vector.")
    fields: list[str] = Field(description="Fields that filters can name.")
    calibrated: bool = Field(description="Whether hits have a confidence.")
    can_encode: bool = Field(description="Whether this server can read pictures: search by them, and add them.")
    uploads: bool = Field(description="Whether clients with the token may add and remove pictures.")


class Step(BaseModel):
    """One level of a picture's voken sequence, as the generator wrote it."""

    voken: int
    log_prob: float
    rank: int = Field(description="1 if no voken was more likely.")
    pictures: int = Field(description="How many pictures' sequences begin with the vokens up to this one.")


class Why(BaseModel):
    """How the search reached a picture."""

    log_prob: float
    correction: float = Field(description="Added to log_prob for what does not depend on the query.")
    beam_rank: int | None
    cosine: float | None
    levels: list[Step]


class Layout(BaseModel):
    """What a page needs to lay out a picture."""

    width: int | None = Field(description="Of the upright picture, in pixels; null if its file cannot be read.")
    height: int | None
    date: str = Field(
        description="When it was taken, or else when its file changed; on the clock of that place.",
        examples=["2024-05-03T10:11:12"],
    )
    stack: str | None = Field(description="The id of an earlier picture of this list that looks the same.")


class Hit(BaseModel):
    """One picture of a search result."""

    id: str = Field(examples=[_ID])
    score: float = Field(description="Only comparable within one result.")
    confidence: float | None = Field(description="Probability that the hit is right, if the model is calibrated.")
    vokens: list[int]
    url: str = Field(examples=[_URL])
    thumbnail: str = Field(examples=[f"{_URL}?thumbnail=256"])
    metadata: dict[str, Any]
    why: Why | None
    layout: Layout | None = Field(description="null if the search did not ask for it.")


class Result(BaseModel):
    """The result for one query."""

    query: str | None = Field(description="null for a search by picture.")
    no_match: bool = Field(description="Whether there is no hit that is likely to be right.")
    hits: list[Hit] = Field(description="Best first.")


class SearchResults(BaseModel):
    """The results of a search."""

    version: int = Field(description="Version of the collection.")
    seconds: float
    results: list[Result] = Field(description="One per query, in the same order.")


class Listed(BaseModel):
    """One picture of the collection."""

    id: str = Field(examples=[_ID])
    url: str = Field(examples=[_URL])
    thumbnail: str = Field(examples=[f"{_URL}?thumbnail=256"])
    metadata: dict[str, Any]
    layout: Layout


class PictureList(BaseModel):
    """A part of the collection."""

    version: int = Field(description="Version of the collection.")
    total: int = Field(description="Pictures that pass the filters.")
    offset: int
    pictures: list[Listed] = Field(description="Newest first.")


class Month(BaseModel):
    """A month with pictures."""

    month: str = Field(examples=["2024-05"])
    pictures: int


class Timeline(BaseModel):
    """The months of the collection."""

    version: int = Field(description="Version of the collection.")
    total: int = Field(description="Pictures that pass the filters.")
    months: list[Month] = Field(description="Newest first, without the empty ones.")


class Folder(BaseModel):
    """A folder with pictures in it or deeper."""

    path: str = Field(description="As the filter folder=PATH names it.", examples=["trips/2024"])
    name: str
    pictures: int = Field(description="In it or deeper.")
    has_folders: bool


class FolderList(BaseModel):
    """Folders in a folder."""

    version: int = Field(description="Version of the collection.")
    total: int
    offset: int
    folders: list[Folder] = Field(description="By name.")


class FieldValue(BaseModel):
    """A value of a field."""

    value: str
    pictures: int


class FieldValues(BaseModel):
    """The most frequent values of a field."""

    field: str
    total: int = Field(description="Different values that contain the text.")
    values: list[FieldValue] = Field(description="The most frequent first, fifty at most.")


class Examples(BaseModel):
    """Queries that the collection answers well."""

    examples: list[str]


class Details(BaseModel):
    """What is known of one picture."""

    id: str = Field(examples=[_ID])
    url: str = Field(examples=[_URL])
    thumbnail: str = Field(examples=[f"{_URL}?thumbnail=256"])
    date: str = Field(examples=["2024-05-03T10:11:12"])
    is_dated: bool = Field(description="Whether the picture says when it was taken. If not, `date` is its file's.")
    folder: str = Field(description="As the filter folder=PATH names it.")
    path: str = Field(description="Of its file; the id if other machines can reach the server.")
    metadata: dict[str, Any]
    width: int | None
    height: int | None
    bytes: int | None = Field(description="null if the file cannot be read.")
    format: str
    camera: str
    lens: str
    exposure: str = Field(examples=["1/250 s · f/2.8 · ISO 100 · 35 mm"])


class Skipped(BaseModel):
    """A file that was left out."""

    path: str
    reason: str


class Addition(BaseModel):
    """What an upload changed."""

    version: int
    added: list[str] = Field(description="Ids.")
    updated: list[str] = Field(description="Ids of pictures that were replaced.")
    skipped: list[Skipped]


class Removal(BaseModel):
    """What a removal changed."""

    version: int
    removed: list[str] = Field(description="Ids.")


class Health(BaseModel):
    """The state of a server that can answer searches."""

    status: str = Field(examples=["ok"])
    pictures: int
    version: int


_ERRORS = {
    400: "The body cannot be read",
    401: "The token is missing or wrong",
    403: "Not allowed",
    404: "There is no such picture",
    408: "The body arrived too slowly",
    409: "The model is not calibrated, so there is no confidence to compare with",
    410: "The picture's file no longer exists",
    413: "The body is too large",
    415: "Not a picture, or a content type that is not accepted",
    421: "The server does not have that name",
    422: "A value is invalid or over a limit",
    429: "Too many wrong tokens came from this address; Retry-After says when to try again",
    500: "The server failed",
    501: "This server cannot read pictures",
    503: "Too many requests at once; Retry-After says when to try again",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of a route's errors, including those of any request (421 and 500)."""
    return {status: {"model": Error, "description": _ERRORS[status]} for status in sorted({*statuses, 421, 500})}
