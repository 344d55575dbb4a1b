"""Signed ports: OpenSSF's own command believes them, and nothing that was changed since."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.hub import HubRepo
from bot.trust import signing, takeback
from bot.trust.verify import Signed, check_signature
from localhub.server import Server
from patch_cards import lock
from porting.errors import Refused, UsageError
from tests.judged import Judged

WEIGHTS = "adapter_model.safetensors"
DOCS = Path(__file__).parents[1] / "docs/trust.md"


def openssl(folder: Path, command: str) -> None:
    subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files that the documented commands write."""
    folder = tmp_path_factory.mktemp("keys")
    commands = re.findall(r"^openssl .*$", DOCS.read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        openssl(folder, command)
    return folder


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp("judged")
    with Server(folder / "hub") as server:
        made = Judged(server, folder)
        use(made, keys / "signing.pem")
        yield made
        made.context.database.close()


def use(judged: Judged, key: Path | None) -> None:
    judged.context = judged.bot.context = judged.with_settings(signing_key=key)


@pytest.fixture(scope="module")
def published(judged: Judged) -> tuple[str, str, str]:
    """A target, and the keys of its two ports."""
    into = judged.subscribe(target := judged.target())
    keys = [judged.judge(into, "publish") for _ in range(2)]
    for key in keys:
        judged.publish(key)
    return target, keys[0], keys[1]


def check(judged: Judged, target: str, key: Path | None) -> Signed | None:
    port = judged.publisher.state(target)
    return check_signature(port, lock.read(port), key)


def tampered(judged: Judged, name: str, target: str, changes: dict[str, bytes]) -> str:
    """A copy of `target` with some files changed."""
    port = judged.publisher.state(target)
    files = {each: port.read(each, 0, entry.size) for each, entry in port.files().items()}
    judged.push(repo := f"owner/tampered-{name}", files | changes)
    return repo


def stock(folder: Path, key: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """OpenSSF's own command, as the docs have it."""
    line = next(line for line in DOCS.read_text().splitlines() if line.startswith("model_signing"))
    arguments = line.replace("signing.pub", str(key)).replace("port", str(folder)).split()[1:]
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *arguments, *options],
        capture_output=True,
        text=True,
    )


def test_openssf_believes_a_downloaded_port_and_nothing_that_was_changed(
    judged: Judged, published: tuple[str, str, str], keys: Path, tmp_path: Path
) -> None:
    target, where = published[0], {"endpoint": judged.server.endpoint, "token": judged.api.token}
    words = b"---\nlicense: mit\n---\nMy own words.\n"
    judged.push(repo := tampered(judged, "card", target, {}), {"README.md": words})
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    snapshot_download(repo, local_dir=folder, **where)
    done = stock(folder, keys / "signing.pub")
    assert done.returncode == 0, done.stderr
    links = Path(snapshot_download(repo, cache_dir=cache, **where))
    done = stock(links, keys / "signing.pub", "--allow_symlinks")
    assert done.returncode == 0, done.stderr
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    done = stock(folder, keys / "signing.pub")
    assert done.returncode == 1 and f"Hash mismatch for '{WEIGHTS}'" in done.stderr


def test_a_signed_port_is_known_by_the_fingerprint_of_its_key(
    judged: Judged, published: tuple[str, str, str], keys: Path
) -> None:
    target, public = published[0], keys / "signing.pub"
    fingerprint = hashlib.sha256(public.read_bytes()).hexdigest()
    assert check(judged, target, None) == Signed(fingerprint, False, ())
    assert check(judged, target, public) == Signed(fingerprint, True, ())


