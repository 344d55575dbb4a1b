"""Judging on tiny models, against likelihoods, generations and merges worked out here."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from peft import PeftModel, get_peft_config, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from judging import named as named_module
from judging.evidence import Evidence
from judging.guard import guard
from judging.model import Models
from judging.named import named
from judging.policy import VerdictPolicy
from judging.probe import faults, probe
from judging.run import Arm, Case, run
from judging.score import score
from judging.slice import SCALES, take_slice
from judging.spec import NUMBER, Item
from judging.task import SLICED, Task, order
from porting import Folder, merge, plan
from porting.errors import Refused
from porting.stack import stack
from tests.tiny import (
    TARGETS,
    edit_json,
    load,
    load_adapted,
    save_adapter,
    save_base,
    save_tokenizer,
)

IDS = torch.arange(1, 30)[None]
COUNT = 44
CHOICES = [" w90 w1", " w91 w2", " w92 w3"]


def nothing(*_: Any) -> None:
    """Told how far something is."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old base, a new one, which is the old one moved a little, and patches of the old one."""
    home = tmp_path_factory.mktemp("judging")
    old = save_tokenizer(save_base(home / "old"))
    new = Path(shutil.copytree(old, home / "new"))
    edit_weights(new, lambda _, value: value + 1e-3 * torch.randn(value.shape))
    for name in ("a", "b"):
        save_adapter(home / name, old, seed=ord(name))
    return home


def edit_weights(folder: Path, edit: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    file = next(folder.glob("*.safetensors"))
    torch.manual_seed(0)
    edited = {name: edit(name, value) for name, value in load_file(file).items()}
    save_file(edited, file, metadata={"format": "pt"})


def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(base)


def make(kind: Any, items: list[Item], **spec: Any) -> Task:
    """A task of `items`, asked in their own order."""
    digest = f"{kind} {spec} {items}"
    ordered = [items[number - 1] for number in order(digest, len(items))]
    return Task(name="mine", kind=kind, items=ordered, digest=digest, spec=spec)


def words(seed: int, count: int) -> str:
    drawn = torch.randint(90, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{word}" for word in drawn.tolist())


def choice(count: int = COUNT, choices: list[str] = CHOICES) -> Task:
    """Items of 3 to 9 words, so that batches are padded."""
    items = [
        Item(number=n, query=words(n, 3 + n % 7), choices=choices, gold=n % 3)
        for n in range(1, count + 1)
    ]
    return make("choice", items)


def asked(base: Path, adapter: Path | None, task: Task, *cuts: int) -> list[float]:
    """The results of all items, asked in parts that end at `cuts`."""
    results, ends = [], [0, *cuts, len(task.items)]
    with Models().on(base, adapter) as loaded:
        for start, stop in itertools.pairwise(ends):
            results += score(loaded, task, start, stop, nothing)
    return results


@torch.no_grad()
def likelihood(model: torch.nn.Module, before: list[int], after: list[int]) -> float:
    logs = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(before) - 1 + n, token]) for n, token in enumerate(after))


def test_a_choice_is_right_where_its_likelihood_is_the_largest(home: Path) -> None:
    task, model, ids = choice(), load_adapted(home / "old", home / "a"), tokenizer(home / "old")
    wanted = []
    for item in task.items:
        found = [
            likelihood(model, ids(item.query)["input_ids"], ids(text)["input_ids"])
            for text in item.choices
        ]
        wanted.append(float(found.index(max(found)) == item.gold))
    assert 0 < sum(wanted) < len(wanted)
    assert asked(home / "old", home / "a", task) == wanted
    assert asked(home / "old", home / "a", task, 7, 20) == wanted


def test_a_text_has_the_bits_per_byte_of_its_likelihood(home: Path) -> None:
    task = make("text", [Item(number=n, query=words(n, 1 + 2 * n)) for n in range(1, 9)])
    model, ids = load(home / "old"), tokenizer(home / "old")
    wanted = [
        -likelihood(model, [ids.eos_token_id], ids(item.query)["input_ids"])
        / (len(item.query.encode()) * math.log(2))
        for item in task.items
    ]
    assert asked(home / "old", None, task, 3) == pytest.approx(wanted, rel=1e-5)


def with_beginning(base: Path) -> Path:
    """Its tokenizer puts w5 before whatever it reads, as those of Llama, Mistral and Gemma do."""
    ids = tokenizer(base)
    ids.backend_tokenizer.post_processor = TemplateProcessing("w5 $A", None, [("w5", 6)])
    ids.bos_token = "w5"
    ids.save_pretrained(base)
    assert tokenizer(base)("w1")["input_ids"] == [6, 2]
    return base


