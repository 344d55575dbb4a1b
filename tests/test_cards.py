"""A port's card: evidence and provenance for readers, metadata for the Hub, owners' words kept."""

import json
from dataclasses import replace
from typing import Any

import pytest
import requests
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from judging.evidence import Evidence, Measured
from judging.policy import VerdictPolicy
from judging.verdict import judge, weigh_all
from localhub.server import Server
from patch_cards import lock
from patch_cards.account import account, is_served
from patch_cards.card import (
    BEGIN,
    END,
    CardFacts,
    difference,
    give_notice,
    notices,
    render,
    restore,
)
from patch_cards.harmless import LONGEST
from patch_cards.licences import Licence, Terms
from patch_cards.patch_card import PatchFacts
from patch_cards.patch_card import render as render_patch
from porting import Adapter, Layout, TensorInfo
from porting.errors import Refused
from porting.patch.updates import Absolute
from registry.history import Moment
from registry.models import now

OLD, NEW, NEWER, PATCH_SHA = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)


def found(**changes: Any) -> Adapter:
    """A LoRA as `read_adapter` finds it, without its tensors."""
    known: dict[str, Any] = {
        "config": {},
        "kind": "lora",
        "portability": "A",
        "reason": "it is added to the base",
        "base_repo": "vendor/base",
        "base_revision": OLD,
        "layout": Layout({}, (), None),
        "updates": (),
    }
    return Adapter(**known | changes)


RIGHT = {
    "before": [0] * 40,
    "old": [1] * 38 + [0] * 2,
    "new": [0] * 35 + [1] * 5,
    "port": [1] * 36 + [0] * 4,
}
BITS = {"before": [1.0] * 40, "old": [1.25] * 40, "new": [0.75] * 40, "port": [1.125] * 40}


def measured(task: str, metric: Any, results: dict[str, Any]) -> Measured:
    """40 items of a task."""
    items = list(range(1, 41))
    return Measured(task=task, digest="", total=40, metric=metric, items=items, results=results)


def facts(form: str = "adapter", new_sha: str = NEW, **changes: Any) -> CardFacts:
    policy = VerdictPolicy()
    evidence = Evidence(
        own=measured("sides", "accuracy", RIGHT), guard=[measured("text", "bits per byte", BITS)]
    )
    known: dict[str, Any] = {
        "repo": "owner/ported",
        "form": form,
        "kind": "lora",
        "account": account(found(), form, None),
        "tag": f"base-{new_sha[:7]}",
        "patch_repo": "owner/patch",
        "patch_sha": PATCH_SHA,
        "old_repo": "vendor/base",
        "old_sha": OLD,
        "new_repo": "vendor/base",
        "new_sha": new_sha,
        "terms": Terms(Licence("mit"), "The licence of both is MIT."),
        "pipeline_tag": "text-generation",
        "engine": "portllm 0.1.0",
        "files": {"adapter_model.safetensors": "0" * 64},
        "verdict": judge(evidence, policy).model_dump(),
        "evidence": evidence.model_dump(),
        "findings": weigh_all(evidence, policy).model_dump(),
        "prompt": "{text} w94",
        "languages": ["en"],
        "datasets": ["owner/sides"],
        "dataset": None,
        "home": "https://hub.test",
        "is_served": True,
        "is_asked": False,
        "has_chart": True,
    }
    return CardFacts(**known | changes)


FIRST, SECOND = facts(), facts("both", NEWER)


def metadata(card: str) -> dict[str, Any]:
    head = card.removeprefix("---\n").partition("\n---\n")[0]
    loaded = yaml.safe_load(head)
    assert isinstance(loaded, dict)
    return loaded


def outside(card: str) -> tuple[str, str]:
    """What stands before and after the generated part, without the metadata."""
    body = card.partition("\n---\n")[2]
    before, _, rest = body.partition(BEGIN)
    return before, rest.partition(END)[2]


def test_the_card_has_the_evidence_and_where_it_comes_from() -> None:
    card = render(FIRST)
    assert "Task `sides`: 40 of the 40 items" in card
    assert "| sides | old base + patch | 95.0 |" in card
    assert "| sides | new base alone | 12.5 |" in card
    assert "| sides | new base + ported patch | 90.0 |" in card
    assert "| text | new base + ported patch | 1.125 |" in card
    assert "| sides: port - new base alone | +77.5 points |" in card
    assert "| sides: port - old base with the patch | -5.0 points |" in card
    assert "beyond what it did to the old | -0.125 bits |" in card
    assert "Of the 40 items, 2 that the old base with the patch answered right are wrong" in card
    assert f"**\u2717 Verdict: reject.** {FIRST.verdict['reason']}" in card
    for known in (OLD, NEW, PATCH_SHA, "owner/patch", "vendor/base", "{text} w94", "portllm 0.1.0"):
        assert known in card


