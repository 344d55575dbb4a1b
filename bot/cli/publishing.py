"""`portllm publish`: a merged port on the Hub, made on a disk smaller than the model."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from bot.address import parse_repo
from bot.cli.output import WHERE, Json, PolicyOption, message, print_fields, print_json
from bot.cli.progress import progress
from bot.cli.sources import open_context
from bot.context import made_job
from bot.hub import Hub
from bot.making.remote import Remote
from bot.publishing.stream import Publication, publish_streamed
from bot.register import check_policy, trained_on
from porting import read_adapter
from porting.errors import UsageError


def add_to(app: typer.Typer) -> None:
    panel = "Look at a patch, port it by hand"
    app.command(rich_help_panel=panel, no_args_is_help=True)(publish)


def publish(
    base: Annotated[str, typer.Argument(help=f"The base on the Hub: {WHERE}.")],
    patch: Annotated[str, typer.Argument(help=f"The patch on the Hub: {WHERE}.")],
    to: Annotated[str, typer.Option(help="The repo that the port is pushed to: namespace/name.")],
    old: Annotated[
        str | None,
        typer.Option(
            "--old",
            metavar="BASE@REV",
            help="The base that the patch was trained on, at a commit or tag. Default: what the "
            "patch's config names, if that is pinned.",
        ),
    ] = None,
    policy: PolicyOption = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    json_: Json = False,
) -> None:
    """Port a patch to a base and push the merged model, one shard at a time.

    Nothing is evaluated. It takes room for two shards; stopped, it goes on when it is run again.

    Example: portllm publish meta-llama/Llama-3.1-70B me/tickets-lora --to me/tickets-70b
    """
    context = open_context()
    hub, target = context.hub, parse_repo(to)
    new_repo, new_sha = _head(hub, base)
    trained = Remote(hub, *_head(hub, patch))
    if target.revision is not None or target.repo in (new_repo, trained.repo):
        raise UsageError(f"--to {to} must be a repo of its own, without an @.")
    found = read_adapter(trained)
    before = trained_on(hub, trained.name, found, parse_repo(old) if old else None, "--old")
    check_policy(trained.name, found.kind, found.portability, policy)
    job = made_job(
        "hand",
        patch_repo=trained.repo,
        patch_sha=trained.sha,
        old_repo=before.repo,
        old_sha=before.sha,
        new_repo=new_repo,
        new_sha=new_sha,
        form="merged",
        to_repo=target.repo,
        policy=policy,
    )
    with progress() as report:
        done = publish_streamed(
            job,
            trained,
            context.publisher,
            context.settings.work(job.key),
            private,
            report,
            context.settings.signing_key,
        )
    if json_:
        print_json(_facts(done, hub))
        return
    _show(done, hub)


def _head(hub: Hub, text: str) -> tuple[str, str]:
    address = parse_repo(text)
    return address.repo, hub.head(address.repo, address.revision or "main")


def _facts(done: Publication, hub: Hub) -> dict[str, object]:
    files = []
    if (parts := done.parts) is not None:
        files = [
            {"file": name, "sha256": parts.digests[name], "size": parts.sizes[name], "how": how}
            for name, how in sorted(parts.how.items())
        ]
    return asdict(done.published) | {"files": files, "bytes": _bytes(done, hub)}


def _bytes(done: Publication, hub: Hub) -> dict[str, int]:
    """What went over the line, and the size of what did not have to."""
    spared = dict.fromkeys(("copied", "kept", "resumed"), 0)
    if (parts := done.parts) is not None:
        for how in spared:
            spared[how] = sum(parts.sizes[name] for name in parts.how if parts.how[name] == how)
    return asdict(hub.traffic) | spared


def _show(done: Publication, hub: Hub) -> None:
    if done.parts is None:
        message("It was published before.")
    else:
        counts = Counter(done.parts.how.values())
        facts: dict[str, object] = {
            "files": ", ".join(f"{count} {how}" for how, count in sorted(counts.items()))
        }
        facts |= {what: f"{size:,} bytes" for what, size in _bytes(done, hub).items()}
        print_fields(facts)
    print(done.published.url)
