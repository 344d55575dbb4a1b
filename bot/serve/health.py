"""`/healthz`: this process is alive. `/readyz`: what it is there for can be done, or why not."""

import asyncio

from alembic.script import ScriptDirectory
from anyio import to_thread
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse

from registry.database import MIGRATIONS, Database
from registry.models import Control
from registry.scene import SILENCE
from registry.workers import WATCHER, living

PATIENCE = 5.0  # seconds for the database to answer


async def healthz(_: Request) -> JSONResponse:
    return JSONResponse({"state": "alive"})


class Readiness:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest = ScriptDirectory(str(MIGRATIONS)).get_current_head()

    async def readyz(self, _: Request) -> JSONResponse:
        try:
            async with asyncio.timeout(PATIENCE):
                why_not = await to_thread.run_sync(self._why_not, abandon_on_cancel=True)
        except TimeoutError:
            why_not = f"The database has not answered for {PATIENCE:g} s."
        except SQLAlchemyError as error:  # its message may name users and hosts
            why_not = f"The database does not answer: {type(error).__name__}."
        if why_not is not None:
            return JSONResponse({"state": "not ready", "reason": why_not}, 503)
        return JSONResponse({"state": "ready"})

    def _why_not(self) -> str | None:
        with self._database.session() as session:
            there = session.scalar(text("SELECT version_num FROM alembic_version"))
            watcher = session.get(Control, WATCHER)
            alive = watcher is None or watcher.value["worker"] in living(session, SILENCE)
        if there != self._newest:
            return f"The database is at {there}, this PortLLM at {self._newest}: restart it."
        if not alive:
            return f"The watcher has given no sign for {SILENCE.seconds} s: portllm bot run"
        return None
