"""Attention in every form it is written in becomes one fused node with the same numbers; near misses say why not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import lvtp_fx
from lvtp_fx.capture import capture
from lvtp_fx.config import Config
from lvtp_fx.models.random_weights import randomise
from lvtp_fx.passes import pipeline
from lvtp_fx.passes.axes.contract import spell
from lvtp_fx.passes.match_attention import MatchAttention
from lvtp_fx.plan import Miss, Plan
from tests.tiny import Attention, B, C, D, Form, H, N, PreNorm, TinyViT, captured, picture

Tensor = torch.Tensor
aten = torch.ops.aten


def scores(m: Attention, q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * m.scale


def merged(x: Tensor) -> Tensor:
    return x.reshape(-1, N, D)


def apart(x: Tensor) -> Tensor:
    return x.reshape(-1, H, N, D)


def stabilised(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(m, q, k) + m.bias_table
    return (a - a.amax(-1, keepdim=True)).softmax(-1) @ v


def qk_norm(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(m, m.q_norm(q), m.k_norm(k)).softmax(-1) @ v


def cosine(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    return (a * m.temperature.clamp(max=4.0).exp()).softmax(-1) @ v


def split_heads_between(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of merged heads, masks for heads apart."""
    a = torch.bmm(merged(q), merged(k).mT).view(-1, H, N, N) * m.scale + m.bias_table
    a = a.masked_fill(~m.allowed, -1e9).view(-1, N, N).softmax(-1)
    return apart(torch.bmm(a, merged(v)))