def test_one_prefix_stands_before_a_text_whose_tokenizer_brings_one(
    home: Path, tmp_path: Path
) -> None:
    base = with_beginning(Path(shutil.copytree(home / "new", tmp_path / "base")))
    texts = make("text", [Item(number=n, query=words(n, 1 + 2 * n)) for n in range(1, 9)])
    wanted = []
    for item in texts.items:
        ids = tokenizer(base)(item.query, add_special_tokens=False)["input_ids"]
        wanted.append((-likelihood(load(base), [6], ids), len(ids), len(item.query)))
    bits = [nats / (size * math.log(2)) for nats, _, size in wanted]
    assert asked(base, None, texts) == pytest.approx(bits, rel=1e-5)
    with Models().on(base, home / "a") as loaded:
        found = take_slice(loaded, texts, nothing)
    assert found is not None
    mean = [nats / count for nats, count, _ in wanted]
    assert [row[found.scales.index(0)] for row in found.losses] == pytest.approx(mean, rel=1e-5)


def test_a_prompt_keeps_the_prefix_of_its_tokenizer(home: Path, tmp_path: Path) -> None:
    base = with_beginning(Path(shutil.copytree(home / "old", tmp_path / "base")))
    task, model, ids = choice(), load(base), tokenizer(base)
    wanted = []
    for item in task.items:
        found = [
            likelihood(model, ids(item.query)["input_ids"], ids(text)["input_ids"][1:])
            for text in item.choices
        ]
        wanted.append(float(found.index(max(found)) == item.gold))
    assert asked(base, None, task) == wanted != asked(home / "old", None, task)


def test_a_generation_is_right_as_a_text_or_by_its_last_number(home: Path) -> None:
    model, ids = load(home / "old"), tokenizer(home / "old")
    written = []
    for seed in range(6):
        before = torch.tensor([ids(words(seed, 4))["input_ids"]])
        after = model.generate(before, do_sample=False, max_new_tokens=5)[0, before.shape[1] :]
        written.append(ids.decode(after, skip_special_tokens=True))
    assert all(text.count("w") == 5 for text in written)
    for compare, answers in (
        ("text", [f" {text.upper()} " for text in written]),
        ("last-number", [f"1 or #### {text.rpartition('w')[2]}.0" for text in written]),
    ):
        for right in (1.0, 0.0):
            items = [
                Item(number=n + 1, query=words(n, 4), answer=answer if right else answer + "5 6")
                for n, answer in enumerate(answers)
            ]
            task = make("generation", items, compare=compare, max_tokens=5, stop=["\n\n"])
            assert asked(home / "old", None, task, 2) == [right] * 6


@pytest.mark.parametrize(
    ("text", "last"),
    [("so 12 - 5 = 7.", "7"), ("-3", "-3"), ("in 1990-2020", "2020"), ("$1,000.50,", "1,000.50")],
)
def test_the_last_number_of_a_text(text: str, last: str) -> None:
    assert NUMBER.findall(text)[-1].rstrip(",") == last


@pytest.mark.parametrize("kind", ["choice", "text", "generation"])
def test_a_model_that_yields_nan_is_refused_by_arm_and_task(
    home: Path, tmp_path: Path, kind: str
) -> None:
    broken = Path(shutil.copytree(home / "old", tmp_path / "broken"))
    edit_weights(broken, lambda name, value: value * math.nan if "down_proj" in name else value)
    choices = CHOICES if kind == "choice" else []
    item = Item(number=1, query="w1 w2", choices=choices, answer="w3")
    task = make(kind, [item], compare="text", max_tokens=2, stop=[])
    made = case(home, "a", own=task)
    made.arms["new"].base = broken
    with pytest.raises(Refused, match=r"^mine: new base alone yields NaN"):
        run([made], nothing)


REFUSED: list[tuple[list[str], dict[str, Any], str]] = [
    ([" w2", " "], {}, r"labels: the answer ' ' has no token .* ends with 'w1'"),
    ([" w2", " w3 " * 20], {"choices_field": "options"},
     r"options: the answer ' w3  .* has 20 tokens, and new base alone reads 16 at most"),
    ([" w2 w3", " w4", " w2"], {},
     r"labels: .* ' w2 w3' begins with all of ' w2', .* \(item 1\)\. .* with a newline"),
    ([" w4", " other", " unknown"], {"choices_field": "options"},
     "options: .* ' unknown' begins with all of ' other'"),
]  # fmt: skip


