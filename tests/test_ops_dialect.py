"""All ops as a dialect: images do not see each other, graphs survive export and compile, bad inputs are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

import lvtp_fx.ops  # noqa: F401  (registers the dialect)
from lvtp_fx.errors import LvtpError
from lvtp_fx.ops.guard import check_constant
from tests import op_calls
from tests.draws import Space, normal

lvtp = torch.ops.lvtp
B, GRID = 3, (4, 6)
SPACE = Space(B=B, N=20, K=8, before=1, after=1, seed=4)


def tensors() -> dict[str, torch.Tensor]:
    """Everything that an op may read, with B images along the first axis."""
    small, rows, columns = SPACE.before + SPACE.K + SPACE.after, *GRID
    f32 = torch.float32
    return {
        "q": normal(0, B, 2, SPACE.L, 4, dtype=f32), "k": normal(1, B, 2, SPACE.L, 4, dtype=f32),
        "mask": normal(2, B, 1, SPACE.L, SPACE.L, dtype=f32), "visible": normal(3, B, 1, 1, small) > -1,
        "image": normal(4, B, 3, rows * 4, columns * 4, dtype=f32), "x": SPACE.stream(dtype=f32),
        "now": normal(5, B, small, 3, dtype=f32), "left": normal(6, B, small, 3, dtype=f32),
        "feature": normal(7, B, SPACE.N, 5, dtype=f32), "importance": normal(8, B, SPACE.N, dtype=f32),
        "edge": normal(9, B, SPACE.N, dtype=f32), "kept": SPACE.kept, "owner": SPACE.owner, "size": SPACE.size,
        "position": Space(B=B, N=24, K=20, before=0, after=0, seed=5).kept,
        "hidden": SPACE.size * (torch.arange(SPACE.N) % 3 > 0), "grid": (normal(10, B, 24, dtype=f32) > -1).float(),
    }


Tensors = dict[str, torch.Tensor]


def twice(op: Callable[..., torch.Tensor], *args: object, size: torch.Tensor) -> torch.Tensor:
    """What an op gives without and with hidden tokens."""
    return torch.cat([op(*args), op(*args, size)], dim=1)


def supports(t: Tensors, owner: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return op_calls.supports(t["feature"], t["kept"], owner, t["position"], 6, 6, 0.1, 3, 0.1)


OPS: dict[str, Callable[[Tensors], torch.Tensor]] = {
    "entropy": lambda t: twice(lvtp.entropy, t["q"], t["k"], t["mask"], None, 1, 1, [0.5, 1.0, 2.0, 3.0], 2,
                               size=t["hidden"]),
    "edges": lambda t: twice(lvtp.edges, t["image"], *GRID, size=t["grid"]),
    "blend": lambda t: lvtp.blend(t["importance"], t["edge"], -1.0, 0.5),
    "hashed": lambda t: lvtp.hashed(t["position"], 3),
    "spread": lambda t: lvtp.spread(t["position"], 6),
    "positions": lambda t: lvtp.positions(t["x"], 20),
    "features": lambda t: torch.cat([lvtp.features(t["k"], 1, 1, 4), lvtp.features(t["x"], 1, 1, 2)], dim=-1),
    "hide": lambda t: lvtp.hide(t["importance"], t["hidden"]),
    "select": lambda t: lvtp.select(t["importance"], 8),
    "owners": lambda t: op_calls.owners(t["feature"], t["kept"], t["position"], 6, 6, 0.1),
    "comparable": lambda t: torch.cat(lvtp.comparable(t["feature"], t["position"], 6, 6, 0.1), dim=-1),
    "dropped": lambda t: lvtp.dropped(t["kept"], SPACE.N),
    "supports": lambda t: torch.cat(supports(t, t["owner"]), dim=-1),
    "owners_among": lambda t: lvtp.owners_among(t["owner"].unsqueeze(-1).expand(-1, -1, 2)),
    "representatives": lambda t: twice(lvtp.representatives, t["importance"], t["position"], *GRID, 2, 2,
                                       size=t["hidden"]),
    "rank": lambda t: twice(op_calls.rank, t["feature"], t["kept"], t["position"], t["importance"], t["edge"], 6, 6, 0,
                            1, 1, 12, 2, size=t["hidden"]),
    "received": lambda t: twice(lvtp.received, t["q"], t["k"], t["mask"], None, 1, 1, 2, size=t["hidden"]),
    "blank": lambda t: lvtp.blank(t["position"]),
    "partners": lambda t: twice(lvtp.partners, t["feature"], size=t["hidden"]),
    "partners_across": lambda t: twice(lvtp.partners_across, t["feature"], size=t["hidden"]),
    "superpixels": lambda t: twice(lvtp.superpixels, t["feature"], t["position"], 6, 6, 8, 2, 0.1, size=t["hidden"]),
    "pair_rank": lambda t: lvtp.pair_rank(t["feature"], lvtp.partners(t["feature"]), 3.0),
    "owners_of": lambda t: lvtp.owners_of(lvtp.partners(t["feature"]), t["kept"]),
    "owners_fused": lambda t: lvtp.owners_fused(t["importance"], t["kept"]),
    "compose": lambda t: lvtp.compose(t["position"], t["kept"]),
    "repeat": lambda t: lvtp.repeat(t["kept"], 1, 2).unflatten(0, (-1, 2)),
    "gather": lambda t: lvtp.gather(t["mask"], t["kept"], 0, 3, 1, 1),
    "ones": lambda t: lvtp.ones(t["position"]),
    "shown": lambda t: lvtp.shown(t["mask"] * 1000, t["position"], 1, 1),
    "sizes": lambda t: lvtp.sizes(t["size"], t["owner"], 8),
    "merge": lambda t: op_calls.merge(t["x"], t["kept"], t["owner"], t["size"], 1, 1),
    "key_bias": lambda t: lvtp.key_bias(t["visible"], t["size"][:, :8], 1, 1, 0, t["q"]),
    "restore": lambda t: lvtp.restore(t["now"], t["x"], t["left"], t["owner"], 1, 1),
    "restore_between": lambda t: lvtp.restore_between(t["now"], t["x"], t["left"], *supports(t, None), 1, 1),
    "restore_frozen": lambda t: lvtp.restore_frozen(t["now"], t["x"], t["kept"], 1, 1),
    "check_input": lambda t: lvtp.check_input(t["x"], "x", [-1, SPACE.L, 3], "cpu", torch.float32),
}
every_op = pytest.mark.parametrize("name", OPS)
KERNELS = {"row_entropies_fused"}  # run on a GPU only, and registered where there is Triton: tests/test_row_entropy.py


def registered() -> set[str]:
    schemas = torch._C._jit_get_all_schemas()
    return {s.name.removeprefix("lvtp::") for s in schemas if s.name.startswith("lvtp::")}


def test_every_op_of_the_dialect_is_tested_here() -> None:
    assert registered() - KERNELS == set(OPS)


@every_op
def test_image_alone_equals_image_in_a_batch(name: str) -> None:
    t = tensors()
    together = OPS[name](t)
    for i in range(B):
        alone = OPS[name]({key: value[i : i + 1] for key, value in t.items()})
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=1e-6)  # other sizes sum in another order


@every_op
def test_autocast_rounds_nothing(name: str) -> None:
    """Decisions are compared in float32 also where a user runs the graph under autocast."""
    t = tensors()
    expected = OPS[name](t)
    with torch.autocast("cpu", torch.bfloat16):
        assert (t["q"] @ t["q"].mT).dtype == torch.bfloat16  # so it does round
        assert torch.equal(OPS[name](t), expected)


@every_op
def test_bad_image_does_not_reach_its_batch_mates(name: str) -> None:
    """Image 0 of NaN, image 1 of huge numbers: image 2 keeps its values, to the bit."""
    t = tensors()
    expected = OPS[name](t)[2]
    for value in t.values():
        if value.is_floating_point():
            value[0], value[1] = torch.nan, 1e30
    assert torch.equal(OPS[name](t)[2], expected)


class Pruned(nn.Module):
    """Two blocks' worth of everything: score, cluster, decide, reduce, attend, restore."""

    def forward(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = lvtp.check_input(x, "x", [-1, 25, 8], "", torch.float32)
        q, k = (x.unflatten(-1, (2, 4)).transpose(1, 2) * s for s in (1.0, -0.7))
        mask = torch.zeros(25, 25).masked_fill(torch.ones(25, 25).tril(-20).bool(), -torch.inf)
        position = lvtp.positions(x, 24)
        feature = lvtp.features(k, 1, 0, 4)
        size = lvtp.ones(position) * lvtp.shown(x[:, None, None, :, 0] > -1, position, 1, 0)
        entropy = lvtp.entropy(q, k, mask, None, 1, 0, [0.5, 1.0, 2.0], 2, size)
        edges = lvtp.compose(lvtp.edges(image, *GRID, size), position)
        importance = lvtp.blend(entropy, edges, -1.0, 0.5)
        anchors = lvtp.representatives(importance, position, *GRID, 2, 2, size)
        rank = op_calls.rank(feature, anchors, position, importance, edges, 6, 6, 0.1, 0.1, 0.1, 10, 2, size)
        extra = lvtp.hashed(position, 3) + lvtp.spread(position, 6) + lvtp.blank(position)
        extra = extra + lvtp.received(q, k, mask, None, 1, 0, 2, size)
        pixels = lvtp.superpixels(feature, position, 6, 6, 10, 2, 0.1)
        for partner in (pixels, lvtp.partners(feature), lvtp.partners_across(feature)):
            extra = extra + lvtp.pair_rank(feature, partner, 3.0).clamp(max=1)
        kept = lvtp.select(lvtp.hide(lvtp.blend(rank, extra, 1.0, 1e-3), size), 10)
        owner = op_calls.owners(feature, kept, position, 6, 6, 0.1)
        left = op_calls.merge(x, kept, owner, size, 1, 0)
        small = lvtp.sizes(size, owner, 10)
        q = left.unflatten(-1, (2, 4)).transpose(1, 2)
        bias = lvtp.key_bias(lvtp.gather(mask[None], kept, 0, 2, 1, 0)[:, :1].unsqueeze(1), small, 1, 0, 0, q)
        attended = nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        now = left + attended.transpose(1, 2).flatten(2)
        heads = lvtp.gather(now.repeat_interleave(2, 0), lvtp.repeat(kept * 0, 1, 2), 0, 1, 1, 0)
        frozen = lvtp.restore_frozen(now, x, kept, 1, 0)
        others = lvtp.owners_of(pixels, kept) + lvtp.owners_fused(importance, kept)
        supports, shares = op_calls.supports(feature, kept, None, position, 6, 6, 0.1, 3, 0.1)
        others = others + lvtp.owners_among(supports)
        frozen = frozen + lvtp.restore_between(now, x, left, supports, shares, 1, 0)
        return lvtp.restore(now, x, left, owner, 1, 0) + 0.5 * frozen + heads.mean() + others.float().mean()


INPUTS = (normal(0, 2, 3, 16, 24, dtype=torch.float32), normal(1, 2, 25, 8, dtype=torch.float32))
MORE = (normal(2, 3, 3, 16, 24, dtype=torch.float32), normal(3, 3, 25, 8, dtype=torch.float32))


def exported(module: nn.Module) -> ExportedProgram:
    shapes = ({0: Dim("batch", min=1, max=64)},) * 2
    return export(module, INPUTS, dynamic_shapes=shapes, strict=False)


def names(program: ExportedProgram) -> set[str]:
    return {n.target.name().removeprefix("lvtp::") for n in program.graph.nodes
            if isinstance(n.target, torch._ops.OpOverload) and n.target.namespace == "lvtp"}


def test_ops_survive_export_and_export_again() -> None:
    """As nodes, and for other batch sizes; a decomposition sees through them and gives the same."""
    first = exported(Pruned())
    assert names(first) == set(OPS)
    code = first.graph_module.print_readable(print_output=False)
    assert all(f"torch.ops.lvtp.{name}.default(" in code for name in OPS)
    again = exported(first.module())
    inlined = again.run_decompositions()
    assert names(inlined) == set()
    for inputs in (INPUTS, MORE, tuple(x[:1] for x in MORE)):
        expected = Pruned()(*inputs)
        for program in (first, again, inlined):
            torch.testing.assert_close(program.module()(*inputs), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_ops_compile_as_one_graph_for_any_batch(backend: str) -> None:
    """fullgraph, and no recompile from a batch of 2 to one of 3."""
    torch._dynamo.reset()
    compiled = torch.compile(Pruned(), fullgraph=True, backend=backend)
    inputs = tuple(x.clone() for x in INPUTS)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    torch.testing.assert_close(compiled(*inputs), Pruned()(*INPUTS))
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(*MORE), Pruned()(*MORE))
        with pytest.raises(RuntimeError, match="recompile"):  # another size of the grid would
            compiled(MORE[0][..., :12], MORE[1])


def test_input_that_fits_passes_through_untouched() -> None:
    x = torch.zeros(2, 3, 4)
    for shape in ([2, 3, 4], [-1, 3, 4], [-1, -1, -1]):
        for device in ("", "cpu"):
            assert lvtp.check_input(x, "image", shape, device, torch.float32).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([-1, 3, 5], "shape [any, 3, 5]"), ([1, 3, 5], "shape [1, 3, 5]"), ([-1, 3], "shape [any, 3]"),
     ([-1, -1, -1, 4], "shape [any, any, any, 4]")],
)
def test_another_shape_is_refused(shape: list[int], expected: str) -> None:
    with pytest.raises(LvtpError) as refusal:
        lvtp.check_input(torch.zeros(2, 3, 4), "image", shape, "", torch.float32)
    assert refusal.value.code == "LVTP401"
    assert str(refusal.value).splitlines() == [
        "LVTP401 input-does-not-fit at input 'image'",
        f"  expected: {expected}",
        "  got: shape [2, 3, 4]",
        "  why: the token grid and the position tables were captured for that size",
        "  try: resize the input, or call lvtp_fx.transform again with an example of this size; "
        "lvtp_fx.BySize(model) does so for every size that it meets",
    ]


