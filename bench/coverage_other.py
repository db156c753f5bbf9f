"""torchvision, segmentation_models_pytorch, and models as people write them by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from coverage_check import Model, pictures
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn

from lvtp_fx.models.adapters import timm_segmenter, torchvision_segmenter

N, C, H, D, SIDE = 64, 64, 2, 32, 8


class Attention(nn.Module):
    """q, k, v [B, H, N, D] by one linear layer; `attend` is how the attention is written."""

    def __init__(self, attend: Callable[..., torch.Tensor], tables: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj, self.attend = nn.Linear(C, 3 * C), nn.Linear(C, C), attend
        self.drop = nn.Dropout(0.1)
        self.bias_table = nn.Parameter(torch.zeros(H, N, N)) if tables else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, H, D).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(self, q, k, v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """x + attention(norm(x)), x + mlp(norm(x))."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(C), nn.LayerNorm(C), attention
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Image [B, 3, 128, 128] to tokens [B, 64, C]."""

    def __init__(self, block: Callable[[], nn.Module], depth: int = 4) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(3, C, 16, 16), nn.Parameter(torch.zeros(1, N, C))
        self.blocks, self.norm = nn.ModuleList(block() for _ in range(depth)), nn.LayerNorm(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Linear(nn.Module):
    """A linear head, upsampled."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(block), nn.Linear(C, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = self.head(self.encoder(x)).transpose(1, 2).reshape(-1, 8, SIDE, SIDE)
        return F.interpolate(planes, scale_factor=16, mode="bilinear")


class SetrPup(nn.Module):
    """SETR's progressive upsampling: convolution, norm, upsampling by two, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(lambda: Block(Attention(fused)))
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(C if i == 0 else 32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                       nn.Upsample(scale_factor=2, mode="bilinear")]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(32, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x).transpose(1, 2).unflatten(2, (SIDE, SIDE)))


class CrossAttentionDecoder(nn.Module):
    """Learned queries attend to the tokens (MaskFormer-like); masks are products of queries and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(lambda: Block(Attention(fused)))
        self.queries = nn.Parameter(torch.zeros(8, C))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(C, H, 128, batch_first=True), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(x)
        queries = self.decoder(self.queries.expand(x.shape[0], -1, -1), tokens)
        return torch.einsum("bqc,bnc->bqn", queries, tokens).unflatten(2, (SIDE, SIDE))


