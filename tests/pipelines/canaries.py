"""Events of users with telling names, and a search of all that is said and left for what doesn't belong there."""

import json
import pathlib
import sys
import traceback
from collections.abc import Iterable, Iterator

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli
from tests.pipelines.example import view
from transforms.ingest import pseudonym

MARK = "zq9"
"""Stands in everything that is somebody's secret, and nowhere else."""
USERS = [f"{MARK}-user-{number:02}" for number in range(30)]
OPTED_OUT = f"{MARK}-opted-out"
PASSWORD = f"{MARK}-password"

EVENTS = [
    view(user, "abcd"[(number + step) % 4], f"{MARK}-event-{number}-{step}", kind=("view", "buy")[step % 2])
    for number, user in enumerate(USERS)
    for step in range(1 + number % 4)
]
MALFORMED = [
    view(USERS[0], f"{MARK}-item", f"{MARK}-event"),
    view(USERS[1], "a", f"{MARK}-event", time=f"{MARK}-time"),
    view(USERS[2], "a", f"{MARK}-event", kind=f"{MARK}-type"),
    view(USERS[3], "a", f"{MARK}-event", arrival=f"{MARK}-arrival"),
    f"{MARK}-event,{USERS[4]},a,view,{MARK}-value,2025-01-10,",
    f"{MARK}-event,{USERS[5]},a,view,,2025-01-10,,{MARK}-one-column-more",
    f'{MARK}-event,{USERS[6]},"{MARK}-open,view,,2025-01-10,',
    f"{MARK}-\x00\ufffd,{USERS[7]}",
    view(OPTED_OUT, f"{MARK}-item"),
]

INPUTS = ("events.", "items.csv", "pseudonym.key", "opt_out.txt", "job.toml")
"""What a job is given, by how its name begins."""
RAW = ("store/operator/dead_letters", "store/operator/spill", "store/operator/stream")
"""Where docs/privacy.md says that raw events, or rows under pseudonyms, are."""
PSEUDONYMOUS = (*RAW, "ledger.sqlite.book")


class Shell:
    """Runs commands of the CLI in this process, and keeps what they say.

    Attributes:
        said: of each command its words, exit code, stdout and stderr with what Python would say of an uncaught error.
    """

    def __init__(self, capture: pytest.CaptureFixture):
        self.said: list[tuple[str, int, str]] = []
        self._capture = capture

    def __call__(self, *words: object) -> int:
        self._capture.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            code = 1
        out, err = self._capture.readouterr()
        self.said.append((" ".join(map(str, words)), code, out + err))
        return code


def found(directory: pathlib.Path, key: bytes, shell: Shell) -> list[str]:
    """Where there is a canary, the key or a pseudonym that shouldn't be: commands, or files below a job's directory."""
    hashes = pseudonym.pseudonymise(pa.array([*USERS, OPTED_OUT]), key).to_pylist()
    secrets = [MARK.encode(), key, key.hex().encode()]
    pseudonyms = [form for each in hashes for form in (each, each.hex().encode())]
    places = []
    for words, _, text in shell.said:
        # A command may repeat its own words.
        given = text.replace(words, "")
        if has(given.encode(errors="surrogateescape"), [*secrets, *pseudonyms]):
            places.append(words)
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if not path.is_file() or path.is_symlink() or name.startswith((*INPUTS, *RAW)):
            continue
        wanted = secrets if name.startswith(PSEUDONYMOUS) else [*secrets, *pseudonyms]
        if has(name.encode(), wanted) or any(has(content, wanted) for content in contents(path)):
            places.append(name)
    return places


def has(content: bytes, wanted: Iterable[bytes]) -> bool:
    return any(each in content for each in wanted)


def contents(path: pathlib.Path) -> Iterator[bytes]:
    """A file's bytes and, of tables that may be compressed, their values."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield from values(pq.read_table(path))
    elif path.suffix == ".duckdb":
        with duckdb.connect(path, read_only=True) as connection:
            for name, sql in connection.sql("select table_name, sql from duckdb_tables()").fetchall():
                yield sql.encode()
                yield from values(connection.sql(f'from "{name}"').to_arrow_table())


def values(table: pa.Table) -> Iterator[bytes]:
    yield repr(table.schema.metadata).encode()
    for column in table.columns:
        for value in column.to_pylist():
            yield value if isinstance(value, bytes) else json.dumps(value, default=str).encode()
