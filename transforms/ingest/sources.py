"""Files of events into tables of their own columns: Parquet, CSV and JSON lines, read as they are.

A row that can't be decoded stays a row, with its problem and its raw text beside it, and never takes its neighbours along.
"""

import codecs
import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from data import errors
from transforms.ingest import faults, formats

Kind = Literal["parquet", "csv", "jsonl"]

ROW = "__row"
PROBLEM = formats.PROBLEM
RAW = formats.RAW
"""Columns beside the source's own: the row's number from 1, why it couldn't be decoded, its text where it has one."""

_FRAGMENT_ROWS = 1 << 20
_BATCH_ROWS = 1 << 18
"""Small enough for a batch's columns to stay in the processor's cache from one step to the next."""
_LARGE_GROUP = 1 << 16
"""Rows of a Parquet row group whose dictionaries are worth keeping."""
_BLOCK_BYTES = 16 << 20
_TEXT_BYTES_A_ROW = 64
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


class SourceError(errors.BadInputError):
    """The source as a whole can't be read: the message names the file, the rule and the way out."""


@dataclasses.dataclass(frozen=True)
class Fragment:
    """What one worker reads at a time: a file, or row groups of a Parquet file whose first row has number `first`.

    `rows` is how many; of text, a guess from the file's size.
    """

    kind: Kind
    path: str
    row_groups: tuple[int, ...] = ()
    first: int = 1
    rows: int = 0


