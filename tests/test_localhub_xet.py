"""The Xet write side, driven by the stock client and, for what no honest client does, by hand."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import lz4.frame
import numpy as np
import pytest

import localhub.xet
from localhub.server import Server
from localhub.xet_format import MAX_CHUNK_BYTES, MAX_XORB_CHUNKS, Segment
from tests.xet_bytes import (
    SEGMENT,
    SHA256,
    WHOLE,
    XORB,
    XORB_HASH,
    bfloat16,
    pack_chunk,
    pack_shard,
)

UPLOAD = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
repo, folder, *names = sys.argv[1:]
api = HfApi()
api.create_repo(repo, exist_ok=True)
adds = [CommitOperationAdd(name, f"{folder}/{name}") for name in names]
print(api.create_commit(repo, adds, commit_message="upload").oid)
"""
DOWNLOAD = """
import sys
import hf_xet  # reading goes over plain HTTP although this is installed
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1]))
"""
FORGED_SHA256 = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo(sys.argv[1])
add = CommitOperationAdd("a.bin", sys.argv[2])
add.upload_info.sha256 = bytes(32)
api.create_commit(sys.argv[1], [add], commit_message="forged")
"""


@dataclass
class User:
    """A user of the hub, at a machine where nothing but the endpoint and the token is known."""

    hub: Server
    token: str

    def start(self, home: Path, *command: str) -> subprocess.Popen[str]:
        env = {
            "PATH": os.environ["PATH"],
            "HF_HOME": str(home),  # a place of its own, not a setting: no cache is shared
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": self.token,
        }
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, home: Path, *command: str) -> str:
        return finish(self.start(home, *command))

    def upload(self, home: Path, repo: str, folder: Path) -> str:
        names = sorted(path.name for path in folder.iterdir())
        return self.run(home, sys.executable, "-c", UPLOAD, repo, str(folder), *names)

    def download(self, home: Path, repo: str) -> dict[str, bytes]:
        folder = Path(self.run(home, sys.executable, "-c", DOWNLOAD, repo).strip())
        paths = (path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        files.pop(".gitattributes", None)
        return files

    def xorb_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.hub.root.glob("xet/xorbs/??/*"))

    def get(self, path: str) -> dict[str, object]:
        request = urllib.request.Request(
            self.hub.endpoint + path, headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request) as response:
            return dict(json.load(response))


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def alice(hub: Server) -> User:
    return User(hub, hub.add_user("alice"))


def write_files(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def random_bytes(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def test_what_the_stock_client_uploads_it_downloads(alice: User, tmp_path: Path) -> None:
    noise = random_bytes(0, 5_000_000)
    files = write_files(
        tmp_path / "files",
        {
            "tiny.bin": b"\x00hello",
            "empty.bin": b"",
            "noise.safetensors": noise,
            "weights.safetensors": bfloat16(1, 10_000_000),
            "float32.bin": np.random.default_rng(2).standard_normal(500_000).tobytes() + b"odd",
            "zeros.bin": bytes(3_000_000),
            "same-as-noise.bin": noise,
            "noise-twice.bin": noise + noise + b"end",
        },
    )
    alice.upload(tmp_path / "home", "alice/model", tmp_path / "files")
    assert alice.download(tmp_path / "another-home", "alice/model") == files
    sent = alice.xorb_bytes()
    assert 5_000_000 < sent < sum(map(len, files.values())) - 2 * len(noise)


def test_a_second_upload_refers_to_chunks_of_the_first(alice: User, tmp_path: Path) -> None:
    first = write_files(tmp_path / "first", {"a.bin": random_bytes(0, 6_000_000)})["a.bin"]
    second = write_files(
        tmp_path / "second", {"a.bin": first[:4_000_000] + b"changed" + first[4_000_000:]}
    )
    alice.upload(tmp_path / "home", "alice/model", tmp_path / "first")
    before = alice.xorb_bytes()
    alice.upload(tmp_path / "home", "alice/model", tmp_path / "second")
    assert 0 < alice.xorb_bytes() - before < 1_000_000
    assert alice.download(tmp_path / "another-home", "alice/model") == second


def test_a_new_store_at_an_old_address_is_sent_everything_again(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", {"a.bin": random_bytes(0, 1_000_000)})
    port = 0
    for root in (tmp_path / "old", tmp_path / "new"):
        with Server(root, port=port) as hub:
            alice = User(hub, hub.add_user("alice"))
            alice.upload(tmp_path / "home", "alice/model", tmp_path / "files")
            assert alice.download(tmp_path / f"{root.name}-reader", "alice/model") == files
            port = int(hub.endpoint.rpartition(":")[2])


def test_concurrent_uploaders_of_the_same_bytes(alice: User, tmp_path: Path) -> None:
    shared = random_bytes(0, 3_000_000)
    wanted = {
        f"alice/model-{i}": write_files(
            tmp_path / f"files-{i}", {"a.bin": shared, "b.bin": random_bytes(i, 2_000_000)}
        )
        for i in range(1, 4)
    }
    uploads = [
        alice.start(
            # Two of the uploaders share a home and so a cache; the third has its own.
            tmp_path / f"home-{i % 2}",
            *(sys.executable, "-c", UPLOAD, repo, str(tmp_path / f"files-{i}"), "a.bin", "b.bin"),
        )
        for i, repo in enumerate(wanted, start=1)
    ]
    for upload in uploads:
        finish(upload)
    for repo, files in wanted.items():
        assert alice.download(tmp_path / "reader", repo) == files


def test_the_hf_command_uploads_a_folder(alice: User, tmp_path: Path) -> None:
    files = write_files(
        tmp_path / "files",
        {"model.safetensors": bfloat16(0, 1_000_000), "config.json": b'{"hidden_size": 32}'},
    )
    hf = str(Path(sys.executable).with_name("hf"))
    alice.run(tmp_path / "home", hf, "upload", "alice/model", str(tmp_path / "files"), ".")
    assert alice.download(tmp_path / "reader", "alice/model") == files
    target = tmp_path / "target"
    alice.run(tmp_path / "home", hf, "download", "alice/model", "--local-dir", str(target))
    assert (target / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_file_announced_under_a_false_sha256_is_refused(alice: User, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(random_bytes(0, 100_000))
    command = (sys.executable, "-c", FORGED_SHA256, "alice/model", str(tmp_path / "a.bin"))
    process = alice.start(tmp_path / "home", *command)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "400" in err
    assert "a.bin" not in alice.download(tmp_path / "reader", "alice/model")


# What no honest client sends.


@dataclass
class Cas:
    url: str
    token: str

    def post(self, path: str, body: bytes, token: str | None = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        request = urllib.request.Request(self.url + path, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post_xorb(self, body: bytes = XORB, name: str = XORB_HASH) -> tuple[int, str]:
        return self.post(f"/v1/xorbs/default/{name}", body)

    def post_shard(self, *segments: Segment, sha256: str | None = SHA256) -> tuple[int, str]:
        return self.post("/v1/shards", pack_shard(sha256, list(segments)))


@pytest.fixture
def cas(alice: User) -> Cas:
    request = urllib.request.Request(
        alice.hub.endpoint + "/api/repos/create",
        json.dumps({"name": "model", "organization": "alice"}).encode(),
        {"Authorization": f"Bearer {alice.token}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()
    answer = alice.get("/api/models/alice/model/xet-write-token/main")
    return Cas(str(answer["casUrl"]), str(answer["accessToken"]))


def stored(hub: Server) -> list[bytes]:
    files = (path for path in (hub.root / "lfs").rglob("*") if path.is_file())
    return [path.read_bytes() for path in files]


def test_chunks_of_every_compression_scheme_are_assembled(hub: Server, cas: Cas) -> None:
    assert cas.post_xorb() == (200, '{"was_inserted":true}')
    assert cas.post_xorb() == (200, '{"was_inserted":false}')
    assert cas.post_shard(SEGMENT) == (200, '{"result":1}')
    assert stored(hub) == [WHOLE]


@pytest.mark.parametrize(
    ("segments", "sha256", "reason"),
    [
        ([SEGMENT], None, "no sha256"),
        ([SEGMENT], "ab" * 32, "hash to"),
        ([Segment("f" * 64, 1, 0, 1)], SHA256, "never uploaded"),
        ([Segment(XORB_HASH, len(WHOLE), 0, 4)], SHA256, "has 3 chunks"),
        ([Segment(XORB_HASH, 0, 2, 2)], SHA256, "has 3 chunks"),
        ([Segment(XORB_HASH, len(WHOLE) + 1, 0, 3)], SHA256, "declared size"),
        ([Segment(XORB_HASH, 1, 0, 3)], SHA256, "declared size"),
        ([Segment(XORB_HASH, 2**32 - 1, 0, 3)] * 100_000, SHA256, "no room"),
    ],
)
def test_a_shard_that_does_not_hold_is_refused(
    hub: Server, cas: Cas, segments: list[Segment], sha256: str | None, reason: str
) -> None:
    cas.post_xorb()
    status, text = cas.post_shard(*segments, sha256=sha256)
    assert status == 400
    assert reason in text
    assert stored(hub) == []


@pytest.mark.parametrize("size", [0, 5, 8, len(XORB) - 1, len(XORB) + 1])
def test_a_truncated_xorb_is_refused_and_can_be_sent_again(
    hub: Server, cas: Cas, size: int
) -> None:
    status, _ = cas.post_xorb((XORB + b"!")[:size])
    assert status == 400
    assert stored(hub) == []
    assert cas.post_xorb() == (200, '{"was_inserted":true}')


@pytest.mark.parametrize(
    "xorb",
    [
        b"\x01" + pack_chunk(b"abc", 0)[1:],  # version 1
        pack_chunk(b"abc", 0)[:4] + b"\x03" + pack_chunk(b"abc", 0)[5:],  # scheme 3
        pack_chunk(b"", 0),
        pack_chunk(bytes(MAX_CHUNK_BYTES + 1), 1),
        pack_chunk(b"a", 0) * (MAX_XORB_CHUNKS + 1),
    ],
)
def test_a_xorb_beyond_the_specification_is_refused(cas: Cas, xorb: bytes) -> None:
    assert cas.post_xorb(xorb)[0] == 400


def test_a_chunk_that_unpacks_to_more_than_it_declares_is_refused(cas: Cas) -> None:
    bomb = lz4.frame.compress(bytes(20 * MAX_CHUNK_BYTES))
    header = bytes([0]) + len(bomb).to_bytes(3, "little") + bytes([1]) + (100).to_bytes(3, "little")
    assert cas.post_xorb(header + bomb)[0] == 200
    status, text = cas.post_shard(Segment(XORB_HASH, 100, 0, 1))
    assert (status, "header says" in text) == (400, True)


def test_an_oversized_body_is_refused(cas: Cas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localhub.xet, "_MAX_BODY_BYTES", len(XORB) - 1)
    assert cas.post_xorb()[0] == 413


@pytest.mark.parametrize("name", ["0" * 63, "A" * 64, "g" * 64, "..%2f..%2fstore-id", "%00" * 64])
def test_a_xorb_name_is_nothing_but_a_hash(hub: Server, cas: Cas, name: str) -> None:
    before = sorted(hub.root.rglob("*"))
    assert cas.post_xorb(name=name)[0] in (400, 404)
    assert sorted(hub.root.rglob("*")) == before


def test_only_tokens_of_this_server_are_accepted(cas: Cas) -> None:
    expiry, kind, repo, mac = cas.token.split(".")
    later = f"{int(expiry) + 1}.{kind}.{repo}.{mac}"
    altered = f"{expiry}.{kind}.{repo}.{mac[:-1]}{'0' if mac[-1] != '0' else '1'}"
    unsigned = f"{expiry}.{kind}.{repo}."
    another = f"{expiry}.{kind}.{b'model/alice/other'.hex()}.{mac}"
    read = f"{expiry}.read.{repo}.{mac}"
    for forged in ("", "x", "..", later, altered, unsigned, another, read):
        for path in (f"/v1/xorbs/default/{XORB_HASH}", "/v1/shards"):
            assert cas.post(path, b"", forged)[0] == 401


def test_an_expired_token_is_refused(
    alice: User, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localhub.xet, "TOKEN_SECONDS", -1)
    expired = alice.get("/api/models/alice/model/xet-write-token/main")["accessToken"]
    status, text = cas.post("/v1/shards", b"", str(expired))
    assert (status, "expired" in text) == (401, True)


def test_a_read_token_does_not_write(alice: User, cas: Cas) -> None:
    token = alice.get("/api/models/alice/model/xet-read-token/main")["accessToken"]
    assert cas.post("/v1/shards", b"", str(token))[0] == 403


def test_who_may_not_write_gets_no_write_token(hub: Server, cas: Cas) -> None:
    for token in (hub.add_user("alice", role="read"), "hf_nobody"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            User(hub, token).get("/api/models/alice/model/xet-write-token/main")
        assert refused.value.code in (401, 403)
