"""What a model gets right, item by item, through lm-eval."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from lm_eval import evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from judging.asking import check_answers, check_choices, check_room
from judging.device import DEVICE
from judging.model import Loaded
from judging.named import RIGHT, named
from judging.spec import NUMBER, Item
from judging.task import Task, order
from porting.errors import Refused

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every call
IGNORED = [",", r"^\s+|\s+$", r"(?<=[0-9])\.0+$"]  # in answers: " 1,000.0" is "1000"
BATCH = 16
LOGITS = 2**28  # of a batch, at most, where one sequence has no more: 1 GiB in float32


class Asked(HFLM):
    """lm-eval's model, asked one task; what can't be judged is refused, naming what is wrong.

    Args:
        report: told how many sequences were seen.
        items: those whose every choice has to be one that can win, in the order of asking.
    """

    def __init__(
        self,
        loaded: Loaded,
        task: Task,
        report: Callable[[int], None] = lambda _: None,
        items: Sequence[Item] = (),
    ) -> None:
        super().__init__(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=BATCH,
            device=DEVICE,
            softmax_dtype="float32",  # 16 bits can't tell two answers' likelihoods apart
            # Before a text lm-eval puts a prefix: the tokenizer's own would be a second one.
            add_bos_token=False if task.kind == "text" else None,
        )
        self.loaded, self.task, self.report, self.items = loaded, task, report, items

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        check_answers(self.task, requests, self.max_length, self.loaded.name)
        check_choices(self.task, self.items, [answer for _, _, answer in requests])
        longest = max(len(context) + len(answer) for _, context, answer in requests)
        longest = min(longest, self.max_length)
        self.batch_size_per_gpu = max(1, min(BATCH, LOGITS // (longest * self.vocab_size)))
        found = super()._loglikelihood_tokens(requests, *args, **kwargs)
        self._check(all(math.isfinite(likelihood) for likelihood, _ in found))
        return found

    def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> list[str]:
        asked = [normalize_gen_kwargs(each.args[1], self.max_gen_toks) for each in requests]
        most = max(each["max_gen_toks"] for each in asked)
        check_room(self.task, most, self.max_length, self.loaded.name)
        written: list[str] = super().generate_until(requests, *args, **kwargs)
        return written

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        self.report(inps.shape[0])
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        written: torch.Tensor = super()._model_generate(
            context, *args, logits_processor=[self._check_next], **kwargs
        )
        self.report(context.shape[0])
        return written

    def _check_next(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._check(not bool(scores.isnan().any()))
        return scores

    def _check(self, is_fine: bool) -> None:
        if not is_fine:
            raise Refused(
                f"{self.task.name}: {self.loaded.name} yields NaN or infinite logits, so it "
                "can't be judged."
            )


def total(task: Task) -> int:
    """How many items there are."""
    return len(named(task.spec["lm_eval"]).eval_docs) if task.kind == "lm-eval" else len(task.items)


def score(
    loaded: Loaded,
    task: Task,
    start: int,
    stop: int,
    report: Callable[[int, int], None],
    is_own: bool = False,
) -> list[float]:
    """Results of the items from number `start` to before `stop`, in the order they are asked.

    1 or 0 for an item answered right or wrong; of a text, its bits per byte. Where lm-eval reads an
    answer in several ways, the last one counts.

    Args:
        is_own: the patch brings `task`, so a choice that can never win can be put right.

    Raises Refused where the model yields NaN, or can't be asked: see `judging.asking`.
    """
    done = 0

    def count(sequences: int) -> None:
        nonlocal done
        before, done = done, min(done + sequences, stop - start)
        if done > before:  # of choices, there are more sequences than items
            report(done, stop - start)

    if task.kind == "lm-eval":
        asking = named(task.spec["lm_eval"])
        asked = [number - 1 for number in order(task.digest, total(task))[start:stop]]
    else:
        asking, asked = _task(task, task.items[start:stop]), list(range(stop - start))
    outcome = evaluate(
        lm=Asked(loaded, task, count, task.items[start:stop] if is_own else ()),
        task_dict={"tasks": {asking.task_name: asking}},
        samples={asking.task_name: sorted(asked)},  # else lm-eval numbers them wrongly
        bootstrap_iters=0,
    )
    rows = {row["doc_id"]: row for row in outcome["samples"][asking.task_name]}
    return [_result(rows[number], task.name) for number in asked]


def _result(row: dict[str, Any], name: str) -> float:
    if "bits_per_byte" in row:
        likelihood, size = row["bits_per_byte"]
        bits: float = -likelihood / (size * math.log(2))
        return bits
    found = next((float(row[metric]) for metric in RIGHT if metric in row), None)
    if found not in (0, 1):
        raise Refused(f"{name}: lm-eval finds an item neither right nor wrong, but {found}.")
    return found


def _task(task: Task, items: Sequence[Item]) -> ConfigurableTask:
    makers = {"choice": _choice, "generation": _generation, "text": _text}
    config, columns = makers[task.kind](task, items)
    # Field names only: lm-eval would run a template from a patch as code.
    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {"validation": Dataset.from_dict(columns)},
            "validation_split": "validation",
            "doc_to_text": "query",
            "target_delimiter": "",
            **config,
        }
    )


def _choice(task: Task, items: Sequence[Item]) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {
        "output_type": "multiple_choice",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    return config, {
        "query": [item.query for item in items],
        "gold": [item.gold for item in items],
        "choices": [item.choices for item in items],
    }


def _generation(task: Task, items: Sequence[Item]) -> tuple[dict[str, Any], dict[str, Any]]:
    numbers = {"function": "regex", "regex_pattern": NUMBER.pattern, "group_select": -1}
    last = [{"name": "last", "filter": [numbers, {"function": "take_first"}]}]
    is_number = task.spec["compare"] == "last-number"
    config = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {
            "until": task.spec["stop"],
            "max_gen_toks": task.spec["max_tokens"],
            "do_sample": False,
        },
        "metric_list": [
            {"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": IGNORED}
        ],
    }
    answers = [item.answer for item in items]
    if is_number:
        config["filter_list"] = last
        answers = [NUMBER.findall(answer)[-1] for answer in answers]
    return config, {"query": [item.query for item in items], "answer": answers}


def _text(task: Task, items: Sequence[Item]) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "query",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    return config, {"query": [item.query for item in items]}
