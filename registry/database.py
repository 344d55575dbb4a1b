"""Opens the database, one SQLite file or any URL SQLAlchemy knows, at the newest schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    CursorResult,
    Engine,
    Update,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATING = 0x706F7274_6C6C6D00  # what the lock of a migration is called: "portllm"


class Database:
    """The registry behind `url`, e.g. `sqlite:////home/me/portllm/registry.db`."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = create_engine(url, pool_pre_ping=True)
        set_up = _set_up_sqlite if self.engine.dialect.name == "sqlite" else _set_up_postgres
        event.listen(self.engine, "connect", set_up)
        if not _is_newest(self.engine):
            migrate(self.engine)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back by an exception."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


def changed(session: Session, statement: Update) -> int:
    """How many rows it changed."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount


def _is_newest(engine: Engine) -> bool:
    """Asked without Alembic, which takes longer to import than most commands to run."""
    newest = max(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return False
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return bool(found == newest)


def migrate(engine: Engine, revision: str = "head", *, down: bool = False) -> None:
    """Bring the schema to `revision`; nothing happens where it already is."""
    from alembic import command  # slow to import, and seldom needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect() as connection:
        is_sqlite = engine.dialect.name == "sqlite"
        if is_sqlite:  # which alters a table by making it anew, under the rows that refer to it
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.commit()
        with connection.begin():
            if engine.dialect.name == "postgresql":  # processes that start together take turns
                connection.execute(select(func.pg_advisory_xact_lock(MIGRATING)))
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)
        if is_sqlite:
            connection.exec_driver_sql("PRAGMA foreign_keys=ON")


def _set_up_sqlite(connection: DBAPIConnection, _record: Any) -> None:
    cursor = connection.cursor()
    # The bot writes while commands read: WAL lets both, and a busy writer is waited for.
    for pragma in ("journal_mode=WAL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _set_up_postgres(connection: DBAPIConnection, _record: Any) -> None:
    cursor = connection.cursor()
    # A process that is frozen in the middle of a change does not hold up the others for ever.
    cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    cursor.close()
    connection.commit()
