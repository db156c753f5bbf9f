"""Writes into parts of a tensor: joins of the parts in the captured graph, which the passes follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lvtp_fx
from lvtp_fx.capture import Capture, capture
from lvtp_fx.models.random_weights import randomise
from tests.tiny import Attention, C, PreNorm, TinyViT, captured, fused, picture

aten = torch.ops.aten
Write = Callable[[Tensor, Tensor], None]  # (what is written into [B, 10, 6], another one like it)


def _set(index: object) -> Write:
    def write(y: Tensor, z: Tensor) -> None:
        y[index] = z[index] * 2  # type: ignore[index]

    return write


def _add(y: Tensor, z: Tensor) -> None:
    y[:, 1:] += z[:, 1:]


def _other_type(y: Tensor, z: Tensor) -> None:
    y[:, 2:5] = z[:, 2:5].double()


def _number(y: Tensor, z: Tensor) -> None:
    y[:, -1:] = 0.5


def _broadcast(y: Tensor, z: Tensor) -> None:
    y[:, :4] = z[:, :1]


def _part_of_a_part(y: Tensor, z: Tensor) -> None:
    y[:, 2:][:, :3].mul_(z[:, 2:5])


def _all(y: Tensor, z: Tensor) -> None:
    y[:] = z


JOINED: dict[str, Write] = {
    "from": _set((slice(None), slice(1, None))), "up to": _set((slice(None), slice(None, -2))),
    "between": _set((slice(None), slice(2, 5))), "behind the end": _set((slice(None), slice(7, 99))),
    "nothing": _set((slice(None), slice(5, 5))), "channels": _set((..., slice(None, 3))),
    "first": _set((slice(None), 0)), "one": _set((slice(None), 4)), "last": _set((slice(None), -1)),
    "add": _add, "a number": _number, "another type": _other_type, "broadcast": _broadcast,
    "a part of a part": _part_of_a_part, "all": _all,
}
LEFT: dict[str, Write] = {"every other": _set((slice(None), slice(None, None, 2))), "an image": _set(1)}


def written(write: Write) -> tuple[Tensor, Capture, Tensor]:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            write(y, x)
            return y * 3

    x = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0))
    return Writes()(x), capture(Writes(), (x,), {}), x


def scatters(found: Capture) -> bool:
    return any(node.target in (aten.slice_scatter.default, aten.select_scatter.default)
               for node in found.module.graph.nodes)


@pytest.mark.parametrize("write", JOINED.values(), ids=JOINED)
def test_a_write_is_a_join(write: Write) -> None:
    want, found, x = written(write)
    assert not scatters(found)
    assert torch.equal(found.module(x), want)
    more = torch.cat([x, x + 1])
    assert torch.equal(found.module(more)[:2], want)


@pytest.mark.parametrize("write", LEFT.values(), ids=LEFT)
def test_what_cannot_be_joined_stays(write: Write) -> None:
    want, found, x = written(write)
    assert scatters(found)
    assert torch.equal(found.module(x), want)


class Blocks(TinyViT):
    """A class token that the blocks set aside, each in its own way."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__([PreNorm(Attention(fused)) for _ in range(3)])
        self.step, self.token, self.mix = step, nn.Parameter(torch.zeros(1, 1, C)), nn.Linear(C, C)

    def features(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        x = torch.hstack([self.token.expand(x.shape[0], -1, -1), x])
        for block in self.blocks:
            x = self.step(self.mix, block(x))
        out: Tensor = self.norm(x[:, 1:])
        return out


def _split(mix: nn.Module, x: Tensor) -> Tensor:
    token, patches = torch.split(x, [1, x.shape[1] - 1], dim=1)
    return torch.cat([token, patches + mix(patches)], dim=1)


def _written(mix: nn.Module, x: Tensor) -> Tensor:
    x[:, 1:] = x[:, 1:] + mix(x[:, 1:])
    return x


def _added(mix: nn.Module, x: Tensor) -> Tensor:
    x[:, 1:] += mix(x[:, 1:])
    x[:, 0] = x[:, 0] * 2
    return x


@pytest.mark.parametrize("step", [_split, _written, _added])
def test_a_stream_whose_class_token_is_set_aside_is_one_stream(
    step: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    dense = captured(randomise(Blocks(step), seed=0).eval())
    fast = lvtp_fx.transform(dense, keep_ratio=0.6, sites=(0, 1))
    assert [block.tokens for block in fast.report.blocks] == [65, 39, 23]
    lvtp_fx.verify(dense, fast, (picture(),))
