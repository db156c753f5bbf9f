"""Tokens kept as rows and columns between the blocks, [B, 8, 8, C]: one axis of tokens in the captured graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lvtp_fx
from lvtp_fx.config import Config
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.passes import pipeline
from lvtp_fx.passes.flatten_convolutions import FlattenConvolutions
from tests.test_golden import lines
from tests.tiny import Attention, C, D, H, PreNorm, TinyViT, captured, fused, picture

aten = torch.ops.aten
Step = Callable[["Stepping", Tensor], Tensor]  # (parameters, the stream [B, 8, 8, C]) -> the same


class Rows(PreNorm):
    """Attention over all 64 tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x).flatten(1, 2)).view(x.shape)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Windows(PreNorm):
    """Attention in windows of 4 x 4."""

    side = 4

    def forward(self, x: Tensor) -> Tensor:
        B, s = x.shape[0], self.side
        y = F.pad(self.norm1(x), (0, 0, 0, -8 % s, 0, -8 % s)) if 8 % s else self.norm1(x)
        n = y.shape[1] // s
        y = y.view(B, n, s, n, s, C).permute(0, 1, 3, 2, 4, 5).reshape(B * n * n, s * s, C)
        y = self.attention(y).view(B, n, n, s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(B, n * s, n * s, C)
        return self.tail(x + (y[:, :8, :8].contiguous() if 8 % s else y))

    def tail(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Padded(Windows):
    """Windows of 3 x 3, the grid padded to 9 x 9."""

    side = 3


class Planes(Rows):
    """Channels first between the blocks, as in ViTDet."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OnPlanes(Planes):
    """Linear layers as convolutions of single places, on [B, C, 8, 8]."""

    def __init__(self, _: nn.Module) -> None:
        super().__init__(Attention(fused))
        self.qkv, self.proj = nn.Conv2d(C, 3 * C, 1), nn.Conv2d(C, C, 1, bias=False)
        self.up, self.down = nn.Conv2d(C, 2 * C, 1, padding="valid"), nn.Conv2d(2 * C, C, 1, groups=2)
        self.before, self.between = nn.BatchNorm2d(C), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).reshape(x.shape[0], 3, H, D, 64).transpose(-2, -1).unbind(1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(-2, -1).reshape(x.shape))
        y = self.between(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # in channels-last order
        out: Tensor = x + self.down(F.gelu(self.up(y)))
        return out


class Merging(Padded):
    """Merges rows and columns by itself for what follows the attention, as timm's SAM does."""

    def tail(self, x: Tensor) -> Tensor:
        return super().tail(x.reshape(x.shape[0], 64, C)).reshape(x.shape)


class MergingAll(PreNorm):
    """Merges them around a whole block."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).view(x.shape)


class Convolved(Rows):
    """A convolution over the grid behind the block."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.conv = nn.Conv2d(C, C, 3, padding=1, groups=C)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Relative(Rows):
    """Scores with a bias for the distance in rows and one for that in columns, as in SAM; `apart`: added to scores
    [B * H, 8, 8, 8, 8], as in ViTDet."""

    apart = False

    def __init__(self, _: nn.Module) -> None:
        super().__init__(Attention(fused))
        self.rows, self.columns = (nn.Parameter(torch.randn(8, 8, D)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        B, inner = x.shape[0], self.attention
        assert isinstance(inner, Attention)
        qkv = inner.qkv(self.norm1(x)).reshape(B, 64, 3, H, D).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, -1, 64, D).unbind(0)
        grid = q.reshape(-1, 8, 8, D)
        rows = torch.einsum("bhwc,hkc->bhwk", grid, self.rows)[..., :, None]
        columns = torch.einsum("bhwc,wkc->bhwk", grid, self.columns)[..., None, :]
        scores = (q * D**-0.5) @ k.transpose(-2, -1)
        if self.apart:
            scores = (scores.view(-1, 8, 8, 8, 8) + rows + columns).view(scores.shape)
        else:
            scores = scores + (rows + columns).reshape(scores.shape)
        y = (scores.softmax(-1) @ v).view(B, H, 8, 8, D).permute(0, 2, 3, 1, 4).reshape(B, 8, 8, C)
        x = x + inner.proj(y)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class RelativeApart(Relative):
    apart = True


class TinyRows(nn.Module):
    """Patch embedding, blocks, norm and head on [B, 8, 8, C] (`first`: [B, C, 8, 8]); an image to [B, 5, 8, 8]."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(C)
        self.first = any(isinstance(block, Planes) for block in blocks)
        self.conv, self.pos_embed = nn.Conv2d(3, C, 4, 4), nn.Parameter(torch.zeros(1, 8, 8, C))
        self.neck = nn.Conv2d(C, 5, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image).permute(0, 2, 3, 1) + self.pos_embed
        x = x.permute(0, 3, 1, 2) if self.first else x
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 2, 3, 1) if self.first else x
        out: Tensor = self.neck(self.norm(x).permute(0, 3, 1, 2))
        return out


class Stepping(Rows):
    """A block, and a step of the stream behind its attention."""

    def __init__(self, step: Step) -> None:
        super().__init__(Attention(fused))
        self.step, self.table, self.numbers = step, nn.Parameter(torch.randn(8, 8, C)), nn.BatchNorm2d(C)
        self.up, self.matrix = nn.Linear(C, 2 * C), nn.Parameter(torch.randn(C, C))
        self.beside = nn.Conv2d(C, C, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x).flatten(1, 2)).view(x.shape)
        return x + self.step(self, x)


def made(*blocks: type[PreNorm]) -> nn.Module:
    return randomise(TinyRows([block(Attention(fused)) for block in blocks]), seed=0).eval()


KINDS: dict[str, tuple[tuple[type[PreNorm], ...], int]] = {  # blocks, and how many readers need all tokens
    "global": ((Rows,) * 4, 0), "windows": ((Windows, Rows, Windows, Rows), 1), "padded": ((Rows, Padded, Rows), 1),
    "channels first": ((Planes,) * 3, 0), "merging": ((Merging, MergingAll, Merging, MergingAll), 1),
    "a convolution": ((Convolved, Rows, Rows), 1),
    "on planes": ((OnPlanes,) * 3, 0), "relative": ((Relative,) * 3, 0), "relative, apart": ((RelativeApart,) * 3, 0),
}


@pytest.mark.parametrize(("blocks", "readers"), KINDS.values(), ids=KINDS)
def test_rows_are_one_axis_and_pruned(blocks: tuple[type[PreNorm], ...], readers: int) -> None:
    model = made(*blocks)
    dense = captured(model)
    for batch in (1, 3):
        torch.testing.assert_close(dense.module(picture(batch)), model(picture(batch)), rtol=0, atol=0)
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0,))
    assert [block.path for block in fast.report.blocks] == [
        f"blocks.{i}" + ("" if issubclass(block, (Relative, OnPlanes)) else ".attention")
        for i, block in enumerate(blocks) if not issubclass(block, Windows)]
    assert fast.report.blocks[-1].tokens == 38
    lvtp_fx.verify(dense, fast, (picture(3),))
    restores = [n for n in fast.graph.nodes if n.target is torch.ops.lvtp.restore.default]
    assert len(restores) == readers + 1  # and before the head


def test_convolutions_of_single_places_read_tokens_within_the_encoder_alone() -> None:
    model = made(*[OnPlanes] * 3)
    model.neck = nn.Conv2d(C, 5, 1)
    dense = captured(model)
    targets = [node.target for node in lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0,)).graph.nodes]
    assert targets.count(aten.conv1d.default) == 12
    assert targets.count(aten.conv2d.default) == 2  # the patch embedding and the neck
    assert aten.conv1d.default not in [node.target for node in dense.module.graph.nodes]


def test_a_padded_convolution_between_views_is_none_of_single_places() -> None:
    def step(m: Stepping, x: Tensor) -> Tensor:
        planes = x.flatten(1, 2).transpose(1, 2).reshape(-1, C, 8, 8)
        return m.beside(planes).flatten(2)[..., :64].transpose(1, 2).reshape(-1, 8, 8, C)  # type: ignore[no-any-return]

    model = randomise(TinyRows([Rows(Attention(fused)), Stepping(step)]), seed=0).eval()
    fast = lvtp_fx.transform(model, (picture(3),), keep_ratio=0.6, sites=(0,))
    lvtp_fx.verify(model, fast, (picture(3),))


def _gate(m: Stepping, x: Tensor) -> Tensor:
    a, b = m.up(x).chunk(2, -1)
    return a * b.sigmoid()  # type: ignore[no-any-return]


def _shifted(m: Stepping, x: Tensor) -> Tensor:
    return x - F.pad(x, (0, 0, 0, 0, 0, 1))[:, 1:]


FLAT: dict[str, Step] = {
    "a table": lambda m, x: x * m.table,
    "a row of a table": lambda m, x: x * m.table[:1],
    "a column of a table": lambda m, x: x * m.table[:, :1],
    "a table of columns": lambda m, x: x * m.table[0],
    "numbers of channels": lambda m, x: x * m.table[0, 0],
    "softmax": lambda m, x: x.softmax(-1),
    "softmax, channels first": lambda m, x: x.permute(0, 3, 1, 2).softmax(1).permute(0, 2, 3, 1),
    "batch norm": lambda m, x: m.numbers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),
    "mean": lambda m, x: x - x.mean(-1, keepdim=True),
    "variance": lambda m, x: x / (1 + x.var(-1).unsqueeze(-1)),
    "halves": _gate,
    "glu": lambda m, x: F.glu(m.up(x)),
    "slices": lambda m, x: torch.cat([x[..., 8:], x[..., :8]], -1),
    "a product": lambda m, x: x @ m.matrix,
    "one channel": lambda m, x: x * x[..., 0].unsqueeze(-1) * x.select(-1, -1)[..., None],
    "where": lambda m, x: torch.where(x > 0, x, m.table),
    "casts": lambda m, x: x.double().clone().contiguous().float(),
    "heads": lambda m, x: x.unflatten(-1, (H, D)).softmax(-1).flatten(3),
    "length": lambda m, x: x / (1 + x.norm(dim=-1, keepdim=True)),
    "largest": lambda m, x: x - x.max(-1, keepdim=True)[0],
    "stacked": lambda m, x: torch.stack([x, x.sin()], -2).sum(-2),
    "a pad by nothing": lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 0)) * 2,
    "a flat part": lambda m, x: m.up(x.flatten(1, 2))[..., :C].unflatten(1, (8, 8)),
}
APART: dict[str, Step] = {  # these ops need rows and columns
    "a shift": _shifted,
    "a padded convolution": lambda m, x: m.beside(x.permute(0, 3, 1, 2))[..., 1:-1, 1:-1].permute(0, 2, 3, 1),
    "roll": lambda m, x: torch.roll(x, 1, 1),
    "rows become columns": lambda m, x: x.transpose(1, 2).softmax(-1).transpose(1, 2),
    "flip": lambda m, x: x.flip(2),
    "mean of rows": lambda m, x: x - x.mean(1, keepdim=True),
    "softmax over columns": lambda m, x: x.softmax(2),
    "norm over columns": lambda m, x: F.layer_norm(x, (8, C)),
}


@pytest.mark.parametrize("step", [*FLAT.values(), *APART.values()], ids=[*FLAT, *APART])
def test_a_step_of_the_stream_computes_the_same(step: Step) -> None:
    model = randomise(TinyRows([Rows(Attention(fused)), Stepping(step), Rows(Attention(fused))]), seed=0).eval()
    dense = captured(model)
    torch.testing.assert_close(dense.module(picture(3)), model(picture(3)), rtol=0, atol=0)
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0,))
    assert len(fast.report.blocks) == 3
    lvtp_fx.verify(dense, fast, (picture(3),))
    apart = sum(n.target is aten.unflatten.int for n in dense.module.graph.nodes)
    assert apart == 1 + (step in APART.values())  # and before the neck


class Golden(expecttest.TestCase):
    def test_captured(self) -> None:
        """Convolutions read rows and columns, all else tokens."""
        graph = captured(made(Convolved)).module.graph
        self.assertExpectedInline(lines(graph), """\
sym_size1 = aten.sym_size.int(image, 0)
conv2d1 = aten.conv2d(image, conv_weight, conv_bias, [4, 4])
flatten1 = aten.flatten.using_ints(conv2d1, 2, 3)
permute1 = aten.permute(flatten1, [0, 2, 1])
flatten2 = aten.flatten.using_ints(pos_embed, 1, 2)
add1 = aten.add.Tensor(permute1, flatten2)
layer_norm1 = aten.layer_norm(add1, [32], blocks_0_norm1_weight, blocks_0_norm1_bias, 1e-05, False)
linear1 = aten.linear(layer_norm1, blocks_0_attention_qkv_weight, blocks_0_attention_qkv_bias)
reshape1 = aten.reshape(linear1, [sym_size1, 64, 3, 2, 16])
permute2 = aten.permute(reshape1, [2, 0, 3, 1, 4])
unbind1 = aten.unbind.int(permute2)
getitem1 = getitem(unbind1, 0)
getitem2 = getitem(unbind1, 1)
getitem3 = getitem(unbind1, 2)
scaled_dot_product_attention1 = aten.scaled_dot_product_attention(getitem1, getitem2, getitem3)
transpose1 = aten.transpose.int(scaled_dot_product_attention1, 1, 2)
reshape2 = aten.reshape(transpose1, [sym_size1, 64, 32])
linear2 = aten.linear(reshape2, blocks_0_attention_proj_weight, blocks_0_attention_proj_bias)
add2 = aten.add.Tensor(add1, linear2)
layer_norm2 = aten.layer_norm(add2, [32], blocks_0_norm2_weight, blocks_0_norm2_bias, 1e-05, False)
linear3 = aten.linear(layer_norm2, blocks_0_mlp_0_weight, blocks_0_mlp_0_bias)
gelu1 = aten.gelu(linear3)
linear4 = aten.linear(gelu1, blocks_0_mlp_2_weight, blocks_0_mlp_2_bias)
add3 = aten.add.Tensor(add2, linear4)
unflatten1 = aten.unflatten.int(add3, 1, [8, 8])
permute3 = aten.permute(unflatten1, [0, 3, 1, 2])
conv2d2 = aten.conv2d(permute3, blocks_0_conv_weight, blocks_0_conv_bias, [1, 1], [1, 1], [1, 1], 32)
flatten3 = aten.flatten.using_ints(conv2d2, 2, 3)
permute4 = aten.permute(flatten3, [0, 2, 1])
add4 = aten.add.Tensor(add3, permute4)
layer_norm3 = aten.layer_norm(add4, [32], norm_weight, norm_bias, 1e-05, False)
unflatten2 = aten.unflatten.int(layer_norm3, 1, [8, 8])
permute5 = aten.permute(unflatten2, [0, 3, 1, 2])
conv2d3 = aten.conv2d(permute5, neck_weight, neck_bias, [1, 1], [1, 1])""")

    def test_convolutions_of_single_places(self) -> None:
        """In the captured graph they read rows and columns; the first pass writes them on the tokens."""
        plan = pipeline.start(captured(made(OnPlanes)), Config())
        self.assertExpectedInline(lines(FlattenConvolutions()(plan).graph_module.graph), """\
sym_size1 = aten.sym_size.int(image, 0)
conv2d1 = aten.conv2d(image, conv_weight, conv_bias, [4, 4])
flatten1 = aten.flatten.using_ints(conv2d1, 2, 3)
permute1 = aten.permute(flatten1, [0, 2, 1])
flatten2 = aten.flatten.using_ints(pos_embed, 1, 2)
add1 = aten.add.Tensor(permute1, flatten2)
permute2 = aten.permute(add1, [0, 2, 1])
_native_batch_norm_legit_no_training1 = aten._native_batch_norm_legit_no_training(permute2, blocks_0_before_weight, blocks_0_before_bias, blocks_0_before_running_mean, blocks_0_before_running_var, 0.1, 1e-05)
getitem1 = getitem(_native_batch_norm_legit_no_training1, 0)
flatten3 = aten.flatten.using_ints(blocks_0_qkv_weight, 2, 3)
conv1d1 = aten.conv1d(getitem1, flatten3, blocks_0_qkv_bias, [1], [0], [1], 1)
reshape1 = aten.reshape(conv1d1, [sym_size1, 3, 2, 16, 64])
transpose1 = aten.transpose.int(reshape1, -2, -1)
unbind1 = aten.unbind.int(transpose1, 1)
getitem2 = getitem(unbind1, 0)
getitem3 = getitem(unbind1, 1)
getitem4 = getitem(unbind1, 2)
scaled_dot_product_attention1 = aten.scaled_dot_product_attention(getitem2, getitem3, getitem4)
transpose2 = aten.transpose.int(scaled_dot_product_attention1, -2, -1)
reshape2 = aten.reshape(transpose2, [sym_size1, 32, 64])
flatten4 = aten.flatten.using_ints(blocks_0_proj_weight, 2, 3)
conv1d2 = aten.conv1d(reshape2, flatten4, None, [1], [0], [1], 1)
add2 = aten.add.Tensor(permute2, conv1d2)
permute3 = aten.permute(add2, [0, 2, 1])
layer_norm1 = aten.layer_norm(permute3, [32], blocks_0_between_weight, blocks_0_between_bias, 1e-05, False)
permute4 = aten.permute(layer_norm1, [0, 2, 1])
flatten5 = aten.flatten.using_ints(blocks_0_up_weight, 2, 3)
conv1d3 = aten.conv1d(permute4, flatten5, blocks_0_up_bias, [1], [0], [1], 1)
gelu1 = aten.gelu(conv1d3)
flatten6 = aten.flatten.using_ints(blocks_0_down_weight, 2, 3)
conv1d4 = aten.conv1d(gelu1, flatten6, blocks_0_down_bias, [1], [0], [1], 2)
add3 = aten.add.Tensor(add2, conv1d4)
permute5 = aten.permute(add3, [0, 2, 1])
layer_norm2 = aten.layer_norm(permute5, [32], norm_weight, norm_bias, 1e-05, False)
unflatten1 = aten.unflatten.int(layer_norm2, 1, [8, 8])
permute6 = aten.permute(unflatten1, [0, 3, 1, 2])
conv2d2 = aten.conv2d(permute6, neck_weight, neck_bias, [1, 1], [1, 1])""")  # noqa: E501


class Residual(nn.Module):
    """Convolutions with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x).relu()
        return out


class WithResidual(TinyViT):
    """Tokens on one axis, and a convolutional decoder."""

    def __init__(self) -> None:
        super().__init__([PreNorm(Attention(fused))])
        self.decoder = nn.Sequential(Residual(), Residual(), nn.Conv2d(C, 5, 1))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.features(image).transpose(1, 2).unflatten(2, (8, 8)))
        return out


@pytest.mark.parametrize("model", [
    WithResidual(), nn.Sequential(nn.Conv2d(3, C, 4, 4), Residual(), Residual()),
    TinyRows([Padded(Attention(fused))] * 2),
], ids=["decoder", "no attention", "no global attention"])
def test_other_sums_are_left_alone(model: nn.Module) -> None:
    """Of convolutions, and around windows where no attention runs over all tokens."""
    model = randomise(model, seed=0).eval()
    dense = captured(model)
    ops = [node.target for node in dense.module.graph.nodes]
    assert aten.flatten.using_ints not in ops
    assert aten.unflatten.int not in ops
    sums = dense.module.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert [node.meta["val"].ndim for node in sums[-2:]] == [4, 4]
    assert torch.equal(dense.module(picture()), model(picture()))


class Patches(nn.Module):
    """Merges 2 x 2 tokens to one, as the first Swin did, in front of blocks on the coarser grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.reduce = nn.Conv2d(3, C, 2, 2), nn.Linear(4 * C, C)
        self.blocks, self.head = nn.Sequential(*(Rows(Attention(fused)) for _ in range(3))), nn.Linear(C, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image).permute(0, 2, 3, 1)
        x = self.reduce(torch.cat([x[:, i::2, j::2] for j in range(2) for i in range(2)], -1))
        out: Tensor = self.head(self.blocks(x))
        return out


class Alone(TinyRows):
    """Takes one image at a time."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[0] != 1:
            raise ValueError("one image")
        return super().forward(image)


@pytest.mark.parametrize("model", [Patches(), Alone([Planes(Attention(fused)) for _ in range(3)])],
                         ids=["merged patches", "a batch of one"])
def test_blocks_are_one_stream(model: nn.Module) -> None:
    model = randomise(model, seed=0).eval()
    dense = captured(model, picture(1))
    assert torch.equal(dense.module(picture(1)), model(picture(1)))
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0,))
    assert [block.tokens for block in fast.report.blocks] == [64, 38, 38]
    lvtp_fx.verify(dense, fast, (picture(1),))
    assert sum(n.target is torch.ops.lvtp.restore.default for n in fast.graph.nodes) == 1