def test_the_metadata_is_what_the_hub_builds_its_model_tree_from() -> None:
    adapter, merged, both = (
        metadata(render(facts(form))) for form in ("adapter", "merged", "both")
    )
    for card in (adapter, merged, both):
        assert card["base_model"] == ["vendor/base", "owner/patch"]
    assert adapter["base_model_relation"] == "adapter" and adapter["library_name"] == "peft"
    for whole in (merged, both):
        assert whole["base_model_relation"] == "merge"
        assert whole["library_name"] == "transformers"
    assert adapter["tags"] == ["portllm", "lora", "base-bbbbbbb"]
    assert (adapter["license"], adapter["pipeline_tag"]) == ("mit", "text-generation")
    assert (adapter["language"], adapter["datasets"]) == (["en"], ["owner/sides"])
    unknown = Terms(Licence(None), "")
    silent = metadata(render(facts(terms=unknown, pipeline_tag=None, languages=[], datasets=[])))
    assert not {"license", "pipeline_tag", "language", "datasets"} & silent.keys()
    alone = metadata(render(facts("merged", patch_repo="owner/ported")))
    assert alone["base_model"] == ["vendor/base"] and alone["base_model_relation"] == "finetune"


def test_a_licence_replaces_all_of_the_former_one() -> None:
    named = Terms(Licence("other", "house", "https://hub.test/licence"), "")
    first = render(facts(terms=named))
    assert metadata(first)["license_name"] == "house"
    assert metadata(first)["license_link"] == "https://hub.test/licence"
    second = metadata(render(SECOND, first))
    assert second["license"] == "mit" and not {"license_name", "license_link"} & second.keys()


def test_the_clients_of_the_hub_read_what_was_measured() -> None:
    named = facts(dataset=("owner/items", "e" * 40))
    name, results = model_index_to_eval_results(metadata(render(named))["model-index"])
    assert name == "ported" and len(results) == 2
    own, guard = results
    assert (own.dataset_type, own.dataset_revision) == ("owner/items", "e" * 40)
    assert (own.metric_type, own.metric_value, own.task_type) == (
        "accuracy", 0.9, "text-generation"
    )  # fmt: skip
    assert (guard.dataset_name, guard.metric_type) == ("text", "bits_per_byte")
    assert guard.metric_value == 1.125
    assert own.source_url == "https://hub.test/owner/ported/blob/base-bbbbbbb/portllm.lock.json"
    assert "model-index" not in metadata(render(facts(evidence=None, findings=None)))


def test_an_owners_results_stay_beside_ours() -> None:
    theirs = {"name": "mine", "results": [{"task": {"type": "x"}, "source": {"name": "me"}}]}
    first = render(FIRST, f"---\n{yaml.safe_dump({'model-index': [theirs]})}---\n")
    index = metadata(render(SECOND, first))["model-index"]
    assert len(index) == 2 and index[1] == theirs and "base-ccccccc" in str(index[0])
    unmeasured = metadata(render(facts(evidence=None, findings=None), render(SECOND, first)))
    assert unmeasured["model-index"] == [theirs]
    back = metadata(restore(first, render(SECOND, first)))
    assert back["model-index"] == metadata(first)["model-index"]


def test_the_card_says_how_to_load_what_is_there() -> None:
    adapter, merged, both = (render(facts(form)) for form in ("adapter", "merged", "both"))
    pin = 'revision="base-bbbbbbb"'
    assert f'PeftModel.from_pretrained(model, "owner/ported", {pin})' in adapter
    assert f'"vendor/base", "{NEW}"' in adapter
    assert f"--revision {NEW} --tokenizer-revision {NEW}" in adapter
    assert 'ported="$(hf download owner/ported --revision base-bbbbbbb)"' in adapter
    assert "PeftModel" not in merged and f'from_pretrained("owner/ported", {pin})' in merged
    assert "--revision base-bbbbbbb --tokenizer-revision base-bbbbbbb" in merged
    assert 'subfolder="adapter"' in both and 'subfolder="adapter"' not in adapter + merged
    assert "on the merged weights" in merged and "on the merged weights" not in adapter
    assert "vllm serve" not in render(facts(is_served=False))
    assert "may move on" in adapter and "refs/pr/" not in adapter
    asked = render(facts(is_asked=True))
    assert "refs/pr/NUMBER" in asked and "if PortLLM may write here; otherwise" in asked


