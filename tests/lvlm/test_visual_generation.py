"""Pictures out of a language model: what it is trained on is what it draws from, id by id."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import vistok
from vistok.lvlm.visual_generation import VisualHead, generate_ids, ids_to_tokens, visual_loss

WIDTH, CODES, WORDS = 16, 12, 19


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2() -> Any:
    sizes = {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2))  # type: ignore[arg-type]


@pytest.fixture(params=[llama, gpt2])
def language(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def head() -> VisualHead:
    torch.manual_seed(1)
    made = VisualHead(WIDTH, (CODES,))
    torch.nn.init.normal_(made.weight)  # far from uniform, so that ranks mean something
    return made


@pytest.fixture
def table() -> Tensor:
    return torch.randn(CODES, WIDTH, generator=torch.Generator().manual_seed(2))


PROMPT = torch.tensor([[1, 5, 7], [1, 8, 4]])


def test_greedy_ids_are_the_likeliest_of_what_the_loss_scores(language: Any, head: VisualHead, table: Tensor) -> None:
    ids = generate_ids(language, head, lambda drawn: table[drawn], PROMPT, 3, top_k=1)
    assert ids.shape == (2, 3) and ids.dtype == torch.int64
    for item in range(2):
        prompt = PROMPT[item : item + 1]
        for place in range(3):
            part = ids[item : item + 1, : place + 1]
            others = [torch.cat((part[:, :-1], torch.tensor([[code]])), 1) for code in range(CODES)]
            losses = [visual_loss(language, head, table[part], other, prompt) for other in others]
            assert int(torch.stack(losses).argmin()) == int(ids[item, place])


def test_the_loss_is_the_cross_entropy_over_visual_ids_alone(language: Any, head: VisualHead, table: Tensor) -> None:
    ids = torch.tensor([[3, 0, 11], [7, 7, 2]])
    words = language.get_input_embeddings()(PROMPT)
    hidden = language.base_model(inputs_embeds=torch.cat((words, table[ids]), 1)).last_hidden_state
    log_p = head(hidden[:, 2:5]).log_softmax(-1)
    assert log_p.shape[-1] == CODES
    torch.testing.assert_close(
        visual_loss(language, head, table[ids], ids, PROMPT), -log_p.gather(2, ids[..., None]).mean()
    )


def test_padding_in_front_of_a_prompt_changes_nothing(language: Any, head: VisualHead, table: Tensor) -> None:
    padded = torch.nn.functional.pad(PROMPT, (2, 0))
    mask = (padded != 0).to(torch.int64)
    ids = torch.tensor([[3, 0, 11], [7, 7, 2]])
    torch.testing.assert_close(
        visual_loss(language, head, table[ids], ids, padded, mask), visual_loss(language, head, table[ids], ids, PROMPT)
    )
    drawn = [
        generate_ids(language, head, lambda d: table[d], prompt, 5, mask=m, generator=torch.Generator().manual_seed(3))
        for prompt, m in ((PROMPT, None), (padded, mask))
    ]
    assert torch.equal(*drawn)


def test_top_k_and_top_p_draw_among_the_likeliest_only(language: Any, head: VisualHead, table: Tensor) -> None:
    many = PROMPT[:1].expand(400, -1)
    p = head(language.base_model(input_ids=PROMPT[:1]).last_hidden_state[0, -1]).softmax(-1).detach()
    order = p.argsort(descending=True)
    draw = {"count": 1, "generator": torch.Generator().manual_seed(4)}

    def seen(**options: Any) -> set[int]:
        return set(generate_ids(language, head, lambda d: table[d], many, **draw, **options).flatten().tolist())

    assert seen(top_k=3) == set(order[:3].tolist())
    nucleus = int((p[order].cumsum(0) < 0.5).sum()) + 1
    assert seen(top_p=0.5) == set(order[:nucleus].tolist())
    assert len(seen()) > len(seen(temperature=0.2))


def test_the_same_generator_gives_the_same_ids_and_others_others(
    language: Any, head: VisualHead, table: Tensor
) -> None:
    runs = [
        generate_ids(language, head, lambda d: table[d], PROMPT, 8, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_ids_alone_decode_to_what_the_tokenizer_decodes() -> None:
    torch.manual_seed(0)
    tokenizer = vistok.tokenizer("ett_nano", **vistok.info("tokenizer", "ett_nano").tiny)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer.encode(images)
    assert tokens.indices is not None
    made = ids_to_tokens(tokenizer, tokens.indices, (4, 6))
    torch.testing.assert_close(tokenizer.decode(made), tokenizer.decode(tokens))
    with pytest.raises(ValueError, match="expected 20 for a grid"):
        ids_to_tokens(tokenizer, tokens.indices, (4, 5))


def test_what_does_not_fit_is_refused(language: Any, head: VisualHead, table: Tensor) -> None:
    with pytest.raises(ValueError, match="one codebook, got codebook sizes \\(4, 4\\)"):
        VisualHead(WIDTH, (4, 4))
    with pytest.raises(ValueError, match="count >= 1"):
        generate_ids(language, head, lambda d: table[d], PROMPT, 0)
    with pytest.raises(ValueError, match="expected ids \\[B, N\\]"):
        visual_loss(language, head, table[torch.zeros(2, 3, dtype=torch.int64)], torch.zeros(2, 4), PROMPT)


def test_a_language_model_in_half_precision_learns_and_draws(language: Any, head: VisualHead, table: Tensor) -> None:
    half = language.to(torch.bfloat16)
    ids = torch.tensor([[3, 0, 11], [7, 7, 2]])
    visual_loss(half, head, table[ids], ids, PROMPT).backward()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32
    assert generate_ids(half, head, lambda drawn: table[drawn], PROMPT, 3).shape == (2, 3)


def test_a_model_that_keeps_no_cache_is_refused_rather_than_forgetting_its_prompt(
    language: Any, head: VisualHead, table: Tensor
) -> None:
    language.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="expected a model that keeps a cache; call language.eval"):
        generate_ids(language.train(), head, lambda drawn: table[drawn], PROMPT, 3)
    assert generate_ids(language.eval(), head, lambda drawn: table[drawn], PROMPT, 3).shape == (2, 3)


@pytest.mark.slow
def test_a_model_that_learned_two_pictures_draws_each_from_its_prompt(
    language: Any, head: VisualHead, table: Tensor
) -> None:
    ids = torch.randint(CODES, (2, 9), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam([*language.parameters(), *head.parameters()], 1e-2)
    for _ in range(80):
        loss = visual_loss(language, head, table[ids], ids, PROMPT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(generate_ids(language, head, lambda d: table[d], PROMPT, 9, top_k=1), ids)
