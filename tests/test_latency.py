"""Time: what the clock says follows from what it measured, and what gains nothing is refused."""

from __future__ import annotations

from dataclasses import replace
from operator import getitem
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lvtp_fx
from lvtp_fx import cost, latency
from lvtp_fx.capture import Capture, capture
from lvtp_fx.config import Config
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from lvtp_fx.passes import pipeline
from lvtp_fx.plan import Clock, Plan
from lvtp_fx.run_graph import Tap, flat_inputs

SMALL = SegmenterConfig(img_size=64, patch_size=8, C=32, depth=4, heads=2, classes=3)


def analysed(**options: Any) -> tuple[Capture, Plan]:
    torch.manual_seed(0)
    captured = capture(Segmenter(SMALL), (torch.rand(2, 3, 64, 64),), {})
    return captured, pipeline.run(pipeline.analysis(), pipeline.start(captured, Config(**options)))


def ideal(plan: Plan, inserted_ms: float = 0.0) -> Clock:
    """A machine that takes a millisecond a thousand FLOPs, and no time for anything else."""
    times = {n.name: float(cost.node_flops(plan, n, 64)) / 1e3 for n in plan.graph_module.graph.nodes}
    return Clock(times, times, inserted_ms)


def rewritten(plan: Plan, clock: Clock) -> Plan:
    return pipeline.run(pipeline.rewrite(1e3 * clock.dense_ms), replace(plan, clock=clock))