def test_what_was_changed_is_named(
    judged: Judged, published: tuple[str, str, str], keys: Path
) -> None:
    target, public = published[0], keys / "signing.pub"
    port = judged.publisher.state(target)
    locked = lock.read(port)
    lied = locked.model_copy(update={"verdict": {"action": "publish", "reason": "Trust me."}})
    changes = {WEIGHTS: b"other", lock.NAME: lied.render()}
    for name in (WEIGHTS, lock.NAME):
        repo = tampered(judged, name, target, {name: changes[name]})
        for key in (None, public):
            found = check(judged, repo, key)
            assert found and found.faults == (
                f"what the Hub holds is not what was signed in {name}",
            )
    # Whoever changes a file and the signature with it has another key, or none that fits.
    openssl(keys, "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out thief.pem")
    stolen = signing.signed(
        keys / "thief.pem",
        target,
        locked.files | {WEIGHTS: hashlib.sha256(b"other").hexdigest()},
        {lock.NAME: locked.render()},
    )
    repo = tampered(judged, "stolen", target, {WEIGHTS: b"other"} | stolen)
    found = check(judged, repo, None)
    assert found and not found.faults and found.key != check(judged, target, None).key
    found = check(judged, repo, public)
    assert found and "does not match the provided public key" in found.faults[0]
    repo = tampered(judged, "noise", target, {signing.NAME: b"{}"})
    with pytest.raises(Refused, match=r"model\.sig is damaged"):
        check(judged, repo, None)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_a_signature_changes_what_it_is_believed_to_say(
    keys: Path, data: st.DataObject
) -> None:
    files = {"a/b.safetensors": "a" * 64, "config.json": "b" * 64}
    content = signing.signed(keys / "signing.pem", "me/port", files, {})[signing.NAME]
    changed = bytearray(content)
    where = data.draw(st.integers(0, 9999)) % len(content)  # its length is not always the same
    changed[where] = data.draw(st.integers(32, 126))
    try:
        fault = signing.check_signed(bytes(changed), keys / "signing.pub")
        assert fault or signing.read(bytes(changed)).files == files
    except Refused as error:
        assert "damaged" in str(error)


def test_a_former_port_is_put_back_with_its_signature(judged: Judged, keys: Path) -> None:
    into = judged.subscribe(target := judged.target())
    first, second = (judged.judge(into, "publish") for _ in range(2))
    judged.publish(first)
    before = judged.publisher.state(target)
    judged.publish(second)
    assert takeback.rollback(judged.context, target) == (second, first)
    assert check(judged, target, keys / "signing.pub") == check_signature(
        before, lock.read(before), keys / "signing.pub"
    )
    takeback.withdraw(judged.context, first, "It leaks.")
    found = check(judged, target, keys / "signing.pub")
    assert found and not found.faults


def test_an_unsigned_port_leaves_no_signature_of_the_one_before(judged: Judged, keys: Path) -> None:
    into = judged.subscribe(target := judged.target())
    first, second = (judged.judge(into, "publish") for _ in range(2))
    judged.publish(first)
    use(judged, None)
    judged.publish(second)
    assert check(judged, target, None) is None
    with pytest.raises(Refused, match="is not signed"):
        check(judged, target, keys / "signing.pub")
    assert takeback.rollback(judged.context, target) == (second, first)
    assert check(judged, target, keys / "signing.pub")
    use(judged, keys / "signing.pem")


@pytest.mark.parametrize("lives", [0, 1, 2])
def test_a_publication_that_was_killed_and_tried_again_is_one_commit(
    judged: Judged, keys: Path, lives: int
) -> None:
    into = judged.subscribe(target := judged.target())
    judged.publish(judged.judge(into, "publish"), lives)
    titles = [each.title for each in judged.api.list_repo_commits(target)]
    assert len(titles) == 2 and check(judged, target, keys / "signing.pub") is not None


@pytest.mark.parametrize("kind", ["-algorithm ed25519", "-algorithm RSA", None])
def test_what_is_no_key_to_sign_with_is_said(tmp_path: Path, kind: str | None) -> None:
    if kind is not None:
        openssl(tmp_path, f"openssl genpkey {kind} -out key.pem")
    with pytest.raises(UsageError, match=r"PORTLLM_SIGNING_KEY: .*key\.pem is no key"):
        signing.check_key(tmp_path / "key.pem")
    with pytest.raises(UsageError, match="is no PEM file of a public key"):
        signing.check_signed(b"", tmp_path / "key.pem")


def test_it_is_read_as_json(judged: Judged, published: tuple[str, str, str]) -> None:
    port = HubRepo(judged.context.hub, published[0], judged.context.hub.head(published[0]))
    content = port.read(signing.NAME, 0, port.files()[signing.NAME].size)
    assert set(signing.read(content).files) == {*lock.read(port).files, lock.NAME}
    assert json.loads(content)["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
