"""Visual query tuning: the backbone stays what it was, and the queries read what its own attention would give them."""

import copy
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

import vistok
from vistok.readouts._backbones import backbone_of
from vistok.readouts._blocks import UnsupportedBackboneError
from vistok.readouts.vqt import VQT, init_bound

from .conftest import BACKBONES, DEPTH, PATCH, SIDE, WIDTH, randomize, timm_vit

FOLDABLE = set(BACKBONES) - {"qk_norm"}


def modes_of(name: str) -> list[str]:
    return [*(["folded"] if name in FOLDABLE else []), "kv", "qkv", "masked"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_backbone_gives_the_same_bits_with_and_without_queries(name: str, training: bool, images: Tensor) -> None:
    vit = randomize(BACKBONES[name]())
    with torch.no_grad():
        expected, pooled = backbone_of(vit).run(images)
    for mode in modes_of(name):
        out = VQT(vit, 2, kv_mode=mode).train(training)(images)
        assert torch.equal(out.backbone_features, expected) and torch.equal(out.pooled, pooled)
        assert not out.backbone_features.requires_grad and not out.pooled.requires_grad


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", BACKBONES)
def test_queries_read_what_a_masked_block_gives_them_however_it_is_kept(
    name: str, dtype: torch.dtype, limit: float, images: Tensor
) -> None:
    vit, images = randomize(BACKBONES[name]()).to(dtype), images.to(dtype)
    oracle = VQT(vit, 2, kv_mode="masked").eval()
    with torch.no_grad():
        expected = oracle(images)
        for mode in (*modes_of(name)[:-1], "auto"):
            vqt = VQT(vit, 2, kv_mode=mode).eval()
            vqt.load_state_dict(oracle.state_dict())
            out = vqt(images)
            assert float((out.queries - expected.queries).abs().max()) < limit
            assert float((out.features - expected.features).abs().max()) < limit
    assert float(expected.queries.abs().max()) > 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_only_queries_get_gradients_and_those_of_every_block_do(name: str, images: Tensor) -> None:
    vit = randomize(BACKBONES[name]())
    for mode in modes_of(name):
        vqt = VQT(vit, 2, kv_mode=mode).train()
        vqt(images).features.square().mul(torch.arange(1, 1 + vqt.num_features)).sum().backward()
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in vit.parameters())
        assert vqt.queries.grad is not None and bool((vqt.queries.grad.abs().sum(-1) > 0).all())


def test_gradients_are_those_of_the_masked_block(images: Tensor) -> None:
    vit, images = randomize(timm_vit()).double(), images.double()
    found = []
    for mode in ("masked", "folded", "kv", "qkv"):
        torch.manual_seed(0)
        vqt = VQT(vit, 2, kv_mode=mode, query_dropout=0.0)
        vqt(images).features.mul(torch.arange(vqt.num_features)).sum().backward()
        found.append(vqt.queries.grad)
    for grad in found[1:]:
        torch.testing.assert_close(grad, found[0], atol=1e-12, rtol=0)


def test_queries_of_a_block_touch_no_other_block(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2).eval()
    before = vqt(images).queries
    with torch.no_grad():
        vqt.queries[0] += 1
    after = vqt(images).queries
    assert not torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 1:], after[:, 1:])


def test_sizes_and_starting_values(vit: nn.Module) -> None:
    vqt = VQT(vit, 3)
    assert vqt.groups == (WIDTH, *(3 * WIDTH,) * DEPTH) and vqt.num_features == WIDTH + DEPTH * 3 * WIDTH
    assert sum(p.numel() for p in vqt.parameters() if p.requires_grad) == DEPTH * 3 * WIDTH
    bound = init_bound((PATCH, PATCH), WIDTH)
    assert 0.95 * bound < float(vqt.queries.detach().abs().max()) <= bound
    assert VQT(vit, 3, readout="mean").num_features == WIDTH + DEPTH * WIDTH
    assert VQT(vit, 3, layers=[-1], include_final=False).groups == (3 * WIDTH,)


@pytest.mark.parametrize(("width", "bound"), [(768, 0.0625), (384, 0.07217), (192, 0.07906)])
def test_the_bound_of_the_authors_sizes(width: int, bound: float) -> None:
    assert init_bound((16, 16), width) == pytest.approx(bound, abs=5e-6)


def test_readouts_of_two_queries_by_hand(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2, readout="wsum", normalize=False).eval()
    with torch.no_grad():
        vqt.wsum.copy_(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, -2.0]]))
    out = vqt(images)
    _, first, second, third = out.features.split(vqt.groups, 1)
    torch.testing.assert_close(first, out.queries[:, 0, 0])
    torch.testing.assert_close(second, out.queries[:, 1].mean(1))
    torch.testing.assert_close(third, -2 * out.queries[:, 2, 1])


