"""What ETT rests on: the language model's loss reaches encoder and codes, in any mode, of any quantizer and host."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import vistok
from vistok.lvlm.visual_generation import VisualHead
from vistok.train.ett_model import IGNORED, Batch, EndToEnd, Projector, VqLoss, caption_gradients
from vistok.train.ett_stages import Stage
from vistok.train.losses import l1, l2

WORDS, SIDE = 19, 16
# What each quantizer lets L_cap move: encoders always, codes only where they take part in the gradient.
MOVES_CODES = {"ibq": True, "projected": True}
QUANTIZERS = vistok.list_quantizers()


def quantizer_settings(name: str) -> dict[str, Any]:
    config = vistok.info("quantizer", name)
    return {"method": name, **config.tiny}


def make_tokenizer(quantizer: str = "ibq") -> Any:
    torch.manual_seed(0)
    sizes = {"width": 8, "fine_width": 4, "encoder_blocks": 1, "decoder_blocks": 1, "fine_blocks": 1, "patch": 4}
    settings = quantizer_settings(quantizer)
    return vistok.tokenizer("vq_nano", quantizer=settings, **sizes)


def make_llama() -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_gpt2() -> Any:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config)


def make_batch(items: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, WORDS, (items, 6), generator=draw)
    labels = ids.clone()
    labels[:, :2] = IGNORED
    return Batch(torch.rand(items, 3, SIDE, SIDE, generator=draw), ids, labels, torch.tensor([1, 5]))


def vq_loss() -> VqLoss:
    return VqLoss({"l1": (1.0, l1)})


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_language_models_loss_alone_reaches_the_encoder_in_any_mode(name: str, training: bool) -> None:
    model = EndToEnd(make_tokenizer(name), make_llama())
    model.tokenizer.train()(make_batch(16).images)  # vq starts its codes from a first batch
    model.tokenizer.train(training)
    found = caption_gradients(model, make_batch())
    assert found["encoder"] > 0 and found["projector"] > 0 and found["language"] > 0
    assert found["decoder"] == 0
    # Codes of the others follow their own loss (or an average, or are no parameters); IBQ's get the words' gradient.
    assert (found["quantizer"] > 0) == MOVES_CODES.get(name, False)


def test_the_words_move_every_code_of_ibq_also_those_that_no_picture_took() -> None:
    model = EndToEnd(make_tokenizer("ibq"), make_llama()).eval()
    batch = make_batch()
    model.caption_loss(batch).backward()
    taken = model.tokenizer.encode(batch.images).indices.unique()
    gradient = model.tokenizer.quantizer.codebook.grad
    assert len(taken) < len(gradient) and bool((gradient.abs().sum(1) > 0).all())


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_a_step_in_evaluation_mode_moves_encoder_and_codes_through_any_host(make: Any) -> None:
    model = EndToEnd(make_tokenizer("ibq"), make()).eval()
    before = {name: value.detach().clone() for name, value in model.tokenizer.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    terms = model(make_batch(), {"caption": 1.0, "vq": 0.0})
    assert list(terms) == ["caption"]
    terms["caption"].backward()
    optimizer.step()
    moved = {name for name, value in model.tokenizer.named_parameters() if not torch.equal(value, before[name])}
    assert "quantizer.codebook" in moved
    assert {name for name in before if name.startswith("encoder")} <= moved
    assert not any(name.startswith("decoder") for name in moved)


def test_the_loss_is_that_of_the_labelled_words_behind_the_picture() -> None:
    model, batch = EndToEnd(make_tokenizer(), make_gpt2()).eval(), make_batch()
    embed = model.language.get_input_embeddings()
    visual = model.projector(model.tokenizer.encode(batch.images).embeds)
    sequence = torch.cat((embed(batch.before).expand(2, -1, -1), visual, embed(batch.ids)), 1)
    log_p = model.language(inputs_embeds=sequence).logits.log_softmax(-1)
    start = 2 + visual.shape[1]
    said = [log_p[item, start + t - 1, batch.ids[item, t]] for item in range(2) for t in range(2, 6)]
    torch.testing.assert_close(model.caption_loss(batch), -torch.stack(said).mean())


def test_another_picture_changes_the_loss_and_words_in_front_of_the_labels_too() -> None:
    model, batch = EndToEnd(make_tokenizer(), make_llama()).eval(), make_batch()
    other = Batch(1 - batch.images, batch.ids, batch.labels, batch.before)
    moved = Batch(batch.images, batch.ids, batch.labels, torch.tensor([1, 6]))
    losses = {float(model.caption_loss(each).detach()) for each in (batch, other, moved)}
    assert len(losses) == 3


def test_the_projector_has_two_layers_with_gelu_between() -> None:
    projector = Projector(4, 16)
    assert [type(layer) for layer in projector] == [nn.Linear, nn.GELU, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in (projector[0], projector[2])] == [(16, 4), (16, 16)]  # type: ignore[union-attr]


def test_each_term_of_the_tokenizers_loss_has_its_switch_and_alpha_scales_all() -> None:
    images, other = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    own = torch.tensor(0.5)

    def distant(predicted: Tensor, target: Tensor) -> Tensor:
        return (predicted.mean() - target.mean()).abs()

    def critic(pictures: Tensor) -> Tensor:
        return pictures.mean((1, 2, 3))

    whole = VqLoss({"l1": (1.0, l1), "lpips": (2.0, distant)}, 0.5, 0.1, critic)(images, other, own)
    expected = {
        "l1": l1(images, other), "lpips": 2 * distant(images, other), "quantizer": 0.25 * torch.tensor(1.0),
        "adversarial": -0.1 * images.mean(),
    }  # fmt: skip
    torch.testing.assert_close(whole, expected)
    assert list(VqLoss({"l1": (1.0, l1), "l2": (0.0, l2)}, 0.0)(images, other, own)) == ["l1"]
    with pytest.raises(ValueError, match="expected a discriminator"):
        VqLoss({}, adversarial=0.1)(images, other, own)
    model, batch = EndToEnd(make_tokenizer(), make_llama()).eval(), make_batch()
    alone, scaled = (model(batch, {"vq": alpha, "caption": 1.0}, vq_loss()) for alpha in (1.0, 0.25))
    torch.testing.assert_close(scaled["l1"], alone["l1"] / 4)
    torch.testing.assert_close(scaled["quantizer"], alone["quantizer"] / 4)
    torch.testing.assert_close(scaled["caption"], alone["caption"])
    reconstruction = model.tokenizer(batch.images)
    torch.testing.assert_close(alone["l1"], l1(reconstruction.images, batch.images))
    torch.testing.assert_close(alone["quantizer"], reconstruction.loss)
    torch.testing.assert_close(alone["caption"], model.caption_loss(batch))


def test_a_frozen_language_model_takes_no_gradient_and_the_projector_all_the_same() -> None:
    model, batch = EndToEnd(make_tokenizer(), make_llama()), make_batch()
    row = {"losses": {"caption": 1.0}, "learning_rate": 1.0, "steps": 1, "batch": 2}
    Stage("alignment", ["projector"], ["tokenizer", "language"], **row).apply(model.parts)  # type: ignore[arg-type]
    model(batch, {"caption": 1.0})["caption"].backward()
    assert all(parameter.grad is not None for parameter in model.projector.parameters())
    assert all(p.grad is None for part in (model.language, model.tokenizer) for p in part.parameters())
    assert caption_gradients(model, batch)["encoder"] == 0


def test_what_is_missing_is_named() -> None:
    model, batch = EndToEnd(make_tokenizer(), make_llama()), make_batch()
    with pytest.raises(ValueError, match="vq=VqLoss"):
        model(batch, {"vq": 1.0})
    with pytest.raises(ValueError, match="expected a head"):
        model(batch, {"visual": 1.0})
    with pytest.raises(TypeError, match="causal language model, got Linear"):
        EndToEnd(make_tokenizer(), nn.Linear(2, 2))
    continuous = vistok.tokenizer("kl_nano", **vistok.info("tokenizer", "kl_nano").tiny)
    with pytest.raises(ValueError, match="a tokenizer with a quantizer"):
        EndToEnd(continuous, make_llama())(batch, {"vq": 1.0}, vq_loss())  # type: ignore[arg-type]


def test_learning_to_make_pictures_trains_the_output_rows_and_what_reads_codes() -> None:
    tokenizer = make_tokenizer()
    model = EndToEnd(tokenizer, make_llama(), head=VisualHead(16, tokenizer.codebook_sizes))
    row = {"losses": {"visual": 1.0}, "learning_rate": 1.0, "steps": 1, "batch": 2}
    Stage("generation", ["projector", "language", "head"], ["tokenizer"], **row).apply(model.parts)  # type: ignore[arg-type]
    batch = make_batch()
    with_prompt = Batch(batch.images, batch.ids, batch.labels, batch.before, prompt=batch.ids)
    model(with_prompt, {"visual": 1.0})["visual"].backward()
    assert model.head is not None and all(p.grad is not None for p in model.head.parameters())
    assert all(p.grad is not None for p in model.projector.parameters())
    assert all(p.grad is None for p in model.tokenizer.parameters())
