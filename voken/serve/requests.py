"""Parses requests: search bodies in JSON, which are checked against the documented schema, and forms with files.

Texts may hold lone surrogates, because file names may, and ids are file names. pydantic's strings would refuse them.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, create_model
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from voken.serve.concurrency import Slots
from voken.serve.responses import RequestError
from voken.serve.settings import ServeSettings

_VISIBLE = r"[^\s\x00-\x20\x7f-\xa0\ufeff]"
"""A visible character. Unlike \\S, this class means the same in Python, Rust and JavaScript."""
_FILTER = r"^\s*[^=!<>~]+(!=|<=|>=|=|[<>](?!=)|~)\s*" + _VISIBLE
_OPERATOR = re.compile(r"!=|<=|>=|[=<>~!]")
_FIRST_VISIBLE = re.compile(r"\s*" + _VISIBLE)
_FILTER_CHARACTERS, _ID_CHARACTERS = 1_000, 4_096
_BYTES_PER_CHARACTER = 12
"""The longest character in JSON: an escaped surrogate pair."""
_MOST_FIELDS = 32
_MOST_WORDS = 16
"""Words to add, and as many to take away."""
_MOST_OFFSET = 10**9
_MULTIPART = "multipart/form-data"
_FIELD_BYTES = 65_536
_PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/tiff", "image/avif", "image/bmp")
_REMEDIES = {
    "query": "Describe in a few words what the picture shows.",
    "queries": "Give a list of texts.",
    "like": "Give the id of a picture in the collection.",
    "filters": "Give FIELD=VALUE, e.g. folder=trips, date>=2024-05, licence!=CC0, title~dog.",
    "k": "Give the number of pictures to return.",
    "threshold": "Give a probability, or null.",
    "why": "Give true or false.",
    "plus": "Give a list of words to add.",
    "minus": "Give a list of words to take away.",
    "layout": "Give true or false.",
    "offset": "Give a number of entries to pass over.",
    "limit": "Give the number of entries to return.",
    "parent": "Give the path of a folder, as GET /folders answers it.",
    "field": "Name one of the fields that GET /about lists.",
    "contains": "Give a shorter text.",
    "ids": "Give a list of ids, as a search answers them.",
    "format": "Give zip or list.",
}


def media_type(request: Request) -> str:
    """The body's media type, as the header names it, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class SearchRequest:
    """A search by `queries` in words, or by the id `like` of a picture; with one of either, words to add and to take
    away."""

    queries: tuple[str, ...]
    like: str | None
    k: int
    filters: tuple[str, ...]
    threshold: float | None
    why: bool
    layout: bool
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListRequest:
    """What a list of pictures, months, folders or values is asked for. A route uses some of it."""

    filters: tuple[str, ...]
    offset: int
    limit: int
    parent: str
    """The folder whose folders are listed."""
    field: str
    contains: str


@dataclass(frozen=True)
class ExportRequest:
    """The pictures to export, as a "list" or as a "zip"."""

    ids: tuple[str, ...]
    format: str


