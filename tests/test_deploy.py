"""What is deployed: every file is held against the program, and the Jobs against the local Hub."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub.constants
import pytest
import typer
import yaml
from huggingface_hub.utils import httpx
from setuptools import find_packages

from bot import cli
from bot.hub import Hub
from bot.hub.jobs import COMMAND, Deployment, deploy
from bot.settings import Settings
from localhub.files import read_json
from localhub.server import Server
from porting.errors import PortllmError
from tests.world import BASE, PATCH, PORTED, Portllm, World

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "portllm.service").read_text()
IMAGE = (DEPLOY / "Containerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = {name: each for name, each in COMPOSE["services"].items() if each["image"] == "portllm"}
OTHERS = {"PATH", "HOME", "PYTHONDONTWRITEBYTECODE", "CREDENTIALS_DIRECTORY"}


# --- what every file says of the program -----------------------------------------------------


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def image_environment() -> dict[str, str]:
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", IMAGE, re.MULTILINE)
    pairs = shlex.split(block.replace("\\\n", " "))
    return dict(pair.split("=", 1) for pair in pairs)


def unit_environment() -> dict[str, str]:
    pairs = [pair for line in unit_values("Environment") for pair in line.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def environments() -> dict[str, dict[str, str]]:
    services = {name: service["environment"] for name, service in OURS.items()}
    return {"portllm.service": unit_environment(), "Containerfile": image_environment()} | services


def programs() -> dict[str, list[str]]:
    [start] = unit_values("ExecStart")
    [default] = re.findall(r"^CMD (\[.*\])$", IMAGE, re.MULTILINE)
    commands = {"unit": shlex.split(start), "image": json.loads(default), "job": COMMAND}
    for name, service in OURS.items():
        commands[name] = service["command"]
        if service["healthcheck"]["test"][1] == "portllm":
            commands[f"{name}, its health"] = service["healthcheck"]["test"][1:]
    return commands


@pytest.mark.parametrize("where", environments())
def test_every_variable_is_one_that_is_read(where: str) -> None:
    settings = {f"PORTLLM_{name.upper()}" for name in Settings.model_fields}
    for name in set(environments()[where]) - settings - OTHERS:
        assert name in vars(huggingface_hub.constants), name  # the client has it by this name


@pytest.mark.parametrize("where", programs())
def test_every_command_is_one_that_there_is(where: str) -> None:
    program, *arguments = programs()[where]
    assert PurePosixPath(program).name == "portllm"
    found = typer.main.get_command(cli.app)
    while hasattr(found, "commands"):
        name, *arguments = arguments
        found = found.commands[name]
    assert found.make_context(name, arguments)  # a wrong option raises


def test_no_file_holds_a_secret() -> None:
    for file in DEPLOY.iterdir():
        if file.is_file():
            text = file.read_text()
            assert not re.search(r"://[^\s/:]+:[^\s/@]+@|hf_[A-Za-z]{10}", text), file
    named = {f"{where} {name}" for where, each in environments().items() for name in each}
    named |= {name for name in COMPOSE["services"]["database"]["environment"]}
    secret = re.compile(r"(TOKEN|PASSWORD|SECRET|DATABASE_URL)$")
    assert [name for name in named if secret.search(name)] == []


def test_a_setting_may_be_a_credential_instead_of_a_variable(tmp_path: Path) -> None:
    (tmp_path / "portllm_database_url").write_text("postgresql://one@host/db\n")
    (tmp_path / "hf_token").write_text("hf_of_the_file\n")
    program = "from bot.settings import Settings as S; from huggingface_hub import get_token as t"
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path), "HF_TOKEN_PATH": str(tmp_path / "hf_token")}
    kept = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(S().database_url, t())"],
        env=kept | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "postgresql://one@host/db hf_of_the_file\n"


# --- the unit --------------------------------------------------------------------------------


def test_the_unit_stops_restarts_and_keeps_its_secret() -> None:
    wanted = {"User": "portllm", "NoNewPrivileges": "yes", "ProtectSystem": "strict"}
    wanted |= {"PrivateTmp": "yes", "Restart": "on-failure", "StateDirectory": "portllm"}
    # The main process alone is told: a computing process that is stopped is a failed port.
    wanted |= {"KillSignal": "SIGTERM", "TimeoutStopSec": "15", "KillMode": "mixed"}
    assert {name: unit_values(name) for name in wanted} == {n: [v] for n, v in wanted.items()}
    [credential] = unit_values("LoadCredential")
    assert unit_environment()["HF_TOKEN_PATH"] == f"%d/{credential.partition(':')[0]}"
    homes = {unit_environment()[name].split("/")[0] for name in ("PORTLLM_HOME", "HF_HOME")}
    assert homes <= {"%S", "%C"}  # all else is read-only


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    file = tmp_path / "portllm.service"
    file.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT, flags=re.MULTILINE))
    said = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")
    closed = ["systemd-analyze", "security", "--offline=true", "--threshold=20", file]  # of 100
    assert subprocess.run(closed, capture_output=True).returncode == 0


# --- the image -------------------------------------------------------------------------------


def test_the_image_is_built_in_stages_and_runs_as_nobody_special() -> None:
    assert len(re.findall(r"^FROM \$\{PYTHON\}", IMAGE, re.MULTILINE)) == 2
    [base] = re.findall(r"^ARG PYTHON=(.*)$", IMAGE, re.MULTILINE)
    assert re.fullmatch(r"[a-z]+:[\w.-]+", base)  # no host: the builder's own registries
    [user] = re.findall(r"^USER (\d+)$", IMAGE, re.MULTILINE)
    assert f"--uid {user} " in IMAGE and int(user) >= 10_000
    assert re.search(r"pip install .*--constraint constraints\.txt \.$", IMAGE, re.MULTILINE)


def test_all_that_the_image_writes_is_in_its_volume() -> None:
    [volume] = re.findall(r"^VOLUME (\S+)$", IMAGE, re.MULTILINE)
    environment = image_environment()
    for name in ("HOME", "PORTLLM_HOME", "HF_HOME"):
        assert PurePosixPath(environment[name]).is_relative_to(volume), name
    assert f"--mode 0700 {volume}" in IMAGE


def is_sent(path: str) -> bool:
    """Whether a builder gets `path`, by the last rule of .dockerignore that fits."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = PurePosixPath(path).parts
        heads = parts if "**/" in rule else parts[:1]
        if rule and not rule.startswith("#") and any(fnmatch.fnmatch(h, pattern) for h in heads):
            sent = rule.startswith("!")
    return sent