@pytest.mark.parametrize(("shape", "expected"), [([1, 3, 4], "[1, 3, 4]"), ([1, -1, 4], "[1, any, 4]")])
def test_another_batch_is_refused_as_such(shape: list[int], expected: str) -> None:
    with pytest.raises(LvtpError) as refusal:
        lvtp.check_input(torch.zeros(2, 3, 4), "image", shape, "", torch.float32)
    assert str(refusal.value).splitlines() == [
        "LVTP401 input-does-not-fit at input 'image'",
        f"  expected: shape {expected}",
        "  got: shape [2, 3, 4]",
        "  why: the graph was captured for that first axis: its batch is fixed, as the report's notes say",
        "  try: pass that many, or call lvtp_fx.transform again with an example of this size; "
        "lvtp_fx.BySize(model) does so for every size that it meets",
    ]


@pytest.mark.parametrize(("made_for", "fits"), [
    (torch.float32, (torch.float32, torch.float16, torch.bfloat16, torch.float64)), (torch.uint8, (torch.uint8,)),
    (torch.int64, (torch.int64,)), (torch.bool, (torch.bool,)),
])
def test_another_kind_of_numbers_is_refused(made_for: torch.dtype, fits: tuple[torch.dtype, ...]) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool):
        x = torch.zeros(2, 3, dtype=dtype)
        if dtype in fits:
            assert lvtp.check_input(x, "image", [-1, 3], "", made_for) is not None
            continue
        with pytest.raises(LvtpError) as refusal:
            lvtp.check_input(x, "image", [-1, 3], "", made_for)
        assert str(refusal.value).splitlines() == [
            "LVTP401 input-does-not-fit at input 'image'",
            f"  expected: a tensor of {made_for}",
            f"  got: one of {dtype}",
            "  why: what the model does with another kind of numbers (scale them, say) is not in the graph",
            "  try: convert the input, or call lvtp_fx.transform again with an example of this dtype",
        ]