class SearchParser:
    """Parses search requests, and refuses those over the limits of `settings`."""

    def __init__(self, settings: ServeSettings) -> None:
        query: Any = _text(settings.max_query_characters, _VISIBLE)
        filter_text: Any = _text(_FILTER_CHARACTERS, _FILTER)
        k = Annotated[
            int, Field(ge=1, le=settings.max_k, description="Pictures per query."), BeforeValidator(_float_to_int)
        ]
        filters = Annotated[
            list[filter_text],
            Field(
                max_length=settings.max_filters,
                description="FIELD OP VALUE. A picture must match all filters.",
                examples=[["folder=trips"]],
            ),
        ]
        threshold = Annotated[
            float | None,
            Field(
                ge=0, le=1, allow_inf_nan=False, description="The lowest confidence of a returned hit; null for any."
            ),
        ]
        queries = Annotated[list[query], Field(min_length=1, max_length=settings.max_queries)]
        common: dict[str, Any] = {
            "k": (k, 10),
            "filters": (filters, []),
            "threshold": (threshold, None),
            "why": (bool, False),
            "layout": (Annotated[bool, Field(description="Whether hits say how a page can lay them out.")], False),
        }
        words = Annotated[
            list[query],
            Field(
                max_length=_MOST_WORDS,
                description="Words to add (plus) or to take away (minus); dog:2 counts twice. Such a search has no "
                "confidence and no why.",
                examples=[["at night", "dog:2"]],
            ),
        ]
        both: dict[str, Any] = {"plus": (words, []), "minus": (words, [])}
        self._models = {
            "query": _model("SearchByWords", query=(query, ...), **common, **both),
            "queries": _model("SearchByManyWords", queries=(queries, ...), **common),
            "like": _model("SearchLikePicture", like=(_text(_ID_CHARACTERS), ...), **common, **both),
        }
        layout = common["layout"]
        self._picture_model = _model("SearchByPicture", k=(k, 10), filters=(filters, []), layout=layout)
        page = Annotated[int, Field(ge=1, le=settings.max_page, description="Entries, at most.", examples=[100])]
        offset = Annotated[int, Field(ge=0, le=_MOST_OFFSET, description="Entries before the first that is answered.")]
        text = Annotated[str, Field(max_length=_FILTER_CHARACTERS)]
        self._list_model = _model(
            "List",
            filters=(filters, []),
            offset=(offset, 0),
            limit=(page, min(100, settings.max_page)),
            parent=(Annotated[text, Field(description="The folder; empty for the top.")], ""),
            field=(Annotated[text, Field(description="A field that GET /about lists.", examples=["folder"])], ""),
            contains=(Annotated[text, Field(description="Only values with this text.")], ""),
        )
        identifier: Any = _text(_ID_CHARACTERS)
        self._export_model = _model(
            "Export",
            ids=(Annotated[list[identifier], Field(min_length=1, max_length=settings.max_listed_ids)], ...),
            format=(Annotated[Literal["zip", "list"], Field(description="Files, or a list of paths.")], "zip"),
        )
        self._most_files = settings.max_export
        self.max_export_bytes = 65_536 + _BYTES_PER_CHARACTER * 100 * settings.max_listed_ids
        """The longest body of an export, in bytes: for ids of a usual length."""
        self.max_bytes = 65_536 + _BYTES_PER_CHARACTER * (
            (settings.max_queries + 2 * _MOST_WORDS) * settings.max_query_characters
            + settings.max_filters * _FILTER_CHARACTERS
        )
        """The longest body that the limits allow, in bytes."""

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a search's body."""
        return {"oneOf": [model.model_json_schema() for model in self._models.values()]}

    @property
    def picture_schema(self) -> dict[str, Any]:
        """The JSON Schema of the form fields, besides the file, in a search by picture."""
        properties: dict[str, Any] = self._picture_model.model_json_schema()["properties"]
        return properties

    def list_parameters(self, *names: str) -> list[dict[str, Any]]:
        """The OpenAPI description of some parameters of a list."""
        properties = self._list_model.model_json_schema()["properties"]
        required = {"field"}
        return [
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "schema": _query_schema(properties[name], name in required),
            }
            for name in names
        ]

    @property
    def export_schema(self) -> dict[str, Any]:
        """The JSON Schema of an export's body."""
        return self._export_model.model_json_schema()

    def parse_list(self, parameters: Sequence[tuple[str, str]]) -> ListRequest:
        """The parameters of a list, from an address. Others are not read. Raises `RequestError`."""
        values: dict[str, Any] = {}
        for name, value in parameters:
            if name == "filters":
                values.setdefault(name, []).append(value)
            elif name in self._list_model.model_fields:
                if name in values:
                    raise RequestError(422, f"{name}: the parameter is repeated. Send it once.")
                whole = name in ("offset", "limit") and re.fullmatch(r"-?\d{1,18}", value, re.ASCII)
                values[name] = int(value) if whole else value
        values = _validated(self._list_model, values)
        return ListRequest(**{**values, "filters": tuple(values["filters"])})

    def parse_export(self, body: bytes) -> ExportRequest:
        """Parse an export's body. Raises `RequestError`."""
        content = _json(body, '{"ids": ["trips/dogs.jpg"], "format": "zip"}')
        if not isinstance(content, dict) or len(content) > _MOST_FIELDS:
            raise RequestError(422, 'Send a JSON object with "ids" and "format".')
        values = _validated(self._export_model, content)
        ids = tuple(dict.fromkeys(values["ids"]))
        if values["format"] == "zip" and len(ids) > self._most_files:
            raise RequestError(
                422,
                f"ids: {len(ids):,} pictures, over the limit of {self._most_files:,}. Choose fewer, or take the list.",
            )
        return ExportRequest(ids, values["format"])

    def parse(self, body: bytes) -> SearchRequest:
        """Parse a search's body. Raises `RequestError`: 400 if it is not JSON, 422 if it does not fit the schema."""
        content = _json(body, '{"query": "two dogs on a beach"}')
        kinds = [name for name in self._models if isinstance(content, dict) and name in content]
        if len(kinds) != 1:
            raise RequestError(422, 'Send a JSON object with one of "query", "queries" and "like".')
        if len(content) > _MOST_FIELDS:
            # pydantic would describe each field that there is not
            raise RequestError(422, f"The object has {len(content):,} fields. Send the documented ones, and no others.")
        values = _validated(self._models[kinds[0]], content)
        queries = [values["query"]] if "query" in values else values.get("queries", [])
        plus, minus = values.get("plus", []), values.get("minus", [])
        if (plus or minus) and (values["threshold"] is not None or values["why"]):
            raise RequestError(422, "threshold, why: a search with plus or minus has neither. Leave them out.")
        return SearchRequest(
            queries=tuple(query.encode("utf-8", "replace").decode() for query in queries),
            like=values.get("like"),
            k=values["k"],
            filters=tuple(values["filters"]),
            threshold=values["threshold"],
            why=values["why"],
            plus=tuple(text.encode("utf-8", "replace").decode() for text in plus),
            minus=tuple(text.encode("utf-8", "replace").decode() for text in minus),
            layout=values["layout"],
        )

    def parse_fields(self, fields: Mapping[str, Any]) -> tuple[int, tuple[str, ...], bool]:
        """`k`, `filters` and `layout` of a search by picture, from form fields. Raises `RequestError`."""
        values = dict(fields)
        if isinstance(values.get("k"), str) and re.fullmatch(r"-?\d{1,9}", values["k"], re.ASCII):
            values["k"] = int(values["k"])
        if values.get("layout") in ("true", "false"):
            values["layout"] = values["layout"] == "true"
        values = _validated(self._picture_model, values)
        return values["k"], tuple(values["filters"]), values["layout"]