def test_every_group_has_length_one_and_the_final_feature_comes_first(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2).eval()
    out = vqt(images)
    groups = out.features.split(vqt.groups, 1)
    for group in groups:
        torch.testing.assert_close(group.norm(dim=1), torch.ones(len(images)))
    torch.testing.assert_close(groups[0], nn.functional.normalize(out.pooled, dim=1))
    raw = [group / group.norm(dim=1, keepdim=True) for group in out.queries.flatten(2).unbind(1)]
    torch.testing.assert_close(torch.stack(groups[1:]), torch.stack(raw))


def test_mean_of_one_query_is_that_query(vit: nn.Module, images: Tensor) -> None:
    concat, mean = VQT(vit, 1).eval(), VQT(vit, 1, readout="mean").eval()
    mean.load_state_dict(concat.state_dict())
    assert torch.equal(concat(images).features, mean(images).features)


def test_each_image_has_a_dropout_mask_of_its_own(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2, query_dropout=0.5).train()
    same = images[:1].expand(3, -1, -1, -1)
    torch.manual_seed(0)
    out = vqt(same).queries
    assert not torch.equal(out[0], out[1])
    assert torch.equal(*vqt.eval()(same).queries[:2])


def test_a_state_dict_holds_what_was_learned_and_comes_back(vit: nn.Module, images: Tensor) -> None:
    vqt, fresh = (VQT(copy.deepcopy(vit), 2, readout="wsum").eval() for _ in range(2))
    with torch.no_grad():
        vqt.wsum.normal_()
    assert set(vqt.state_dict()) == {"queries", "wsum"}
    assert fresh.load_state_dict(vqt.state_dict()).missing_keys == []
    assert torch.equal(fresh(images).features, vqt(images).features)
    full = vqt.state_dict(full=True)
    assert {f"vit.{name}" for name in vit.state_dict()} | {"queries", "wsum"} == set(full)
    other = VQT(randomize(timm_vit(), seed=5), 2, readout="wsum").eval()
    other.load_state_dict(full)
    assert torch.equal(other(images).features, vqt(images).features)


def test_half_a_backbone_in_a_state_dict_is_refused(vit: nn.Module) -> None:
    vqt = VQT(vit, 2)
    partial = vqt.state_dict(full=True)
    del partial["vit.norm.weight"]
    with pytest.raises(RuntimeError, match="norm.weight"):
        vqt.load_state_dict(partial)
    with pytest.raises(RuntimeError, match="queries"):
        vqt.load_state_dict({})


def test_hooks_are_gone_even_if_the_backbone_fails(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2, embed_dropout=0.1).train()

    def count() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vit.modules())

    vqt(images)
    assert count() == 0
    failing = vit.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vqt(images)
    failing.remove()
    assert count() == 0


def test_two_on_one_backbone_do_not_see_each_other(vit: nn.Module, images: Tensor) -> None:
    first, second = VQT(vit, 1).eval(), VQT(vit, 3, layers=[1], kv_mode="kv").eval()
    alone = first(images).features
    second(images).features.sum().backward()
    assert torch.equal(first(images).features, alone) and first.queries.grad is None


def test_what_was_captured_once_can_be_read_often_and_in_parts(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2).eval()
    captured = vqt.capture(images)
    with torch.no_grad():
        vqt.queries.mul_(2)
    expected = vqt(images)
    assert torch.equal(vqt.read(captured).features, expected.features)
    part = vqt.read(captured.rows(torch.tensor([2, 0])))
    torch.testing.assert_close(part.features, expected.features[[2, 0]])


def test_skipped_groups_are_zero_and_cost_no_hook(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2).eval()
    full, part = (vqt(images, skip=skip).features.detach().split(vqt.groups, 1) for skip in ([], [2]))
    assert not part[2].any()
    assert all(torch.equal(full[group], part[group]) for group in (0, 1, 3))
    assert vqt.capture(images, skip=[2]).kept[1] is None
    with pytest.raises(ValueError, match="block 1 was skipped"):
        vqt.read(vqt.capture(images, skip=[2]))
    with pytest.raises(ValueError, match=r"0\.\.3 to skip"):
        vqt(images, skip=[4])


def test_tokens_come_layer_by_layer_with_the_block_they_are_of(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 2, layers=[0, 2]).eval()
    tokens = vqt.tokens(images).check()
    assert tokens.embeds is not None and tokens.coords is not None
    assert tokens.spec.grid == (2, 2) and tokens.spec.dim == WIDTH
    assert tokens.coords[0].tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
    torch.testing.assert_close(tokens.embeds, vqt(images).queries.flatten(1, 2))


