"""What the dense oracle must know of a rewritten graph, read off the plan."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from lvtp_fx.passes.axes.label import Factor, Kind, Label, has_kind, length, token_axes, token_factor
from lvtp_fx.plan import AttentionMatch, Plan
from lvtp_fx.provenance import module_path
from lvtp_fx.record import CopyRecord, HookRecord, StateRecord


def state_record(plan: Plan, state: fx.Node, pruned_name: str, entry: fx.Node | None) -> StateRecord:
    """A state of a stream, the node of the pruned graph that it became, and the first state of a later stream."""
    label = plan.labels[state]
    batch = next(i for i, axis in enumerate(label) if has_kind(axis, Kind.BATCH))
    return StateRecord(state.name, pruned_name, module_path(state), batch, token_axes(label)[0], *ends(label),
                       plan.spaces[state], entry.name if entry is not None else "")


def hook_records(plan: Plan) -> Iterator[HookRecord]:
    """The attentions on fewer tokens, in the trunk or in a later stream. One whose operands are all computed on the
    full grid (from a convolution over it) runs on all tokens, and has none to mask."""
    reducible = plan.reducible
    for match in plan.attentions:
        if match.node in reducible and plan.spaces[match.node] and attended(plan, match.node)[1] is not None:
            yield hook_record(plan, match)


def hook_record(plan: Plan, match: AttentionMatch) -> HookRecord:
    """One attention whose keys are tokens of the grid."""
    rows, columns = attended(plan, match.node)
    assert columns is not None
    return HookRecord(match.hook, plan.spaces[match.node], columns.before, columns.after,
                      (rows.before, rows.after) if rows is not None else None, _batch_place(plan.labels[match.node]))


def attended(plan: Plan, attention: fx.Node) -> tuple[Factor | None, Factor | None]:
    """The tokens of the queries and of the keys of an attention, where these are tokens."""
    uses = plan.flows[attention].uses
    rows, columns = (token_factor(uses[n][-2]) if isinstance(n, fx.Node) and n in uses else None
                     for n in attention.args[:2])
    return rows, columns


def _batch_place(label: Label) -> tuple[int, int, int]:
    """The axis with the batch, and how many entries of others lie outside and inside of it there."""
    at = next(i for i, axis in enumerate(label) if has_kind(axis, Kind.BATCH))
    inside = next(i for i, factor in enumerate(label[at]) if factor.kind is Kind.BATCH)
    return at, length(label[at][:inside]), length(label[at][inside + 1 :])


def copy_record(value: str, reader: str, space: int, label: Label) -> CopyRecord:
    """What the oracle must know of a value that is copied to dropped tokens."""
    factors = [f for axis in label for f in axis]
    return CopyRecord(
        value, reader, space, tuple(-1 if f.kind is Kind.BATCH else f.size for f in factors),
        next(i for i, f in enumerate(factors) if f.kind is Kind.BATCH),
        tuple((i, f.before, f.after) for i, f in enumerate(factors) if f.kind is Kind.TOKEN),
    )


def ends(label: Label) -> tuple[int, int]:
    """Prefix and suffix tokens of a state."""
    factor = token_factor(label[token_axes(label)[0]])
    assert factor is not None
    return factor.before, factor.after