@pytest.mark.parametrize(("choices", "spec", "reason"), REFUSED)
def test_an_answer_that_can_not_be_asked_is_refused_by_its_words(
    home: Path, tmp_path: Path, choices: list[str], spec: dict[str, Any], reason: str
) -> None:
    short = Path(shutil.copytree(home / "old", tmp_path / "short"))
    edit_json(short / "config.json", max_position_embeddings=16)
    task = make("choice", [Item(number=1, query="w1", choices=choices)], **spec)
    made = case(home, "a", own=task)
    made.arms["new"].base = short
    made.arms = {"new": made.arms["new"]}
    with pytest.raises(Refused, match=f"^mine: {reason}"):
        run([made], nothing)


def test_choices_that_can_not_win_are_refused_of_the_patchs_own_task_only(home: Path) -> None:
    task = make("choice", [Item(number=1, query="w1", choices=[" w2", " w2 w3"])])
    assert asked(home / "old", None, task) == [1]
    with pytest.raises(Refused, match="can never be the likelier"):
        run([case(home, "a", own=task)], nothing)


def test_more_tokens_than_the_model_reads_can_not_be_asked_for(home: Path, tmp_path: Path) -> None:
    short = Path(shutil.copytree(home / "old", tmp_path / "short"))
    edit_json(short / "config.json", max_position_embeddings=16)
    items = [Item(number=1, query="w1", answer="w2")]
    most, fewer = (
        make("generation", items, compare="text", max_tokens=count, stop=[]) for count in (16, 15)
    )
    assert len(asked(short, None, fewer)) == 1
    with pytest.raises(Refused, match=r"^mine: max_tokens is 16, .* fewer than 16\.$"):
        asked(short, None, most)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "head": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "ia3": {"peft_type": "IA3", "feedforward_modules": ["down_proj"]},
    "norms": {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
}


def save_kind(folder: Path, base: Path, **fields: Any) -> Path:
    """An adapter whose every trained value is moved, from its beginning, by N(0, 0.3)."""
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM"} | fields
    if fields["peft_type"] in ("LORA", "IA3"):
        fields["target_modules"] = TARGETS["llama"]
    model = get_peft_model(load(base), get_peft_config(fields))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@torch.no_grad()