@pytest.mark.parametrize("mode", ["folded", "kv"])
def test_fewer_bits_are_kept_and_backward_keeps_no_more(mode: Any, vit: nn.Module, images: Tensor) -> None:
    exact, rounded = VQT(vit, 2, kv_mode=mode), VQT(vit, 2, kv_mode=mode, store_dtype="bfloat16")
    exact.eval(), rounded.eval()
    rounded.load_state_dict(exact.state_dict())
    kept = rounded.capture(images).kept[0]
    assert kept is not None and all(part.dtype == torch.bfloat16 for part in kept.tensors)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        out = rounded(images).features
    tokens = (SIDE // PATCH) ** 2 + 1
    assert not any(x.dtype == torch.float32 and x.shape[-1] == WIDTH and tokens in x.shape for x in packed)
    torch.testing.assert_close(out, exact(images).features, atol=2e-2, rtol=0)
    weights = torch.arange(rounded.num_features)
    out.mul(weights).sum().backward(), exact(images).features.mul(weights).sum().backward()
    cosine = nn.functional.cosine_similarity(rounded.queries.grad.flatten(), exact.queries.grad.flatten(), 0)
    assert float(cosine) > 0.999


def test_dropped_embeddings_reach_the_queries_while_training_only(vit: nn.Module, images: Tensor) -> None:
    vqt = VQT(vit, 1, embed_dropout=0.5, query_dropout=0.0)
    with torch.no_grad():
        assert not torch.equal(vqt.train()(images).features, vqt.eval()(images).features)
        assert torch.equal(vqt(images).backbone_features, backbone_of(vit).run(images)[0])


def test_train_keeps_the_backbone_in_evaluation_and_returns_self(vit: nn.Module) -> None:
    vqt = VQT(vit, 1)
    assert vqt.train() is vqt and vqt.training and not any(module.training for module in vit.modules())


def test_blocks_that_only_take_a_mask_are_read_through_it(images: Tensor) -> None:
    vit = randomize(timm_vit(block_fn=ParallelScalingBlock))
    vqt = VQT(vit, 2)
    assert vqt.capture(images).kept[0].mode == "masked"
    vqt(images).features.sum().backward()
    assert bool((vqt.queries.grad.abs().sum(-1) > 0).all())
    with pytest.raises(UnsupportedBackboneError, match="ParallelScalingBlock.*'folded'"):
        VQT(vit, 2, kv_mode="folded")


def test_backbones_without_such_blocks_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedBackboneError, match="Conv2d: .*forward_features"):
        VQT(nn.Conv2d(3, 3, 3))
    rotary = Eva(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, use_rot_pos_emb=True, num_classes=0)
    for mode in ("auto", "masked"):
        with pytest.raises(UnsupportedBackboneError, match="EvaBlock"):
            VQT(rotary, kv_mode=mode)
    with pytest.raises(UnsupportedBackboneError, match="plain linear keys"):
        VQT(timm_vit(qk_norm=True), kv_mode="folded")


def test_a_backbone_that_does_not_pool_is_refused(images: Tensor) -> None:
    tower: Any = BACKBONES["open_clip"]()
    tower.pool_type = "none"
    for backbone in (timm_vit(global_pool=""), tower):
        with pytest.raises(UnsupportedBackboneError, match=r"expected one final feature per image.*give .* a pool"):
            VQT(backbone)(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens: expected at least 1"),
        ({"readout": "sum"}, "readout: expected one of concat"),
        ({"kv_mode": "q"}, "kv_mode: expected one of auto"),
        ({"query_dropout": 1.0}, "query_dropout: expected"),
        ({"layers": []}, "different blocks of 0..2"),
        ({"layers": [0, -3]}, "different blocks of 0..2"),
        ({"layers": [3]}, "different blocks of 0..2"),
        ({"store_dtype": "int8"}, "store_dtype: expected a floating dtype"),
        ({"store_dtype": "bfloat16", "backbone_grad": True}, "none with backbone_grad"),
        ({"exclude_prompts": True}, "exclude_prompts: expected a backbone with prompts"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(vit: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQT(vit, **settings)


def test_a_readout_is_built_by_name_on_a_given_backbone_or_on_settings_of_one(vit: nn.Module, images: Tensor) -> None:
    given: Any = vistok.readout("vqt", vit=vit, num_tokens=2)
    assert given.vit is vit
    tower = {"open_clip": "ViT-B-32", "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    built: Any = vistok.readout("vqt", vit=tower)
    assert built(images).features.shape == (3, built.num_features)
    for wrong in ({}, {"architecture": "vit_tiny_patch16_224", "open_clip": "ViT-B-32"}):
        with pytest.raises(ValueError, match="architecture= .timm. or open_clip="):
            vistok.readout("vqt", vit=wrong)
    with pytest.raises(ValueError, match="timm has no 'vit_huge_typo'"):
        vistok.readout("vqt", vit={"architecture": "vit_huge_typo"})