def merge_heads_between(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = (q @ k.mT * m.temperature + m.bias_table).softmax(-1)
    return apart(torch.bmm(a.reshape(-1, N, N), merged(v)))


def rows_and_columns(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A relative position bias that is added to the scores seen as [.., rows, columns, rows, columns]."""
    q, k, v = merged(q), merged(k), merged(v)
    vertical = torch.einsum("bhwc,hkc->bhwk", q.reshape(-1, 8, 8, D), m.bias_table[0, :, :D].reshape(8, 8, D))
    a = (q * m.scale @ k.mT).view(-1, 8, 8, 8, 8) + vertical[..., None] + m.bias_table[0, :8, :8]
    return apart(a.view(-1, N, N).softmax(-1) @ v)


def relative_keys(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT + q @ m.bias_table[0, :, :D].mT) * m.scale).softmax(-1) @ v


def token_first(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads behind the tokens, as in code that never transposes."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    a = (torch.einsum("bnhd,bmhd->bhnm", q, k) * m.scale).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", a, v).transpose(1, 2)


def turned(x: Tensor, table: Tensor) -> Tensor:
    """Pairs of channels as complex numbers, turned by an angle that depends on the token."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    angles = table[0, :, : D // 2]
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(3).type_as(x)


def complex_rotary(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(turned(q, m.bias_table), turned(k, m.bias_table), v)


FORMS: dict[str, Form] = {
    "fused": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "fused with a boolean mask": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.allowed),
    "fused with a mask of ones": lambda m, q, k, v: F.scaled_dot_product_attention(
        q, k, v, torch.ones(N, N, dtype=torch.bool)),
    "fused with a bias": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.bias_table, scale=0.5),
    "scale after": lambda m, q, k, v: scores(m, q, k).softmax(-1) @ v,
    "scale before": lambda m, q, k, v: ((q * m.scale) @ k.transpose(-2, -1)).softmax(-1) @ v,
    "scale on both": lambda m, q, k, v: ((q * D**-0.25) @ (k * D**-0.25).mT).softmax(-1) @ v,
    "no scale": lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v,
    "division": lambda m, q, k, v: (q @ k.mT / D**0.5).softmax(-1) @ v,
    "softmax over the axis by its number": lambda m, q, k, v: F.softmax(scores(m, q, k), dim=3) @ v,
    "temperature a head": lambda m, q, k, v: (q @ k.mT * m.temperature).softmax(-1) @ v,
    "division by a temperature": lambda m, q, k, v: (q @ k.mT / m.temperature).softmax(-1) @ v,
    "mask": lambda m, q, k, v: (scores(m, q, k) + m.bias_table).softmax(-1) @ v,
    "mask first": lambda m, q, k, v: (m.bias_table + scores(m, q, k)).softmax(-1) @ v,
    "mask of booleans": lambda m, q, k, v: (scores(m, q, k) + m.allowed).softmax(-1) @ v,
    "mask with alpha": lambda m, q, k, v: torch.add(scores(m, q, k), m.bias_table, alpha=0.3).softmax(-1) @ v,
    "mask subtracted": lambda m, q, k, v: (scores(m, q, k) - m.bias_table).softmax(-1) @ v,
    "two masks": lambda m, q, k, v: (scores(m, q, k) + m.bias_table + m.bias_table[:1]).softmax(-1) @ v,
    "scale after the mask": lambda m, q, k, v: ((q @ k.mT + m.bias_table) * m.scale).softmax(-1) @ v,
    "temperature after the mask": lambda m, q, k, v: ((q @ k.mT + m.bias_table) * m.temperature).softmax(-1) @ v,
    "a number added": lambda m, q, k, v: (scores(m, q, k) + 3.0).softmax(-1) @ v,
    "the maximum taken off": stabilised,
    "masked_fill": lambda m, q, k, v: scores(m, q, k).masked_fill(~m.allowed, -torch.inf).softmax(-1) @ v,
    "masked_fill before the scale": lambda m, q, k, v: (
        (q @ k.mT).masked_fill(~m.allowed, -1e9) / D**0.5).softmax(-1) @ v,
    "masked_fill with the lowest number": lambda m, q, k, v: (
        (scores(m, q, k) + m.bias_table).masked_fill(~m.allowed, torch.finfo(q.dtype).min).softmax(-1) @ v),
    "filled with what float16 holds": lambda m, q, k, v: scores(m, q, k).masked_fill(~m.allowed, -1e4).softmax(-1) @ v,
    "where": lambda m, q, k, v: torch.where(m.allowed, scores(m, q, k), torch.tensor(-1e9)).softmax(-1) @ v,
    "where with a number": lambda m, q, k, v: torch.where(m.allowed, scores(m, q, k), -1e30).softmax(-1) @ v,
    "where, filled first": lambda m, q, k, v: torch.where(~m.allowed, -torch.inf, scores(m, q, k)).softmax(-1) @ v,
    "einsum": lambda m, q, k, v: torch.einsum(
        "b h i j, b h j d -> b h i d", (torch.einsum("b h i d, b h j d -> b h i j", q, k) * m.scale).softmax(-1), v),
    "einsum with dots": lambda m, q, k, v: torch.einsum(
        "...ij,...jd->...id", torch.einsum("...id,...jd->...ij", q * m.scale, k).softmax(-1), v),
    "einsum, operands swapped": lambda m, q, k, v: torch.einsum(
        "bhjd,bhij->bhid", v, (torch.einsum("bhjd,bhid->bhij", k, q) * m.scale + m.bias_table).softmax(-1)),
    "einsum, tokens first": token_first,
    "map on the right": lambda m, q, k, v: (v.mT @ (scores(m, q, k) + m.bias_table).softmax(-1).mT).mT,
    "map on the right, permuted": lambda m, q, k, v: (
        v.permute(0, 1, 3, 2) @ m.dropout(scores(m, q, k).softmax(-1)).permute(0, 1, -1, 2)).transpose(2, 3),
    "map turned twice": lambda m, q, k, v: scores(m, q, k).softmax(-1).mT.mT @ v,
    "bmm": lambda m, q, k, v: apart(torch.bmm((torch.bmm(merged(q), merged(k).mT) * m.scale).softmax(-1), merged(v))),
    "baddbmm": lambda m, q, k, v: apart(torch.bmm(
        torch.baddbmm(m.bias_table[:1], merged(q), merged(k).mT, beta=0.5, alpha=m.scale).softmax(-1), merged(v))),
    "baddbmm into nothing": lambda m, q, k, v: apart(torch.bmm(
        torch.baddbmm(torch.empty(q.shape[0] * H, N, N), merged(q), merged(k).mT, beta=0, alpha=m.scale)
        .softmax(-1), merged(v))),
    "heads apart for the masks": split_heads_between,
    "heads merged for the values": merge_heads_between,
    "rows and columns apart for the bias": rows_and_columns,
    "relative keys": relative_keys,
    "rotary, in complex numbers": complex_rotary,
    "one head of keys": lambda m, q, k, v: scores(m, q, k[:, :1]).softmax(-1) @ v,
    "dropout": lambda m, q, k, v: m.dropout(scores(m, q, k).softmax(-1)) @ v,
    "softmax in float64": lambda m, q, k, v: scores(m, q, k).softmax(-1, dtype=torch.float64).to(q.dtype) @ v,
    "scores in float64": lambda m, q, k, v: scores(m, q, k).double().softmax(-1).type_as(q) @ v,
    "queries and keys in float64": lambda m, q, k, v: (
        scores(m, q.double(), k.double()) + m.bias_table).softmax(-1).float() @ v,
    "values in float64": lambda m, q, k, v: (
        scores(m, q, k).softmax(-1, dtype=torch.float64) @ v.double()).to(q.dtype),
    "qk-norm": qk_norm,
    "cosine": cosine,
}


def soft_capped(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (50 * torch.tanh(scores(m, q, k) / 50)).softmax(-1) @ v


def talking(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,hg->bgij", scores(m, q, k), m.heads_mix[..., 0, 0]).softmax(-1) @ v


def talking_after(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,hg->bgij", scores(m, q, k).softmax(-1), m.heads_mix[..., 0, 0]) @ v


def map_used_twice(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attention = scores(m, q, k).softmax(-1)
    return attention @ v + attention.amax(-1, keepdim=True)


NEAR_MISSES: dict[str, tuple[Form, str]] = {
    "soft-capping": (soft_capped, "the scores come from aten.tanh.default, not from a product of queries and keys"),
    "clamped scores": (lambda m, q, k, v: scores(m, q, k).clamp(-5, 5).softmax(-1) @ v,
                       "the scores come from aten.clamp.default, not from a product of queries and keys"),
    "softmax over the queries": (lambda m, q, k, v: scores(m, q, k).softmax(-2) @ v,
                                 "the softmax does not run over the last axis"),
    "the map is returned": (map_used_twice, "the attention map has a second consumer"),
    "the map is masked": (lambda m, q, k, v: (scores(m, q, k).softmax(-1) * m.allowed) @ v,
                          "the attention map goes into aten.mul.Tensor before the values"),
    "the map is normalised again": (
        lambda m, q, k, v: F.normalize(scores(m, q, k).softmax(-1), p=1.0, dim=-1) @ v,
        "the attention map has a second consumer"),
    "dropout that stays on": (lambda m, q, k, v: F.dropout(scores(m, q, k).softmax(-1), 0.1) @ v,
                              "the attention map goes into aten.native_dropout.default before the values"),
    "linear attention": (lambda m, q, k, v: q.softmax(-1) @ (k.mT @ v),
                         "the scores come from <built-in function getitem>, not from a product of queries and keys"),
    "talking heads": (talking, "the scores come from aten.einsum.default, not from a product of queries and keys"),
    "talking heads after": (talking_after, "the attention map goes into aten.einsum.default before the values"),
    "gated scores": (lambda m, q, k, v: (scores(m, q, k) * m.allowed).softmax(-1) @ v,
                     "the scores are scaled token by token"),
    "a negative scale": (lambda m, q, k, v: (-2.0 * (q @ k.mT)).softmax(-1) @ v,
                         "the scores are scaled with a number that is not positive"),
    "a mild fill": (lambda m, q, k, v: scores(m, q, k).masked_fill(~m.allowed, -100.0).softmax(-1) @ v,
                    "masked scores are filled with -100, which is not far below every score"),
    "a mild fill after a scale": (
        lambda m, q, k, v: (scores(m, q, k).masked_fill(~m.allowed, -1e9) * 1e-8).softmax(-1) @ v,
        "masked scores are filled with -10, which is not far below every score"),
    "a fill under a temperature": (
        lambda m, q, k, v: (scores(m, q, k).masked_fill(~m.allowed, -1e9) * m.temperature).softmax(-1) @ v,
        "the scores are scaled with a tensor after masked ones were filled in"),
    "a fill that is learned": (
        lambda m, q, k, v: torch.where(m.allowed, scores(m, q, k), m.temperature).softmax(-1) @ v,
        "the scores are mixed with values that are no constant"),
    "scores taken from a mask": (lambda m, q, k, v: (m.bias_table - scores(m, q, k)).softmax(-1) @ v,
                                 "the scores come from a parameter, not from a product of queries and keys"),
    "heads made by a mask": (lambda m, q, k, v: (q[:, :1] @ k[:, :1].mT + m.bias_table).softmax(-1) @ v,
                             "aten.add.Tensor broadcasts the scores"),
    "a temperature after heads were split off": (
        lambda m, q, k, v: ((merged(q) @ merged(k).mT).view(-1, H, N, N) * m.temperature).softmax(-1) @ v,
        "the scores are scaled head by head after a reshape"),
    "rows and columns mixed": (
        lambda m, q, k, v: (q @ k.mT).reshape(-1, H, 2 * N, N // 2).softmax(-1).reshape(-1, H, N, N) @ v,
        "a reshape mixes the rows or columns of the scores"),
    "the map turned alone": (lambda m, q, k, v: scores(m, q, k).softmax(-1).mT @ v,
                             "the attention map goes into aten.matmul.default before the values"),
    "the map turned in another way": (
        lambda m, q, k, v: (v.mT @ scores(m, q, k).softmax(-1).transpose(0, 1).mT.transpose(0, 1)).mT,
        "the attention map goes into aten.transpose.int before the values"),
}


class Applied(nn.Module):
    """A form as a module, so that it has a path."""

    def __init__(self, form: Form, shared: Attention) -> None:
        super().__init__()
        self.form, self.shared = form, (shared,)  # a tuple: the parameters are registered once, above

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.form(self.shared[0], q, k, v)


class AllForms(nn.Module):
    """Every form on the same queries, keys and values, one output each: tracing is what takes the time."""

    def __init__(self, forms: dict[str, Form]) -> None:
        super().__init__()
        self.shared = Attention(FORMS["fused"])
        self.forms = nn.ModuleList(Applied(form, self.shared) for form in forms.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.shared.qkv(x).reshape(x.shape[0], -1, 3, H, D).permute(2, 0, 3, 1, 4)
        return tuple(form(q, k, v) for form in self.forms)


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(B, N, C, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomise(AllForms(FORMS), seed=0).eval()


@pytest.fixture(scope="module")
def matched(model: nn.Module) -> Plan:
    return match(model, tokens())


def run(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
    module = fx.GraphModule(plan.graph_module, plan.graph_module.graph)
    out: tuple[Tensor, ...] = module(x)
    return out


def match(model: nn.Module, *args: Tensor) -> Plan:
    return MatchAttention()(pipeline.start(capture(model, args, {}), Config()))


@pytest.fixture(scope="module")
def outputs(model: nn.Module, matched: Plan) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():  # another batch size and other tokens than were traced
        x = torch.cat([tokens(1), tokens(2)[:1]])
        return list(zip(run(matched, x), model(x), strict=True))


@pytest.mark.parametrize("name", FORMS)
def test_form_becomes_one_fused_attention(name: str, matched: Plan, outputs: list[tuple[Tensor, Tensor]]) -> None:
    place = list(FORMS).index(name)
    found = [a for a in matched.attentions if a.path == f"forms.{place}"]
    assert [a.node.target for a in found] == [aten.scaled_dot_product_attention.default]
    assert found[0].source.startswith("test_match_attention.py:")
    got, want = outputs[place]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_nothing_else_is_left_of_the_written_forms(matched: Plan) -> None:
    assert matched.misses == ()
    assert len(matched.attentions) == len(FORMS)
    targets = [n.target for n in matched.graph_module.graph.nodes]
    assert aten.softmax.int not in targets
    assert targets.count(aten.scaled_dot_product_attention.default) == len(FORMS)


def test_hooks_name_nodes_of_the_captured_graph(matched: Plan) -> None:
    targets = {n.name: n.target for n in matched.captured.graph.nodes}
    assert {targets[a.hook] for a in matched.attentions} == {
        aten.softmax.int, aten.scaled_dot_product_attention.default}


@pytest.fixture(scope="module")
def misses() -> dict[str, Miss]:
    model = randomise(AllForms({name: form for name, (form, _) in NEAR_MISSES.items()}), seed=0).eval()
    plan = match(model, tokens())
    assert plan.attentions == ()
    return {miss.path: miss for miss in plan.misses}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_says_why(name: str, misses: dict[str, Miss]) -> None:
    miss = misses[f"forms.{list(NEAR_MISSES).index(name)}"]
    assert miss.reason == NEAR_MISSES[name][1]
    assert "softmax" in miss.where


class Library(nn.Module):
    """nn.MultiheadAttention, self-attention on [B, N, C]."""

    def __init__(self, need_weights: bool, batch_first: bool, mask: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(C, H, dropout=0.1, batch_first=batch_first)
        self.need_weights, self.batch_first = need_weights, batch_first
        self.mask = torch.zeros(N, N).masked_fill(torch.ones(N, N).tril(-20) > 0, -torch.inf) if mask else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        out: Tensor = self.attention(x, x, x, need_weights=self.need_weights, attn_mask=self.mask)[0]
        return out if self.batch_first else out.transpose(0, 1)


class Libraries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kinds = [(w, f, w != f) for w in (True, False) for f in (True, False)]
        self.forms = nn.ModuleList(Library(*kind) for kind in kinds)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(form(x) for form in self.forms)


def test_multihead_attention_of_torch() -> None:
    model = randomise(Libraries(), seed=0).eval()
    plan = match(model, tokens())
    assert plan.misses == ()
    assert [a.path for a in plan.attentions] == [f"forms.{i}.attention" for i in range(len(model.forms))]
    with torch.no_grad():
        for got, want in zip(run(plan, tokens(1)), model(tokens(1)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_in_float32_between_halves(dtype: torch.dtype) -> None:
    """The usual way to write attention for half precision; nothing is rounded more often than it was."""
    forms: dict[str, Form] = {
        "cast back": lambda m, q, k, v: (scores(m, q, k) + m.bias_table).softmax(-1, dtype=torch.float32).to(q) @ v,
        "cast before": lambda m, q, k, v: scores(m, q, k).float().softmax(-1).type_as(v) @ v,
        "queries and keys too": lambda m, q, k, v: scores(m, q.float(), k.float()).softmax(-1).to(v) @ v,
    }
    model = randomise(AllForms(forms), seed=0).eval()
    exact = model(tokens())
    model = model.to(dtype)
    plan = match(model, tokens().to(dtype))
    assert len(plan.attentions) == len(forms)
    with torch.no_grad():
        x = tokens().to(dtype)
        for got, dense, want in zip(run(plan, x), model(x), exact, strict=True):
            assert got.dtype == dtype
            assert (got - want).norm() < 1.2 * (dense - want).norm()


def test_pruned_graph_equals_the_dense_oracle() -> None:
    """Blocks in different forms, tokens dropped after each."""
    names = ("masked_fill", "einsum, tokens first", "rows and columns apart for the bias", "rotary, in complex numbers",
             "queries and keys in float64", "the maximum taken off")
    dense = captured(randomise(TinyViT([PreNorm(Attention(FORMS[name])) for name in names]), seed=0))
    fast = lvtp_fx.transform(dense, keep_ratio=0.8, sites=(0, 2))
    assert lvtp_fx.verify(dense, fast, (picture(),)).max_error < 2e-5


def test_equations_are_spelt_out() -> None:
    assert spell("b i d, b j d -> b i j", [3, 3]) == ["bid", "bjd", "bij"]
    assert spell("...id,...jd->...ij", [4, 4]) == ["abid", "abjd", "abij"]
    assert spell("...ij,jd->...id", [4, 2]) == ["abij", "jd", "abid"]
    assert spell("ij,jk", [2, 2]) is None
    assert spell("...ij,...jd->...id", [4, 3]) is None
