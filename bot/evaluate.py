"""Label log-likelihood through lm-eval: which items does a model answer right?

Runs in the computing process only: it loads models.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bot.evaluation import Evaluation
from porting.errors import Refused

BATCH = 16


class _ReportingLM(HFLM):
    """lm-eval's model, saying how many sequences it has seen."""

    report: Callable[[int], None]

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        self.report(inps.shape[0])
        return logits


def correct(
    base: Path, adapter: Path | None, evaluation: Evaluation, report: Callable[[int, int], None]
) -> list[int]:
    """1 where the right label is the likeliest after the item's prompt, else 0; one per item.

    Computed in fp32 on the bytes in `base` (and `adapter`, unmerged). Raises Refused where a
    log-likelihood is not a number.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = _ReportingLM(
        pretrained=_load(base, adapter).to(device),
        tokenizer=AutoTokenizer.from_pretrained(base),
        batch_size=BATCH,
        device=device,
    )
    done, total = 0, len(evaluation.queries)

    def count(sequences: int) -> None:
        nonlocal done
        done = min(done + sequences, total)
        report(done, total)

    lm.report = count
    outcome = simple_evaluate(model=lm, tasks=[_task(evaluation)], bootstrap_iters=0)
    samples = sorted(outcome["samples"][evaluation.spec.name], key=lambda row: row["doc_id"])
    for number, row in enumerate(samples, start=1):
        if any(math.isnan(likelihood) for likelihood, _ in row["filtered_resps"]):
            raise Refused(
                f"{base.name}: item {number} has no log-likelihood: the model yields NaN."
            )
    return [int(row["acc"]) for row in samples]


def _load(base: Path, adapter: Path | None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    patched = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    return patched.train(False)


def _task(evaluation: Evaluation) -> ConfigurableTask:
    rows = {
        "query": evaluation.queries,
        "gold": evaluation.golds,
        "choices": [evaluation.choices] * len(evaluation.queries),
    }
    # Field names only: lm-eval would run a template from a patch as code.
    return ConfigurableTask(
        config={
            "task": evaluation.spec.name,
            "custom_dataset": lambda **_: {"validation": Dataset.from_dict(rows)},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
    )
