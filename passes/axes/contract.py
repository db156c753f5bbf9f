"""Rules for contractions: matrix products, einsum, attention."""

from __future__ import annotations

from string import ascii_letters

import torch
from torch import fx

from lvtp_fx.passes.axes.flow import Flow, Reader, Rule, align, argument, named, read_as, reads, tensors
from lvtp_fx.passes.axes.label import Axis, Kind, Label, has_kind, mixed, plain, token_factor, unify

aten = torch.ops.aten


def matmul(node: fx.Node, reader: Reader) -> Flow:
    """[..., M, K] @ [..., K, N]: the contracted axis must not be the tokens."""
    a, b = node.args[-2:] if node.target in (aten.baddbmm.default, aten.addmm.default) else node.args[:2]
    assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
    la, lb = reader.label(a), reader.label(b)
    fresh = reader.unknown(node.meta["val"])
    if len(la) < 2 or len(lb) < 2:
        return Flow(fresh, {}, "a matrix product with a vector")
    if what := mixed((la[-1], lb[-2])):
        return Flow(fresh, {}, f"a matrix product contracts over {what}")
    rank = max(len(la), len(lb)) - 2
    columns = align([la[:-2], lb[:-2]], rank)
    if any(c is None for c in columns):
        return Flow(fresh, {}, "the factors of a matrix product line different axes up with the tokens")
    out: Label = (*(c for c in columns if c is not None), la[-2], lb[-1])
    pairs = [(a, (*read_as(la[:-2], columns), *la[-2:])), (b, (*read_as(lb[:-2], columns), *lb[-2:]))]
    if node.target in (aten.baddbmm.default, aten.addmm.default):
        bias = node.args[0]
        assert isinstance(bias, fx.Node)
        both = align([out, reader.label(bias)], len(out))
        if any(c is None for c in both):
            return Flow(fresh, {}, "an added matrix lines different axes up with the tokens")
        pairs.append((bias, read_as(reader.label(bias), both)))
    uses = reads(pairs)
    return Flow(fresh, {}, "a matrix product reads one tensor in two ways") if uses is None else Flow(out, uses)


def convolution(node: fx.Node, reader: Reader) -> Flow:
    """`conv1d` with a kernel of one: a linear layer whose channels lie on axis 1."""
    x, weight = tensors(node)[:2]
    label = reader.label(x)
    alone = reader.sizes(weight.meta["val"])[-1] == 1
    if not alone or named(node, "stride", [1]) != [1] or named(node, "padding", [0]) != [0] or len(label) != 3:
        return Flow(reader.unknown(node.meta["val"]), {}, "a convolution mixes what lies side by side")
    what = mixed(label[1:2])
    out = (label[0], plain(reader.out_sizes(node)[1]), label[2])
    return Flow(out, {x: label}, f"a convolution of single places mixes {what}" if what else "")


def einsum(node: fx.Node, reader: Reader) -> Flow:
    """Letters are axes: a letter that is summed away must not be the tokens."""
    operands = list(argument(node, 1, "tensors"))
    labels = [reader.label(n) for n in operands]
    fresh = reader.unknown(node.meta["val"])
    spelt = spell(argument(node, 0, "equation"), [len(label) for label in labels])
    if spelt is None:
        return Flow(fresh, {}, "an einsum without explicit letters")
    *left, right = spelt
    axes: dict[str, list[Axis]] = {}
    for letters, label in zip(left, labels, strict=True):
        for letter, axis in zip(letters, label, strict=True):
            axes.setdefault(letter, []).append(axis)
    one: dict[str, Axis] = {}
    for letter, found in axes.items():
        joined = unify(found)
        if joined is None:
            return Flow(fresh, {}, "an einsum lines different axes up with the tokens")
        if letter not in right and (what := mixed((joined,))):
            return Flow(fresh, {}, f"an einsum contracts over {what}")
        one[letter] = joined
    uses = reads(
        (operand, tuple(axis if axis == plain(1) else one[letter] for letter, axis in zip(letters, label, strict=True)))
        for letters, label, operand in zip(left, labels, operands, strict=True)
    )
    if uses is None:
        return Flow(fresh, {}, "an einsum reads one tensor in two ways")
    return Flow(tuple(one[letter] for letter in right), uses)


def spell(equation: str, ranks: list[int]) -> list[str] | None:
    """The letters of each operand and, last, of the result, with `...` written out; None for an equation without a
    result, or with ellipses of several lengths, which are broadcast."""
    if "->" not in equation:
        return None
    inputs, result = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    lengths = {rank - len(t) + 3 for t, rank in zip(terms, ranks, strict=True) if "..." in t}
    if len(lengths) > 1:
        return None
    free = [c for c in ascii_letters if c not in equation]
    dots = "".join(free[: lengths.pop()]) if lengths else ""
    return [t.replace("...", dots) for t in (*terms, result)]


def attention(node: fx.Node, reader: Reader) -> Flow:
    """q rows keep their label; the columns of k and v are one axis, in whatever space; a mask has both."""
    q, k, v = (n for n in node.args[:3] if isinstance(n, fx.Node))
    lq, lk, lv = reader.label(q), reader.label(k), reader.label(v)
    mask = argument(node, 3, "attn_mask")
    fresh = reader.unknown(node.meta["val"])
    columns = unify([lk[-2], lv[-2]])
    # Where heads share their keys (enable_gqa), only the axes before the heads line up.
    own = 3 if argument(node, 7, "enable_gqa", False) else 2
    lead = align([lq[:-own], lk[:-own], lv[:-own]], len(lq) - own)
    batch = [*lead, *lq[-own:-2]]
    if columns is None or any(c is None for c in lead):
        return Flow(fresh, {}, "keys and values run over different axes")
    if argument(node, 5, "is_causal", False):
        return Flow(fresh, {}, "causal attention depends on the position of a token in the sequence")
    if mixed((lq[-1], lk[-1], lv[-1])):
        return Flow(fresh, {}, "attention runs over channels")
    if has_kind(columns, Kind.BATCH):
        return Flow(fresh, {}, "attention runs over the batch")
    if len(columns) > 1 and token_factor(columns):
        return Flow(fresh, {}, "attention runs over several keys of each token")
    pairs = [(n, (*read_as(la[:-own], lead), *la[-own:-2], *tail)) for n, la, tail in (
        (q, lq, lq[-2:]), (k, lk, (columns, lk[-1])), (v, lv, (columns, lv[-1])))]
    if isinstance(mask, fx.Node):
        scores = [*batch, lq[-2], columns]
        both = align([tuple(a for a in scores if a is not None), reader.label(mask)], len(scores))
        if any(c is None for c in both):
            return Flow(fresh, {}, "the mask lines different axes up with the tokens")
        pairs.append((mask, read_as(reader.label(mask), both)))
    uses = reads(pairs)
    if uses is None:
        return Flow(fresh, {}, "attention reads one tensor in two ways")
    return Flow((*(c for c in batch if c is not None), lq[-2], lv[-1]), uses)


RULES: dict[object, Rule] = {
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default,
                     aten.addmm.default, aten.baddbmm.default), matmul),
    aten.conv1d.default: convolution,
    aten.einsum.default: einsum,
    aten.scaled_dot_product_attention.default: attention,
}
