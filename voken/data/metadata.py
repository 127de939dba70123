"""The fields of pictures: read from metadata.jsonl, .csv and .parquet, and stored as one JSON object per picture.

What is stored is always valid JSON that every reader takes. So a number that JSON cannot hold (NaN, infinity) counts as
missing, half a surrogate pair becomes "?", and a number too long for Python to compute with stays a text. No such value
stops the reading of the others.

This module knows nothing about captions, and imports nothing that a search does not need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from voken.errors import DataError, MissingExtraError

METADATA = "metadata.jsonl"
METADATA_CSV = "metadata.csv"
METADATA_PARQUET = "metadata.parquet"

_CSV_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_CSV_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a metadata.jsonl, .csv or .parquet, each with the number of its line or row.

    In a .csv the first line names the columns; numbers as one would write them (`7`, `-0.5`, but not `007`) are
    numbers, and empty cells are missing. Raises DataError, which names the file, the line and the fault, and
    `MissingExtraError` for a .parquet without pyarrow.
    """
    if path.suffix == ".parquet":
        return parquet_records(path)
    return _csv_records(path) if path.suffix == ".csv" else _jsonl_records(path)


def metadata_text(fields: dict[str, Any]) -> str:
    """The fields as they are stored: a JSON object, or the empty text if there are none.

    Numbers of numpy, dates and paths are stored as the numbers and texts that they stand for. Raises DataError for what
    JSON has no form for.
    """
    if not fields:
        return ""
    try:
        try:
            text = _to_json(fields, _plain_value)
            text.encode()
        except ValueError:  # NaN, a number of too many digits, or half a surrogate pair
            text = _to_json(_storable(fields), _plain_value)
    except (TypeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"metadata: {reason}. Give texts, numbers, true or false, and lists of these.") from None
    if not text.startswith("{"):
        raise DataError(f"metadata: a {type(fields).__name__} is not a dictionary. Give one, with a value per field.")
    return text


def metadata_fields(text: str, *, exact: bool = False) -> dict[str, Any]:
    """The fields that `metadata_text` stored; none if the text is not a JSON object.

    With `exact`, numbers with a fraction or an exponent are decimals, whose digits are those in the text.
    """
    if not text:
        return {}
    try:
        fields = json.loads(
            text, parse_float=_decimal if exact else _float, parse_int=_integer, parse_constant=_no_number
        )
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def parse_json(text: str) -> Any:
    """The value of a JSON text, without the numbers that `metadata_text` would not store. Raises ValueError."""
    return json.loads(text, parse_float=_float, parse_int=_integer, parse_constant=_no_number)


def read_json(path: Path) -> Any:
    """The value of a JSON file, as `parse_json` reads it. Raises `DataError` if it cannot be read or is not JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Correct or remove the file.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is not JSON ({error}). Correct or remove the file.") from error


def without_surrogates(text: str) -> str:
    """`text` with "?" in place of half surrogate pairs, which are legal in JSON and break tokenizers and databases."""
    return text.encode("utf-8", "replace").decode()


def _to_json(fields: Any, default: Callable[[Any], Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default)


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_storable_name(name): _storable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return _short_integer(value)
    if isinstance(value, bool) or value is None:
        return value
    return _storable(_plain_value(value))


def _storable_name(name: Any) -> Any:
    return without_surrogates(name) if isinstance(name, str) else name


def _plain_value(value: Any) -> Any:
    """What JSON holds in place of a value that it has no form for. Raises TypeError if there is nothing."""
    for method in ("isoformat", "tolist", "__fspath__"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Decimal):
        return _float(str(value))
    raise TypeError(f"a {type(value).__name__} cannot be stored")


def _short_integer(value: int) -> int | str:
    try:
        str(value)
    except ValueError:  # over the limit of sys.set_int_max_str_digits
        return hex(value)
    return value


def _integer(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:  # over the limit of sys.set_int_max_str_digits
        return text


def _float(text: str) -> float | str:
    number = float(text)
    return number if isfinite(number) else text


def _decimal(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except ArithmeticError:  # an exponent of more than eighteen digits
        return text


def _no_number(text: str) -> None:
    """The value of NaN, Infinity and -Infinity, which Python writes and JSON does not have."""
    return None


def _jsonl_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        try:
            record = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: this is not JSON ({error}). Correct or remove the line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: this must be a JSON object, not {type(record).__name__}")
        yield number, record


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import csv

    lines = (line for _, line in text_lines(path))
    header = next((line for line in lines if line.strip()), "")
    # spreadsheets of many countries write semicolons
    delimiter = max(",;\t", key=header.count)
    columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    if "file_name" not in columns:
        raise DataError(f"{path}, line 1: there is no column 'file_name'. Name the columns in the first line.")
    reader = csv.reader(lines, delimiter=delimiter)
    number = 1
    try:
        for cells in reader:
            number = reader.line_num + 1
            if any(cells):
                values = {name: _csv_value(cell) for name, cell in zip(columns, cells, strict=False) if name}
                yield number, {**values, "file_name": cells[columns.index("file_name")] if values else ""}
    except (csv.Error, IndexError) as error:
        raise DataError(
            f"{path}, line {number}: this is not a line of a CSV file ({error}). Correct or remove the line."
        ) from error


def parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file with their numbers, from 1. Raises DataError, and `MissingExtraError` without pyarrow.

    Columns of bytes, such as pictures, are left out, and so are values that are missing.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtraError("pyarrow, which reads Parquet files,", "parquet") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = [
                field.name for field in file.schema_arrow if "binary" not in str(field.type)
            ]  # pictures themselves: "binary", "struct<bytes: binary, path: string>"
            for batch in file.iter_batches(batch_size=1024, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except (ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: this is not a Parquet file ({reason}). Correct or remove the file.") from error


def _csv_value(cell: str) -> Any:
    if _CSV_INTEGER.fullmatch(cell):
        return _integer(cell)
    if _CSV_DECIMAL.fullmatch(cell):
        number = _float(cell)
        return number if isinstance(number, float) and Decimal(repr(number)) == Decimal(cell) else cell
    return cell


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers and their ends, without a byte-order mark. Raises DataError."""
    return _lines(path, blank=True)


def _lines(path: Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines with their numbers. A byte-order mark is removed. Without `blank`, lines are stripped or left out."""
    number = 0
    try:
        with path.open("rb") as source:
            for number, raw in enumerate(source, start=1):
                # a byte-order mark is legal at the very start only
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if blank or (line := line.strip()):
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Allow reading it.") from error
