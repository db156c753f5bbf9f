"""One graph a size, made when it is met, the same as `transform` makes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn

import lvtp_fx
from lvtp_fx.models.random_weights import randomise
from tests.tiny import fused, picture, vit


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Takes any image size that is a multiple of its patches."""
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, depth=3, embed_dim=64,
                            num_heads=2, dynamic_img_size=True)
    return randomise(vit, 0)


def image(batch: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, rows, columns, generator=torch.Generator().manual_seed(seed))


def test_each_size_gets_its_graph_and_batches_share_it(model: nn.Module) -> None:
    fast = lvtp_fx.BySize(model, keep_ratio=0.5)
    for batch, rows, columns in ((2, 96, 96), (1, 128, 96), (3, 96, 96)):
        x = image(batch, rows, columns)
        assert torch.equal(fast(x), lvtp_fx.transform(model, (x,), keep_ratio=0.5)(x))
        lvtp_fx.verify(model, fast.graph(x), (x,))
    assert fast.sizes == [(3, 128, 96), (3, 96, 96)]
    assert fast.graph(image(1, 128, 96)).report.grid == (8, 6)


def test_parameters_are_the_models(model: nn.Module) -> None:
    fast = lvtp_fx.BySize(model, keep_ratio=0.5)
    x = image(1, 96, 96)
    graph = fast.graph(x)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    assert {id(p) for p in graph.parameters()} <= {id(p) for p in model.parameters()}
    before = fast(x)
    with torch.no_grad():
        model.get_parameter("head.bias").add_(1)
        torch.testing.assert_close(fast(x), before + 1)
        model.get_parameter("head.bias").sub_(1)


def test_the_size_not_used_for_longest_goes_first(model: nn.Module) -> None:
    fast = lvtp_fx.BySize(model, keep_ratio=0.5, max_sizes=2)
    for rows in (64, 96, 64, 128):
        fast(image(1, rows, 64))
    assert fast.sizes == [(3, 64, 64), (3, 128, 64)]


def test_keywords_types_and_compilation(model: nn.Module) -> None:
    fast = lvtp_fx.BySize(model, keep_ratio=0.5, compile={"backend": "eager", "fullgraph": True})
    x = image(2, 96, 96)
    assert torch.equal(fast(x=x), fast(x))
    assert len(fast.sizes) == 2  # the structure of the inputs belongs to a graph
    assert torch.equal(fast(x), fast.graph(x)(x))


def test_a_model_that_fixes_its_batch_gets_a_graph_a_batch() -> None:
    class OneByOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vit(fused, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([image * 2 for image in self.inner(images)])

    model = OneByOne()
    fast = lvtp_fx.BySize(model, keep_ratio=0.5)
    for batch in (1, 3, 1):
        assert fast(picture(batch)).shape == (batch, 5, 8, 8)
    assert len(fast.sizes) == 2


def test_sizes_may_be_met_in_several_threads(model: nn.Module) -> None:
    fast, sizes = lvtp_fx.BySize(model, keep_ratio=0.5), [(64, 64), (64, 96), (96, 64)] * 3
    images = [image(1, *size) for size in sizes]
    # torch.export turns oneDNN off for all threads meanwhile: off from the start, the kernels are the same throughout.
    with torch.backends.mkldnn.flags(enabled=False), ThreadPoolExecutor(3) as pool:
        got = list(pool.map(fast, images))
        assert len(fast.sizes) == 3
        for x, out in zip(images, got, strict=True):
            assert torch.equal(out, fast(x))


def test_a_size_that_the_model_refuses_is_a_refusal_and_leaves_nothing_behind(model: nn.Module) -> None:
    fast = lvtp_fx.BySize(model, keep_ratio=0.5)
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP105 bad-example-inputs at VisionTransformer"):
        fast(image(1, 100, 96))
    assert fast.sizes == []
    with pytest.raises(lvtp_fx.LvtpError, match="LVTP201 config-out-of-range at max_sizes"):
        lvtp_fx.BySize(model, max_sizes=0)
    with pytest.raises(lvtp_fx.LvtpError, match=r"LVTP201 config-out-of-range at Config\.keep_ratio"):
        lvtp_fx.BySize(model, keep_ratio=2)
