"""`python -m tests.capped_bot HOME`: publish what is judged there, two an hour, for a while.

Prints how many publications were begun.
"""

import os
import sys
import threading
from pathlib import Path

from dbos import DBOS

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.running.dispatch import RELEASES, dispatch, register_queues
from bot.running.workflow import Bot, configure
from bot.settings import Settings
from registry.database import Database

CAP, ROUNDS = 2, 5


@DBOS.workflow(name="nothing")
def nothing() -> None:
    """What goes through another queue, to see that time passes."""


def main(home: str) -> None:
    settings = Settings(home=Path(home), pushes_per_hour=CAP)
    hub = Hub()
    context = Context(hub, HubPublisher(hub), Database(settings.registry_url), settings)
    configure(context)
    bot = Bot(context)
    DBOS.launch()
    register_queues(context)
    dispatch(context, bot)
    wait = threading.Event()
    while len(DBOS.list_workflows(name="publication", status="SUCCESS")) < CAP:
        wait.wait(0.1)
    for _ in range(ROUNDS):  # each waits for a look at the queues
        DBOS.enqueue_workflow(RELEASES, nothing).get_result()
    print(len(DBOS.list_workflows(name="publication", status=["SUCCESS", "PENDING", "ERROR"])))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