def test_what_was_not_measured_is_not_claimed() -> None:
    unmeasured = render(facts(evidence=None, findings=None, prompt=None))
    assert "## Evidence" not in unmeasured and "None" not in unmeasured
    assert "portllm-chart.svg" in render(FIRST) and "portllm-chart.svg" not in unmeasured


@pytest.mark.parametrize("form", ["adapter", "merged", "both"])
def test_the_hub_and_its_client_take_the_card(hub: Server, form: str) -> None:
    card = render(facts(form), "---\nlanguage: [en]\n---\n# Mine\n")
    url = f"{hub.endpoint}/api/validate-yaml"
    answer = requests.post(url, json={"content": card, "repoType": "model"}, timeout=30)
    assert answer.status_code == 200 and answer.json()["errors"] == []
    parsed = ModelCard(card)
    assert parsed.data.base_model == ["vendor/base", "owner/patch"] and parsed.data.language == [
        "en"
    ]
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("owner"))
    api.create_repo("owner/ported")
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="owner/ported")
    relation = "adapter" if form == "adapter" else "merge"
    for above in ("vendor/base", "owner/patch"):  # the port is found below both
        (found,) = api.list_models(filter=f"base_model:{relation}:{above}")
        assert found.id == "owner/ported"


@pytest.mark.parametrize(
    ("field", "value"),
    [("datasets", [None]), ("license", 3), ("base_model", "a b"), ("model-index", [{"name": "x"}])],
)
def test_the_local_hub_refuses_what_the_hub_does(hub: Server, field: str, value: object) -> None:
    content = f"---\n{json.dumps({field: value})}\n---\n"
    asked = {"content": content, "repoType": "model"}
    answer = requests.post(f"{hub.endpoint}/api/validate-yaml", json=asked, timeout=30)
    assert answer.status_code == 400 and f'"{field}[0]' in answer.json()["errors"][0]["message"]


BODY = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(before=BODY, after=BODY)
@settings(deadline=None, max_examples=50)
def test_an_owners_words_survive_every_port_byte_for_byte(before: str, after: str) -> None:
    assume("portllm:" not in before + after and not before.startswith("---"))
    card = render(FIRST, before)
    assert outside(card)[0].startswith(before)
    edited = card + after
    kept = outside(edited)
    for new in (SECOND, FIRST, SECOND):
        edited = render(new, edited)
        assert outside(edited) == kept
    assert edited.count(BEGIN) == edited.count(END) == 1
    assert NEWER in edited and render(SECOND, edited) == edited


@pytest.mark.parametrize(
    ("card", "body"),
    [
        ("---\nmine: 1\n---\n# Hello\n", "# Hello\n"),
        ("---\r\nmine: 1\r\n---\r\n# Hello\r\n", "# Hello\r\n"),
        ("---\nmine: 1\n---", ""),
        ("---\n---\n# Hello\n", "# Hello\n"),
        ("# Hello\n\n---\n\nA line is no metadata\n\n---\n", None),
        ("# No newline at the end", None),
        ("", None),
    ],
)
def test_metadata_and_words_are_told_apart(card: str, body: str | None) -> None:
    rendered = render(FIRST, card)
    assert outside(rendered)[0].rstrip("\n") == (card if body is None else body).rstrip("\n")
    assert metadata(rendered).get("mine") == (1 if "mine" in card else None)


OF_PATCH = PatchFacts("owner/patch", "lora", "A", "vendor/base", OLD, "sides", [], False)


@given(before=BODY, after=BODY)
@settings(deadline=None, max_examples=50)
def test_the_owner_of_a_patch_keeps_words_and_metadata(before: str, after: str) -> None:
    assume("portllm:" not in before + after and not before.startswith("---"))
    head = "---\nbase_model: vendor/other\ntags: [mine]\n---\n"
    edited = render_patch(OF_PATCH, head + before) + after
    kept = outside(edited)
    assert kept[0].startswith(before) and kept[1].endswith(after)
    again = render_patch(OF_PATCH, edited)
    assert outside(again) == kept and again.count(BEGIN) == 1
    card = metadata(again)
    assert card["tags"] == ["mine", "portllm", "lora"] and card["base_model"] == "vendor/other"
    assert card["base_model_relation"] == "adapter" and OLD in again


