"""Signatures of ports, as OpenSSF model-signing writes and reads them: `model.sig`.

Nothing is hashed for one: the sha256 of every file of a port is known by then.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from porting.errors import Refused, UsageError

if TYPE_CHECKING:
    from model_signing.hashing import Config

NAME = "model.sig"
# What an owner may change, and what a client puts beside the files that it downloads.
UNSIGNED = ("README.md", ".gitattributes", ".cache", NAME)
SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": True,  # the client's cache consists of them
    "ignore_paths": UNSIGNED,
}


@dataclass(frozen=True)
class Signature:
    """What a signature says, true or not: sha256 of the public key's PEM file, and of each file."""

    key: str
    files: dict[str, str]


def signed(
    key: Path | None, repo: str, files: Mapping[str, str], beside: Mapping[str, bytes]
) -> dict[str, bytes]:
    """By its name, the signature of a port to `repo` of `files` (sha256) and those `beside` them.

    Nothing without a `key`. Raises UsageError where it is none to sign with.
    """
    if key is None:
        return {}
    more = {name: hashlib.sha256(content).hexdigest() for name, content in beside.items()}
    digests = {name: value for name, value in {**files, **more}.items() if name not in UNSIGNED}
    return {NAME: _sign(key, repo, digests)}


def check_key(key: Path) -> None:
    """Raises UsageError where nothing can be signed with `key`."""
    _sign(key, "nothing", {})


def read(content: bytes) -> Signature:
    """What the signature file says; whether it is true, `check_signed` finds out.

    Raises Refused if it is none.
    """
    try:
        bundle = json.loads(content)
        key = bundle["verificationMaterial"]["publicKey"]["hint"]
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        resources = statement["predicate"]["resources"]
        return Signature(str(key), {each["name"]: str(each["digest"]) for each in resources})
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{NAME} is damaged, or not of an elliptic-curve key.") from error


def check_signed(content: bytes, public_key: Path) -> str | None:
    """Why `content` is not what the owner of `public_key` signed, or None if it is.

    Raises UsageError where that is no public key.
    """
    _installed()
    from cryptography.exceptions import InvalidSignature
    from model_signing.verifying import Config

    config = Config()
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"--public-key {public_key} is no PEM file of a public key.") from error
    with tempfile.TemporaryDirectory(prefix="portllm-verify-") as folder:
        file = Path(folder) / NAME
        file.write_bytes(content)
        try:
            config.set_hashing_config(_known(read(content).files)).verify(folder, file)
        except InvalidSignature:
            return "it was not signed with this key, or changed since"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"it is damaged: {error}".strip()
    return None


def _sign(key: Path, repo: str, files: Mapping[str, str]) -> bytes:
    _installed()
    from model_signing.signing import Config

    config = Config()
    try:
        config.use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"PORTLLM_SIGNING_KEY: {key} is no key to sign with: the PEM file of a private key on "
            "the curve P-256, P-384 or P-521, without a password."
        ) from error
    with tempfile.TemporaryDirectory(prefix="portllm-sign-") as folder:
        file = Path(folder) / NAME
        config.set_hashing_config(_known(files)).sign(repo, file)
        return file.read_bytes()


def _known(files: Mapping[str, str]) -> "Config":
    """What hashes nothing, for these sha256 are known."""
    from model_signing._hashing.hashing import Digest
    from model_signing.hashing import Config, PathLike
    from model_signing.manifest import FileManifestItem, Manifest, SerializationType

    class Known(Config):
        def hash(self, model_path: PathLike, **_: object) -> Manifest:
            items = [
                FileManifestItem(
                    path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(digest))
                )
                for name, digest in files.items()
            ]
            method = SerializationType.from_args(SERIALIZATION)
            return Manifest(PurePosixPath(str(model_path)).name, items, method)

    return Known()


def _installed() -> None:
    try:
        import model_signing  # noqa: F401  # whether it can be, with all that it needs
    except ImportError as error:
        raise UsageError(
            "Signatures need model-signing. Where PortLLM was checked out: "
            "pip install --constraint constraints.txt '.[sign]'"
        ) from error
