"""A registry with something of everything that pages show; what is private has a mark."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.settings import Settings
from registry.database import Database
from registry.models import (
    Base,
    Control,
    Event,
    Patch,
    Port,
    PortState,
    Release,
    Rule,
    Subscription,
    Worker,
    now,
)

TOKEN = "a token of twenty-nine letters"
MARK = "sesame"  # in every string of what is private
BASE, PATCH = "vendor/Model-1B-Instruct", "me/tickets-lora"
ARMS = ("before", "old", "new", "port")
SHARES = {"before": 12, "old": 90, "new": 20, "port": 84}  # right answers of a hundred


def key(number: int) -> str:
    return f"port-{number:016x}"


def sha(number: int) -> str:
    return f"{number:040x}"[::-1]


def measured(task: str, metric: str = "accuracy") -> dict[str, Any]:
    def results(arm: str) -> str:
        if metric == "accuracy":
            return " ".join("1" if item < SHARES[arm] else "0" for item in range(100))
        return " ".join(str(0.8 + item / 1000) for item in range(100))

    return {
        "task": task,
        "digest": "d",
        "total": 400,
        "metric": metric,
        "items": " ".join(map(str, range(100))),
        "results": {arm: results(arm) for arm in ARMS},
    }


def evidence() -> dict[str, Any]:
    guard = [measured("general knowledge"), measured("plain text", "bits per byte")]
    total = {"ratio": 0.43, "lost": 0.012, "delta": 1.0, "drift": 0.43}
    return {
        "engine": "portllm 0.1.0, torch 2.13",
        "own": measured("tickets"),
        "guard": guard,
        "forecast": {"total": total, "modules": {}},
    }


class Furnished:
    """A context without a Hub; `add` says something to its records."""

    def __init__(self, home: Path, token: str | None = TOKEN) -> None:
        settings = Settings(home=home, api_token=SecretStr(token) if token else None)
        self.database = Database(settings.registry_url)
        hub = Hub("http://127.0.0.1:9", "none")
        self.context = Context(hub, HubPublisher(hub), self.database, settings)

    def patch(self, repo: str, private: bool = False, **facts: Any) -> int:
        usual = {
            "owner": repo.partition("/")[0], "sha": sha(1), "kind": "lora", "portability": "A",
            "base_repo": BASE, "base_sha": sha(2), "license": "apache-2.0", "task": "tickets",
            "pipeline_tag": "text-generation",
        }  # fmt: skip
        return self.add(Patch(repo=repo, private=private, **usual | facts))

    def base(self, repo: str = BASE, **facts: Any) -> int:
        usual = {
            "rule": Rule.REF, "ref": "main", "head_repo": repo, "head_ref": "main",
            "head_sha": sha(3), "looked_at": now(),
        }  # fmt: skip
        return self.add(Base(repo=repo, **usual | facts))

    def subscription(self, patch: int, base: int, to: str, **facts: Any) -> int:
        usual = {
            "form": "adapter", "from_repo": BASE, "from_sha": sha(2), "settled_repo": BASE,
            "settled_sha": sha(2), "created_at": now() - timedelta(days=99),
        }  # fmt: skip
        return self.add(Subscription(patch_id=patch, base_id=base, to_repo=to, **usual | facts))

    def release(self, base: int, number: int, change: str | None = "weights", **facts: Any) -> int:
        usual = {
            "from_repo": BASE, "from_ref": "main", "from_sha": sha(number - 1), "repo": BASE,
            "ref": "main", "sha": sha(number), "change": change,
            "reason": "The shapes are the same, other weights: 291 of 291 tensors.",
            "seen_at": datetime.fromisoformat("2026-08-01T10:00:00+00:00") + number * timedelta(3),
        }  # fmt: skip
        return self.add(Release(base_id=base, **usual | facts))

    def port(
        self, subscription: int, release: int, state: PortState, said: str = "", **facts: Any
    ) -> str:
        """Its log has what it says."""
        with self.database.session() as session:
            made_of = session.get_one(Subscription, subscription)
            new, patch = session.get_one(Release, release), made_of.patch
            name = key(session.query(Port).count() + 1)
            job = {
                "key": name, "patch_repo": patch.repo, "patch_sha": patch.sha,
                "old_repo": patch.base_repo, "old_sha": patch.base_sha, "new_repo": new.repo,
                "new_sha": new.sha, "form": made_of.form, "to_repo": made_of.to_repo,
                "policy": None, "verdict_policy": None,
            }  # fmt: skip
        action = {"published": "publish", "asked": "ask", "rejected": "reject"}.get(state)
        said = said or f"It is {state}, as it is said."
        if action:
            usual = {
                "evidence": evidence(), "verdict": {"action": action, "reason": said},
                "made": {"adapter/adapter_config.json": "6" * 64},
                "published_sha": sha(9) if action == "publish" else None,
                "published_at": now() if action != "reject" else None,
                "url": f"https://huggingface.co/{job['to_repo']}" if action != "reject" else None,
            }  # fmt: skip
        else:
            usual = {}
        facts = {"job": job, "reason": said} | usual | facts
        self.add(
            Port(key=name, subscription_id=subscription, release_id=release, state=state, **facts)
        )
        self.add(Event(port_key=name, attempt=1, step="make", text=f"Adding the patch. {said}"))
        return name

    def add(self, record: Any) -> Any:
        with self.database.session() as session:
            session.add(record)
            session.flush()
            return getattr(record, "id", None)


def furnish(place: Furnished) -> None:
    """Two public patches and a private one on the same base, and a base of the private one's."""
    base = place.base()
    tickets, other = place.patch(PATCH), place.patch("you/legal-dora", kind="dora", task="legal",
                                                     portability="C")  # fmt: skip
    hidden = place.patch(f"{MARK}/{MARK}-lora", private=True, task=MARK, base_repo=f"v/{MARK}")
    into = place.subscription(tickets, base, "me/tickets-lora-ported", group_name="night")
    merged = place.subscription(tickets, base, "me/tickets-merged", form="merged")
    place.subscription(other, base, "you/legal-ported", policy="reapply", paused_at=now())
    dark = place.subscription(hidden, base, f"{MARK}/ported", group_name="night",
                              notify={"webhook": f"https://hooks.example/{MARK}"})  # fmt: skip
    secret = place.base(f"v/{MARK}", problem=f"{MARK} is gone.")
    place.subscription(hidden, secret, f"{MARK}/other", form="merged")
    place.release(secret, 60, None, repo=f"v/{MARK}", reason=MARK)
    for number in range(1, 6):
        release = place.release(base, 10 + number)
        shown = PortState.REJECTED if number == 3 else PortState.PUBLISHED
        place.port(into, release, shown)
        place.port(merged, release, PortState.SUPERSEDED)
        place.port(dark, release, shown, MARK)
    place.release(base, 16, "metadata", reason="Only README.md changed.")
    release = place.release(base, 17)
    states = (PortState.RUNNING, PortState.FAILED, PortState.WAITING)
    place.port(into, release, PortState.JUDGED, f"Judged; its group waits for {MARK}/{MARK}-lora.")
    place.port(merged, release, PortState.WAITING, "The Hub did not answer.", attempt=3)
    for number, state in enumerate(states):
        place.port(dark, place.release(base, 20 + number, "metadata"), state, MARK, attempt=2)
    place.release(base, 30, None, reason=None)
    place.add(Worker(id=f"host-{MARK}"))
    place.add(Control(name="watcher", value={"worker": f"host-{MARK}"}))
