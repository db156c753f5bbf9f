"""Masks in every arrangement of batch and heads: scored as the attention sees them, and kept apart per image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lvtp_fx
from lvtp_fx.capture import Capture
from tests.tiny import Attention, PreNorm, TinyViT, captured, fused, picture

B_FORMS = ("4d", "merged", "heads first", "grouped")  # the same attention, written four ways


class Block(nn.Module):
    """Attention of four heads whose mask differs by image (`data`) and by head (`bias`)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.bias = nn.Parameter(torch.randn(4, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, N, 3, 4, 8).permute(2, 0, 3, 1, 4)
        data = 0.2 * x @ x.transpose(1, 2)
        mask = self.bias + data[:, None]
        if self.form == "merged":
            q, k, v, mask = (t.reshape(B * 4, N, -1) for t in (q, k, v, mask))
        elif self.form == "heads first":
            q, k, v, mask = (t.transpose(0, 1) for t in (q, k, v, mask))
        elif self.form == "grouped":
            q, k, v, mask = (t.reshape(B, 2, 2, N, -1) for t in (q, k, v, mask))
        elif self.form == "grouped, a mask a group":
            q, k, v, mask = (t.reshape(B, 2, 2, N, -1) for t in (q, k, v, mask))
            mask = mask[:, :, :1]
        elif self.form == "keys":
            mask = data.mean(1)[:, None, None]
        elif self.form == "one head":
            q, k, v = (t.transpose(1, 2).reshape(B, N, C) for t in (q, k, v))
            mask = data
        elif self.form == "boolean":
            mask = mask > -1
        if self.form == "relative keys":  # the columns of one product are tokens, those of the other a table's rows
            y = ((q @ k.mT + q @ self.bias[:, :, :8].mT) * 8**-0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.form == "heads first":
            y = y.transpose(0, 1)
        y = y if self.form == "one head" else y.reshape(B, 4, N, 8).transpose(1, 2).reshape(B, N, C)
        return x + self.proj(y)


class Model(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 5)
        self.blocks = nn.Sequential(*(Block(form) for _ in range(3)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(self.embed(image).flatten(2).transpose(1, 2)))
        return out


def build(form: str) -> tuple[Capture, torch.fx.GraphModule, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Model(form), torch.randn(3, 3, 64, 64)
    dense = captured(model, x)
    return dense, lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0, 1)), x


@pytest.mark.parametrize("form", [*B_FORMS, "grouped, a mask a group", "keys", "one head", "boolean", "relative keys"])
def test_masks_follow_their_queries(form: str) -> None:
    dense, fast, x = build(form)
    lvtp_fx.verify(dense, fast, (x,))
    with torch.no_grad():
        together = fast(x)
        for i in range(3):
            assert torch.allclose(fast(x[i : i + 1])[0], together[i], atol=1e-5)


def test_the_same_attention_in_another_arrangement_takes_the_same_decisions() -> None:
    first, *others = [lvtp_fx.decisions(fast, x) for _, fast, x in map(build, B_FORMS)]
    for decisions in others:
        for a, b in zip(first, decisions, strict=True):
            assert torch.equal(a.kept, b.kept)
            assert torch.equal(a.owner, b.owner)


class MaskOfTokens(nn.Module):
    """The mask is made of the tokens: it hides nothing for good."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = TinyViT([PreNorm(Attention(self.attend)) for _ in range(3)])

    def attend(self, _: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=k.mean(-1)[:, :, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.vit(image)
        return out


def test_a_mask_of_the_tokens_is_no_padding() -> None:
    assert lvtp_fx.explain(MaskOfTokens(), (picture(),), keep_ratio=0.5).notes == ()


class Given(TinyViT):
    """The mask comes with the images."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = self.embed(image)
        for block in self.blocks:
            y = block.norm1(x)
            q, k, v = block.attention.qkv(y).reshape(*y.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=0.5 * mask)
            x = x + block.attention.proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        out: torch.Tensor = self.head(self.norm(x)).transpose(1, 2)
        return out


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 1, 1, 64), (2, 2, 64, 64), (1, 1, 64, 64)])
def test_scores_to_add_that_come_in_are_no_picture(shape: tuple[int, ...]) -> None:
    """Though they are floats of four axes."""
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = captured(Given([PreNorm(Attention(fused)) for _ in range(3)]), picture(), mask)
    fast = lvtp_fx.transform(model, sites=(0, 1), keep_ratio=0.5)
    assert fast.report.kept == (32, 16)
    assert lvtp_fx.verify(model, fast, (picture(), mask)).max_error < 2e-6