def _json(body: bytes, example: str) -> Any:
    """The content of a JSON body. Raises `RequestError`."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not JSON ({error}). Send, for example, {example}.") from None


def _query_schema(schema: dict[str, Any], is_required: bool) -> dict[str, Any]:
    """The schema of a parameter. A required text is not empty."""
    return (
        {**{key: value for key, value in schema.items() if key != "default"}, "minLength": 1} if is_required else schema
    )


def _model(name: str, **fields: Any) -> type[BaseModel]:
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True, title=name), **fields)


def _text(limit: int, pattern: str | None = None) -> Any:
    """The type of a text of 1 to `limit` characters that contains `pattern`."""
    schema = Annotated[
        str, Field(min_length=1, max_length=limit, json_schema_extra={"pattern": pattern} if pattern else {})
    ]
    return Annotated[str, PlainValidator(_text_check(limit, pattern), json_schema_input_type=schema)]


def _text_check(limit: int, pattern: str | None) -> Callable[[Any], str]:
    matches = _is_filter if pattern == _FILTER else re.compile(pattern or "(?s:.)").search

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("it must be a text")
        if len(value) > limit:
            raise ValueError(f"{len(value):,} characters, over the limit of {limit:,}")
        if not matches(value):
            raise ValueError(f"{value[:40]!r} is not a filter" if pattern == _FILTER else "it is empty")
        return value

    return check


def _is_filter(text: str) -> bool:
    """Whether `text` matches `_FILTER`. Takes time in proportion to its length; the expression takes the square."""
    operator = _OPERATOR.search(text)
    if operator is None or operator.start() == 0 or operator[0] == "!":
        return False
    return _FIRST_VISIBLE.match(text, operator.end()) is not None


def _float_to_int(value: Any) -> Any:
    # JSON has only one type of number, in which 10.0 is 10
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _validated(model: type[BaseModel], content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `model`. Raises `RequestError` with the first error of each field, three fields at most."""
    try:
        return vars(model.model_validate(content))
    except ValidationError as error:
        details: list[Any] = error.errors(include_url=False, include_input=False)
    sentences: dict[str, str] = {}
    for detail in details:
        location = [str(part) for part in detail["loc"]]
        field = location[0] if location else ""
        name = field.encode("utf-8", "replace").decode()[:40]
        if len(location) > 1 and location[1].isdecimal():
            name += f"[{location[1]}]"
        reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
        if detail["type"] == "extra_forbidden":
            reason = "there is no such field"
        sentences.setdefault(field, f"{name}: {reason[0].lower()}{reason[1:]}. {_REMEDIES.get(field, 'Leave it out.')}")
    raise RequestError(422, " ".join(list(sentences.values())[:3]))


