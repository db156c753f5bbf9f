"""`transform` and `explain`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.export import ExportedProgram
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY
from torch.nn.parallel import DistributedDataParallel

import lvtp_fx.ops  # noqa: F401  (registers the dialect)
from lvtp_fx import example_inputs as examples
from lvtp_fx import latency
from lvtp_fx.batch_axis import batch_size
from lvtp_fx.capture import Capture, capture
from lvtp_fx.clean_graph import copy_graph
from lvtp_fx.config import Config, resolve
from lvtp_fx.count_flops import measured_flops
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.passes import pipeline
from lvtp_fx.passes.find_trunk import refuse_unmatched
from lvtp_fx.plan import Plan
from lvtp_fx.record import RECORD, Record, is_transformed
from lvtp_fx.report import Report
from lvtp_fx.summarise import summarise
from lvtp_fx.unread import carry

aten = torch.ops.aten


def transform(
    model: nn.Module | ExportedProgram | Capture, example_inputs: Any = None, *, config: Config | None = None,
    **overrides: Any,
) -> fx.GraphModule:
    """Rewrite a ViT segmenter so that it drops tokens as it goes and restores them where all are needed again.

    That is before the decoder, at taps, and behind those blocks of a decoder that attend over the same grid.

    Args:
        model: any module, GraphModule or ExportedProgram; it is captured in eval mode and never changed, and its
            parameters are shared. Or what `lvtp_fx.capture.capture` made of one, to transform it several times:
            capture takes most of the time. Then `example_inputs` is not used.
        example_inputs: a tensor, a tuple of positional inputs, a dict of keyword inputs or both as `(tuple, dict)`, at
            the image size to build for; None infers one image from the model's attributes.
        config: options; overrides: single fields of `Config`, e.g. flops_cut=0.35.

    Returns:
        A GraphModule with the model's inputs and outputs, any batch size, and `.report`.

    Raises:
        LvtpError: with a stable code; see `lvtp_fx.errors.Code`.
    """
    options = resolve(config, overrides)
    prepared = prepare(model, example_inputs, options)
    plan = rewritten(prepared, options)
    module = pipeline.finish(plan)
    captured = prepared.captured
    report = summarise(plan, captured, prepared.dense_flops, _flops(captured, module))
    module.meta[RECORD] = plan.record or Record(options)
    carry(module, captured.unread, captured.module)
    setattr(module, "report", report)  # noqa: B010  (mypy takes attributes of modules for tensors)
    # deepcopy of a GraphModule keeps only the attributes named here.
    module.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"report": report}
    return module


def explain(
    model: nn.Module | ExportedProgram | Capture, example_inputs: Any = None, *, config: Config | None = None,
    **overrides: Any,
) -> Report:
    """What `transform` would do, and why not where not. Changes nothing; takes the same arguments.

    A refusal of the graph or of the options' figures is in `Report.refused`; what cannot be captured at all raises.
    """
    options = resolve(config, overrides)
    prepared = prepare(model, example_inputs, options)
    captured, dense_flops, plan = prepared.captured, prepared.dense_flops, prepared.plan
    try:
        plan = rewritten(prepared, options)
    except LvtpError as refusal:
        return summarise(plan, captured, dense_flops, dense_flops, str(refusal))
    return summarise(plan, captured, dense_flops, _flops(captured, pipeline.finish(plan)))


@dataclass(frozen=True)
class Prepared:
    """A model, captured and analysed: what does not depend on the wanted cut.

    Attributes:
        dense_flops: of one image.
    """

    captured: Capture
    dense_flops: float
    plan: Plan


def prepare(model: nn.Module | ExportedProgram | Capture, example_inputs: Any, config: Config) -> Prepared:
    """Capture and analyse; the plan has no trunk where no attention was matched."""
    captured = captured_of(model, example_inputs)
    plan = pipeline.run(pipeline.analysis(), pipeline.start(captured, config))
    dense_flops = _flops(captured, captured.module)
    fused = aten.scaled_dot_product_attention.default
    spelt_out = len(plan.graph_module.graph.find_nodes(op="call_function", target=fused)) > len(
        captured.module.graph.find_nodes(op="call_function", target=fused))
    if spelt_out:
        matched = fx.GraphModule(captured.module, copy_graph(plan.graph_module.graph))
        plan = replace(plan, added_flops=max(0.0, _flops(captured, matched) - dense_flops))
    return Prepared(captured, dense_flops, plan)


def rewritten(prepared: Prepared, config: Config) -> Plan:
    """The plan with a pruned graph, or without one where nothing is to be pruned: the captured graph stays as it is.

    Raises:
        LvtpError: LVTP102 where no attention was matched; LVTP204 where no time is saved; as the passes.
    """
    plan = replace(prepared.plan, config=config)
    if plan.trunk is None:
        raise refuse_unmatched(plan)
    if config.flops_cut == 0 and config.keep_ratio is None and config.latency_cut is None:
        return plan
    timed = config.latency_cut is not None or config.check_latency
    done = _timed(prepared, plan) if timed else pipeline.run(pipeline.rewrite(prepared.dense_flops), plan)
    return done if done.sites else replace(done, pruned=None, record=None)


def _timed(prepared: Prepared, plan: Plan) -> Plan:
    """The plan with a pruned graph that is expected to be faster than the dense one."""
    passes, captured = pipeline.rewrite(prepared.dense_flops), prepared.captured
    clock = latency.probe(plan.graph_module, captured)
    # What a cut that is out of reach comes to is said below, when it is known what is inserted costs.
    done = pipeline.run(pipeline.rewrite(prepared.dense_flops, in_reach=plan.config.latency_cut is not None),
                        replace(plan, clock=clock))
    if not done.sites:
        return done
    clock = latency.calibrated(clock, done, pipeline.finish(done), captured)
    done = replace(done, clock=clock)
    if plan.config.latency_cut is not None:  # counts were solved as if that were free
        done = pipeline.run(passes, replace(plan, clock=clock))
    latency.refuse_slower(done, clock)
    return done


def captured_of(model: nn.Module | ExportedProgram | Capture, example_inputs: Any = None) -> Capture:
    """The captured graph of what `transform` takes, or the capture itself.

    Raises:
        LvtpError: LVTP106 for what is no model or is transformed already; as `capture`.
    """
    if isinstance(model, Capture):
        return model
    if isinstance(model, OptimizedModule):  # what torch.compile makes of a module
        model = model._orig_mod
    if isinstance(model, DistributedDataParallel):  # it wraps the model for training; its own forward is no graph
        model = model.module
    done = any(map(is_transformed, model.modules() if isinstance(model, nn.Module) else [model]))
    scripted = isinstance(model, torch.jit.ScriptModule)
    if done or scripted or not isinstance(model, (nn.Module, ExportedProgram)):
        by = ", which lvtp_fx.transform made" if done else ", which TorchScript made" if scripted else ""
        raise LvtpError(
            Code.BAD_MODEL, where="model", expected="an nn.Module, GraphModule or ExportedProgram, not yet transformed",
            got=f"{type(model).__name__}{by}" + (", or a part of it" if done and not is_transformed(model) else ""),
            why="its graph is captured and rewritten", hint="pass the original model",
        )
    args, kwargs = examples.resolve(model, example_inputs)
    return capture(model, args, kwargs)


def _flops(captured: Capture, module: fx.GraphModule) -> float:
    return measured_flops(module, captured.args, captured.kwargs, batch_size(captured.args, captured.kwargs))