@pytest.mark.parametrize(("captured", "same", "others"), [
    (2.0, (2.0, 2), (2.5, "2", None, torch.tensor(2.0))), (True, (True,), (1, False, None)), (1, (1, 1.0), (True, 2)),
    (None, (None,), (False, 0, torch.zeros(1))), ("bilinear", ("bilinear",), ("nearest", torch.zeros(2))),
    (torch.float32, (torch.float32,), (torch.float16,)),
])
def test_another_constant_is_refused(captured: object, same: tuple[object, ...], others: tuple[object, ...]) -> None:
    for value in same:
        check_constant(value, "mode", captured)
    for value in others:
        with pytest.raises(LvtpError, match="LVTP401 input-does-not-fit at input 'mode'") as refusal:
            check_constant(value, "mode", captured)
        assert refusal.value.expected == repr(captured)


def test_another_device_is_refused() -> None:
    with pytest.raises(LvtpError) as refusal:
        lvtp.check_input(torch.zeros(2, 3, device="meta"), "image", [-1, 3], "cpu", torch.float32)
    assert refusal.value.code == "LVTP402"
    assert str(refusal.value).splitlines() == [
        "LVTP402 graph-holds-another-device at input 'image'",
        "  expected: a tensor on cpu",
        "  got: meta",
        "  why: the captured graph creates tensors on the device that it was captured on",
        "  try: move the model first, then call lvtp_fx.transform on it",
    ]
    with pytest.raises(LvtpError, match="LVTP401"):  # the shape comes first
        lvtp.check_input(torch.zeros(2, 4, device="meta"), "image", [-1, 3], "cpu", torch.float32)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_graph_refuses_too(backend: str) -> None:
    """The check is in the graph: dynamo meets the wrong size and passes the refusal on in its own words."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=False)
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * lvtp.check_input(x, "x", [-1, 25, 8], "", torch.float32)

    assert double(torch.ones(2, 25, 8)).unique().tolist() == [2]
    with pytest.raises(Exception, match="LVTP401") as refusal:
        double(torch.ones(2, 26, 8))
    for line in ("at input 'x'", "expected: shape [any, 25, 8]", "got: shape [2, 26, 8]"):
        assert line in str(refusal.value)
