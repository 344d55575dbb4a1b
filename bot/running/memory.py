"""What DBOS remembers of the workflows, read from beside: by its own tables and their indexes."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, inspect, text

from bot.settings import Settings

QUEUES = """SELECT queue_name, status, count(*) FROM {}workflow_status
    WHERE status IN ('ENQUEUED', 'PENDING') AND queue_name IS NOT NULL GROUP BY 1, 2"""
STEPS = """SELECT function_name, completed_at_epoch_ms - started_at_epoch_ms
    FROM {}operation_outputs WHERE completed_at_epoch_ms > :since"""


class Memory:
    """Holds nothing where no bot has ever run."""

    def __init__(self, settings: Settings) -> None:
        self._engine = create_engine(settings.memory_url)
        self._schema = "dbos" if settings.is_shared else None

    def queues(self) -> dict[tuple[str, str], int]:
        """Workflows that are enqueued (they wait) or pending (at work), by queue and status."""
        return {(queue, status.lower()): count for queue, status, count in self._read(QUEUES)}

    def steps(self, since: datetime) -> list[tuple[str, float]]:
        """The steps that have ended since then, each with the seconds that it took."""
        rows = self._read(STEPS, since=int(since.timestamp() * 1000))
        return [
            (step, milliseconds / 1000)
            for step, milliseconds in rows
            if milliseconds is not None and not step.startswith("DBOS.")
        ]

    def _read(self, query: str, **parameters: int) -> Sequence[Any]:
        if self._schema is None and not Path(self._engine.url.database or "").exists():
            return ()  # to connect would make it
        if not inspect(self._engine).has_table("operation_outputs", schema=self._schema):
            return ()
        prefix = f"{self._schema}." if self._schema else ""
        with self._engine.connect() as connection:
            return connection.execute(text(query.format(prefix)), parameters).all()