def test_adapters_come_and_go_and_leave_the_base_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = save_base(tmp_path / "base", tied=True)
    config = json.loads((base / "config.json").read_text()) | {"attention_bias": True}
    (base / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(save_tokenizer(base))
    bare, models, task = model(IDS).logits, Models(), choice(3)
    for name, fields in KINDS.items():
        adapter = save_kind(tmp_path / name, base, **fields)
        wanted = PeftModel.from_pretrained(load(base), adapter).eval()(IDS).logits
        with models.on(base, adapter) as loaded:
            score(loaded, task, 0, 3, nothing)  # lm-eval would tie what is tied no more
            assert torch.equal(loaded.model(IDS).logits, wanted), name
            assert not torch.allclose(wanted[:, -IDS.shape[1] :], bare, atol=1e-3), name
        with models.on(base) as loaded:
            assert torch.equal(loaded.model(IDS).logits, bare), name


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the bases, one for each time that one is loaded."""
    seen: list[str] = []
    plain = Models._load

    def load(models: Models, base: Path) -> None:
        seen.append(base.name)
        plain(models, base)

    monkeypatch.setattr(Models, "_load", load)
    return seen


def case(home: Path, patch: str, **fields: Any) -> Case:
    old, new = home / "old", home / "new"
    arms = {
        "before": Arm(base=old),
        "old": Arm(base=old, adapter=home / patch),
        "new": Arm(base=new),
        "port": Arm(base=new, adapter=home / patch),
    }
    policy = VerdictPolicy(first_items=20, most_items=40)
    made = {"own": choice(), "guard": [], "arms": arms, "policy": policy, "pair": arms["port"]}
    return Case(**(made | fields))


def test_a_base_is_loaded_once_for_all_patches_and_looks(home: Path, loads: list[str]) -> None:
    [found, other] = run([case(home, "a"), case(home, "b")], nothing)
    assert sorted(loads) == ["new", "old"]
    assert found.looks == found.look == 2 and found.slice is not None
    own, task = found.own, choice()
    assert own is not None and other.own is not None
    assert own.items == [item.number for item in task.items[:40]] and own.total == COUNT
    for arm, (base, adapter) in {
        "before": ("old", None), "old": ("old", "a"), "new": ("new", None), "port": ("new", "a")
    }.items():  # fmt: skip
        direct = asked(home / base, home / adapter if adapter else None, task)
        assert own.results[arm] == direct[:40], arm
    assert other.own.results["before"] == own.results["before"]
    assert other.own.results["old"] != own.results["old"]


def test_what_is_known_is_not_computed_again(home: Path, loads: list[str]) -> None:
    first = case(home, "a", pair=None)
    [found] = run([first], nothing)
    assert found.own is not None
    for name in ("before", "old"):
        arm = first.arms[name]
        arm.base, arm.known = Path("nowhere"), {first.own.digest: found.own.results[name]}
    loads.clear()
    [again] = run([first], nothing)
    assert again.own == found.own and set(loads) == {"new"}


def test_skipped_items_are_not_judged_on(home: Path) -> None:
    [found] = run([case(home, "a", skipped=SLICED, guard=[guard()[1]])], nothing)
    assert found.own is not None and found.slice is None
    assert found.own.items == [item.number for item in choice().items[SLICED:]]
    direct = asked(home / "new", home / "a", choice())
    assert found.own.results["port"] == direct[SLICED:]
    assert len(found.guard[0].items) == found.guard[0].total == len(guard()[1].items)


@pytest.fixture(scope="module")
def merged(home: Path) -> Path:
    return merge_into(home / "merged", home / "new", home / "a")


def merge_into(out: Path, base: Path, patch: Path) -> Path:
    merge(plan(Folder(base), Folder(patch), as_="merged"), base, patch, out)
    return out


def test_a_merge_of_ours_is_base_and_adapter_and_one_of_less_is_not(
    home: Path, merged: Path, tmp_path: Path
) -> None:
    models = Models()
    found = probe(models, home / "new", home / "a", merged)
    assert found.difference < found.bound / 10
    stack([home / "a"], [0.9], tmp_path / "less")
    less = merge_into(tmp_path / "merged", home / "new", tmp_path / "less")
    found = probe(models, home / "new", home / "a", less)
    assert found.difference > 10 * found.bound


def test_16_bits_have_a_wider_bound(home: Path, tmp_path: Path) -> None:
    base = save_tokenizer(save_base(tmp_path / "base", dtype=torch.bfloat16))
    found = probe(Models(), base, home / "a", merge_into(tmp_path / "m", base, home / "a"))
    assert 0.0005 < found.difference < found.bound < 0.1


def test_an_honest_merge_has_no_faults(home: Path, merged: Path) -> None:
    [found] = run([case(home, "a", merged=merged, own=choice(20))], nothing)
    assert found.faults == [] and found.probe is not None


@pytest.mark.parametrize(
    ("file", "change", "fault"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "chat template"),
        ("tokenizer_config.json", {"eos_token": "w1"}, "special tokens"),
        ("config.json", {"eos_token_id": 7}, "end of sequence"),
        ("generation_config.json", {"max_new_tokens": 7}, "generation config"),
    ],
)
def test_what_no_patch_may_change_is_a_fault(
    home: Path, merged: Path, tmp_path: Path, file: str, change: dict[str, Any], fault: str
) -> None:
    changed = Path(shutil.copytree(merged, tmp_path / "changed"))
    edit_json(changed / file, **change)
    assert faults(Models(), home / "new", changed) == [f"its {fault} is not the new base's"]


def test_tokens_without_a_row_are_a_fault(home: Path, merged: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(merged, tmp_path / "changed"))
    more = tokenizer(changed)
    more.add_tokens(["w95"])
    more.save_pretrained(changed)
    found = faults(Models(), home / "new", changed)
    assert len(found) == 2 and "vocabulary" in found[0] and "more tokens" in found[1]


@pytest.mark.parametrize("choices", [CHOICES, [" w90", " w91", " w92"]])
def test_the_slice_is_the_loss_along_the_patch(home: Path, choices: list[str]) -> None:
    task, ids = choice(choices=choices), tokenizer(home / "old")
    with Models().on(home / "new", home / "a") as loaded:
        found = take_slice(loaded, task, nothing)
        kept = loaded.model(IDS).logits
    assert found is not None and found.scales == list(SCALES)
    assert torch.equal(kept, load_adapted(home / "new", home / "a")(IDS).logits)
    bare = load(home / "new").double().state_dict()
    whole = load_adapted(home / "new", home / "a").merge_and_unload().double().state_dict()
    model = load(home / "new").double()

    def losses(scale: float) -> list[float]:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(bare[name] + scale * (whole[name] - bare[name]))
        found = []
        for item in task.items[:SLICED]:
            likelihoods = [
                likelihood(model, *(ids(part)["input_ids"] for part in (item.query, choice)))
                for choice in item.choices
            ]
            found.append(float(np.logaddexp.reduce(likelihoods)) - likelihoods[item.gold])
        return found

    for column, scale in enumerate(found.scales):
        measured = [row[column] for row in found.losses]
        assert measured == pytest.approx(losses(scale), rel=1e-4, abs=1e-4), scale
    step = 1e-4
    slope = (sum(losses(-step)) - sum(losses(step))) / (2 * step * SLICED)
    assert found.slope == pytest.approx(slope, rel=1e-2)  # ours is of float32


@pytest.mark.parametrize("name", ["dora", "bias", "head", "tokens", "ia3", "norms", "prompt"])
def test_a_patch_that_is_no_scale_times_a_lora_has_no_slice(
    home: Path, tmp_path: Path, name: str
) -> None:
    adapter = save_kind(tmp_path / name, home / "new", **KINDS[name])
    with Models().on(home / "new", adapter) as loaded:
        assert take_slice(loaded, choice(3), nothing) is None


def test_the_slice_has_one_choice_in_memory_at_a_time(home: Path) -> None:
    class Kept:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value
            alive.add(self)
            peaks[-1] = max(peaks[-1], len(alive))

    alive, peaks = WeakSet[Kept](), list[int]()
    with Models().on(home / "new", home / "a") as loaded:
        for count in (2, 8):
            peaks.append(0)
            task = choice(1, [f" w90 w{number}" for number in range(count)])
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
                assert take_slice(loaded, task, nothing) is not None
    assert 0 < peaks[1] == peaks[0]


def test_the_slice_of_items_that_are_too_long_is_left_out_and_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    task = make("choice", [Item(number=n, query=words(n, 8 * n), choices=CHOICES) for n in (1, 2)])
    for most, left_out in ((54, False), (53, True)):  # 3 times 16 words and 2 of the choice
        monkeypatch.setattr("judging.slice.MOST", most)
        with Models().on(home / "new", home / "a") as loaded:
            found = take_slice(loaded, task, lambda *what: told.append(what))
        assert (found is None) is left_out
    assert told[-1] == ("no loss along the patch: items of more than 53 tokens", 1, 1)


def test_the_slice_of_a_text_and_of_a_long_item(home: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(home / "old", tmp_path / "base"))
    edit_json(base / "config.json", max_position_embeddings=16)
    text = make("text", [Item(number=1, query="w1"), Item(number=2, query=words(0, 40))])
    long = make("choice", [Item(number=1, query=words(0, 40), choices=CHOICES)])
    with Models().on(base, home / "a") as loaded:
        for task in (text, long):
            found = take_slice(loaded, task, nothing)
            assert found is not None
            assert all(math.isfinite(loss) for row in found.losses for loss in row)


def test_what_lm_eval_does_not_have_or_we_do_not_run_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = {"mmlu": "a group", "no_such_task": "unknown", "humaneval": "a program"}
    for name, reason in reasons.items():
        with pytest.raises(Refused, match=f"{name}.*{reason}"):
            named(name)

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("the Hub does not have it\nand more")

    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", gone)
    with pytest.raises(Refused, match=r"'piqa' can't be loaded: the Hub does not have it$"):
        named("piqa")


def test_the_examples_before_an_item_do_not_depend_on_what_was_asked_before() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"query": [f"q{n}" for n in range(30)], "answer": ["a"] * 30})
    task = ConfigurableTask(
        config={
            "task": "few", "custom_dataset": lambda **_: {"train": rows, "test": rows},
            "training_split": "train", "test_split": "test", "num_fewshot": 3,
            "output_type": "generate_until", "doc_to_text": "query", "doc_to_target": "answer",
            "metric_list": [{"metric": "exact_match"}],
        }
    )  # fmt: skip
    named_module._ask_all_alike(task)

    def before(samples: list[int]) -> dict[str, str]:
        task.build_all_requests(samples=samples)
        return {each.doc["query"]: each.args[0] for each in task.instances}

    whole = before(list(range(30)))
    assert (
        whole["q9"].count("\n\n") == 3
        and {**before([0, 5]), **before([9])}.items() <= whole.items()
    )


def test_evidence_of_a_run_is_read_back_alike(home: Path) -> None:
    [found] = run([case(home, "a", own=choice(20))], nothing)
    assert Evidence.model_validate_json(found.model_dump_json()) == found
