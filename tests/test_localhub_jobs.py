"""Jobs through the client's own calls: recorded as asked for, and never run."""

import json
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, Volume
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from localhub.jobs import JOBS, SCHEDULED, show_spec
from localhub.server import Server
from localhub.webhooks import Delivery

IMAGE, COMMAND = "python:3.12", ["python", "-c", "print('hello')"]
WATCH = [{"type": "org", "name": "acme"}]


pytestmark = pytest.mark.filterwarnings("ignore:.*is experimental:UserWarning")


@pytest.fixture
def api(hub: Server) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", orgs=("acme",)))


@pytest.fixture
def bob(hub: Server) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("bob"))


def run(api: HfApi, **more: Any) -> Any:
    return api.run_job(image=IMAGE, command=COMMAND, **more)


def test_a_job_is_recorded_as_it_was_asked_for(hub: Server, api: HfApi) -> None:
    volume = Volume(type="model", source="acme/m", mount_path="/m", read_only=True)
    job = run(
        api,
        env={"A": "1"},
        secrets={"HF_TOKEN": "hf_secret"},
        flavor="cpu-upgrade",
        timeout="2h",
        attempts=3,
        name="port",
        labels={"team": "ml"},
        volumes=[volume],
        expose=[8000],
        namespace="acme",
    )
    (recorded,) = hub.jobs.of(JOBS)
    assert recorded["body"] == {
        "command": COMMAND,
        "arguments": [],
        "environment": {"A": "1"},
        "flavor": "cpu-upgrade",
        "secrets": {"HF_TOKEN": "hf_secret"},
        "timeoutSeconds": 7200,
        "attempts": 3,
        "labels": {"team": "ml", "name": "port"},
        "volumes": [volume.to_dict()],
        "expose": {"ports": [8000], "portsPublic": []},
        "dockerImage": IMAGE,
    }
    assert (job.docker_image, job.command, job.flavor) == (IMAGE, COMMAND, "cpu-upgrade")
    assert (job.owner.name, job.owner.type, job.initiator.name) == ("acme", "org", "alice")
    assert (job.volumes, job.expose, job.retry) == ([volume], [8000], 2)
    assert job.secrets == ["HF_TOKEN"] and "hf_secret" not in str(job)
    assert job.url == f"{hub.endpoint}/jobs/acme/{job.id}"
    assert job.status.stage == "SCHEDULING" and job.created_at
    assert api.inspect_job(job_id=job.id, namespace="acme") == job


def test_listing_and_cancelling(api: HfApi) -> None:
    one = run(api, labels={"team": "ml"}, namespace="alice")
    two = api.run_uv_job("lighteval", script_args=["--x"], dependencies=["trl"], python="3.12")
    assert two.command == ["uv", "run", "--with", "trl", "--python", "3.12", "lighteval", "--x"]

    def listed(**query: Any) -> list[str]:
        return [job.id for job in api.list_jobs(namespace="alice", **query)]

    assert listed() == [two.id, one.id]
    assert listed(labels={"team": "ml"}) == [one.id]
    assert listed(labels={"team": "other"}) == []
    api.cancel_job(job_id=one.id)
    assert api.wait_for_job(one.id).status.stage == "CANCELED"
    assert listed(status="canceled") == [one.id]
    assert listed(status=["scheduling", "running"]) == [two.id]
    assert list(api.list_jobs(namespace="acme")) == []


def test_a_scheduled_job_through_its_life(hub: Server, api: HfApi) -> None:
    made = api.create_scheduled_job(
        image="hf.co/spaces/acme/s", command=COMMAND, schedule="@hourly", env={"A": "1"}
    )
    assert hub.jobs.of(SCHEDULED)[0]["body"] == {
        "jobSpec": {
            "command": COMMAND,
            "arguments": [],
            "environment": {"A": "1"},
            "flavor": "cpu-basic",
            "labels": {"name": made.job_spec.labels["name"]},
            "spaceId": "acme/s",
        },
        "schedule": "@hourly",
    }
    assert (made.job_spec.space_id, made.schedule, made.suspend) == ("acme/s", "@hourly", False)
    uv = api.create_scheduled_uv_job(
        "https://example.com/poll.py", schedule="*/5 * * * *", suspend=True, concurrency=False
    )
    assert uv.job_spec.command == ["uv", "run", "https://example.com/poll.py"]
    assert (uv.suspend, uv.concurrency, uv.schedule) == (True, False, "*/5 * * * *")
    assert [job.id for job in api.list_scheduled_jobs()] == [uv.id, made.id]
    api.suspend_scheduled_job(scheduled_job_id=made.id)
    assert api.inspect_scheduled_job(scheduled_job_id=made.id).suspend
    api.resume_scheduled_job(scheduled_job_id=made.id)
    daily = api.update_scheduled_job_schedule(scheduled_job_id=made.id, schedule="@daily")
    assert (daily.suspend, daily.schedule) == (False, "@daily")
    started = api.trigger_scheduled_job(scheduled_job_id=made.id)
    assert (started.initiator.type, started.initiator.id) == ("scheduled-job", made.id)
    assert started.command == COMMAND
    last = api.inspect_scheduled_job(scheduled_job_id=made.id).status.last_job
    assert last and last.id == started.id
    api.delete_scheduled_job(scheduled_job_id=made.id)
    assert [job.id for job in api.list_scheduled_jobs()] == [uv.id]
    with pytest.raises(JobNotFoundError):
        api.inspect_scheduled_job(scheduled_job_id=made.id)
    assert api.inspect_job(job_id=started.id).id == started.id


