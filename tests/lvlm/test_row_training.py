"""Only new rows move, whatever the optimizer; what PEFT is given trains and stores what it says."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from vistok.lvlm import row_starts
from vistok.lvlm.new_rows import attach, matrices
from vistok.lvlm.row_training import NewRows, modules_to_save_settings, trainable_token_settings
from vistok.lvlm.vocabulary import TokenFamily

from .vocabulary_fixtures import MODELS, WORDS, word_tokenizer

SMALL = TokenFamily("small", ("<a>", "<b>", "<0>", "<1>", "<2>", "<3>"), ("<a>",), ("<b>",))
NEW = list(range(WORDS, WORDS + 6))
OLD = [row for row in range(128) if row not in NEW]
peft_with_this_transformers = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def attached(kind, rows=WORDS):
    model = MODELS[kind](rows)
    return model, attach(word_tokenizer(), model, [SMALL], start=row_starts.normal(), pad_to_multiple_of=128)


def some_ids():
    return torch.randint(5, WORDS + 6, (2, 12), generator=torch.Generator().manual_seed(0))


def step(model, optimizer):
    model(input_ids=some_ids(), labels=some_ids()).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def copies(model):
    return {name: matrix.detach().clone() for name, matrix in matrices(model).items()}


@pytest.mark.parametrize("rows", [WORDS, 128], ids=["exact", "padded"])
@pytest.mark.parametrize("kind", MODELS)
def test_three_steps_of_decaying_adamw_leave_old_rows_to_the_bit_and_move_every_new_one(kind, rows):
    model, attachment = attached(kind, rows)
    before = copies(model)
    with NewRows(model, attachment) as new:
        optimizer = torch.optim.AdamW(new.parameters(), 0.05, weight_decay=0.1)
        for _ in range(3):
            step(model, optimizer)
    for name, matrix in matrices(model).items():
        assert torch.equal(matrix[OLD], before[name][OLD])
        assert bool((matrix[NEW] != before[name][NEW]).any(1).all())
        assert matrix.requires_grad and matrix.grad is None


def test_decay_alone_would_move_old_rows_whose_gradient_is_zero():
    model, _ = attached("untied")
    before = copies(model)["embedding"]
    embedding = matrices(model)["embedding"]
    embedding.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(OLD), 0))
    step(model, torch.optim.AdamW([embedding], 0.05, weight_decay=0.1))
    assert not torch.equal(embedding[OLD], before[OLD])


@pytest.mark.parametrize("kind", ["untied", "tied", "llava"])
def test_the_model_computes_with_the_rows_in_training_what_it_computes_with_them_written(kind):
    model, attachment = attached(kind)
    with NewRows(model, attachment) as new, torch.no_grad():
        for rows in new.parameters():
            rows.add_(0.3)
        inside = model(input_ids=some_ids()).logits
    assert torch.allclose(inside, model(input_ids=some_ids()).logits, atol=1e-6)


def test_gradients_of_new_rows_are_those_of_the_whole_matrices():
    for kind in ("untied", "tied"):
        model, attachment = attached(kind)
        model(input_ids=some_ids(), labels=some_ids()).loss.backward()
        whole = {name: matrix.grad[NEW] for name, matrix in matrices(model).items()}
        model.zero_grad()
        with NewRows(model, attachment) as new:
            model(input_ids=some_ids(), labels=some_ids()).loss.backward()
            for name, rows in new.rows.items():
                assert torch.allclose(rows.grad, whole[name], atol=1e-6)


def test_rows_are_written_at_any_time_and_hooks_go_with_the_context():
    model, attachment = attached("untied")
    with NewRows(model, attachment) as new:
        with torch.no_grad():
            new.rows["embedding"].fill_(2.0)
        new.write()
        assert bool((matrices(model)["embedding"][NEW] == 2).all())
    assert not model.get_input_embeddings()._forward_hooks and not model.lm_head._forward_hooks


def test_a_model_with_nothing_new_has_no_rows_to_train():
    model, tokenizer = MODELS["untied"](), word_tokenizer()
    attach(tokenizer, model, [SMALL])
    with pytest.raises(ValueError, match="found all of its strings"):
        NewRows(model, attach(tokenizer, model, [SMALL]))


@peft_with_this_transformers
@pytest.mark.parametrize("kind", ["untied", "tied", "llava"])
def test_peft_trains_and_stores_new_rows_alone(kind, tmp_path):
    model, attachment = attached(kind)
    before = copies(model)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], **trainable_token_settings(model, attachment))
    )
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 0.05, weight_decay=0.1)
    for _ in range(3):
        step(adapted, optimizer)
    adapted.save_pretrained(tmp_path)
    stored = [value for name, value in load_file(tmp_path / "adapter_model.safetensors").items() if "lora" not in name]
    assert {tuple(value.shape) for value in stored} == {(6, 16)} and len(stored) == len(before)
    with pytest.raises(ValueError, match="merge_and_unload"):
        matrices(adapted)
    adapted.merge_and_unload()
    for name, matrix in matrices(model).items():
        assert torch.equal(matrix[OLD], before[name][OLD])
        assert bool((matrix[NEW] != before[name][NEW]).any(1).all())
    assert set(matrices(model)) == set(before)


@peft_with_this_transformers
@pytest.mark.parametrize("kind", ["untied", "tied", "llava"])
def test_peft_trains_and_stores_whole_matrices_and_keeps_them_tied(kind):
    model, _ = attached(kind)
    before = copies(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **modules_to_save_settings(model)))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 0.05, weight_decay=0.1)
    step(adapted, optimizer)
    merged = adapted.merge_and_unload()
    assert set(matrices(merged)) == set(before)
    for name, matrix in matrices(merged).items():
        assert not torch.equal(matrix[OLD], before[name][OLD])


def test_a_head_with_a_bias_trains_it_too_and_peft_refuses_it():
    model = MODELS["untied"]()
    model.lm_head = torch.nn.Linear(16, WORDS)
    attachment = attach(word_tokenizer(), model, [SMALL])
    with pytest.raises(ValueError, match="without bias"):
        trainable_token_settings(model, attachment)
    before = copies(model)
    with NewRows(model, attachment) as new:
        step(model, torch.optim.AdamW(new.parameters(), 0.05, weight_decay=0.1))
    kept = [row for row in range(len(before["bias"])) if row not in NEW]
    assert torch.equal(matrices(model)["bias"][kept], before["bias"][kept])
    assert bool((matrices(model)["bias"][NEW] != before["bias"][NEW]).all())


def test_an_embedding_that_scales_its_rows_scales_the_new_ones_too():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    attachment = attach(word_tokenizer(), model, [SMALL], start=row_starts.normal())
    with NewRows(model, attachment) as new, torch.no_grad():
        new.rows["embedding"].normal_(generator=torch.Generator().manual_seed(1))
        inside = model(input_ids=some_ids(), labels=some_ids()).loss
    written = model(input_ids=some_ids(), labels=some_ids()).loss
    torch.testing.assert_close(inside, written)