def test_what_is_not_additive_has_two_ways_in_the_card_of_a_patch() -> None:
    card = render_patch(replace(OF_PATCH, kind="dora", portability="C"), "")
    assert "its operator works on the new base's weights, or what it did to the old ones" in card


def test_the_card_of_a_patch_leads_to_its_ports_where_they_are() -> None:
    url = f"https://hub.test/other/ported/tree/{NEWER}"  # there is no tag: it is not the bot's repo
    port = Moment("port", "other/ported", "vendor/base", NEW, now(), "published", "publish", url)
    card = render_patch(replace(OF_PATCH, ports=[port, replace(port, state="asked")]), "")
    assert card.count(f"[other/ported]({url})") == 1 and "| asked |" in card


KEYS = st.text("abcdefghij_-", min_size=1, max_size=12)
OURS = {"base_model", "base_model_relation", "library_name", "tags", "license", "pipeline_tag"}
OURS |= {"license_name", "license_link", "model-index"}
WORDS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
TAGS = st.lists(WORDS, max_size=5)


@given(own=st.dictionaries(KEYS.filter(lambda key: key not in OURS), VALUES), tags=TAGS)
@settings(deadline=None, max_examples=50)
def test_an_owners_metadata_and_tags_survive(own: dict[str, Any], tags: list[str]) -> None:
    head = yaml.safe_dump(own | {"tags": tags}, allow_unicode=True)
    first = render(FIRST, f"---\n{head}---\n# Mine\n")
    card = metadata(render(SECOND, first))
    assert {key: card[key] for key in own} == own
    assert card["tags"][:3] == ["portllm", "lora", "base-ccccccc"]
    assert [tag for tag in tags if tag not in card["tags"]] == []
    assert len(card["tags"]) == 3 + len([tag for tag in tags if tag not in card["tags"][:3]])


def test_only_the_tags_of_earlier_ports_are_replaced() -> None:
    card = render(SECOND, "---\ntags: [base-bbbbbbb, base-camp, 2026]\n---\n")
    assert metadata(card)["tags"] == ["portllm", "lora", "base-ccccccc", "base-camp", 2026]


def test_what_is_not_the_owners_is_replaced() -> None:
    card = metadata(render(FIRST, "---\nbase_model: somebody/else\ntags: none\n---\n"))
    assert card["base_model"][0] == "vendor/base" and card["tags"][0] == "portllm"
    assert metadata(render(FIRST, "---\n- a\n- list\n---\n")) == metadata(render(FIRST))


@given(st.lists(st.sampled_from(["Withdrawn", "Rolled back"]), max_size=3))
def test_notices_are_no_difference_and_are_found(kinds: list[str]) -> None:
    card, said = render(FIRST), [f"**{kind}:** {n}" for n, kind in enumerate(kinds)]
    for each in said:
        card = give_notice(card, each)
    assert difference(card, FIRST) is None and notices(card) == said[::-1]


def test_without_the_end_marker_nothing_is_replaced() -> None:
    card = render(FIRST, "# Mine\n").replace(END, "")
    with pytest.raises(Refused, match=r"README\.md.*portllm:end.* is missing"):
        render(SECOND, card)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntags: [*c, *c]"


