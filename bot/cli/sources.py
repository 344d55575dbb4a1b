"""From what a user typed to something that can be read: a folder, or a repo at one commit."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from bot.address import parse
from bot.logs import hide
from bot.settings import Settings
from judging.policy import VerdictPolicy, parse_policy
from porting import Folder, read_adapter
from porting.errors import UsageError
from registry.database import Database

if TYPE_CHECKING:  # not for the commands that only look into the registry: imported where needed
    from bot.context import Context
    from bot.hub import Hub, HubRepo
    from bot.making.inputs import Place
    from bot.running.manners import Manners


def read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        wrong = error.errors()[0]
        name = f"PORTLLM_{str(wrong['loc'][0]).upper()}"
        raise UsageError(
            f"{name}={wrong['input']!r} is no such setting: {wrong['msg']}."
        ) from error


def open_context() -> "Context":
    from bot.context import Context
    from bot.hub import Hub, HubPublisher

    settings, database = _open()
    hub = Hub()
    hide(str(hub.token) if hub.token else None)
    return Context(hub, HubPublisher(hub), database, settings)


def open_registry() -> Database:
    """For commands that ask no Hub."""
    return _open()[1]


def _open() -> tuple[Settings, Database]:
    settings = read_settings()
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for said in (settings.webhook_secret, settings.notify_secret, settings.api_token):
        hide(said.get_secret_value() if said else None)
    hide(make_url(settings.registry_url).password)
    return settings, open_database(settings)


def open_database(settings: Settings) -> Database:
    try:
        return Database(settings.registry_url)
    except (SQLAlchemyError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(
            f"The registry can't be opened: {said}. See PORTLLM_DATABASE_URL and PORTLLM_HOME; "
            "portllm doctor looks closer."
        ) from error


def read_policy(file: Path | None) -> VerdictPolicy:
    """The policy in `file`, or ours where there is none."""
    if file is None:
        return VerdictPolicy()
    if not file.is_file():
        raise UsageError(f"--verdict-policy {file} is no file.")
    return parse_policy(file.read_bytes(), str(file))


def read_manners(minimum_release_age: str, schedule: str | None, group: str | None) -> "Manners":
    from bot.running.manners import Manners

    given = {
        "minimum_release_age": minimum_release_age, "schedule": schedule, "group": group
    }  # fmt: skip
    try:
        return Manners.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {wrong['input']!r}: {wrong['msg']}.") from error


def open_source(text: str, hub: "Hub") -> "Folder | HubRepo":
    """`text` as a source; a ref is resolved to the commit it stands for now."""
    from bot.hub import HubRepo

    address = parse(text)
    if isinstance(address, Path):
        return Folder(address)
    return HubRepo(hub, address.repo, hub.head(address.repo, address.revision or "main"))


def old_base(hub: "Hub", patch: "Place", given: str | None) -> "Place":
    """The base that `patch` was trained on: the one `given` by --old, else what its config pins."""
    from bot.register import trained_on

    address = parse(given) if given is not None else None
    if isinstance(address, Path):
        return Folder(address)
    return trained_on(hub, patch.name, read_adapter(patch), address, "--old")
