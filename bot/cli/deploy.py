"""`portllm deploy`: the bot, run by the Hub itself."""

from dataclasses import asdict
from typing import Annotated

import typer
from sqlalchemy import make_url

from bot.cli.output import Json, message, print_fields, print_json
from bot.cli.sources import open_context, read_settings
from bot.hub.jobs import Deployment, deploy
from bot.watching.followed import heads
from porting.errors import Refused, UsageError

app = typer.Typer(name="deploy", no_args_is_help=True)
HERE = ("", "localhost", "127.0.0.1", "::1")


@app.callback()
def _group() -> None:
    """Run the bot elsewhere."""


@app.command(no_args_is_help=True)
def hub(
    namespace: Annotated[str, typer.Option(help="The account or organisation that pays.")],
    image: Annotated[str, typer.Option(help="An image with portllm in it: deploy/Containerfile.")],
    schedule: Annotated[str, typer.Option(help="Cron, or @hourly, @daily, ...")] = "*/30 * * * *",
    flavor: Annotated[str, typer.Option(help="The Hub's hardware.")] = "cpu-upgrade",
    timeout: Annotated[str, typer.Option(help="The most that one run may take.")] = "6h",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be asked of the Hub, and end.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run the bot as Jobs on the Hub: by a schedule, and whenever a followed base moves.

    The registry is the Postgres database that PORTLLM_DATABASE_URL names; that and your token are
    given to the Jobs as secrets. Run it again after new subscriptions, or to change anything. Jobs
    are paid for, by a plan or by credits.

    Example: portllm deploy hub --namespace me --image me/portllm --dry-run
    """
    secrets = {"PORTLLM_DATABASE_URL": _database_url()}
    context = open_context()
    with context.database.session() as session:
        watched = sorted({repo for repo, _ in heads(session)})
    wanted = Deployment(namespace, image, schedule, flavor, timeout, watched)
    if dry_run:
        hidden = {name: "(secret)" for name in (*secrets, "HF_TOKEN")}
        job, webhook = wanted.scheduled_job(hidden), wanted.webhook("(the Job's first run)", hidden)
        print_json({"create_scheduled_job": job, "create_webhook": webhook})
        return
    if not context.hub.token:
        raise Refused("There is no token to give to the Jobs. Run: hf auth login")
    done = deploy(context.hub, wanted, secrets | {"HF_TOKEN": str(context.hub.token)})
    if json_:
        print_json(asdict(done))
    else:
        print_fields(asdict(done))
    if done.webhook is None:
        message("No base is followed yet, so there is no webhook. Run this again when one is.")


def _database_url() -> str:
    """The registry's URL, if a Job can reach it."""
    text = read_settings().registry_url
    if not text.startswith("postgresql"):
        raise UsageError(
            "A Job keeps no files, so the registry has to be in Postgres: set "
            "PORTLLM_DATABASE_URL=postgresql://..."
        )
    url = make_url(text)
    if (url.host or "") in HERE:
        raise UsageError(
            f"PORTLLM_DATABASE_URL names a database on this machine ({url.host or 'a socket'}), "
            "which a Job on the Hub can't reach. Name one that it can."
        )
    return text
