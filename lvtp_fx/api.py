"""`transform` and `explain`."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

import lvtp_fx.ops  # noqa: F401  (registers the dialect)
from lvtp_fx import cost, example_inputs
from lvtp_fx.capture import Capture, batch_size, capture
from lvtp_fx.config import Config, resolve
from lvtp_fx.errors import LvtpError
from lvtp_fx.passes import pipeline
from lvtp_fx.passes.axes.label import Kind, token_factor
from lvtp_fx.passes.find_trunk import refuse_unmatched
from lvtp_fx.plan import Plan
from lvtp_fx.report import BlockReport, Report, Unmatched

RECORD = "lvtp_fx"  # key of the `Record` in GraphModule.meta


def transform(
    model: nn.Module | ExportedProgram, example_inputs: Any = None, *, config: Config | None = None, **overrides: Any
) -> fx.GraphModule:
    """Rewrite a ViT segmenter so that it drops tokens as it goes and restores them before the decoder.

    Args:
        model: any module, GraphModule or ExportedProgram; it is captured in eval mode and never changed, and its
            parameters are shared.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, at the image size to
            build for; None infers one image from the model's attributes.
        config: options; overrides: single fields of `Config`, e.g. flops_cut=0.35.

    Returns:
        A GraphModule with the model's inputs and outputs, any batch size, and `.report`.

    Raises:
        LvtpError: with a stable code; see `lvtp_fx.errors.Code`.
    """
    options = resolve(config, overrides)
    captured = _captured(model, example_inputs)
    plan = _analysed(captured, options)
    dense_flops = _flops(captured, captured.module)
    if options.flops_cut > 0 or options.keep_ratio is not None:
        plan = pipeline.run(pipeline.rewrite(dense_flops), plan)
    module = pipeline.finish(plan)
    report = _report(plan, captured, dense_flops, _flops(captured, module))
    module.meta[RECORD] = plan.record
    module.report = report
    # deepcopy of a GraphModule keeps only the attributes named here.
    module.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"report": report}
    return module


def explain(
    model: nn.Module | ExportedProgram, example_inputs: Any = None, *, config: Config | None = None, **overrides: Any
) -> Report:
    """What `transform` would do, and why not where not. Changes nothing; takes the same arguments.

    A refusal of the graph or of the options' figures is in `Report.refused`; what cannot be captured at all raises.
    """
    options = resolve(config, overrides)
    captured = _captured(model, example_inputs)
    dense_flops = _flops(captured, captured.module)
    plan = pipeline.run(pipeline.analysis(), pipeline.start(captured, options))
    if plan.trunk is None:
        return _report(plan, captured, dense_flops, dense_flops, str(refuse_unmatched(plan)))
    try:
        if options.flops_cut > 0 or options.keep_ratio is not None:
            plan = pipeline.run(pipeline.rewrite(dense_flops), plan)
    except LvtpError as refusal:
        return _report(plan, captured, dense_flops, dense_flops, str(refusal))
    return _report(plan, captured, dense_flops, _flops(captured, pipeline.finish(plan)))


def _captured(model: nn.Module | ExportedProgram, given: Any) -> Capture:
    args, kwargs = example_inputs.resolve(model, given)
    return capture(model, args, kwargs)


def _analysed(captured: Capture, config: Config) -> Plan:
    plan = pipeline.run(pipeline.analysis(), pipeline.start(captured, config))
    if plan.trunk is None:
        raise refuse_unmatched(plan)
    return plan


def _flops(captured: Capture, module: nn.Module) -> float:
    return cost.measured_flops(module, captured.args, captured.kwargs, batch_size(captured.args, captured.kwargs))


def _report(plan: Plan, captured: Capture, dense_flops: float, pruned_flops: float, refused: str = "") -> Report:
    misses = tuple(Unmatched(m.where, m.reason) for m in plan.misses)
    notes = (captured.note,) if captured.note else ()
    common: dict[str, Any] = {
        "gflops_dense": dense_flops / 1e9, "gflops_pruned": pruned_flops / 1e9, "unmatched": misses,
        "notes": notes, "refused": refused,
    }
    if plan.trunk is None:
        return Report(**common)
    trunk, sites = plan.trunk, {s.block for s in plan.sites} if plan.record else set()
    kept = tuple(s.kept for s in plan.sites) if plan.record else ()
    counts = (trunk.grid[0] * trunk.grid[1], *kept)
    blocks = []
    for i, block in enumerate(trunk.blocks):
        q = block.attention.node.args[0]
        assert isinstance(q, fx.Node)
        factor = token_factor(plan.labels[q][-2])
        assert factor is not None
        assert factor.kind is Kind.TOKEN
        ends = factor.before + factor.after
        space = plan.spaces.get(block.attention.node, 0) if plan.record else 0
        blocks.append(BlockReport(block.attention.path, block.attention.source, counts[0] + ends,
                                  counts[space] + ends, i in sites))
    return Report(
        blocks=tuple(blocks), sites=tuple(trunk.blocks[s].attention.path for s in sorted(sites)), grid=trunk.grid,
        kept=kept, **common, **_encoder_gflops(plan),
    )


def _encoder_gflops(plan: Plan) -> dict[str, float]:
    from dataclasses import replace

    dense = float(cost.encoder_flops(replace(plan, sites=(), spaces={}))) / 1e9
    if plan.record is None:
        return {"gflops_encoder_dense": dense, "gflops_encoder_pruned": dense}
    values = dict(zip(cost.counts(plan), (s.kept for s in plan.sites), strict=True))
    return {"gflops_encoder_dense": dense, "gflops_encoder_pruned": float(cost.encoder_flops(plan).subs(values)) / 1e9}
