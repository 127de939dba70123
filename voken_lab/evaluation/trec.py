"""Runs and relevance judgements in TREC's text formats, so that other evaluation tools can check our figures.

A run line is `query Q0 picture rank score tag`, and a judgement line is `query 0 picture 1`. Ids may hold any
characters, including spaces; in the files they are percent-encoded as in URLs. `read_run` and `read_qrels` decode them.

TREC tools rank by score, which some read as a 32-bit float, and break ties by id. The written scores therefore fall
strictly: each is the system's score rounded to 32 bits or, if that is not below the line before, the next float below
that line. TREC tools thus see one order of each tie, while our figures are expected values over all orders. If there
are no ties, the figures agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from voken.artifact import storage_errors, write_text
from voken.errors import DataError
from voken.search.hit import Hit
from voken_lab.evaluation.protocol import Query

_PLAIN = "/:@!$&'()*+,;="


def write_run(path: Path, queries: Sequence[Query], answers: Sequence[Sequence[Hit]], *, tag: str = "voken") -> None:
    """Write ranked answers. The file is complete or is not written. A query without hits has no line.

    `tag` names the system. Raises `DataError` for a score that is not finite, or if there is not one answer per query.
    """
    if len(queries) != len(answers):
        raise DataError(f"{len(answers)} answers for {len(queries)} queries.")
    name = encode_id(tag)
    lines = []
    for query, hits in zip(queries, answers, strict=True):
        query_id = encode_id(query.query_id)
        scores = falling_scores([hit.score for hit in hits], query.query_id)
        for rank, (hit, score) in enumerate(zip(hits, scores, strict=True), start=1):
            lines.append(f"{query_id} Q0 {encode_id(hit.image_id)} {rank} {score:.9g} {name}\n")
    _write(path, lines)


def write_qrels(path: Path, queries: Iterable[Query]) -> None:
    """Write every right answer of every query. The file is complete or is not written."""
    _write(
        path,
        [
            f"{encode_id(query.query_id)} 0 {encode_id(image_id)} 1\n"
            for query in queries
            for image_id in sorted(query.relevant)
        ],
    )


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Each query's (picture, score) pairs by falling score. Raises `DataError` with the number of a malformed line."""
    run: dict[str, list[tuple[str, float]]] = {}
    for where, fields in _fields(path, 6):
        try:
            score = float(fields[4])
        except ValueError:
            raise DataError(f"{where}: {fields[4]!r} is not a score. Field 5 of a run is a number.") from None
        run.setdefault(decode_id(fields[0]), []).append((decode_id(fields[2]), score))
    return {query: sorted(pairs, key=lambda pair: -pair[1]) for query, pairs in run.items()}


def read_qrels(path: Path) -> dict[str, frozenset[str]]:
    """Each query's right pictures (relevance 1 or more). Raises `DataError` with the number of a malformed line."""
    relevant: dict[str, set[str]] = {}
    for where, fields in _fields(path, 4):
        try:
            grade = int(fields[3])
        except ValueError:
            raise DataError(f"{where}: {fields[3]!r} is not a whole number. Field 4 is the relevance.") from None
        pictures = relevant.setdefault(decode_id(fields[0]), set())
        if grade > 0:
            pictures.add(decode_id(fields[2]))
    return {query: frozenset(names) for query, names in relevant.items()}


def encode_id(name: str) -> str:
    """An id as one word of ASCII; `decode_id` is the inverse. Raises `DataError` for an empty id.

    >>> encode_id("my photos/50% off.jpg")
    'my%20photos/50%25%20off.jpg'
    """
    if not name:
        raise DataError("An empty id cannot be written to a TREC file. Give every query and picture an id.")
    return quote(name, safe=_PLAIN, errors="surrogatepass")


def decode_id(word: str) -> str:
    """The id that `encode_id` wrote."""
    return unquote(word, errors="surrogatepass")


def falling_scores(scores: Sequence[float], query_id: str) -> list[np.float32]:
    """Ranked scores as 32-bit floats that fall strictly (see the module). `query_id` is only for error messages.

    Raises `DataError` for a score that is not finite.
    """
    falling: list[np.float32] = []
    for score in scores:
        if not np.isfinite(score):
            raise DataError(f"Query {query_id}: a score of {score} cannot be written to a TREC run.")
        value = np.float32(score)
        if falling and not value < falling[-1]:
            value = np.nextafter(falling[-1], np.float32(-np.inf))
        falling.append(value)
    return falling


def _write(path: Path, lines: Sequence[str]) -> None:
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines), encoding="ascii")


def _fields(path: Path, count: int) -> Iterable[tuple[str, list[str]]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text ({error}).") from error
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if fields and len(fields) != count:
            raise DataError(f"{path}, line {number}: {len(fields)} fields, but there must be {count}.")
        if fields:
            yield f"{path}, line {number}", fields
