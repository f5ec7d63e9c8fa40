"""The database that people query: released and model tables in, an immutable DuckDB version made current out.

    STORE/versions/N.duckdb    checkpointed, read-only mode bits, never changed
    STORE/current.duckdb       symlink to the one that is shown, the newest or one that was gone back to, replaced atomically

Readers open the file the symlink points to, so that a new version is a new path to DuckDB, which would hand a process
that still holds the old file the old one again. POSIX only: a deleted version stays readable to whoever holds it.
"""

import contextlib
import dataclasses
import fcntl
import io
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import comments, errors, tables
from data.catalogue import Catalogue, FeatureKind
from data.files import sync

CURRENT = "current.duckdb"
STORAGE_VERSION = "v1.4.0"
"""The oldest DuckDB that can read what is published; DuckDB 2.0's own default shuts out every 1.x reader."""

_SCHEMAS = {
    "items": tables.ITEMS,
    "item_counts": tables.ITEM_COUNTS,
    "trending_counts": tables.ITEM_COUNTS,
    "item_pairs": tables.ITEM_PAIRS,
    "embeddings": tables.EMBEDDINGS,
    "feature_embeddings": tables.FEATURE_EMBEDDINGS,
    "recommendations": tables.RECOMMENDATIONS,
    "popular": tables.POPULAR,
    "model_versions": tables.MODEL_VERSIONS,
    "evaluations": tables.EVALUATIONS,
    "privacy_ledger": tables.PRIVACY_LEDGER,
    "privacy_periods": tables.PRIVACY_PERIODS,
    "release_report": tables.RELEASE_REPORT,
}
_VERSION = re.compile(r"([1-9][0-9]*)\.duckdb")
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}
_OPENING = threading.Lock()


class OvertakenError(errors.AlreadyReleasedError):
    """Another version has become current since the contents were looked for."""


class NothingPublishedError(errors.NothingThereError):
    """The store has no current database."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that one version holds; nothing else gets in. Each table has the schema that its name has in upper case, and
    `trending_counts` that of `item_counts`.

    `item_pairs` holds positions into `items`, which must run from 0 without a gap.
    """

    catalogue: Catalogue | None
    items: pa.Table
    item_counts: pa.Table
    trending_counts: pa.Table
    item_pairs: pa.Table
    embeddings: pa.Table
    feature_embeddings: pa.Table
    recommendations: pa.Table
    popular: pa.Table
    model_versions: pa.Table
    evaluations: pa.Table
    privacy_ledger: pa.Table
    privacy_periods: pa.Table
    release_report: pa.Table

    def __post_init__(self) -> None:
        for name, schema in _SCHEMAS.items():
            given = getattr(self, name).schema
            if not given.equals(schema):
                raise ValueError(f"Contents: {name} must have the schema\n{schema}\nnot\n{given}")


def publish(store: pathlib.Path, contents: Contents, keep_versions: int, before: int | None = None) -> pathlib.Path:
    """Writes the next version, makes it current and deletes all but the newest `keep_versions`; returns its path.

    A crash at any point leaves the old version current or the new one, whole. Publishers wait for each other.

    Args:
        before: the version that must be current; None: whichever is.

    Raises:
        OvertakenError: another one is.
        ValueError: `keep_versions` is below 1, or the tables don't fit together.
    """
    if keep_versions < 1:
        raise ValueError(f"publish: keep_versions must be at least 1, not {keep_versions}.")
    versions = store / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    with _only_publisher(versions):
        if before not in (None, current(store)):
            raise OvertakenError(f"{store}: version {current(store)} was published meanwhile.")
        with _draft(versions) as draft:
            write(draft, contents)
            _seal(draft)
            version = _number(draft, versions)
        _make_current(store, version, keep_versions)
    return version


def current(store: pathlib.Path) -> int:
    """Returns the number of the version that is current; 0: there is none."""
    try:
        return int((store / CURRENT).readlink().stem)
    except FileNotFoundError:
        return 0


def install(store: pathlib.Path, number: int, fetch: Callable[[io.BufferedRandom], None], keep_versions: int) -> pathlib.Path:
    """Makes a version that was written elsewhere current here, if no newer one is; returns the current one's path.

    Args:
        fetch: writes its file, if need be.
    """
    versions = store / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    with _only_publisher(versions):
        if current(store) < number:
            version = versions / f"{number}.duckdb"
            with _draft(versions) as draft:
                with draft.open("w+b") as file:
                    fetch(file)
                _seal(draft)
                version.unlink(missing_ok=True)  # that of a crash
                version.hardlink_to(draft)
            _make_current(store, version, keep_versions)
    return (store / CURRENT).resolve()


