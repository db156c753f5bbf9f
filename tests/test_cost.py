"""The symbolic cost is what FlopCounterMode counts, to the last FLOP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

import lvtp_fx
from lvtp_fx import cost
from lvtp_fx.capture import capture
from lvtp_fx.config import Config
from lvtp_fx.count_flops import measured_flops
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from lvtp_fx.passes import pipeline
from tests.tiny import Attention, PreNorm, TinyViT, fused, picture, vit
from tests.zoo import ZOO


@pytest.mark.parametrize(("name", "head", "options"), [
    ("vit_tiny_patch16_224", "dpt", {"flops_cut": 0.2}),
    ("beit_base_patch16_224", "linear", {"keep_ratio": 0.3, "feature": "stream"}),
    ("eva02_tiny_patch14_224", "mask", {"keep_ratio": (0.9, 0.1), "entropy_keys": 3, "cell": (1, 2)}),
    ("explicit_vit", "linear", {"flops_cut": 0.3, "strategy": "grid", "sites": (0, 1, 2)}),
    ("torchvision_vit", "linear", {"flops_cut": 0.2, "strategy": "random"}),
])
def test_what_is_saved_is_predicted_exactly(name: str, head: str, options: dict[str, Any]) -> None:
    model, x = ZOO[name].build(head), ZOO[name].image(2)
    captured = capture(model, (x,), {})
    dense = measured_flops(captured.module, (x,), {}, 2)
    plan = pipeline.run(pipeline.analysis(), pipeline.start(captured, Config(**options)))
    plan = pipeline.run(pipeline.rewrite(dense), plan)
    pruned = measured_flops(pipeline.finish(plan), (x,), {}, 2)
    values = dict(zip(cost.counts(plan), (site.kept for site in plan.sites), strict=True))
    # Attention spelled out saves the same; the normalised graph is what is counted on both sides.
    assert dense - pruned == float(cost.saved_flops(plan).subs(values)) > 0
    assert sum(float(cost.node_flops(plan, n, 64)) for n in plan.graph_module.graph.nodes) == dense


@pytest.mark.parametrize("equation", ["bnc,cd->bnd", "...c,cd->...d", "n...c,cd->n...d", "abc,cd"])
def test_an_einsum_costs_what_is_counted(equation: str) -> None:
    """With the letters of its other axes left out, too: the cut is what was asked for."""

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, x, self.weight)

    model = Segmenter(SegmenterConfig(img_size=64, patch_size=8, C=16, depth=3, heads=2, classes=3))
    for block in model.blocks:
        block.mlp = nn.Sequential(Spread(), nn.GELU(), Spread())
    captured = capture(model, (torch.rand(2, 3, 64, 64),), {})
    plan = pipeline.run(pipeline.analysis(), pipeline.start(captured, Config()))
    assert sum(float(cost.node_flops(plan, n, 64)) for n in plan.graph_module.graph.nodes) == measured_flops(
        captured.module, (torch.rand(2, 3, 64, 64),), {}, 2)


def test_scores_that_something_else_reads_are_counted_beside_the_fused_attention() -> None:
    def thresholded(m: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ k.mT * m.scale
        low = scores.topk(32, -1).values[..., -1:]
        return scores.masked_fill(scores < low, float("-inf")).softmax(-1) @ v

    captured = capture(TinyViT([PreNorm(Attention(thresholded)) for _ in range(4)]), (picture(),), {})
    report = lvtp_fx.explain(captured, flops_cut=0.1)
    assert 0.1 <= report.flops_cut < 0.13
    assert "saves more FLOPs" in lvtp_fx.explain(captured, keep_ratio=0.98).refused


def test_a_site_that_keeps_all_is_no_site() -> None:
    """Of 577 tokens with the class token, which fill no tile, too."""
    model = Segmenter(SegmenterConfig(img_size=96, patch_size=4, C=16, depth=4, heads=2, classes=3))
    captured = capture(model, (torch.rand(1, 3, 96, 96),), {})
    whole = lvtp_fx.explain(captured, keep_ratio=1.0, sites=(0, 1, 2))
    assert (whole.kept, whole.refused, whole.flops_cut) == ((), "", 0)
    assert lvtp_fx.explain(captured, keep_ratio=(1.0, 0.5, 0.5), sites=(0, 1, 2)).kept == (287, 143)
    assert "+" in lvtp_fx.explain(captured, keep_ratio=0.999).refused  # one token less costs more than it saves


def test_the_report_counts_what_the_counter_counts() -> None:
    """On a model whose ops FlopCounterMode knows on every device: attention in the open."""
    model, x = ZOO["explicit_vit"].build("linear"), ZOO["explicit_vit"].image(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert lvtp_fx.explain(model, (x,)).gflops_dense == counter.get_total_flops() / 1e9


def test_attention_is_counted_where_the_counter_leaves_it_out() -> None:
    """The fused attention of the CPU: 4 N^2 C FLOPs a block."""

    class Attend(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    q = torch.rand(2, 4, 10, 8)
    module = torch.export.export(Attend(), (q,)).module()
    assert isinstance(module, fx.GraphModule)
    assert measured_flops(module, (q,), {}, 2) == 4 * 10 * 10 * 32


@pytest.mark.parametrize("second", [torch.arange(9) % 3 > 1, torch.arange(9) > 3])
def test_ops_whose_shapes_depend_on_values_are_counted_one_by_one(second: torch.Tensor) -> None:
    """Two masks of one layout, which leave different numbers of rows."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("first", torch.arange(9) % 2 > 0)
            self.register_buffer("second", second)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x[:, self.first]).sum(1) + self.linear(x[:, self.second]).sum(1)

    model, x = Masked(), torch.rand(2, 9, 4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    module = torch.export.export(model, (x,)).module()
    assert isinstance(module, fx.GraphModule)
    assert measured_flops(module, (x,), {}, 1) == counter.get_total_flops() == 2 * 2 * 4 * 4 * (4 + int(second.sum()))


def test_the_cut_does_not_depend_on_the_batch_of_the_example() -> None:
    model = Segmenter(SegmenterConfig(img_size=64, patch_size=8, C=16, depth=3, heads=2, classes=3))
    one, three = (lvtp_fx.explain(model, (torch.rand(B, 3, 64, 64),), flops_cut=0.3) for B in (1, 3))
    assert one == three


@pytest.mark.parametrize(("side", "tile"), [(96, 32), (64, 16), (48, 8), (40, 1)])
@pytest.mark.parametrize(("dtype", "largest"), [
    (torch.bfloat16, 32), (torch.float16, 32), (torch.float32, 16), (torch.float64, 1)])
def test_whole_tiles_are_kept(side: int, tile: int, dtype: torch.dtype, largest: int) -> None:
    """Of 576, 256, 144 and 100 tokens; as many as meet the cut."""
    tile = min(tile, largest)
    config = SegmenterConfig(img_size=side, patch_size=4, C=16, depth=4, heads=2, classes=3)
    model, x = Segmenter(config).to(dtype), torch.rand(1, 3, side, side, dtype=dtype)
    captured = capture(model, (x,), {})
    report = lvtp_fx.explain(captured, flops_cut=0.3)
    kept, parents = report.kept, (side * side // 16, *report.kept)
    assert all((count + 1) % tile == 0 for count in kept)  # a class token is a prefix
    assert report.flops_cut >= 0.3
    for i, count in enumerate(kept) if tile > 1 else ():
        more = [*kept[:i], count + tile, *kept[i + 1 :]]
        ratios = tuple(a / b for a, b in zip(more, (parents[0], *more), strict=False))
        if max(ratios) <= 1:
            assert lvtp_fx.explain(captured, keep_ratio=ratios, align=1).flops_cut < 0.3
    exact = lvtp_fx.explain(captured, flops_cut=0.3, align=1)
    assert (exact.kept == kept) is (tile == 1)


def test_flops_are_counted_where_a_shape_depends_on_values() -> None:
    """As where a mask's rows are picked: no shape is known without values, so the count comes from a real run."""

    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit(fused)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.vit(image)
            low = logits < 0
            low[torch.where(low.sum(-1) == low.shape[-1])] = False
            return logits.masked_fill(low, 0.0)

    x, model = picture(), Picks().eval()
    fast = lvtp_fx.transform(model, (x,), keep_ratio=0.5)
    assert fast.report.gflops_dense == lvtp_fx.explain(model.vit, (x,), keep_ratio=0.5).gflops_dense
    lvtp_fx.verify(model, fast, (x,))