@dataclass(frozen=True)
class UploadForm:
    """The files and fields that a browser's form sends."""

    data: FormData

    def file(self, name: str) -> UploadFile:
        """The only file in the field `name`. Raises what `files` raises."""
        (file,) = self.files(name)
        return file

    def files(self, name: str) -> list[UploadFile]:
        """The files in the field `name`. Raises `RequestError` if there are none, or files in other fields."""
        values = self.data.getlist(name)
        files = [value for value in values if isinstance(value, UploadFile)]
        strays = any(isinstance(value, UploadFile) and key != name for key, value in self.data.multi_items())
        if not files or len(files) < len(values) or strays:
            raise RequestError(
                422, f"{name}: a file is missing. Send pictures as files in a {_MULTIPART} field {name!r}."
            )
        return files

    @property
    def fields(self) -> dict[str, Any]:
        """All fields but the files, `filters` as a list. Raises `RequestError` if another field is repeated."""
        fields: dict[str, Any] = {}
        for name, value in self.data.multi_items():
            if not isinstance(value, str):
                continue
            if name == "filters":
                fields.setdefault(name, []).append(value)
            elif name in fields:
                raise RequestError(422, f"{name}: the field is repeated. Send it once.")
            else:
                fields[name] = value
        return fields


@asynccontextmanager
async def upload_form(request: Request, slots: Slots, *, files: int, fields: int) -> AsyncIterator[UploadForm]:
    """Parse a form with at most this many `files` and `fields`. Its temporary files are deleted at the end.

    Raises `BusyError` if no slot is free, `RequestError` if the body is not a form, and starlette's `HTTPException` if
    the form is broken.
    """
    if media_type(request) != _MULTIPART:
        raise RequestError(415, f"Send the files as {_MULTIPART}, as a form does.")
    with slots.hold():
        async with request.form(max_files=files, max_fields=fields, max_part_size=_FIELD_BYTES) as data:
            yield UploadForm(data)


def upload_schema(name: str, fields: dict[str, Any], *, many: bool) -> dict[str, Any]:
    """The OpenAPI description of a form with a picture in the field `name`, or with `many` files of any type."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {
        "schema": {
            "type": "object",
            "properties": {name: {"type": "array", "items": file, "minItems": 1} if many else file, **fields},
            "required": [name],
            "additionalProperties": False,
        }
    }
    if not many:
        content["encoding"] = {name: {"contentType": ", ".join(_PICTURE_TYPES)}}
    return {"required": True, "content": {_MULTIPART: content}}