def show(store: pathlib.Path, model: int) -> pathlib.Path | None:
    """Makes the newest version that has a model current again, if one is still there; returns its path.

    No version is written or deleted: whoever asks meanwhile gets an answer of the one or of the other.
    """
    versions = store / "versions"
    if not versions.is_dir():
        return None
    with _only_publisher(versions):
        for version in reversed(_published(versions)):
            if _model(version) == model:
                _point(store, version)
                return version
    return None


def models(store: pathlib.Path) -> dict[int, int | None]:
    """Returns the versions that are there, each with the number of its model, None: it has none."""
    found = {}
    for version in _published(store / "versions") if (store / "versions").is_dir() else []:
        with contextlib.suppress(duckdb.IOException):  # deleted since we looked
            found[int(version.stem)] = _model(version)
    return found


def _model(version: pathlib.Path) -> int | None:
    with _open(version) as connection:
        row = connection.execute("SELECT version FROM model_versions").fetchone()
    return None if row is None else int(row[0])


def connect(store: pathlib.Path) -> duckdb.DuckDBPyConnection:
    """Opens the current version read-only, for SQL that can reach no other file and change no setting.

    Raises:
        NothingPublishedError: nothing is published in `store` yet.
    """
    current = store / CURRENT
    for _ in range(10):
        try:
            path = current.resolve(strict=True)
        except FileNotFoundError:
            break
        try:
            return _open(path)
        except duckdb.IOException:
            if path.exists():
                raise
            # Published anew, and this one deleted, since we followed the symlink.
    raise NothingPublishedError(f"{current}: nothing is published in this store yet; run a pipeline with it first.")


def _open(path: pathlib.Path) -> duckdb.DuckDBPyConnection:
    # DuckDB takes settings back only with the last connection to a file: the first one to it in this process sets them.
    with _OPENING:
        connection = duckdb.connect(path, read_only=True, config=_SETTINGS)
        [(locked,)] = connection.execute("SELECT current_setting('lock_configuration')").fetchall()
        if not locked:
            # enable_external_access leaves N.duckdb.wal writable (COPY, even inside WITH); this doesn't. It can only be
            # said of a database that is open already.
            connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
            connection.execute("SET lock_configuration = true")
    return connection