def find_fragments(kind: Kind, patterns: Sequence[str], columns: Sequence[str]) -> list[Fragment]:
    """Lists the fragments of all files that match, checked: each is there, not empty, and has the mapped columns.

    Raises:
        SourceError: what is wrong with which file.
    """
    fragments = []
    for pattern in patterns:
        try:
            [match] = FileSystems.match([pattern])
        except (BeamIOError, ValueError) as error:
            raise SourceError(f"source.paths: {pattern!r} can't be looked up ({type(error).__name__}).") from error
        if not match.metadata_list:
            raise SourceError(f"source.paths: no file matches {pattern!r}.")
        for file in sorted(match.metadata_list, key=lambda file: file.path):
            if not file.size_in_bytes:
                raise SourceError(f"{file.path} is empty (0 bytes). An empty data set still has a header or a schema.")
            fragments.extend(_fragments_of(kind, file.path, columns, file.size_in_bytes // _TEXT_BYTES_A_ROW))
    return fragments


def digests(fragments: Sequence[Fragment]) -> dict[str, str]:
    """Returns each file's SHA-256 as hex digits: the operator's side of what a release is of."""
    found = {}
    for path in dict.fromkeys(fragment.path for fragment in fragments):
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            digest = hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        found[path] = digest.hexdigest()
    return found


def _fragments_of(kind: Kind, path: str, columns: Sequence[str], text_rows: int) -> list[Fragment]:
    try:
        if kind == "parquet":
            return _row_groups(path, columns)
        with _open(path) as file:
            first_line = file.readline()
    except (OSError, EOFError, pa.ArrowException, BeamIOError) as error:
        # Only the kind of error: the message may quote what is in the file.
        name = "Parquet" if kind == "parquet" else kind.upper()
        raise SourceError(f"{path} can't be read as {name} ({type(error).__name__}).") from error
    if kind == "csv":
        _check_columns(path, _header(path, first_line), columns, "")
    return [Fragment(kind, path, rows=text_rows)]


def _row_groups(path: str, columns: Sequence[str]) -> list[Fragment]:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        _check_columns(path, names, columns, f" It has {', '.join(map(repr, names[:50]))}.")
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    # Row groups together: each fragment takes its own time to open.
    fragments: list[Fragment] = []
    first = 1
    for group, size in enumerate(sizes):
        last = fragments[-1] if fragments else None
        if last and last.rows + size <= _FRAGMENT_ROWS:
            fragments[-1] = dataclasses.replace(last, row_groups=(*last.row_groups, group), rows=last.rows + size)
        else:
            fragments.append(Fragment("parquet", path, (group,), first, size))
        first += size
    return fragments


def _check_columns(path: str, present: Sequence[str], columns: Sequence[str], hint: str) -> None:
    for rule, wrong in (
        ("no column", [column for column in columns if column not in present]),
        ("more than one column", [column for column in columns if present.count(column) > 1]),
    ):
        if wrong:
            raise SourceError(
                f"{path} has {rule} {', '.join(map(repr, wrong))}.{hint} Set source.columns (ours = theirs); "
                "a CSV file's first line names its columns, with commas between."
            )


def _open(path: str) -> io.BufferedReader:
    """Opens a text file, decompressed by its suffix, without the byte order mark that it may start with."""
    raw = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    codec = _CODECS.get(PurePath(path).suffix)
    plain = pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec) if codec else raw
    file = io.BufferedReader(plain, _BLOCK_BYTES)
    if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    return file


def _header(path: str, line: bytes) -> list[str]:
    """The column names in a CSV file's first line."""
    try:
        [names] = csv.reader([line.decode("utf-8")])
    except (UnicodeDecodeError, ValueError, csv.Error):
        names = []
    if not names:
        raise SourceError(f"{path}: the first line must name the columns, in UTF-8, and isn't blank.")
    return names


def read(fragment: Fragment, columns: Sequence[str], repetitive: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yields the fragment's rows: the given columns, and ROW, PROBLEM and RAW.

    Args:
        fragment: where from.
        columns: by the source's names.
        repetitive: those of them with values that repeat: where the source has dictionaries of them, they stay dictionaries.

    Raises:
        SourceError: the file is damaged from some place on.
        faults.RowsError: a fault of ours.
    """
    with faults.without_rows(fragment.path):
        yield from _read(fragment, columns, repetitive)


def _read(fragment: Fragment, columns: Sequence[str], repetitive: Sequence[str]) -> Iterator[pa.Table]:
    try:
        if fragment.kind == "parquet":
            yield from _read_parquet(fragment, columns, repetitive)
        else:
            yield from _READERS[fragment.kind](fragment, columns)
    except (OSError, EOFError, pa.ArrowException, BeamIOError) as error:
        # Only the kind of error, and nothing behind it: the runner logs a worker's traceback, and it may quote the file.
        raise SourceError(f"{fragment.path} can't be read to its end ({type(error).__name__}): is it damaged?") from None


def _read_parquet(fragment: Fragment, columns: Sequence[str], repetitive: Sequence[str]) -> Iterator[pa.Table]:
    first = fragment.first
    with FileSystems.open(fragment.path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        parquet = pq.ParquetFile(file)
        together = [list(fragment.row_groups)]
        if parquet.metadata.num_rows >= _LARGE_GROUP * parquet.num_row_groups:
            # A dictionary ends with its row group, and so does a batch.
            parquet = pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=list(repetitive))
            together = [[group] for group in fragment.row_groups]
        for groups in together:
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=list(columns)):
                table = pa.Table.from_batches([batch]).select(list(columns))
                yield _decode_text(table, np.arange(first, first + batch.num_rows))
                first += batch.num_rows


def _read_csv(fragment: Fragment, columns: Sequence[str]) -> Iterator[pa.Table]:
    """One line is one row: if quotes could hold newlines, a row with an open quote would take its neighbours along."""
    with _open(fragment.path) as file:
        names = _header(fragment.path, file.readline())
        for numbers, lines in _numbered_lines(file):
            is_open = pc.count_substring(pa.array(lines, pa.binary()), '"').to_numpy() % 2 == 1
            for problem, chosen in (("CSV row has an open quote", is_open), (None, ~is_open)):
                some = [line for line, wanted in zip(lines, chosen, strict=True) if wanted]
                if some and problem:
                    yield _undecoded(numbers[chosen], [problem] * len(some), some, columns)
                elif some:
                    yield from _parse_csv(some, numbers[chosen], names, columns)


def _parse_csv(lines: list[bytes], numbers: np.ndarray, names: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    invalid: list[Any] = []

    def keep(row: Any) -> str:
        invalid.append(row)
        return "skip"

    text = b"\n".join(lines)
    table = pa.csv.read_csv(
        io.BytesIO(text),
        # Every byte is a character of Latin-1: no row can be undecodable for the reader, and none stops the file.
        pa.csv.ReadOptions(use_threads=False, block_size=2 * len(text) + 1, column_names=list(names), encoding="latin1"),
        pa.csv.ParseOptions(invalid_row_handler=keep),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns), strings_can_be_null=False
        ),
    )
    wrong = [row.number - 1 for row in invalid]
    yield _decode_text(_bytes_of_latin1(table), np.delete(numbers, wrong))
    if invalid:
        problems = [f"CSV row has {row.actual_columns} columns, not {row.expected_columns}" for row in invalid]
        yield _undecoded(numbers[wrong], problems, [lines[i] for i in wrong], columns)


def _bytes_of_latin1(table: pa.Table) -> pa.Table:
    """Turns text that was read as Latin-1 back into the file's bytes; only distinct values beyond ASCII take time."""
    columns = []
    for column in table.columns:
        if pc.sum(pc.binary_length(column)).as_py() == pc.sum(pc.utf8_length(column)).as_py():
            columns.append(column.cast(pa.binary()))
        else:
            encoded = column.combine_chunks().dictionary_encode()
            values = [text.encode("latin1") for text in encoded.dictionary.to_pylist()]
            columns.append(pa.array(values, pa.binary()).take(encoded.indices))
    return pa.table(columns, names=table.column_names)


def _undecoded(numbers: np.ndarray, problems: list[str], raw: list[bytes], columns: Sequence[str]) -> pa.Table:
    """Rows of which nothing but their text is known."""
    nothing = pa.table({column: pa.nulls(len(raw), pa.string()) for column in columns})
    texts = [text.decode(errors="replace").rstrip("\r") for text in raw]
    return _with_place(nothing, numbers, pa.array(problems), pa.array(texts))


def _read_jsonl(fragment: Fragment, columns: Sequence[str]) -> Iterator[pa.Table]:
    lines_of_json = formats.Json(columns)
    with _open(fragment.path) as file:
        for numbers, lines in _numbered_lines(file):
            table = lines_of_json.decode(pa.array(lines, pa.binary()))
            yield _with_place(table.select(list(columns)), numbers, table[PROBLEM], table[RAW])


def _numbered_lines(file: BinaryIO) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """Yields blocks of lines with their numbers from 1; blank lines count, but are left out."""
    first = 1
    for block in _blocks_of_lines(file):
        filled = [(number, line) for number, line in enumerate(block, first) if line.strip()]
        first += len(block)
        yield np.array([number for number, _ in filled], np.int64), [line for _, line in filled]


def _blocks_of_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    rest = b""
    while block := file.read(_BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _decode_text(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """Makes text of binary columns, and sure that text is text; other columns stay. A row that isn't UTF-8 gets a problem."""
    bad = np.zeros(table.num_rows, bool)
    columns = {}
    for name in table.column_names:
        columns[name], is_bad = formats.text_of(table[name].combine_chunks())
        bad |= is_bad
    problem = pa.array([formats.NOT_TEXT] * table.num_rows, pa.string(), mask=~bad) if bad.any() else None
    return _with_place(pa.table(columns), numbers, problem)


def _with_place(table: pa.Table, numbers: np.ndarray, problem: pa.Array | None = None, raw: pa.Array | None = None) -> pa.Table:
    nothing = pa.nulls(table.num_rows, pa.string())
    place = {ROW: pa.array(numbers, pa.int64()), PROBLEM: nothing if problem is None else problem}
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return pa.table({**columns, **place, RAW: nothing if raw is None else raw})


_READERS = {"csv": _read_csv, "jsonl": _read_jsonl}
