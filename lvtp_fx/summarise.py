"""From a plan to its `Report`: every number is read off the graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from lvtp_fx import cost, latency
from lvtp_fx.capture import Capture
from lvtp_fx.passes.axes.label import token_factor
from lvtp_fx.passes.hidden_tokens import find_hiding
from lvtp_fx.plan import Plan
from lvtp_fx.provenance import describe
from lvtp_fx.randomness import random_nodes
from lvtp_fx.report import BlockReport, Report, Unmatched


def summarise(plan: Plan, captured: Capture, dense_flops: float, pruned_flops: float, refused: str = "") -> Report:
    """The report of a plan that was carried out, or got as far as it did before it was `refused`.

    Args:
        dense_flops, pruned_flops: of one image through the captured graph and through the rewritten one.
    """
    report = Report(
        gflops_dense=dense_flops / 1e9, gflops_pruned=pruned_flops / 1e9,
        unmatched=tuple(Unmatched(m.where, m.reason) for m in plan.misses),
        notes=tuple(_notes(captured, plan)), refused=refused,
    )
    trunk = plan.trunk
    if trunk is None:
        return report
    if plan.record is None:  # nothing was rewritten: no space but the full grid
        plan = replace(plan, sites=(), spaces={})
    if plan.clock is not None:
        report = replace(report, latency_ms_dense=plan.clock.dense_ms,
                         latency_ms_pruned=latency.predicted_ms(plan, plan.clock))
    values = dict(zip(cost.counts(plan), (site.kept for site in plan.sites), strict=True))
    return replace(
        report, blocks=tuple(_blocks(plan)), grid=trunk.grid, kept=tuple(site.kept for site in plan.sites),
        sites=tuple(trunk.blocks[site.block].attention.path for site in plan.sites),
        gflops_encoder_dense=float(cost.encoder_flops(replace(plan, sites=(), spaces={}))) / 1e9,
        gflops_encoder_pruned=float(cost.encoder_flops(plan).subs(values)) / 1e9,
    )


def _notes(captured: Capture, plan: Plan) -> Iterator[str]:
    if captured.note:
        yield captured.note
    if names := captured.thawed:
        several = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (f"torch.no_grad() in the model is not in the graph: in training, gradients reach {names[0]}{several}; "
               "requires_grad_(False) freezes them")
    if plan.trunk is not None and plan.trunk.image is None:
        yield "no picture of floats enters the patch embedding: edges are not used"
    hiding = find_hiding(plan)
    if hiding.first is not None:
        yield f"attention is masked by what comes in ({describe(hiding.first)}): " + (
            "tokens that are hidden from all (padding) are dropped first, and mixed into no other" if hiding.attentions
            else "not all that read the tokens are, so these are merged as if none were, and what is hidden (padding) "
            "is mixed into tokens beside it at each site")
    for node in random_nodes(captured.module.graph):
        yield (f"{node.target} at {describe(node)} draws random numbers, also in eval mode: no two runs give "
               "the same, and verify cannot compare them")
    if captured.restless:
        yield ("forward computes something else from one call to the next, from the same inputs: numbers that Python "
               "or NumPy drew while it was captured are fixed in the graph")
    if captured.read:
        yield (f"Python reads the values of {', '.join(captured.read)} in forward: what it does with them is fixed in "
               "the graph")
    if captured.assigned:
        yield (f"forward assigns tensors to {', '.join(captured.assigned)}: the graph does not, and who reads them "
               "later finds what was there before")


def _blocks(plan: Plan) -> Iterator[BlockReport]:
    assert plan.trunk is not None
    grid, sites = plan.trunk.grid, {site.block for site in plan.sites}
    counts = (grid[0] * grid[1], *(site.kept for site in plan.sites))
    attentions = [block.attention for block in plan.trunk.blocks]
    attentions += [attention for stream in plan.trunk.later for attention in stream.attentions]
    for i, attention in enumerate(attentions):
        q = attention.node.args[0]
        assert isinstance(q, fx.Node)
        factor = token_factor(plan.labels[q][-2])
        assert factor is not None
        ends = factor.before + factor.after
        living = counts[plan.spaces.get(attention.node, 0)]
        yield BlockReport(attention.path, attention.source, counts[0] + ends, living + ends, i in sites)