@contextlib.contextmanager
def _only_publisher(versions: pathlib.Path) -> Iterator[None]:
    with (versions / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when the process dies
        yield


@contextlib.contextmanager
def _draft(versions: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path for a draft, for whoever holds the lock; it goes at the end, and those of killed publishers before."""
    for abandoned in versions.glob(".publishing-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=versions) as directory:
        yield pathlib.Path(directory) / "draft.duckdb"


def _seal(draft: pathlib.Path) -> None:
    draft.chmod(0o444)
    sync(draft)


def _published(versions: pathlib.Path) -> list[pathlib.Path]:
    """The versions, oldest first."""
    found = [(int(match[1]), path) for path in versions.iterdir() if (match := _VERSION.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _number(draft: pathlib.Path, versions: pathlib.Path) -> pathlib.Path:
    """Gives the draft the next free number. A link fails if the name is taken, on file systems without locks too."""
    published = _published(versions)
    number = int(published[-1].stem) + 1 if published else 1
    while True:
        version = versions / f"{number}.duckdb"
        try:
            version.hardlink_to(draft)
        except FileExistsError:
            number += 1
        else:
            return version


def _make_current(store: pathlib.Path, version: pathlib.Path, keep_versions: int) -> None:
    """Has people query a version that is there, and deletes all but the newest."""
    sync(version.parent)
    _point(store, version)
    for old in _published(version.parent)[:-keep_versions]:
        old.unlink()


def _point(store: pathlib.Path, version: pathlib.Path) -> None:
    """Has people query a version, for whoever holds the lock; at every moment there is one that they query."""
    link = store / f".{CURRENT}.next"
    link.unlink(missing_ok=True)
    link.symlink_to(version.relative_to(store))
    link.replace(store / CURRENT)
    sync(store)


def write(path: pathlib.Path, contents: Contents) -> None:
    """Writes the database of a version into a new file.

    Raises:
        ValueError: the tables don't fit together.
    """
    dimension = _dimension(contents)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{_quoted(str(path))}' AS draft (STORAGE_VERSION '{STORAGE_VERSION}')")
        connection.execute("USE draft")
        for name, table in _given(contents).items():
            connection.register(f"given_{name}", table)
        for name, query in _queries(contents, dimension).items():
            connection.execute(f"CREATE TABLE {name} AS {query}")
        macros = pathlib.Path(__file__).with_name("macros.sql").read_text(encoding="utf-8")
        connection.execute(macros.replace("{d}", str(dimension)))
        for statement in _comments(contents):
            connection.execute(statement)
        connection.execute("CHECKPOINT draft")
        connection.execute("USE memory")
        connection.execute("DETACH draft")


def _queries(contents: Contents, dimension: int) -> dict[str, str]:
    """The query that makes each table, over the contents as views given_NAME."""
    features = "".join(f", {_identifier(name)}" for name in _features(contents.catalogue))
    vectors = f"embedding::FLOAT[{dimension}] AS embedding, history_embedding::FLOAT[{dimension}] AS history_embedding"
    names = [
        "item_counts",
        "trending_counts",
        "recommendations",
        "popular",
        "model_versions",
        "evaluations",
        "privacy_ledger",
        "privacy_periods",
        "release_report",
    ]
    return {
        # A released item outside the catalogue (an older one, say) stays in, without title and features.
        "items": f"""
            SELECT item_id, title{features}, score, position IS NOT NULL AS kept, position
            FROM given_catalogue FULL JOIN given_items USING (item_id) ORDER BY item_id""",
        "item_embeddings": f"SELECT item_id, {vectors}, bias FROM given_embeddings",
        "feature_embeddings": f"SELECT feature, {vectors}, bias FROM given_feature_embeddings",
        "item_pairs": "FROM given_item_pairs",
        **{name: f"FROM given_{name}" for name in names},
    }


def _given(contents: Contents) -> dict[str, pa.Table]:
    given = {name: _without_zone(getattr(contents, name)) for name in _SCHEMAS}
    given["item_pairs"] = _named_pairs(contents.items, contents.item_pairs)
    if contents.catalogue:
        given["catalogue"] = contents.catalogue.table
    else:
        given["catalogue"] = pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())})
    return given


def _without_zone(table: pa.Table) -> pa.Table:
    """Times as plain UTC: DuckDB would show TIMESTAMPTZ in each reader's own zone."""
    fields = [f.with_type(pa.timestamp("us")) if pa.types.is_timestamp(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def _named_pairs(items: pa.Table, pairs: pa.Table) -> pa.Table:
    kept = items.filter(items["position"].is_valid()).sort_by("position")
    if not np.array_equal(kept["position"].to_numpy(), np.arange(len(kept))):
        raise ValueError("Contents: the positions in items must run from 0 without a gap.")
    row, col = pairs["row"].to_numpy(), pairs["col"].to_numpy()
    if len(pairs) and not (row.min() >= 0 and (row <= col).all() and col.max() < len(kept)):
        raise ValueError(f"Contents: item_pairs must hold positions 0 <= row <= col < {len(kept)}, the items kept.")
    ids = kept["item_id"].combine_chunks()
    return pa.table({"item_id": ids.take(pairs["row"]), "other_item_id": ids.take(pairs["col"]), "value": pairs["value"]})


def _dimension(contents: Contents) -> int:
    vectors = [
        table[name]
        for table in (contents.embeddings, contents.feature_embeddings)
        for name in ("embedding", "history_embedding")
    ]
    lengths = {length for column in vectors for length in pc.unique(pc.list_value_length(column)).to_pylist()}
    if len(lengths) > 1:
        raise ValueError(f"Contents: all embeddings must have one length, not {sorted(lengths)}.")
    return lengths.pop() if lengths else 1  # DuckDB has no FLOAT[0]


def _features(catalogue: Catalogue | None) -> dict[str, FeatureKind]:
    """The features with a column of their own in items; one that is named title is the title's column."""
    return {name: kind for name, kind in catalogue.kinds.items() if name.casefold() != "title"} if catalogue else {}


def _comments(contents: Contents) -> Iterator[str]:
    """A COMMENT statement for every table, column and macro."""
    units = {f"one {row['unit']} per {row['period']}" for row in contents.privacy_ledger.to_pylist()}
    protected = " or ".join(sorted(units)) or "nothing is released"
    columns = {name: dict(texts) for name, texts in comments.COLUMNS.items()}
    for name, kind in _features(contents.catalogue).items():
        columns["items"][_identifier(name)] = comments.FEATURE.format(kind=kind)
    texts = {f"TABLE {name}": text for name, text in comments.TABLES.items()}
    texts |= {f"COLUMN {table}.{name}": text for table in columns for name, text in columns[table].items()}
    texts |= {f"MACRO TABLE {name}": text for name, text in comments.MACROS.items()}
    for target, text in texts.items():
        yield f"COMMENT ON {target} IS '{_quoted(text.replace('{protected}', protected))}'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return text.replace("'", "''")