def test_jobs_of_others_and_malformed_ones(hub: Server, api: HfApi, bob: HfApi) -> None:
    job = run(api, namespace="acme")
    for call in (
        lambda: run(bob, namespace="acme"),
        lambda: list(bob.list_jobs(namespace="acme")),
        lambda: bob.inspect_job(job_id=job.id, namespace="acme"),
        lambda: bob.cancel_job(job_id=job.id, namespace="acme"),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            call()
    for call in (
        lambda: bob.inspect_job(job_id=job.id, namespace="bob"),
        lambda: api.cancel_job(job_id="0" * 24),
        lambda: bob.create_webhook(job_id=job.id, watched=WATCH),
    ):
        with pytest.raises(HfHubHTTPError, match="404"):
            call()
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", role="read"))
    with pytest.raises(HfHubHTTPError, match="can only read"):
        run(reader)
    with pytest.raises(HfHubHTTPError, match="'environment' of a job must map names to strings"):
        run(api, env={"A": 1})
    with pytest.raises(HfHubHTTPError, match="list of strings"):
        api.run_job(image=IMAGE, command="python")  # type: ignore[arg-type]
    for schedule in ("@often", "* * * *", "5"):
        with pytest.raises(HfHubHTTPError, match="A schedule is"):
            api.create_scheduled_job(image=IMAGE, command=COMMAND, schedule=schedule)
    assert [each["id"] for each in hub.jobs.of(JOBS)] == [job.id]


def test_a_webhook_starts_a_job_at_each_event(hub: Server, api: HfApi) -> None:
    volume = Volume(type="model", source="acme/m", mount_path="/m")
    job = run(api, env={"A": "1"}, secrets={"S": "1", "T": "2"}, volumes=[volume], namespace="acme")
    hook = api.create_webhook(
        job_id=job.id, watched=WATCH, domains=["repo"], secret="shared", secrets={"S": "", "U": "3"}
    )
    assert hook.url is None and hook.job and hook.job.command == COMMAND
    assert hook.job.secrets == ["U"] and hook.job.volumes is None
    assert api.get_webhook(hook.id) == hook == api.list_webhooks()[0]
    told: list[Delivery] = []
    hub.webhooks.plan = lambda delivery: told.append(delivery) or ()
    api.create_repo("acme/m")
    operations = [CommitOperationAdd("a", b"a")]
    sha = api.create_commit("acme/m", operations, commit_message="Add a").oid
    for delivery in (*told, told[-1]):  # the last one twice
        hub.webhooks.deliver(delivery)
    _, created, *started = hub.jobs.of(JOBS)
    assert json.loads(created["body"]["environment"]["WEBHOOK_PAYLOAD"])["event"] == {
        "action": "create",
        "scope": "repo",
    }
    assert len(started) == 2 and started[0]["body"] == started[1]["body"]
    body = started[0]["body"]
    environment = body["environment"]
    payload = json.loads(environment.pop("WEBHOOK_PAYLOAD"))
    assert payload["updatedRefs"][0]["newSha"] == sha
    assert payload["webhook"] == {"id": hook.id, "version": 3}
    assert environment.pop("WEBHOOK_ID") == told[1].id
    assert environment == {
        "A": "1",
        "WEBHOOK_REPO_ID": "acme/m",
        "WEBHOOK_REPO_TYPE": "model",
        "WEBHOOK_SECRET": "shared",
    }
    assert body["secrets"] == {"U": "3"} and "volumes" not in body
    assert next(iter(api.list_jobs(namespace="acme"))).initiator.type == "webhook"
    moved = api.update_webhook(hook.id, url="http://127.0.0.1:9/x")
    assert (moved.url, moved.job) == ("http://127.0.0.1:9/x", None)
    back = api.update_webhook(hook.id, job_id=job.id, secrets={"U": "4"})
    assert back.url is None and back.job and back.job.secrets == ["U"]


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=8).map("s3cr3t-{}".format)))
def test_an_answer_names_secrets_and_tells_none(secrets: dict[str, str]) -> None:
    shown = show_spec({"command": [], "secrets": secrets})
    assert shown["secrets"] == sorted(secrets)
    assert "s3cr3t-" not in json.dumps({**shown, "secrets": []})
