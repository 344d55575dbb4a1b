"""`portllm doctor`: every fault is found, each says what to do, and nothing is changed by it."""

import ast
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from bot.doctor import diagnose
from bot.doctor.database import NETWORK, check_database, check_file_system, file_system
from bot.doctor.finding import Finding, Level
from bot.doctor.hub import check_clock, check_targets, check_token
from bot.doctor.machine import LEAST, check_disk, check_libraries, check_privacy, is_exposed
from bot.hub import Hub
from bot.hub.account import account, hub_time, read_account
from bot.settings import Settings
from localhub.server import Server
from porting.errors import PortllmError
from registry.database import MIGRATIONS, Database
from tests.world import BASE, PATCH, PORTED, Portllm, World

AS_ROOT = os.name == "posix" and os.getuid() == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(golds=None, revision=world.base_sha)
        yield world


@pytest.fixture
def subscribed(portllm: Portllm) -> Portllm:
    portllm("patch", "add", PATCH)
    portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED)
    return portllm


def levels(portllm: Portllm, *options: str, code: int = 0) -> dict[str, str]:
    """What `portllm doctor` finds, by check; whatever is not right comes with a way out."""
    found = json.loads(portllm("doctor", *options, "--json", code=code))
    for finding in found:
        assert finding["says"].endswith(".") and len(finding["says"].splitlines()) == 1
        assert bool(finding["do"]) == (finding["level"] in ("warning", "error")), finding
    assert len({finding["check"] for finding in found}) == len(found)
    return {finding["check"]: finding["level"] for finding in found}


# --- the command -----------------------------------------------------------------------------


def test_all_is_well_and_stays_as_it_is(subscribed: Portllm, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in (tmp_path / "home").iterdir()}
    found = levels(subscribed)
    assert {name for name, level in found.items() if level != "ok"} <= {"disk"}  # may be small
    checks = {"database", "file system", "privacy", "libraries", "endpoint", "clock", "bases"}
    assert set(found) == checks | {"token", "targets", "disk"}
    assert {file: file.read_bytes() for file in (tmp_path / "home").iterdir()} == before
    shown = subscribed("doctor").splitlines()
    assert shown[0] == "check\tstate\tfinding" and len(shown) == 1 + len(found)


