"""Files as the authors of DINO, DINOv2, DINOv3, SigLIP and ConvNeXt publish them, with random numbers in them."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepcluster.errors import ModelError
from deepcluster.nets.network import build
from deepcluster.seeding import generator, lent_global


def published(name: str, **options: object) -> dict[str, Tensor]:
    """The tensors of a network of timm with random weights, in the size and with the head that it is published with."""
    with lent_global(0, "published"):
        model = timm.create_model(name, **options)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return model.state_dict()


def of_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's ConvNeXt by the names of its authors."""
    changes = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc", ".pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    renamed = {}
    for key, value in state.items():
        for pattern, name in changes:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def with_mask_token(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def in_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {f"visual.trunk.{key}": value for key, value in state.items()}
    return named | {"logit_scale": torch.zeros(()), "text.token_embedding.weight": torch.zeros(5, 4)}


def same_features(name: str, size: int, path: object, expected: torch.nn.Module) -> None:
    network = build(f"timm:{name}", image_size=size, weights=str(path)).eval()
    images = torch.rand(2, 3, size, size, generator=generator(0, "images"))
    with torch.no_grad():
        torch.testing.assert_close(network.body(images), expected.eval()(images))


def by_timm(name: str, state: dict[str, Tensor], size: int) -> torch.nn.Module:
    """The network as timm itself makes it of the published tensors."""
    overlay = {"state_dict": dict(state), "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=size)


@pytest.mark.parametrize("size", [160, 96, 224])
@pytest.mark.parametrize("change", [dict, with_mask_token, in_open_clip])
def test_position_tables_are_resampled_as_timm_does(tmp_path, size, change):
    state = published("test_vit")
    save_file(change(state), tmp_path / "a.safetensors")
    same_features("test_vit", size, tmp_path / "a.safetensors", by_timm("test_vit", state, size))


def test_attention_pooling_stays(tmp_path):
    state = published("test_vit3")
    assert any(key.startswith("attn_pool.") for key in state)
    save_file(in_open_clip(state), tmp_path / "a.safetensors")
    same_features("test_vit3", 96, tmp_path / "a.safetensors", by_timm("test_vit3", state, 96))


@pytest.mark.parametrize("wrapped", [False, True])
def test_convnext_by_the_names_of_its_authors(tmp_path, wrapped):
    with lent_global(0, "model"):
        model = timm.create_model("test_convnext", num_classes=21)
    state = of_meta(model.state_dict())
    assert {"norm.weight", "downsample_layers.0.0.weight", "head.weight"} < state.keys()
    torch.save({"model": state} if wrapped else state, tmp_path / "a.pth")
    model.reset_classifier(0)
    same_features("test_convnext", 144, tmp_path / "a.pth", model)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("patch_embed.proj.weight", torch.zeros(64, 3, 8, 8), r"\(64, 3, 8, 8\) instead of \(64, 3, 16"),
        ("pos_embed", torch.full((1, 101, 64), torch.nan), "pos_embed has numbers that are not"),
        ("pos_embed", torch.zeros(1, 101, 48), r"pos_embed \(1, 37, 48\) instead of \(1, 37, 64\)"),
    ],
)
def test_files_that_do_not_fit_are_refused_after_resampling_too(tmp_path, name, tensor, message):
    save_file(published("test_vit") | {name: tensor}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=message):
        build("timm:test_vit", image_size=96, weights=str(tmp_path / "a.safetensors"))


def test_dinov3_gives_its_class_token():
    """timm averages."""
    name = "timm:vit_small_patch16_dinov3"
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    network = build(name, image_size=32, feature_dim=384).eval()
    with torch.no_grad():
        tokens = network.body.forward_features(images)
        torch.testing.assert_close(network.body(images), tokens[:, 0])
