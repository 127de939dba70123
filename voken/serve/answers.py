"""What a server answers, for its documentation: the answers themselves are made where they are known."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_ID, _URL = "trips/2024/dogs.jpg", "/pictures/trips/2024/dogs.jpg"


class Error(BaseModel):
    """Why a request was not answered as it asked."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "k: input should be at least 1."}]})
    error: str = Field(description="One sentence or two, with a remedy.")


class About(BaseModel):
    """The collection that is served."""

    name: str
    pictures: int
    version: int = Field(description="Grows with every change.")
    readout: str = Field(description="How answers are ranked: generate, voken or vector.")
    fields: list[str] = Field(description="What filters may name.")
    calibrated: bool = Field(description="Whether hits have a confidence.")
    can_encode: bool = Field(description="Whether pictures can be read here: searched with, and added.")
    uploads: bool = Field(description="Whether who has the token may add and remove pictures.")
    examples: list[str] = Field(description="Queries to begin with.")


class Step(BaseModel):
    """One level of a picture's sequence, as the generator saw it."""

    voken: int
    log_prob: float
    rank: int = Field(description="1: the generator found no voken more likely.")
    pictures: int = Field(description="That begin with the vokens up to this one.")


class Why(BaseModel):
    """How a picture came to be answered."""

    log_prob: float
    beam_rank: int | None
    cosine: float | None
    levels: list[Step]


class Hit(BaseModel):
    """One picture of an answer."""

    id: str = Field(examples=[_ID])
    score: float = Field(description="Compares within one answer only.")
    confidence: float | None = Field(description="Probability that the hit is right, where the model is calibrated.")
    vokens: list[int]
    url: str = Field(examples=[_URL])
    thumbnail: str = Field(examples=[f"{_URL}?thumbnail=256"])
    metadata: dict[str, Any]
    why: Why | None


class Result(BaseModel):
    """The answer to one query."""

    query: str | None = Field(description="null where a picture was searched with.")
    no_match: bool = Field(description="Nothing was found, or nothing that is likely to be right.")
    hits: list[Hit] = Field(description="By falling score.")


class Found(BaseModel):
    """The answer to a search."""

    version: int = Field(description="Of the collection.")
    seconds: float
    results: list[Result] = Field(description="One a query, in their order.")


class Skipped(BaseModel):
    """A file that was left out."""

    path: str
    reason: str


class Added(BaseModel):
    """What an upload did."""

    version: int
    added: list[str] = Field(description="Ids.")
    updated: list[str] = Field(description="Ids of what was there and was replaced.")
    skipped: list[Skipped]


class Removed(BaseModel):
    """What a removal did."""

    version: int
    removed: list[str] = Field(description="Ids.")


class Health(BaseModel):
    """That searches are answered."""

    status: str = Field(examples=["ok"])
    pictures: int
    version: int


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of an endpoint, for its documentation. What any request may meet is among them."""
    return {status: {"model": Error, "description": _SAYS[status]} for status in sorted({*statuses, *_ALWAYS})}


_ALWAYS = (421, 500)
_SAYS = {
    400: "The body cannot be read",
    401: "The token is missing or wrong",
    403: "Not allowed here",
    404: "There is no such picture",
    408: "The body came too slowly",
    409: "The model is not calibrated, so there is no confidence to compare with",
    410: "The picture's file is no longer there",
    413: "Too large",
    415: "Not a picture, or not the type of content that is read here",
    421: "The server does not go by that name",
    422: "Not within the limits",
    500: "The server failed",
    501: "This server cannot read pictures",
    503: "Too much is asked for at once; Retry-After says when to ask again",
}