def test_what_is_local_asks_no_hub(portllm: Portllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.client.constants", SimpleNamespace(ENDPOINT="http://127.0.0.1:9"))
    checks = {"database", "file system", "privacy", "libraries", "disk"}
    assert set(levels(portllm, "--local")) == checks


def test_a_new_machine_is_well_and_gets_no_registry(portllm: Portllm, tmp_path: Path) -> None:
    assert levels(portllm)["database"] == "ok"
    assert not (tmp_path / "home").exists()


def test_a_hub_that_is_gone(subscribed: Portllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.client.constants", SimpleNamespace(ENDPOINT="http://127.0.0.1:9"))
    found = levels(subscribed, code=4)
    assert found["endpoint"] == "error" and found["database"] == "ok"
    assert {found[check] for check in ("bases", "token", "targets")} == {"unchecked"}


@pytest.mark.parametrize(
    ("token", "wrong"),
    [
        ("", {"token": "error", "targets": "unchecked"}),
        ("hf_nobodys", {"token": "error", "targets": "unchecked", "bases": "warning"}),
        ("read", {"token": "error", "targets": "error"}),
        ("stranger", {"targets": "error"}),
    ],
)
def test_a_token_that_will_not_do(
    subscribed: Portllm,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    wrong: dict[str, str],
) -> None:
    known = {
        "read": lambda: world.server.add_user("owner", role="read"),
        "stranger": lambda: world.server.add_user("stranger"),
    }
    monkeypatch.setenv("HF_TOKEN", known.get(token, lambda: token)())
    found = levels(subscribed, code=3)
    bad = {name: level for name, level in found.items() if level != "ok" and name != "disk"}
    assert bad == wrong
    assert ", ".join(name for name, level in wrong.items() if level == "error") in (
        subscribed.messages
    )


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_will_not_say_whose_token_it_is(
    subscribed: Portllm, world: World, status: int
) -> None:
    world.server.faults.add("whoami", status=status)
    found = levels(subscribed)
    assert (found["token"], found["targets"]) == ("unchecked", "unchecked")


def test_a_base_that_is_gone(subscribed: Portllm, world: World) -> None:
    world.server.faults.add(f"/api/models/{BASE}/tree", status=403)
    assert levels(subscribed)["bases"] == "warning"


# --- the registry ----------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    file = tmp_path / "registry.db"
    Database(f"sqlite:///{file}").close()
    return file


def told(url: str) -> Finding:
    found, _ = check_database(url)
    assert "s3cret" not in found.says + found.do
    return found


def test_a_registry_that_an_older_program_wrote(registry: Path) -> None:
    url = f"sqlite:///{registry}"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    written = registry.read_bytes()
    assert told(url).level == Level.WARNING
    assert registry.read_bytes() == written
    Database(url).close()
    assert told(url).level == Level.OK


def test_a_registry_that_a_newer_program_wrote(registry: Path) -> None:
    engine = create_engine(f"sqlite:///{registry}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert told(f"sqlite:///{registry}").level == Level.ERROR


def test_a_registry_that_can_only_be_read(registry: Path) -> None:
    found = told(f"sqlite:///file:{registry}?mode=ro&uri=true")
    assert found.level == Level.ERROR and "readonly" in found.says


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "nonsense://me:s3cret@host/db",
        "postgresql://me:s3cret@127.0.0.1:1/db",
        "mysql://me:s3cret@127.0.0.1:1/db",  # no driver
    ],
)
def test_a_registry_that_does_not_open(url: str) -> None:
    assert told(url).level == Level.ERROR


def test_a_file_that_is_no_registry(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    file.write_bytes(b"something else" * 100)
    assert told(f"sqlite:///{file}").level == Level.ERROR
    file.write_bytes(b"")
    assert told(f"sqlite:///{file}").level == Level.OK  # empty: made by the first command


def test_what_can_not_be_checked_for_want_of_a_registry(
    portllm: Portllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTLLM_DATABASE_URL", "postgresql://me@127.0.0.1:1/db")
    found = levels(portllm, code=3)
    assert (found["database"], found["token"]) == ("error", "ok")
    assert (found["targets"], found["bases"]) == ("unchecked", "unchecked")
    assert "To be fixed: database." in portllm.messages


# --- the file system -------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("findmnt"), reason="findmnt is not here")
@pytest.mark.parametrize("path", ["/", "/proc/self/status", "/dev/shm", "/usr/bin", "/sys/kernel"])
def test_the_file_system_is_the_one_that_findmnt_finds(path: str) -> None:
    asked = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", path]
    known = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert file_system(PurePosixPath(path), Path("/proc/mounts").read_text()) == known


names = st.text(st.sampled_from("ab \t\\"), min_size=1, max_size=3)
points = st.lists(names, max_size=3).map(lambda parts: PurePosixPath("/", *parts))


@given(st.lists(st.tuples(points, st.sampled_from(["ext4", "nfs4", "xfs"])), max_size=6), points)
def test_the_nearest_mount_counts_and_of_those_the_last(
    mounted: list[tuple[PurePosixPath, str]], path: PurePosixPath
) -> None:
    escaped = str.maketrans({" ": r"\040", "\t": r"\011", "\\": r"\134"})
    lines = [f"dev {str(point).translate(escaped)} {kind} rw 0 0" for point, kind in mounted]
    wanted = "unknown"
    for above in (path, *path.parents):
        if here := [kind for point, kind in mounted if point == above]:
            wanted = here[-1]
            break
    assert file_system(path, "\n".join(lines)) == wanted
    level = check_file_system(Path(path), "\n".join(lines)).level
    assert (level is Level.WARNING) == (wanted in NETWORK)


# --- who can read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are closed."""
    folder = Path("/var/tmp" if AS_ROOT else "/tmp") / f"portllm-doctor-{os.getpid()}"
    (folder / "inner").mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


READ = "import os, sys; print([p for p in sys.argv[1:] if os.access(p, os.R_OK)])"


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_exposed_is_what_another_user_can_read(open_folder: Path) -> None:
    group, made = 65534, []
    for outer in (0o700, 0o710, 0o701, 0o711):
        for inner in (0o700, 0o710, 0o701, 0o711):
            folder = open_folder / f"{outer:o}" / f"{inner:o}"
            folder.mkdir(parents=True)
            for own in (0o600, 0o640, 0o604, 0o622):
                made.append(folder / f"{own:o}")
                made[-1].touch(own)
                made[-1].chmod(own)
            folder.chmod(inner)
        folder.parent.chmod(outer)
    for path in open_folder.rglob("*"):
        os.chown(path, 0, group)
    readable = set()
    for other in (group, 65533):
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", READ, *made],
            user=65533,
            group=other,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        readable |= set(ast.literal_eval(done.stdout))
    assert {str(path) for path in made if is_exposed(path)} == readable
    assert 0 < len(readable) < len(made)


def test_a_registry_that_others_can_read(open_folder: Path) -> None:
    for path in (open_folder, open_folder / "inner"):
        path.chmod(0o755)
    file = open_folder / "inner" / "registry.db"
    file.touch()
    file.chmod(0o644)
    found = check_privacy([file, open_folder / "absent"])
    assert found.level == Level.WARNING and str(file) in found.says
    subprocess.run(found.do.removeprefix("Run: ").split(), check=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert check_privacy([file]).level == Level.OK


def test_a_new_home_is_its_owners_alone(portllm: Portllm, tmp_path: Path) -> None:
    portllm("status")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


# --- disk, clock, libraries ------------------------------------------------------------------


def test_room_is_measured_against_the_largest_base(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check_disk(tmp_path / "not" / "yet", free).level == Level.WARNING  # three times as much
    assert (check_disk(tmp_path, 0).level == Level.OK) == (free >= LEAST)


def test_a_home_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bot.doctor.machine.os.access", lambda *_: False)  # a read-only disk
    assert check_disk(tmp_path / "home", 0).level == Level.ERROR


@given(st.floats(-150, 150) | st.floats(-1e6, 1e6))
def test_a_clock_may_be_a_minute_off(seconds: float) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found = check_clock(now + timedelta(seconds=seconds), now)
    assert (found.level is Level.ERROR) == (abs(timedelta(seconds=seconds)) > timedelta(minutes=1))
    assert found.level is Level.OK or ("behind" in found.says) == (seconds > 0)


def test_a_hub_that_tells_no_time() -> None:
    assert check_clock(None, datetime.now(UTC)).level == Level.WARNING


def test_the_hubs_time_is_now(hub: Server) -> None:
    found = hub_time(Hub(hub.endpoint))
    assert found is not None and abs(found - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(("missing", "level"), [("torch", "error"), ("hf_xet", "warning")])
def test_a_library_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, missing: str, level: str
) -> None:
    assert check_libraries().level == Level.OK
    monkeypatch.setattr("bot.doctor.machine.find_spec", lambda name: None if name == missing else 1)
    assert check_libraries().level == level


# --- what a token may do ---------------------------------------------------------------------


@pytest.mark.parametrize("role", ["read", "write"])
def test_what_may_be_written_is_what_the_hub_lets_write(hub: Server, role: str) -> None:
    asked = Hub(hub.endpoint, hub.add_user("owner", orgs=("Team",), role=role))
    found = account(asked)
    for repo in ("owner/x", "Team/x", "other/x"):
        try:
            asked.api.create_repo(repo)
        except Exception:
            written = False
        else:
            written = True
        assert found.may_write(repo) == written, repo
        assert (check_targets(found, [repo]).level is Level.OK) == written
    assert (check_token(found).level is Level.ERROR) == (role == "read")


def fine_grained(*scopes: tuple[str, str, list[str]]) -> dict[str, Any]:
    """The Hub's own answer to `whoami`; the local Hub has no such tokens."""
    scoped = [
        {"entity": {"_id": "0", "type": kind, "name": name}, "permissions": permissions}
        for kind, name, permissions in scopes
    ]
    token = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}
    orgs = [{"name": "Team", "roleInOrg": "write"}, {"name": "Guests", "roleInOrg": "read"}]
    return {"name": "Owner", "orgs": orgs, "auth": {"accessToken": token}}


def test_a_fine_grained_token_may_write_what_its_scopes_name() -> None:
    write, read = ["repo.content.read", "repo.write"], ["repo.content.read"]
    found = read_account(
        fine_grained(("user", "Owner", read), ("org", "Team", write), ("model", "Else/One", write))
    )
    repos = ("owner/x", "Team/x", "team/y", "else/one", "Else/Two", "Guests/x")
    assert [repo for repo in repos if found.may_write(repo)] == ["Team/x", "team/y", "else/one"]
    assert check_token(found).level == Level.OK
    assert check_token(read_account(fine_grained(("user", "Owner", read)))).level == Level.ERROR


def test_an_organisation_that_one_may_only_read() -> None:
    said = fine_grained() | {"auth": {"accessToken": {"role": "write"}}}
    found = read_account(said)
    assert [found.may_write(f"{name}/x") for name in ("owner", "TEAM", "Guests")] == [1, 1, 0]
    assert check_token(read_account({"name": "app"})).level == Level.WARNING


def test_many_targets_are_counted() -> None:
    found = check_targets(read_account({"name": "me"}), [f"other/{n}" for n in range(100)])
    assert found.level == Level.ERROR and "and 95 more" in found.says and len(found.says) < 200


def test_no_finding_raises_on_a_hub_that_fails(hub: Server, tmp_path: Path) -> None:
    asked = Hub(hub.endpoint, hub.add_user("owner"))
    hub.faults.add("", times=100, status=500)
    found = diagnose(Settings(home=tmp_path), asked)
    assert [each.check for each in found if each.level is Level.ERROR] == ["endpoint"]
    with pytest.raises(PortllmError):
        hub_time(asked)
