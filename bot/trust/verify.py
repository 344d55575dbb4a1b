"""Anybody's check of a port: made again from what its lock names, is it the same to the byte?

And what it says of itself: its verdict and its card follow from the evidence in the lock; what is
signed is what is there.
"""

import hashlib
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bot.context import ENGINE, Job
from bot.hub import Hub, HubRepo
from bot.making.inputs import Inputs
from bot.making.make import make_in, parts, scaled
from bot.making.sandbox import Report
from bot.publishing.describe import CARD, card_facts
from bot.trust import signing
from judging.evidence import Evidence
from judging.policy import VerdictPolicy
from patch_cards import card, chart, lock
from porting.errors import Refused
from porting.files import CODE, TRAVEL, matches

SHA256 = re.compile(r"[0-9a-f]{64}")
HOME = "https://huggingface.co"
LOADED = (*CODE, ".safetensors", ".index.json", ".gguf", "config.json")


@dataclass(frozen=True)
class File:
    """One file of a port, by sha256: as locked, as made again, as held by the Hub; None if not."""

    name: str
    locked: str | None
    made: str | None
    held: str | None

    @property
    def is_equal(self) -> bool:
        return self.locked == self.made == self.held


@dataclass(frozen=True)
class Signed:
    """A signature by `key` (sha256 of the public key's file), and what is wrong with it.

    `is_checked`: it was held against the public key. Without one, only what it says was.
    """

    key: str
    is_checked: bool
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `engine` made the port, `ours` made it again.

    `inputs` is what the lock says it was made of, by role; `extra` what it holds beside the port;
    `notices` are those on its card; `claims` what card and verdict say against the evidence.
    """

    port: str
    engine: str
    ours: str
    inputs: dict[str, Any]
    files: tuple[File, ...]
    extra: tuple[str, ...]
    claims: tuple[str, ...]
    notices: tuple[str, ...]
    signature: Signed | None

    def check(self) -> None:
        """Raises Refused, naming the files, unless all is as it should be."""
        unlike_made = [file.name for file in self.files if file.locked != file.made]
        unlike_held = [file.name for file in self.files if file.locked != file.held]
        found = []
        if unlike_held:
            found.append(f"what the Hub holds differs from the lock in {', '.join(unlike_held)}")
        if unlike_made:
            found.append(f"made again, it differs from the lock in {', '.join(unlike_made)}")
        if self.extra:
            found.append(f"programs may load what the lock does not name: {', '.join(self.extra)}")
        found += self.claims
        if self.signature is not None:
            found += self.signature.faults
        if (unlike_made or self.claims) and self.engine != self.ours:
            found.append(f"it was made by {self.engine}, and this is {self.ours}")
        if found:
            raise Refused(f"{self.port}: {'; '.join(found)}.")

    def to_dict(self) -> dict[str, Any]:
        files = [asdict(file) | {"equal": file.is_equal} for file in self.files]
        return asdict(self) | {"files": files}


def verify(
    port: HubRepo, locked: lock.Lock, report: Report, public_key: Path | None = None
) -> Verification:
    """Make `port` again from its lock in the sandbox, in a temporary folder; compare every file.

    Args:
        public_key: the file of the key that it has to be signed with.

    Raises:
        Refused: what the lock names can't be ported (any more), or it is not signed at all.
        UsageError: there is no such key.
    """
    signature = check_signature(port, locked, public_key)
    written = _read(port, CARD).decode(errors="surrogateescape")
    claims = check_claims(port, locked, written)
    with tempfile.TemporaryDirectory(prefix="portllm-verify-") as folder:
        work = Path(folder)
        inputs = scaled(_inputs(port.hub, locked), locked.scale, work)
        digests = make_in(work, inputs, report)
    made = {name: digests[part] for name, part in parts(locked.form, digests).items()}
    named = {"patch": locked.patch, "old base": locked.old_base, "new base": locked.new_base}
    return Verification(
        port=port.name,
        engine=locked.engine,
        ours=ENGINE,
        inputs={role: f"{repo.repo}@{repo.sha}" for role, repo in named.items()}
        | {"form": locked.form, "policy": locked.policy or "none"},
        extra=tuple(
            sorted(
                name
                for name in port.files()
                if name not in {*locked.files, *made, lock.NAME} and _loads(name)
            )
        ),
        files=tuple(
            File(name, locked.files.get(name), made.get(name), _held(port, name))
            for name in sorted({*locked.files, *made})
        ),
        claims=tuple(claims),
        notices=tuple(card.notices(written)),
        signature=signature,
    )


def check_claims(port: HubRepo, locked: lock.Lock, written: str) -> list[str]:
    """What the verdict and the card say that does not follow from the evidence in the lock."""
    try:
        evidence = Evidence.model_validate(locked.evidence) if locked.evidence else None
        policy = VerdictPolicy.model_validate(locked.verdict_policy or {})
        said = {"action": locked.verdict["action"], "reason": locked.verdict["reason"]}
    except (ValidationError, KeyError) as error:
        raise Refused(f"{port.name}: the evidence or verdict of {lock.NAME} is damaged.") from error
    found = []
    if evidence is not None and locked.verdict_policy is not None:
        from judging.verdict import judge  # SciPy takes a second to import

        verdict = judge(evidence, policy).model_dump()
        # Who may not write to a repo asks its owner, whatever the evidence says.
        asks = (said["action"], verdict["action"]) == ("ask", "publish")
        if verdict != said and not (asks and said["reason"].startswith(verdict["reason"])):
            found.append(
                f"its lock gives the verdict {said['action']} ({said['reason']}), and the "
                f"evidence there {verdict['action']} ({verdict['reason']})"
            )
    job = Job(
        key=locked.key,
        patch_repo=locked.patch.repo,
        patch_sha=locked.patch.sha,
        old_repo=locked.old_base.repo,
        old_sha=locked.old_base.sha,
        new_repo=locked.new_base.repo,
        new_sha=locked.new_base.sha,
        form=locked.form,
        to_repo=locked.to_repo or port.repo,
        policy=locked.policy,
        verdict_policy=locked.verdict_policy,
    )
    facts = card_facts(
        port.hub, job, job.patch(port.hub), locked.files, said, evidence,
        has_chart=chart.NAME in port.files(), engine=locked.engine,
    )  # fmt: skip
    # A mirror is not where it was published, and the card names the Hub where it was.
    here = written.replace(f"{HOME}/", f"{port.hub.endpoint}/")
    unlike = card.difference(written, facts) and card.difference(here, facts)
    # Whether it was asked for is not in the lock, nor is it a claim about the port.
    other = replace(facts, is_asked=not facts.is_asked)
    if unlike and card.difference(written, other) and card.difference(here, other):
        found.append(f"its card is not what the lock's evidence says: {unlike}")
    return found


def check_signature(port: HubRepo, locked: lock.Lock, public_key: Path | None) -> Signed | None:
    """Hold the signature of `port`, if it has one, against what is there. Raises as `verify`."""
    if signing.NAME not in port.files():
        if public_key is not None:
            raise Refused(f"{port.name} is not signed: it has no {signing.NAME}.")
        return None
    content = _read(port, signing.NAME)
    said = signing.read(content)
    names = sorted({*said.files, *locked.files, lock.NAME})
    unlike = [name for name in names if said.files.get(name) != _held(port, name)]
    faults = [f"what the Hub holds is not what was signed in {', '.join(unlike)}"] if unlike else []
    if public_key is not None and (fault := signing.check_signed(content, public_key)):
        faults.append(f"{signing.NAME}: {fault}")
    return Signed(said.key, public_key is not None, tuple(faults))


def _inputs(hub: Hub, locked: lock.Lock) -> Inputs:
    new, patch, old = (
        HubRepo(hub, named.repo, named.sha)
        for named in (locked.new_base, locked.patch, locked.old_base)
    )
    return Inputs(new, patch, old, locked.form, locked.policy)


def _loads(name: str) -> bool:
    """Whether a program that loads the repo may read this file."""
    return name.endswith(LOADED) or matches(name, TRAVEL)


def _held(port: HubRepo, name: str) -> str | None:
    """The sha256 of a file on the Hub, which tells it of large ones; small ones are read."""
    entry = port.files().get(name)
    if entry is None or SHA256.fullmatch(entry.digest):
        return entry.digest if entry else None
    return hashlib.sha256(_read(port, name)).hexdigest()


def _read(port: HubRepo, name: str) -> bytes:
    """A whole file; nothing where there is none."""
    entry = port.files().get(name)
    return port.read(name, 0, entry.size) if entry else b""