class TokenMajor(nn.Module):
    """[N, B, C] through nn.TransformerEncoder, as torch's default layout has it."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(3, C, 16, 16), nn.Parameter(torch.zeros(N, 1, C))
        layer = nn.TransformerEncoderLayer(C, H, 128, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Conv2d(C, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(self.embed(x).flatten(2).permute(2, 0, 1) + self.position)
        return self.head(tokens.permute(1, 2, 0).unflatten(2, (SIDE, SIDE)))


class Einops(nn.Module):
    """Layers and functions of einops throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=16, q=16), nn.Linear(768, C))
        self.blocks = nn.ModuleList(Block(EinopsAttention()) for _ in range(4))
        self.head = nn.Linear(C, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return rearrange(self.head(x), "b (h w) c -> b c h w", h=SIDE)


class EinopsAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=H) for t in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * D**-0.5
        out = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class Unfolding(nn.Module):
    """Patches by F.unfold, blocks gated by nn.GLU, class token and norm as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cls_token = nn.Linear(768, C), nn.Parameter(torch.zeros(1, 1, C))
        self.blocks = nn.ModuleList(Block(Attention(fused)) for _ in range(4))
        for block in self.blocks:
            block.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GLU(), nn.Linear(2 * C, C))
        self.head = nn.Linear(2 * C, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(F.unfold(x, 16, stride=16).transpose(1, 2))
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        taps = []
        for block in self.blocks:
            x = block(x)
            x = x / x.square().mean(-1, keepdim=True).sqrt()
            taps.append(x)
        mean = torch.stack(taps[2:]).mean(0)
        _, mean = mean.split([1, N], dim=1)
        return self.head(torch.cat([mean, x[:, :1].squeeze(1).unsqueeze(1).expand_as(mean)], -1))


class Returning(nn.Module):
    """The third block's attention map is an output: that block stays as it is, the others are pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(lambda: Block(Attention(fused)))
        self.map_block, self.head = ReturningBlock(), nn.Linear(C, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.encoder.embed(x).flatten(2).transpose(1, 2) + self.encoder.position
        for block in self.encoder.blocks[:3]:
            x = block(x)
        x, weights = self.map_block(x)
        x = self.encoder.blocks[3](x)
        return self.head(x), weights


class ReturningBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(C), nn.MultiheadAttention(C, H, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(x)
        out, weights = self.attention(y, y, y, need_weights=True)
        return x + out, weights


@dataclass
class Output:
    logits: torch.Tensor
    features: torch.Tensor


class DataclassOutput(nn.Module):
    """Images by keyword, a mask of valid tokens besides, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(lambda: Block(Attention(fused))), nn.Linear(C, 8)

    def forward(self, *, pixel_values: torch.Tensor, valid: torch.Tensor | None = None) -> Output:
        tokens = self.encoder(pixel_values)
        logits = self.head(tokens)
        return Output(logits if valid is None else logits * valid.unsqueeze(-1), tokens)


class SharedKeys(nn.Module):
    """Grouped-query attention: both query heads share one head of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(C, C), nn.Linear(C, 2 * D), nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(2, (H, D)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, 1, D)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


class SingleColumns(nn.Module):
    """Tokens [B, C, N]: queries and shared keys by convolutions of single places, the keys repeated a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Conv1d(C, C, 1), nn.Conv1d(C, 2 * D, 1), nn.Conv1d(C, C, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x.mT).unflatten(1, (H, D)).mT
        k, v = self.kv(x.mT).unflatten(1, (2, 1, D)).mT.repeat_interleave(H, 2).unbind(1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)).mT


class BatchNorms(Block):
    """A stream that is scaled, as in DeepNorm, and clamped, as half types need it; norms with fixed statistics."""

    def __init__(self) -> None:
        super().__init__(Attention(fused))
        self.norm1, self.norm2 = nn.BatchNorm1d(C), nn.BatchNorm1d(C)
        for norm in (self.norm1, self.norm2):
            nn.init.constant_(norm.running_var, 30.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (0.5 * x + self.attention(self.norm1(x.flatten(0, 1)).view_as(x))).clamp(-1e4, 1e4)
        return torch.lerp(x, x - self.mlp(self.norm2(x.mT).mT), 0.9)


def fused(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def spelt(it: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return it.drop((q * D**-0.5 @ k.transpose(-2, -1)).softmax(-1)) @ v


def wide_softmax(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT / D**0.5).softmax(-1, dtype=torch.float64).to(v.dtype) @ v


def batched(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q3, k3, v3 = (t.flatten(0, 1) for t in (q, k, v))
    return torch.bmm(F.softmax(torch.bmm(q3 * D**-0.5, k3.transpose(1, 2)), -1), v3).unflatten(0, (-1, H))


def added(it: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    assert it.bias_table is not None
    q3, k3, v3 = (t.flatten(0, 1) for t in (q, k, v))
    bias = it.bias_table.repeat(q.shape[0], 1, 1)
    return (torch.baddbmm(bias, q3, k3.mT, alpha=D**-0.5).softmax(-1) @ v3).unflatten(0, (-1, H))


def filled(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    far = torch.arange(N) - torch.arange(N)[:, None]
    scores = (q @ k.mT * D**-0.5).masked_fill((far.abs() > 40)[None, None], float("-inf"))
    return scores.softmax(-1) @ v


def all_true(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    mask = torch.arange(N) >= 0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None, :].expand(q.shape[0], 1, N, N))


def difference(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    (q1, q2), (k1, k2) = q.chunk(2, -1), k.chunk(2, -1)
    return F.scaled_dot_product_attention(q1, k1, v) - 0.3 * F.scaled_dot_product_attention(q2, k2, v)


def transposed(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = (q @ k.mT * D**-0.5).softmax(-1)
    return (v.mT @ weights.mT).mT


def normalised(_: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return (q @ k.mT * 10).softmax(-1) @ v


def _valid(batch: int, _: torch.Generator) -> torch.Tensor:
    return (torch.arange(N) % (batch + 5) > 0).expand(batch, N)


def _written(attend: Callable[..., torch.Tensor], **options: Any) -> Callable[[], nn.Module]:
    return lambda: Linear(lambda: Block(Attention(attend, **options)))


def _layer() -> nn.Module:
    return nn.TransformerEncoderLayer(C, H, 128, batch_first=True, norm_first=True)


def _dataclass() -> nn.Module:
    torch.export.register_dataclass(Output)
    return DataclassOutput()


def _smp() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, encoder_depth=4, decoder_fusion_channels=32,
                   decoder_intermediate_channels=(16, 32, 64, 64), classes=8, dynamic_img_size=True)


def _torchvision() -> nn.Module:
    import torchvision

    model = torchvision.models.vit_b_16(image_size=128)
    model.encoder.layers = model.encoder.layers[:4]
    return model


class Merged(nn.Module):
    """Frames [B, T, 3, H, W] in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _written(fused)()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Mirrored(Merged):
    """The mean over an image and its mirror image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once, twice = self.model(torch.cat([x, x.flip(-1)])).chunk(2)
        return (once + twice.flip(-1)) / 2


def _clips(batch: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, 2, 3, 128, 128, generator=torch.Generator().manual_seed(batch))}


def models() -> list[Model]:
    made: dict[str, Callable[[], nn.Module]] = {
        "einsum and einops": Einops,
        "patches by F.unfold, GLU": Unfolding,
        "SETR-PUP": SetrPup,
        "cross-attention decoder": CrossAttentionDecoder,
        "nn.TransformerEncoder, token-major, pre-norm": lambda: TokenMajor(True),
        "nn.TransformerEncoder, token-major, post-norm": lambda: TokenMajor(False),
        "nn.TransformerEncoderLayer, batch first": lambda: Linear(_layer),
        "a returned attention map": Returning,
        "grouped-query attention": lambda: Linear(lambda: Block(SharedKeys())),
        "1x1 convolutions, repeated keys": lambda: Linear(lambda: Block(SingleColumns())),
        "batch norms, a scaled and clamped stream": lambda: Linear(BatchNorms),
        "softmax spelled out, dropout": _written(spelt),
        "softmax in another type": _written(wide_softmax),
        "bmm": _written(batched),
        "baddbmm, bias table": _written(added, tables=True),
        "masked_fill": _written(filled),
        "an all-True mask": _written(all_true),
        "differential attention": _written(difference),
        "values times the map transposed": _written(transposed),
        "normalised queries and keys": _written(normalised),
    }
    shaped = {"num_layers": 4, "num_heads": 2, "hidden_dim": 64, "mlp_dim": 128}
    for head in ("linear", "mask", "dpt"):
        made[f"torchvision ViT, {head} head"] = lambda head=head: torchvision_segmenter(
            head, image_size=128, patch_size=16, **shaped)
        made[f"Segmenter on timm, {head} head"] = lambda head=head: timm_segmenter(
            "vit_tiny_patch16_224", head, img_size=128, depth=4)
    found = [Model(name, make, pictures(name="image" if "head" in name else "x"), HEAVY.get(name, 0.2))
             for name, make in made.items()]
    return [
        *found, Model("keyword inputs, a dataclass out", _dataclass, pictures(name="pixel_values", valid=_valid)),
        Model("frames in one batch", Merged, _clips), Model("with mirror images", Mirrored, pictures()),
        Model("torchvision vit_b_16", _torchvision, pictures()),
        Model("smp.DPT on timm", _smp, pictures(), 0.1),
    ]


# Decoders that cost most of the model: a cut of the whole can only be small.
HEAVY = {"SETR-PUP": 0.1, "torchvision ViT, dpt head": 0.1, "Segmenter on timm, dpt head": 0.1}