@pytest.mark.parametrize(
    "hostile",
    [
        "a: [", "a: b: c", "\ta: 1", "a: \x00", "a: !!python/object/apply:os.getcwd []",
        "a: !!bool x", 'a: !!int ""', "a: !!timestamp x",
        "a: 2024-99-99", "a: 0b_", BOMB, "[" * 60_000, "{" * 60_000, "- " * 30_000,
        "a: " + "[" * 60_000 + "]" * 1, "tags: [" + "[" * 400 + "]" * 400 + "]",
        "# " + "x" * LONGEST + "\na: 1", "[" * 250_000,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_metadata_is_refused_soon(hostile: str) -> None:
    with pytest.raises(Refused, match=r"README\.md: its metadata"):
        render(FIRST, f"---\n{hostile}\n---\n# Mine\n")


def locked(**changes: Any) -> lock.Lock:
    known: dict[str, Any] = {
        "key": "port-1",
        "engine": "portllm 0.1.0",
        "patch": {"repo": "owner/patch", "sha": PATCH_SHA},
        "old_base": {"repo": "vendor/base", "sha": OLD},
        "new_base": {"repo": "vendor/base", "sha": NEW},
        "form": "adapter",
        "files": {"b": "1" * 64, "a": "0" * 64},
        "verdict": FIRST.verdict,
        "evidence": FIRST.evidence,
    }
    return lock.Lock(**known | changes)


def test_the_lock_file_comes_back_as_it_was_written() -> None:
    content = locked(policy="freeze").render()
    assert json.loads(content)["evidence"] == FIRST.evidence
    read = lock.parse(content)
    assert list(read.files) == ["a", "b"] and read == locked(policy="freeze")
    assert locked(policy="freeze", files={"a": "0" * 64, "b": "1" * 64}).render() == content
    assert content.endswith(b"}\n")


def test_a_lock_file_of_an_earlier_version_has_no_policy() -> None:
    content = json.loads(locked().render())
    del content["policy"]
    assert lock.parse(json.dumps(content).encode()) == locked(policy=None)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"null", b'{"files": 1}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_lock_file_is_refused(content: bytes) -> None:
    with pytest.raises(Refused, match=r"portllm\.lock\.json is damaged"):
        lock.parse(content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch", {"repo": "../x/y", "sha": OLD}),
        ("old_base", {"repo": "vendor/base", "sha": "main"}),
        ("new_base", {"repo": "vendor/base"}),
        ("form", "pickle"),
        ("policy", "guess"),
        ("files", {"a": "0" * 63}),
    ],
)
def test_what_a_hostile_lock_file_names_is_refused(field: str, value: object) -> None:
    content = json.loads(locked().render()) | {field: value}
    with pytest.raises(Refused, match=rf"portllm\.lock\.json is damaged \({field}"):
        lock.parse(json.dumps(content).encode())


def saved(field: str = "modules_to_save") -> Absolute:
    tensor = TensorInfo("base_model.model.lm_head.weight", "x", "F32", (2, 2), 0, 16)
    return Absolute("lm_head.weight", tensor, field)


@pytest.mark.parametrize(
    ("adapter", "form", "policy", "words"),
    [
        (found(), "both", None, ("Added: `W' = W_new + dW`",)),
        (found(updates=(saved(),)), "merged", None, ("Added:", "(modules_to_save)", "differences")),
        (found(kind="pissa", portability="B"), "adapter", None, ("Converted: pissa", "plain LoRA")),
        (found(kind="pissa", portability="B"), "merged", None, ("Converted: pissa", "weights")),
        (
            found(kind="olora", portability="B", updates=(saved(),)),
            "adapter",
            None,
            ("Converted: olora", "plain LoRA", "(modules_to_save)", "differences"),
        ),
        (found(kind="dora", portability="C"), "both", "reapply", ("Reapplied: dora", "f(W_new)")),
        (found(kind="dora", portability="C"), "adapter", None, ("Reapplied: dora", "is loaded")),
        (found(kind="dora", portability="C"), "merged", "freeze", ("Frozen: dora", "f(W_old)")),
        (found(kind="use_qalora", portability="D"), "adapter", None, ("Copied as it is",)),
    ],
)
def test_a_card_says_what_was_done(
    adapter: Adapter, form: str, policy: str | None, words: tuple[str, ...]
) -> None:
    said = account(adapter, form, policy)
    assert all(word in said for word in words)
    card = render(facts(form, kind=adapter.kind, account=said))
    assert said in card and metadata(card)["tags"][:2] == ["portllm", adapter.kind]
    assert ("byte for byte those of the base" in card) == (form != "adapter")


@pytest.mark.parametrize(
    ("adapter", "served"),
    [
        (found(), True),
        (found(kind="rslora"), True),
        (found(kind="pissa", portability="B"), True),  # it comes out as a plain LoRA
        (found(kind="pissa", portability="B", updates=(saved(),)), False),
        (found(updates=(saved("bias"),)), False),
        (found(kind="loha"), False),
        (found(kind="dora", portability="C"), False),
    ],
)
def test_what_comes_out_as_a_plain_lora_is_served_by_vllm(adapter: Adapter, served: bool) -> None:
    assert is_served(adapter) == served
