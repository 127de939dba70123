"""What a search request may say, checked: the limits of the settings are those of the documented schema.

Texts are taken as they come, also with lone surrogates, which file names (and so ids) may hold; pydantic's own strings
would refuse them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, create_model

from voken.serve.refusals import RefusedError
from voken.serve.settings import ServeSettings

_SEEN = r"[^\s\x00-\x20\x7f-\xa0\ufeff]"
"""A sign that can be seen. Python, Rust and JavaScript agree on it, which they do not on \\S."""
_FILTER = r"^\s*[^=!<>~]+(!=|<=|>=|=|[<>](?!=)|~)\s*" + _SEEN
_FILTER_CHARACTERS, _ID_CHARACTERS = 1_000, 4_096
_BYTES_A_CHARACTER = 12
"""Of JSON, at most: a sign beyond the basic plane, escaped."""
_REMEDY = {
    "query": "Say in a few words what the picture shows.",
    "queries": "Give a list of texts.",
    "like": "Give the id of a picture of the collection.",
    "filters": "Give FIELD=VALUE, e.g. folder=trips, date>=2024-05, licence!=CC0, title~dog.",
    "k": "Say how many pictures to answer.",
    "threshold": "Give a probability, or null.",
    "why": "Give true or false.",
}


@dataclass(frozen=True)
class Asked:
    """One request. Either `queries` or `like` says what is looked for."""

    queries: tuple[str, ...]
    like: str | None
    k: int
    filters: tuple[str, ...]
    threshold: float | None
    why: bool


class SearchForm:
    """The forms that a search may have, under `settings`."""

    def __init__(self, settings: ServeSettings) -> None:
        query: Any = _text(settings.max_query_characters, _SEEN)
        k = Annotated[int, Field(ge=1, le=settings.max_k, description="Pictures a query."), BeforeValidator(_whole)]
        one_filter: Any = _text(_FILTER_CHARACTERS, _FILTER)
        filters = Annotated[
            list[one_filter],
            Field(
                max_length=settings.max_filters,
                description="FIELD OP VALUE; all must hold.",
                examples=[["folder=trips"]],
            ),
        ]
        sure = Annotated[
            float | None, Field(ge=0, le=1, allow_inf_nan=False, description="The least confidence; null: any.")
        ]
        shared: dict[str, Any] = {
            "k": (k, 10),
            "filters": (filters, []),
            "threshold": (sure, None),
            "why": (bool, False),
        }
        queries = Annotated[list[query], Field(min_length=1, max_length=settings.max_queries)]
        self._forms = {
            "query": _form("SearchByWords", shared, query=(query, ...)),
            "queries": _form("SearchByManyWords", shared, queries=(queries, ...)),
            "like": _form("SearchLikePicture", shared, like=(_text(_ID_CHARACTERS), ...)),
        }
        self._picture = _form("SearchByPicture", {"k": (k, 10), "filters": (filters, [])})
        self.max_bytes = 65_536 + _BYTES_A_CHARACTER * (
            settings.max_queries * settings.max_query_characters + settings.max_filters * _FILTER_CHARACTERS
        )
        """No request that is within the limits is longer."""

    @property
    def schema(self) -> dict[str, Any]:
        """Of the body of a search, as JSON Schema."""
        return {"oneOf": [form.model_json_schema() for form in self._forms.values()]}

    @property
    def picture_schema(self) -> dict[str, Any]:
        """Of the form fields beside the file of a search by picture."""
        properties: dict[str, Any] = self._picture.model_json_schema()["properties"]
        return properties

    def read(self, body: bytes) -> Asked:
        """Raises `RefusedError`: 400 for what is no JSON, 422 for what is not within the limits."""
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RefusedError(
                400, f'The body is not JSON ({error}). Send {{"query": "two dogs on a beach"}}.'
            ) from None
        named = [name for name in self._forms if isinstance(said, dict) and name in said]
        if len(named) != 1:
            raise RefusedError(422, 'Give one of "query", "queries" and "like", in a JSON object.')
        made = _checked(self._forms[named[0]], said)
        given = vars(made)
        queries = [given["query"]] if "query" in given else given.get("queries", [])
        return Asked(
            queries=tuple(one.encode("utf-8", "replace").decode() for one in queries),
            like=given.get("like"),
            k=given["k"],
            filters=tuple(given["filters"]),
            threshold=given["threshold"],
            why=given["why"],
        )

    def read_fields(self, fields: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """`k` and `filters` of a search by picture, from texts. Raises `RefusedError`."""
        given = dict(fields)
        if isinstance(given.get("k"), str) and re.fullmatch(r"-?\d{1,9}", given["k"], re.ASCII):
            given["k"] = int(given["k"])
        made = vars(_checked(self._picture, given))
        return made["k"], tuple(made["filters"])


def _form(name: str, shared: dict[str, Any], **own: Any) -> type[BaseModel]:
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True, title=name), **own, **shared)


def _text(most: int, pattern: str | None = None) -> Any:
    """The type of a text of 1 to `most` characters in which `pattern` is found."""
    schema = Annotated[
        str, Field(min_length=1, max_length=most, json_schema_extra={"pattern": pattern} if pattern else {})
    ]
    return Annotated[str, PlainValidator(_within(most, pattern), json_schema_input_type=schema)]


def _within(most: int, pattern: str | None) -> Callable[[Any], str]:
    found = re.compile(pattern or "(?s:.)")

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("it must be a text")
        if len(value) > most:
            raise ValueError(f"{len(value):,} characters, over the limit of {most:,}")
        if not value or not found.search(value):
            raise ValueError(f"{value[:40]!r} is none" if pattern == _FILTER else "it is empty")
        return value

    return check


def _whole(value: Any) -> Any:
    # JSON has one kind of number: 10.0 is 10
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked(form: type[BaseModel], said: Mapping[str, Any]) -> BaseModel:
    try:
        return form.model_validate(said)
    except ValidationError as error:
        raise RefusedError(422, " ".join(_sentences(error.errors(include_url=False, include_input=False)))) from None


def _sentences(errors: Iterable[Any]) -> Sequence[str]:
    """One for the first error of each field."""
    told: dict[str, str] = {}
    for error in errors:
        place = [str(part) for part in error["loc"]]
        field = place[0] if place else ""
        name = field.encode("utf-8", "replace").decode()[:40]
        what = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
        if error["type"] == "extra_forbidden":
            what = "there is no such field here"
        where = f"{name}[{place[1]}]" if len(place) > 1 and place[1].isdecimal() else name
        told.setdefault(field, f"{where}: {what[0].lower()}{what[1:]}. {_REMEDY.get(field, 'Leave it out.')}")
    return list(told.values())[:3]
