"""Local folders: nothing outside them is read."""

import hashlib
from pathlib import Path

import pytest

from porting import Folder, Refused, UsageError


def test_files_are_listed_with_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_bytes(b"bb")
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "download.lock").write_bytes(b"")
    files = Folder(tmp_path).files()
    assert {name: entry.size for name, entry in files.items()} == {"a.txt": 1, "sub/b.txt": 2}
    assert files["a.txt"].digest == hashlib.sha256(b"a").hexdigest()


def test_a_range_is_read_whole_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert Folder(tmp_path).read("a", 2, 5) == b"234"
    with pytest.raises(Refused, match=r"a in .* ends before byte 11"):
        Folder(tmp_path).read("a", 2, 11)


@pytest.mark.parametrize("name", ["../secret", "link", "/etc/passwd", "sub/../../secret"])
def test_no_path_leaves_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to("../secret")
    with pytest.raises(Refused, match="points outside the folder"):
        Folder(folder).read(name, 0, 1)
    with pytest.raises(Refused, match=r"'link' .* points outside the folder"):
        Folder(folder).files()


def test_links_of_the_hub_cache_are_followed_to_their_own_blobs_only(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--demo--base" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--demo--base" / "blobs"
    blobs.mkdir()
    (blobs / "1234").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert Folder(snapshot).files()["model.safetensors"].size == 7
    assert Folder(snapshot).read("model.safetensors", 0, 7) == b"weights"

    (tmp_path / "models--other--base" / "blobs").mkdir(parents=True)
    (tmp_path / "models--other--base" / "blobs" / "1").write_bytes(b"secret")
    (snapshot / "stolen").symlink_to("../../../models--other--base/blobs/1")
    with pytest.raises(Refused, match="'stolen'"):
        Folder(snapshot).files()


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sub").symlink_to("../other", target_is_directory=True)
    assert Folder(tmp_path / "folder").files() == {}


def test_a_path_that_is_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        Folder(tmp_path / "none")


def test_links_that_go_in_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Refused, match=r"'[ab]' is missing .* or is not a plain file"):
        Folder(tmp_path).files()
