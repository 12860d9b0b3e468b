"""Training under pruning: labels go with their tokens, gradient checkpointing changes nothing, Trainer and DDP work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import vistok
import vistok.lvlm

QUARTERS = {"observe": [0, 1, 2], "prune_after": [0, 1, 2], "ratios": [0.75, 0.5, 0.25]}


def with_labels(tiny: Any, **options: Any) -> dict[str, Tensor]:
    """A right-padded batch whose labels are its words."""
    inputs: dict[str, Tensor] = tiny.inputs(**({"texts": (4, 9), "side": "right"} | options))
    words = (inputs["attention_mask"] == 1) & (inputs["input_ids"] < 90)
    return inputs | {"labels": inputs["input_ids"].where(words, -100)}


def pruners() -> tuple[list[Any], list[Any]]:
    return ["uniform", vistok.pruner("transprune", **QUARTERS)], [0.5, None]


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("stage", ["input", "layers", "both"])
def test_the_loss_is_that_of_the_words_that_are_left(each_class: Any, stage: str) -> None:
    model, inputs = each_class.model, with_labels(each_class)
    names, budgets = pruners()
    part = {"input": slice(0, 1), "layers": slice(1, 2), "both": slice(0, 2)}[stage]
    with vistok.lvlm.prune(model, names[part], budget=budgets[part]) as p, torch.no_grad():
        out = model(**inputs)
        labels = inputs["labels"].gather(1, p.source)
        assert out.logits.shape[1] == labels.shape[1] < inputs["labels"].shape[1]
        # A shorter item is padded by a token that was dropped or masked: its label does not count.
        labels[:, 0] = -100
    logits = out.logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_keeps_everything_has_the_plain_loss_and_gradients(each_class: Any) -> None:
    model, inputs = each_class.model, with_labels(each_class, side="left")
    model(**inputs).loss.backward()
    plain = gradients(model)
    settings = QUARTERS | {"ratios": [1.0, 1.0, 1.0]}
    with vistok.lvlm.prune(model, "transprune", **settings):
        model(**inputs).loss.backward()
    pruned = gradients(model)
    assert plain.keys() == pruned.keys() and all(torch.equal(plain[name], pruned[name]) for name in plain)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(each_class: Any, reentrant: bool) -> None:
    model, inputs, others = each_class.model, with_labels(each_class), with_labels(each_class, seed=3)
    names, budgets = pruners()
    found = []
    for checkpointed in (False, True):
        model.train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        try:
            with vistok.lvlm.prune(model, names, budget=budgets) as p:
                first = model(**inputs, use_cache=False).loss
                # A second prompt before the first one's backward pass: no state is shared.
                second = model(**others, use_cache=False).loss
                (first + 0.5 * second).backward()
            found.append((first.detach(), gradients(model), p.source))
        finally:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads() if checkpointed else None
            model.eval()
    (plain, of_plain, kept), (loss, of_loss, kept_too) = found
    assert torch.equal(loss, plain) and torch.equal(kept, kept_too)
    for name, gradient in of_plain.items():
        torch.testing.assert_close(of_loss[name], gradient, rtol=1e-5, atol=1e-7)


class Prompts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Prompts of one image each, one by one."""

    def __init__(self, tiny: Any, count: int) -> None:
        batches = [with_labels(tiny, texts=(6,), seed=seed) for seed in range(count)]
        self.items = [{name: value[0] for name, value in batch.items()} for batch in batches]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def test_the_trainer_of_transformers_trains_under_pruning(llava: Any, tmp_path: Path) -> None:
    model, data = llava.model, Prompts(llava, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names, budgets = pruners()
    options = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        activation_checkpointing=True,
        data_seed=0,
        dataloader_pin_memory=False,
    )
    try:
        with vistok.lvlm.prune(model, names, budget=budgets):
            Trainer(model, options, train_dataset=data, data_collator=collate).train()
            trained = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(before)
            model.activation_checkpointing_disable()
            model(**collate(data.items), use_cache=False).loss.backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(trained[name], before[name] - 1e-3 * gradient, rtol=1e-4, atol=1e-6)
    finally:
        model.load_state_dict(before)
        model.activation_checkpointing_disable()
        model.eval()


def test_accelerate_trains_under_pruning(llava: Any) -> None:
    inputs = with_labels(llava)
    names, budgets = pruners()
    with vistok.lvlm.prune(llava.model, names, budget=budgets):
        llava.model(**inputs).loss.backward()
        expected = gradients(llava.model)
        accelerator = Accelerator(cpu=True)
        prepared = accelerator.prepare(llava.model)
        accelerator.backward(prepared(**inputs).loss)
        found = gradients(llava.model)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


DDP = """
import sys, torch, importlib.util
import torch.distributed as dist
spec = importlib.util.spec_from_file_location("tiny_models", sys.argv[1])
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)
import vistok.lvlm
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
model = tiny_models.build("llava").train()
settings = {"observe": [0, 1, 2], "prune_after": [0, 1, 2], "ratios": [0.75, 0.5, 0.25]}
batches = [tiny_models.make_inputs("llava", model, texts=(6,), seed=seed) for seed in range(2)]
for batch in batches:
    batch["labels"] = batch["input_ids"].where(batch["input_ids"] < 90, -100)
names, budgets = ["uniform", vistok.pruner("transprune", **settings)], [0.5, None]
with vistok.lvlm.prune(model, names, budget=budgets):
    torch.stack([model(**batch).loss for batch in batches]).mean().backward()
expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
model.zero_grad()
wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
with vistok.lvlm.prune(wrapped, names, budget=budgets):
    wrapped(**batches[rank]).loss.backward()
for name, gradient in expected.items():
    torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)
dist.barrier()
dist.destroy_process_group()
print("agreed")
"""


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_their_own_prompts(tmp_path: Path) -> None:
    script, here = tmp_path / "worker.py", Path(__file__).parent
    script.write_text(DDP)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1]), "VISTOK_NO_PLUGINS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(here / "conftest.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.count("agreed") == 2, done.stderr[-3000:]