@pytest.mark.parametrize("cut", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("inserted", [0.0, 0.05])
def test_the_wanted_share_of_the_time_is_saved_and_no_more(cut: float, inserted: float) -> None:
    _, plan = analysed(latency_cut=cut)
    clock = ideal(plan)
    clock = replace(clock, inserted_ms=inserted * clock.dense_ms)
    done = rewritten(plan, clock)
    assert latency.predicted_ms(done, clock) <= (1 - cut) * clock.dense_ms
    # One token more at a site is too slow: no more was dropped than had to be.
    first = replace(done.sites[0], kept=done.sites[0].kept + 3)
    more = replace(done, sites=tuple(replace(s, kept=s.kept + 3) for s in (first, *done.sites[1:])))
    assert latency.predicted_ms(more, clock) > (1 - cut) * clock.dense_ms


def test_time_in_proportion_to_flops_is_saved_as_flops_are() -> None:
    """The two ways to count agree where they must."""
    _, plan = analysed(flops_cut=0.3)
    clock = ideal(plan)
    done = rewritten(plan, clock)
    values = dict(zip(cost.counts(done), (site.kept for site in done.sites), strict=True))
    free = cost.saved_flops(done) + cost.inserted_flops(done)
    assert float(latency.saved_ms(done, clock).subs(values)) == pytest.approx(float(free.subs(values)) / 1e3)


def test_what_does_not_shrink_is_not_saved() -> None:
    _, plan = analysed(flops_cut=0.3)
    clock = ideal(plan)
    stubborn = replace(clock, shrinking_ms=dict.fromkeys(clock.node_ms, 0.0), inserted_ms=1.0)
    done = rewritten(plan, clock)
    assert latency.predicted_ms(done, stubborn) == pytest.approx(clock.dense_ms + 1.0)


def test_204_names_both_times() -> None:
    _, plan = analysed(flops_cut=0.3)
    clock = ideal(plan)
    done = rewritten(plan, clock)
    latency.refuse_slower(done, clock)
    slow = replace(clock, inserted_ms=0.5 * clock.dense_ms)
    with pytest.raises(LvtpError) as caught:
        latency.refuse_slower(done, slow)
    assert str(caught.value) == (
        "LVTP204 too-little-time-saved at blocks.0\n"
        f"  expected: less than {0.95 * clock.dense_ms:.2f} ms: 95% of what the dense model takes\n"
        f"  got: {latency.predicted_ms(done, slow):.2f} ms, of which scoring, clustering, gathers and restores take "
        f"{slow.inserted_ms:.2f} ms\n"
        "  why: with few tokens, choosing some of them costs more time than dropping the others saves\n"
        "  try: a larger image or batch, a larger cut, entropy_weight=0 or rounds=1; or leave this model dense"
    )


def test_204_where_the_wanted_share_cannot_be_reached() -> None:
    _, plan = analysed(latency_cut=0.95)
    with pytest.raises(LvtpError) as caught:
        rewritten(plan, ideal(plan))
    head, expected, got, *_, hint = str(caught.value).splitlines()
    assert head == "LVTP204 too-little-time-saved at Config.latency_cut"
    assert 0.3 < float(expected.split()[3]) < 0.95
    assert got == "  got: 0.95"
    assert hint == "  try: a smaller latency_cut"


def test_the_inserted_part_computes_what_the_whole_graph_does() -> None:
    """What is timed as inserted is everything that is inserted, and nothing else."""
    captured, plan = analysed(keep_ratio=0.6)
    done = pipeline.run(pipeline.rewrite(1.0), plan)
    module = pipeline.finish(done)
    old = {n.name for n in done.graph_module.graph.nodes}
    part, outside = latency._inserted_part(module, old)
    inserted = {n.name for n in module.graph.nodes if n.op == "call_function" and n.name not in old}
    assert {n.name for n in part.graph.nodes if n.op == "call_function"} == inserted
    ops = {n.target for n in part.graph.nodes if n.op == "call_function"} - {getitem}
    assert {op.namespace for op in ops} == {"lvtp"}
    *_, output = part.graph.nodes
    names = [n.name for n in output.args[0]]
    tap = Tap(module, {n.name for n in outside} | set(names))
    tap.run(*flat_inputs(module, captured.args, captured.kwargs), enable_io_processing=False)
    found = part(*(tap.seen[n.name] for n in outside))
    assert len(names) > 3
    for name, value in zip(names, found, strict=True):
        assert torch.equal(value, tap.seen[name])


@pytest.mark.parametrize("batch", [1, 3])
def test_as_many_images_are_timed_as_were_given(batch: int) -> None:
    """Capture repeats one image, since export would take a batch of one for fixed."""
    model, x = Segmenter(SMALL), torch.rand(batch, 3, SMALL.img_size, SMALL.img_size)
    captured = capture(model, (x,), {})
    ((given,), _) = captured.given
    assert torch.equal(given, x)
    with FlopCounterMode(display=False) as once, torch.no_grad():
        captured.module(x)
    with FlopCounterMode(display=False) as timed:
        latency.op_times(captured.module, captured)
    assert timed.get_total_flops() == (1 + latency._REPEATS) * once.get_total_flops() > 0


@pytest.mark.parametrize("options", [{"flops_cut": 0.3, "check_latency": True}, {"latency_cut": 0.1}], ids=str)
def test_a_real_probe(options: dict[str, Any]) -> None:
    """On this machine, whatever its speed: times are positive, the report and the refusal say the same."""
    torch.manual_seed(0)
    model, x = Segmenter(replace(SMALL, img_size=128)), torch.rand(4, 3, 128, 128)
    report = lvtp_fx.explain(model, (x,), **options)
    if report.refused:
        assert report.refused.startswith("LVTP204 too-little-time-saved at ")
    else:
        assert 0 < report.latency_ms_pruned < 0.95 * report.latency_ms_dense
        assert f"latency_ms of the example, expected: {report.latency_ms_dense:.2f} -> " in str(report)
    plain = lvtp_fx.explain(model, (x,), flops_cut=0.3)
    assert plain.latency_ms_dense is plain.latency_ms_pruned is plain.latency_ms is None
    assert "latency_ms" not in str(plain)


def test_one_goal_at_a_time() -> None:
    with pytest.raises(LvtpError, match="expected: None where latency_cut is given"):
        Config(latency_cut=0.3, keep_ratio=0.5)