def test_the_builder_gets_the_packages_and_nothing_private() -> None:
    include = ["porting*", "judging*", "registry*", "patch_cards*", "bot*", "localhub*"]
    for package in find_packages(str(ROOT), include=[*include, "examples*"]):
        assert is_sent(package.replace(".", "/")), package
    assert all(map(is_sent, ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")))
    for path in (".git/config", ".venv/bin/python", "deploy/secrets/hf_token", "tests/world.py"):
        assert not is_sent(path), path
    assert not is_sent("bot/hub/__pycache__/client.pyc")


# --- the containers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_closed_and_watched(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"] and service["restart"] == "unless-stopped"
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert "/tmp:mode=1777" in service["tmpfs"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_there_are_a_watcher_two_workers_and_the_receiver() -> None:
    started = sorted(" ".join(service["command"][:2]) for service in OURS.values())
    assert started == ["portllm bot", "portllm serve", "portllm worker", "portllm worker"]
    [volume] = re.findall(r"^VOLUME (\S+)$", IMAGE, re.MULTILINE)
    mounted = [tuple(service["volumes"][0].split(":")) for service in OURS.values()]
    assert {where for _, where in mounted} == {volume}
    assert len({name for name, _ in mounted}) == len(OURS)  # none shares a work folder
    assert {name for name, _ in mounted} <= set(COMPOSE["volumes"])


def test_the_secrets_are_those_that_are_read() -> None:
    for service in OURS.values():
        environment, names = service["environment"], set(service["secrets"])
        assert environment["HF_TOKEN_PATH"] == f"{environment['CREDENTIALS_DIRECTORY']}/hf_token"
        fields = {f"portllm_{name}" for name in Settings.model_fields}
        assert names - {"hf_token"} <= fields and "portllm_database_url" in names
    database = COMPOSE["services"]["database"]
    [name] = database["secrets"]
    assert database["environment"]["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{name}"
    files = [secret["file"] for secret in COMPOSE["secrets"].values()]
    assert all(Path("deploy", file).parent == Path("deploy/secrets") for file in files)
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# --- Jobs on the Hub -------------------------------------------------------------------------

URL = "postgresql://portllm:s3cret@db.example.com/portllm?sslmode=require"
SECRETS = {"PORTLLM_DATABASE_URL": URL, "HF_TOKEN": "hf_of_the_jobs"}
WANTED = Deployment("owner", "me/portllm", "*/30 * * * *", "cpu-upgrade", "6h", [BASE])


@pytest.fixture
def owner(hub: Server) -> Hub:
    return Hub(hub.endpoint, hub.add_user("owner"))


def jobs(server: Server, kind: str) -> list[dict[str, Any]]:
    """What the Hub was asked for, as it came."""
    return [job for job in read_json(server.root / "jobs.json", []) if job["kind"] == kind]


def hooks(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(server.root / "webhooks.json", [])
    return found


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The path and body of every POST that the client sends."""
    bodies: list[tuple[str, Any]] = []
    send = httpx.Client.send

    def spy(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if request.method == "POST":
            bodies.append((request.url.path, json.loads(request.read() or b"null")))
        return send(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", spy)
    return bodies


def test_the_schedule_its_first_run_and_the_webhook(
    hub: Server, owner: Hub, sent: list[tuple[str, Any]]
) -> None:
    done = deploy(owner, WANTED, SECRETS)
    [scheduled], [run], [hook] = jobs(hub, "scheduled-jobs"), jobs(hub, "jobs"), hooks(hub)
    spec = {
        "command": ["portllm", "bot", "run", "--once"],
        "arguments": [],
        "environment": {},
        "flavor": "cpu-upgrade",
        "timeoutSeconds": 6 * 3600,
        "labels": {"portllm": "owner", "name": "portllm"},
        "secrets": SECRETS,
        "dockerImage": "me/portllm",
    }
    body = {"jobSpec": spec, "schedule": "*/30 * * * *", "concurrency": False}
    assert (scheduled["body"], scheduled["owner"]["name"]) == (body, "owner")
    assert run["body"] == spec and run["initiator"]["type"] == "scheduled-job"
    assert sent[0] == ("/api/scheduled-jobs/owner", body)
    assert sent[1] == (f"/api/scheduled-jobs/owner/{scheduled['id']}/run", None)
    watched = {"watched": [{"type": "model", "name": BASE}], "domains": ["repo"]}
    asked = {"jobSourceId": run["id"], "secrets": SECRETS} | watched  # they are not copied
    assert sent[2:] == [("/api/settings/webhooks", asked)]
    assert hook["job"]["secrets"] == SECRETS and hook["job"]["command"] == spec["command"]
    made = (done.scheduled_job, done.first_job, done.webhook, done.replaced)
    assert made == (scheduled["id"], run["id"], hook["id"], [])


def test_secrets_are_in_secrets_and_nowhere_else(hub: Server, owner: Hub) -> None:
    done = deploy(owner, WANTED, SECRETS)
    asked = json.dumps([jobs(hub, "scheduled-jobs"), jobs(hub, "jobs"), hooks(hub)])
    for value in SECRETS.values():
        assert asked.count(value) == 3
        assert asked.replace(json.dumps(SECRETS), "").count(value) == 0
        assert value not in repr([WANTED, done])


def test_deploying_again_replaces(hub: Server, owner: Hub) -> None:
    owner.api.create_webhook(url="https://example.com", watched=[{"type": "user", "name": "x"}])
    elsewhere = Hub(hub.endpoint, hub.add_user("owner", orgs=("team",)))
    deploy(elsewhere, Deployment("team", *WANTED_REST), SECRETS)
    first = deploy(owner, WANTED, SECRETS)
    second = deploy(owner, WANTED, SECRETS)
    assert set(second.replaced) == {first.scheduled_job, first.webhook}
    assert second.scheduled_job in {job["id"] for job in jobs(hub, "scheduled-jobs")}
    assert len(jobs(hub, "scheduled-jobs")) == 2 and len(hooks(hub)) == 3


WANTED_REST = ("me/portllm", "@hourly", "cpu-basic", "1h", [BASE])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "scheduled-jobs"),
        ("GET", "webhooks"),
        ("POST", "scheduled-jobs/owner$"),
        ("POST", "/run$"),
        ("POST", "webhooks$"),
        ("DELETE", "scheduled-jobs"),
        ("DELETE", "webhooks"),
    ],
)
def test_a_failure_leaves_nothing_that_the_next_one_does_not_mend(
    hub: Server, owner: Hub, method: str, path: str
) -> None:
    before = deploy(owner, WANTED, SECRETS)
    hub.faults.add(path, method=method, status=402)
    with pytest.raises(PortllmError):
        deploy(owner, WANTED, SECRETS)
    left = {job["id"] for job in jobs(hub, "scheduled-jobs")}
    assert before.scheduled_job in left or len(left) == 1  # it never stops looking
    last = deploy(owner, WANTED, SECRETS)
    assert [job["id"] for job in jobs(hub, "scheduled-jobs")] == [last.scheduled_job]
    assert [hook["id"] for hook in hooks(hub)] == [last.webhook]


def test_without_a_base_there_is_no_webhook(hub: Server, owner: Hub) -> None:
    done = deploy(owner, Deployment("owner", "me/portllm", "@hourly", "t4", "1h", []), SECRETS)
    assert done.webhook is None and hooks(hub) == [] and len(jobs(hub, "scheduled-jobs")) == 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(golds=None, revision=world.base_sha)
        yield world


HUB = ("deploy", "hub", "--namespace", "owner", "--image", "me/portllm")


def test_the_command_asks_for_what_its_dry_run_shows(
    portllm: Portllm, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    portllm("patch", "add", PATCH)
    portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED)
    monkeypatch.setattr("bot.cli.deploy._database_url", lambda: URL)  # while SQLite is read
    shown = json.loads(portllm(*HUB, "--dry-run"))
    assert jobs(world.server, "scheduled-jobs") == [] == hooks(world.server)
    printed = portllm(*HUB, "--json")
    done = json.loads(printed)
    [scheduled], [hook] = jobs(world.server, "scheduled-jobs"), hooks(world.server)
    spec, wanted = scheduled["body"]["jobSpec"], shown["create_scheduled_job"]
    assert (spec["dockerImage"], spec["command"]) == (wanted["image"], wanted["command"])
    assert scheduled["body"]["schedule"] == wanted["schedule"]
    assert spec["secrets"] == {"PORTLLM_DATABASE_URL": URL, "HF_TOKEN": world.api.token}
    assert set(wanted["secrets"].values()) == {"(secret)"}
    assert shown["create_webhook"]["watched"] == hook["watched"] == [
        {"type": "model", "name": BASE}
    ]  # fmt: skip
    assert done["webhook"] == hook["id"]
    for text in (json.dumps(shown), printed, portllm.messages):
        assert "s3cret" not in text and str(world.api.token) not in text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/registry.db", "has to be in Postgres"),
        ("postgresql://me:s3cret@localhost/db", "database on this machine (localhost)"),
        ("postgresql:///db?host=/run/postgresql", "database on this machine (a socket)"),
    ],
)
def test_a_registry_that_no_job_can_reach_is_refused(
    portllm: Portllm, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setenv("PORTLLM_DATABASE_URL", url)
    portllm(*HUB, code=2)
    assert message in portllm.messages and "s3cret" not in portllm.messages
