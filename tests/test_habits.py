"""What people who know `hf` expect: `hf portllm`, completion, --quiet, hf:// names, no waiting."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from bot import cli
from bot.address import NAME, RepoAddress, parse_repo
from bot.hub import Hub
from bot.watching.follow import parse_follow
from localhub.server import Server
from porting.errors import UsageError
from registry.database import Database, migrate
from registry.models import Patch
from tests.world import BASE, PATCH, PORTED, Portllm, World

PROGRAMS = Path(sys.executable).parent
HEAVY = ["torch", "transformers", "scipy", "dbos", "peft", "lm_eval", "datasets", "numpy"]
HEAVY += ["huggingface_hub", "alembic", "jinja2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(golds=None, revision=world.base_sha)
        yield world


def test_hf_portllm_runs_portllm(tmp_path: Path) -> None:
    here = os.environ | {"HOME": str(tmp_path), "PORTLLM_HOME": str(tmp_path / "home")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = words
        return subprocess.run(
            [PROGRAMS / program, *arguments], env=here, capture_output=True, text=True, timeout=120
        )

    entered = json.loads(run("portllm", "hf-extension", "--json").stdout)
    assert Path(entered["folder"]).parent == tmp_path / ".local/share/hf/extensions"
    assert json.loads(run("hf", "portllm", "status", "--json").stdout) == []
    unknown = run("hf", "portllm", "patch", "show", "me/unknown")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "portllm patch add me/unknown" in unknown.stderr
    assert run("hf", "extensions", "remove", "portllm").returncode == 0
    assert not Path(entered["folder"]).exists()


def test_the_installer_of_extensions_finds_its_script() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["hf-portllm"] == project["scripts"]["portllm"]


def test_help_says_what_the_commands_say() -> None:
    group = typer.main.get_command(cli.app)
    for name, real in group.commands.items():
        assert group.get_command(typer.Context(group), name).help == real.help


@pytest.mark.parametrize(
    ("command", "completed"), [("--help", ""), ("status", ""), ("", "portllm status --state w")]
)
def test_a_quick_command_imports_nothing_slow(command: str, completed: str, tmp_path: Path) -> None:
    environment = os.environ | {"PORTLLM_HOME": str(tmp_path)}
    if completed:
        completing = {"_PORTLLM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": completed}
        environment |= completing
    elif command == "status":
        subprocess.run([PROGRAMS / "portllm", "status"], env=environment, check=True)  # migrates
    script = (
        f"import sys, atexit; sys.argv = ['portllm', *{command.split()}]\n"
        f"imported = lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)\n"
        "atexit.register(imported); from bot.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout and done.stderr.splitlines()[-1] == "[]", done.stderr


def test_a_registry_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    earlier = Database(url)
    migrate(earlier.engine, "0001", down=True)
    earlier.close()
    with Database(url).session() as session:
        assert list(session.scalars(select(Patch))) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_states_and_records(
    portllm: Portllm, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    portllm("patch", "add", PATCH)
    portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED)
    monkeypatch.setenv("_PORTLLM_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")

    def offered(line: str) -> str:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        portllm.capture.readouterr()
        with pytest.raises(SystemExit):
            cli.app(prog_name="portllm")
        return portllm.capture.readouterr().out

    assert "status" in offered("portllm sta") and "rollback" not in offered("portllm sta")
    assert "--follow" in offered("portllm subscribe --")
    assert "superseded" in offered("portllm status --state su")
    assert PATCH in offered("portllm patch show ow") and PORTED not in offered(
        "portllm patch show ow"
    )
    assert PORTED in offered("portllm rollback ow")
    assert PATCH in offered("portllm status --patch owner/p")
    monkeypatch.setenv("PORTLLM_HOME", str(Path(os.environ["PORTLLM_HOME"]) / "none"))
    assert PATCH not in offered("portllm patch show ow")
    assert not Path(os.environ["PORTLLM_HOME"]).exists()


def test_bash_takes_the_completion() -> None:
    script = (
        "source <(portllm --show-completion); COMP_WORDS=(portllm unsub); COMP_CWORD=1; "
        '_portllm_completion portllm; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "unsubscribe\n", done.stderr


def test_quiet_leaves_data_and_errors(portllm: Portllm) -> None:
    loud = portllm("patch", "add", PATCH)
    assert "Next: portllm subscribe" in portllm.messages
    for words in (["-q", "patch", "add", PATCH], ["patch", "add", PATCH, "--quiet"]):
        assert portllm(*words) == loud and portllm.messages == ""
    portllm("patch", "show", "owner/unknown", "--quiet", code=2)
    assert portllm.messages.startswith("portllm: No patch owner/unknown is recorded.")
    portllm("patch", "add", PATCH)
    assert portllm.messages != ""


repos = st.tuples(*[st.from_regex(NAME, fullmatch=True)] * 2).map("/".join)
revisions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}|refs/pr/[1-9]", fullmatch=True)


@given(repos, revisions | st.none())
def test_a_repo_may_be_named_in_every_way(repo: str, revision: str | None) -> None:
    if ".." in repo + str(revision) or "--" in repo:
        return
    wanted = RepoAddress(repo, revision)
    tree = f"/tree/{revision}" if revision else ""
    for name in (
        str(wanted),
        f"hf://{wanted}",
        f"hf://models/{wanted}",
        f"https://huggingface.co/{repo}{tree}",
        f"{Hub().endpoint}/{repo}{tree}",
    ):
        assert parse_repo(name) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "hf://datasets/owner/data",
        "hf://owner",
        "hf://",
        "hf://owner/model@%2e%2e/main",
        "https://huggingface.co/datasets/owner/data",
        "https://huggingface.co/owner/model/blob/main/README.md",
        "https://huggingface.co/owner/model/discussions/1",
        "https://example.org/owner/model",
    ],
)
def test_what_is_no_repo_of_models_is_none_in_any_way(name: str) -> None:
    with pytest.raises(UsageError):
        parse_repo(name)


@pytest.mark.parametrize("follow", ["org/base", "org/base@v*", "org/Model-v0.*", "tree:org/base@a"])
def test_what_is_followed_may_be_an_hf_address(follow: str) -> None:
    tree, rest = ("tree:", follow[5:]) if follow.startswith("tree:") else ("", follow)
    assert parse_follow(f"{tree}hf://{rest}") == parse_follow(follow)


def test_commands_take_addresses_and_tell_them(portllm: Portllm, world: World) -> None:
    page = world.server.endpoint
    added = portllm.json("patch", "add", f"hf://{PATCH}")
    assert added["url"] == f"{page}/{PATCH}/tree/{added['patch'].partition('@')[2]}"
    made = portllm.json(
        "subscribe", f"{page}/{PATCH}", "--follow", f"{page}/{BASE}", "--to", f"hf://{PORTED}"
    )
    assert (made["follows"], made["to"]) == (f"{BASE}@main", PORTED)
    portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED)
    assert f"{page}/{PORTED}" in portllm.messages
    assert portllm.json("unsubscribe", f"hf://{PATCH}", "--to", f"{page}/{PORTED}") != []


def test_the_hubs_own_variables_are_the_ones(world: World, tmp_path: Path) -> None:
    """The endpoint of HF_ENDPOINT, the token that `hf auth login` left in HF_HOME, its cache."""
    world.api.create_repo("owner/secret", private=True)
    world.api.upload_folder(repo_id="owner/secret", folder_path=world.patch)
    environment = {n: v for n, v in world.environment.items() if n != "HF_TOKEN"}
    environment["HF_HOME"] = str(tmp_path / "hf")

    def port(out: str) -> int:
        words = ["port", BASE, "owner/secret", "--out", str(tmp_path / out)]
        return subprocess.run([PROGRAMS / "portllm", *words], env=environment).returncode

    assert port("refused") == 3
    (tmp_path / "hf").mkdir(exist_ok=True)
    (tmp_path / "hf/token").write_text(str(world.api.token))
    assert port("made") == 0
    assert (tmp_path / "hf/hub/models--owner--secret/snapshots").is_dir()
