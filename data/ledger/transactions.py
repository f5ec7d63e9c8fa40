"""The database that a ledger is in: opened, brought up to date, and the transactions in which it is read and changed."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa

from data.ledger import history
from data.ledger.records import LedgerError

_MIGRATIONS = Path(__file__).parent / "migrations"
_HEAD = "0005"
_LOCK = 0x50770F0CE
"""Of PostgreSQL's advisory locks, the one that every writer takes."""


class Transactions:
    """Opens a database of the ledger's, and makes the tables that it hasn't.

    Args:
        url: of SQLAlchemy, `sqlite:///PATH` or `postgresql+psycopg://...`.

    Raises:
        LedgerError: it can't be used.
    """

    def __init__(self, url: str):
        self._shown = _shown(url)
        with self._named_errors(sa.exc.SQLAlchemyError, alembic.util.CommandError, OSError, ImportError, ValueError):
            self._engine = _engine(url)
            self._migrate()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the ledger, and changes nothing."""
        with self._named_errors(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer is in: what it reads stays true until it commits."""
        with self._named_errors(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.info["is_writing"] = True
            else:
                # Each statement sees what was committed before it: all that came before the lock.
                connection = connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    # Held to the end of the transaction. Without it, two could add to one sum.
                    connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                    connection.execute(sa.text("set local synchronous_commit = on"))
                yield connection

    @contextlib.contextmanager
    def _named_errors(self, *kinds: type[Exception]) -> Iterator[None]:
        """Without the driver's text: it may show a password, or what is in the ledger."""
        try:
            yield
        except LedgerError:
            raise
        except kinds as error:
            raise LedgerError(
                f"privacy.ledger = {self._shown}: can't be opened or used ({type(error).__name__}). Is the server there, is "
                "the file a ledger, may you write to it? PostgreSQL needs `pip install sottovoce[postgresql]`."
            ) from None

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _version(connection) == _HEAD:
                return
        with self.writing() as connection:
            version = _version(connection)
            if version != _HEAD:
                config = alembic.config.Config()
                config.set_main_option("script_location", str(_MIGRATIONS))
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
            if version is None:
                history.begin(connection)


def clock(connection: sa.Connection) -> float:
    """Seconds since the epoch, by the one clock that all who share the ledger have."""
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(sa.text("select extract(epoch from clock_timestamp())")) or 0)
    return time.time()


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.text("select version_num from alembic_version"))


def _shown(url: str) -> str:
    """The URL without what may be a secret, wherever it stands in it."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "(not a URL of SQLAlchemy's, such as sqlite:///PATH)"
    host = (parsed.host or "").rpartition("@")[2]
    return f"{parsed.drivername}://{host}/{parsed.database or ''}"


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, poolclass=sa.NullPool, connect_args={"connect_timeout": 10})
    if not parsed.database or ":memory:" in parsed.database:
        raise ValueError("a ledger in memory would forget.")
    path = Path(parsed.database)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.chmod(0o600)
    engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def _no_begin_of_its_own(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("pragma synchronous = extra")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("begin immediate" if connection.info.pop("is_writing", False) else "begin")

    return engine
