"""The registry: it opens, has the newest schema, can be written, and lies where SQLite may lie."""

from pathlib import Path, PurePath

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from bot.doctor.finding import Finding, error, ok, sentence, warning
from registry.database import MIGRATIONS

CHECK = "database"
# Where locks, on which SQLite rests, do not hold between machines.
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "glusterfs", "lustre",
    "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
}  # fmt: skip


def check_database(url: str) -> tuple[Finding, Engine | None]:
    """Whether the registry at `url` can be worked with. It is neither made nor migrated.

    The engine is given where all the tables are there to be read.
    """
    try:
        file = sqlite_file(url)
        if file is not None and not file.exists():  # connecting would make it
            return ok(CHECK, "There is no registry yet; the first command makes it."), None
        engine = create_engine(url)
        with engine.connect() as connection:
            return _check_schema(connection, engine)
    except (SQLAlchemyError, ImportError) as failure:
        said = sentence(getattr(failure, "orig", failure))
        finding = error(
            CHECK,
            f"The registry can't be opened and written: {said}",
            "Check PORTLLM_DATABASE_URL, that its server is up, and the rights of its user.",
        )
        return finding, None


def sqlite_file(url: str) -> Path | None:
    """The file that `url` names, if it names one."""
    made = make_url(url)
    name = made.database
    if made.get_backend_name() != "sqlite" or not name or name.startswith((":", "file:")):
        return None  # in memory, or SQLite's own kind of URL
    return Path(name).absolute()


def _check_schema(connection: Connection, engine: Engine) -> tuple[Finding, Engine | None]:
    from alembic.runtime.migration import MigrationContext  # most of a second to import
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    known = {revision.revision for revision in script.walk_revisions()}
    revision = MigrationContext.configure(connection).get_current_revision()
    shown = engine.url.render_as_string(hide_password=True)
    if revision is None:
        return ok(CHECK, f"{shown} is empty; the first command makes the tables."), None
    if revision not in known:
        finding = error(
            CHECK,
            f"{shown} was written by a newer PortLLM: its schema {revision} is not known here.",
            "Install the PortLLM that wrote it, or a newer one.",
        )
        return finding, None
    # Says whether this user may write, and changes nothing.
    connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
    connection.rollback()
    if revision != script.get_current_head():
        finding = warning(
            CHECK,
            f"{shown} has the schema {revision}, not the newest.",
            "Back it up: the next command brings it up to date.",
        )
        return finding, None
    return ok(CHECK, f"{shown} opens, has the newest schema and can be written."), engine


def check_file_system(file: Path, mounts: str) -> Finding:
    """Whether SQLite's `file` is on a disk of this machine, by the text of /proc/mounts."""
    kind = file_system(file, mounts)
    if kind in NETWORK:
        return warning(
            "file system",
            f"{file} is on a network file system ({kind}), where SQLite loses data.",
            "Set PORTLLM_HOME to a folder on a disk of this machine, or use Postgres.",
        )
    return ok("file system", f"{file} is on a disk of this machine ({kind}).")


def file_system(path: PurePath, mounts: str) -> str:
    """The type of the file system that `path` is on: of the last one mounted the nearest to it."""
    found, depth = "unknown", 0
    for line in mounts.splitlines():
        _, mount, kind, *_ = line.split()
        point = PurePath(mount.encode().decode("unicode_escape"))  # a space is \040
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = kind, len(point.parts)
    return found
