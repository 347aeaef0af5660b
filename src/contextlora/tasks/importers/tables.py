"""Reads tables: CSV, TSV, JSON, JSONL and Parquet files, and Hugging Face `datasets`."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from contextlora.errors import first_line, tail
from contextlora.tasks.faults import TaskSetError, shown
from contextlora.tasks.reading import parse_json, read_bytes, read_lines

FILE_COLUMN = "file"  # of every row: the name of its file without the ending, or of its split
_MOST_BYTES = 1 << 31
_SEPARATORS = ",;\t"


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: file and line, or split and number; for messages.
        cells: by column, with `FILE_COLUMN` unless the table has a column of that name.
        folder: which file names in cells are relative to.
    """

    where: str
    cells: Mapping[str, Any]
    folder: Path


def read_tables(sources: Sequence[str]) -> list[Row]:
    """All rows of files, of the table files in a folder, of saved `datasets`, or of `hub:owner/name`.

    Raises:
        TaskSetError: one cannot be read, or holds no row.
    """
    rows = [row for source in sources for row in _read(source)]
    if not rows:
        raise TaskSetError(f"{shown(list(sources))} must hold at least one row; name other tables")
    return rows


def _read(source: str) -> Iterator[Row]:
    path = Path(source).expanduser()
    if source.startswith("hub:") or (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _read_datasets(source)
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
        if not files:
            raise TaskSetError(f"folder {tail(path)} holds no table; put {', '.join(_READERS)} files into it")
        for file in files:
            yield from _read_file(file)
    else:
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[Row]:
    if path.suffix.lower() not in _READERS:
        raise TaskSetError(f"table {tail(path)} must end in one of {', '.join(_READERS)}; rename or convert it")
    try:
        for place, cells in _READERS[path.suffix.lower()](path):
            if not isinstance(cells, dict):
                raise TaskSetError(f"row {place} must be a mapping of columns to values, got {shown(cells)}")
            yield Row(f"{path.name}:{place}", {FILE_COLUMN: path.stem, **cells}, path.parent)
    except TaskSetError as error:
        raise TaskSetError(f"table {tail(path)}: {error}") from error


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = read_bytes(path, _MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskSetError(f"must be UTF-8, byte {error.start + 1} is not; save it as UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(_SEPARATORS, key=first.count), strict=True)
    try:
        names = reader.fieldnames or []
        if twice := {name for name in names if names.count(name) > 1}:
            raise TaskSetError(f"column {shown(min(twice))} stands twice in its first line; rename one")
        for cells in reader:
            if None in cells or None in cells.values():
                raise TaskSetError(
                    f"line {reader.line_num} must have {len(names)} cells like the first line; put cells that hold the "
                    "separator in double quotes"
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise TaskSetError(f"line {reader.line_num} is no CSV: {error}; mend it") from error


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    found = parse_json(read_bytes(path, _MOST_BYTES), _MOST_BYTES)
    if not isinstance(found, list):
        raise TaskSetError(f"must hold a list of objects, got {shown(found)}; put it into [ ]")
    yield from enumerate(found, start=1)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, found in read_lines(path):
        if isinstance(error := found, TaskSetError):
            raise TaskSetError(f"line {number}: {error}")
        yield number, found


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    read_bytes(path, _MOST_BYTES)  # an ordinary file that may be read
    parquet = _extra("pyarrow.parquet")
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
    except Exception as error:  # pyarrow has a dozen kinds of its own
        raise TaskSetError(f"is no Parquet file: {first_line(error)}; write it again") from error


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _read_datasets(source: str) -> Iterator[Row]:
    datasets = _extra("datasets")
    try:
        hub_id = source.removeprefix("hub:")
        found = datasets.load_dataset(hub_id) if hub_id != source else datasets.load_from_disk(source)
    except Exception as error:  # no network, no such set, another format: a dozen kinds
        raise TaskSetError(f"data set {tail(source)} cannot be read: {first_line(error)}; name another") from error
    for split, table in (found if isinstance(found, dict) else {"data": found}).items():
        for column, feature in table.features.items():
            if isinstance(feature, datasets.Image):  # as the bytes of its file
                table = table.cast_column(column, datasets.Image(decode=False))
        for number, cells in enumerate(table, start=1):
            yield Row(f"{split}:{number}", {FILE_COLUMN: split, **cells}, Path(source))


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise TaskSetError(
            f"this table needs the package {name.partition('.')[0]}; install it with: pip install 'contextlora[data]'"
        ) from None


def listed(cell: Any) -> list[Any]:
    """A cell that holds several values: a list, one written as JSON, or text with | between them."""
    if isinstance(cell, list | tuple):
        return list(cell)
    text = str(cell)
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as error:
            raise TaskSetError(f"must be a list as JSON, got {shown(text)}; write it as JSON or with |") from error
    return [part.strip() for part in text.split("|")]
