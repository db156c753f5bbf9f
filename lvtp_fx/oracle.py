"""The dense oracle: the captured graph run on all tokens, told which of them live.

It shares no code with the rewriting. Every value keeps all tokens; after a site a dropped token carries a copy of
its owner's state, it is masked out of attention as a key, and kept keys are biased by log size. What the pruned
graph does by making tensors smaller must come out the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lvtp_fx.decisions import Decision
from lvtp_fx.record import CopyRecord, HookRecord, Record, StateRecord


class Oracle(fx.Interpreter):
    """Interprets a captured graph under given decisions.

    Attributes:
        shown: [B, N], False where a token is hidden from all; None where no mask hides any.
        seen: the residual stream at each state, all tokens, by name, for comparison with the pruned graph.
    """

    def __init__(
        self, captured: fx.GraphModule, record: Record, decided: list[Decision], shown: torch.Tensor | None = None
    ) -> None:
        super().__init__(captured)
        self.record = record
        self.owners = [d.owner for d in decided]  # [B, N] each, on the full grid
        self.decided = decided
        self.states = {state.name: state for state in record.states}
        self.hooks = {hook.name: hook for hook in record.hooks}
        self.copies = {(copy.value, copy.reader): copy for copy in record.copied}
        self.sites = {site.state: i for i, site in enumerate(record.sites)}
        self.passed = 0  # how many sites lie behind
        self.entered: dict[str, torch.Tensor] = {}
        self.left: dict[str, torch.Tensor] = {}
        self.level: dict[str, int] = {}
        self.seen: dict[str, torch.Tensor] = {}
        self.shown = shown

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.hooks:
            return self._attend(n, self.hooks[n.name])
        result = super().run_node(n)
        return self._state(self.states[n.name], result) if n.name in self.states else result

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        def load(operand: fx.Node) -> Any:
            if (operand.name, n.name) in self.record.reduced:
                return self.left[operand.name]
            if (operand.name, n.name) in self.record.restored:
                return self._restore(self.states[operand.name])
            if copy := self.copies.get((operand.name, n.name)):
                return self._copied(self.env[operand], copy)
            return self.env[operand]

        return fx.map_arg(args, load)

    def _copied(self, x: torch.Tensor, copy: CopyRecord) -> torch.Tensor:
        """Dropped tokens take their owner's entries, on every token axis."""
        owner, y = self.owners[copy.space - 1], x.reshape(copy.sizes)
        for place, before, after in copy.tokens:
            moved = y.movedim((copy.batch, place), (0, 1))
            stop = moved.shape[1] - after
            parts = [moved[:, :before], rows(moved[:, before:stop], owner), moved[:, stop:]]
            y = torch.cat(parts, dim=1).movedim((0, 1), (copy.batch, place))
        return y.reshape(x.shape)

    def _state(self, state: StateRecord, x: torch.Tensor) -> torch.Tensor:
        """Dropped tokens take their owner's state; at a site, clusters are formed."""
        enters = state.name == state.entry  # a later stream begins, on the full grid
        if self.passed and not enters:
            owner = self.owners[self.passed - 1]
            x = on_grid(x, state, lambda grid: rows(grid, owner))
        self.level[state.name] = self.passed
        self.seen[state.name] = x
        if state.name in self.sites:
            self.passed += 1
        if state.name in self.sites or enters:
            self.entered[state.name] = x
            self.left[state.name] = on_grid(x, state, self._reduce)
        return x

    def _reduce(self, grid: torch.Tensor) -> torch.Tensor:
        """[B, N, C]: every token gets the value of its cluster, i.e. of the tokens with the same owner."""
        owner = self.owners[self.passed - 1]
        if self.record.config.reduce == "select":
            return rows(grid, owner)
        # Tokens dropped earlier hold copies, so the plain mean over the grid is the size-weighted one.
        same = owner.unsqueeze(1) == owner.unsqueeze(2)
        if self.shown is not None:  # of what is shown; a token that stands for nothing shown stays as it is
            members = same & self.shown.unsqueeze(1)
            itself = owner.unsqueeze(2) == torch.arange(owner.shape[1], device=owner.device)
            same = torch.where(members.any(-1, keepdim=True), members, itself)
        weight = same.to(torch.promote_types(grid.dtype, torch.float32))
        return ((weight @ grid.to(weight.dtype)) / weight.sum(-1, keepdim=True)).to(grid.dtype)

    def _restore(self, state: StateRecord) -> torch.Tensor:
        now: torch.Tensor = next(value for node, value in self.env.items() if node.name == state.name)
        if state.entry:
            return self._undo(state, now, state.entry, self.owners[-1], None, None)
        for site in reversed(range(self.level[state.name])):
            earlier = self.owners[site - 1] if site else None
            now = self._undo(state, now, self.record.sites[site].state, self.owners[site], earlier, self.decided[site])
        return now

    def _undo(
        self, state: StateRecord, now: torch.Tensor, reduced: str, owner: torch.Tensor, earlier: torch.Tensor | None,
        decided: Decision | None,
    ) -> torch.Tensor:
        """Undo the reduction of the state called `reduced`, where each token got `owner` [B, N] for `earlier`, as
        `decided` says there."""
        mode = self.record.config.restore
        if mode == "copy":
            return now
        entered, left = (_grid(x[reduced], self.states[reduced]) for x in (self.entered, self.left))
        if mode == "delta":
            return on_grid(now, state, lambda grid: (entered + _change(grid - left, decided)).to(now.dtype))
        if earlier is None:
            earlier = torch.arange(owner.shape[1], device=owner.device).expand_as(owner)
        lives = (owner == earlier).unsqueeze(-1)
        return on_grid(now, state, lambda grid: torch.where(lives, grid, entered.to(now.dtype)))

    def _attend(self, n: fx.Node, hook: HookRecord) -> torch.Tensor:
        """Attention with dropped keys masked out, then each dropped row copied from its owner."""
        args, named = self.fetch_args_kwargs_from_env(n)
        kwargs = dict(named)
        owner = self.owners[hook.space - 1]
        none = torch.zeros_like(owner, dtype=torch.float32)
        lives = none.scatter(1, owner, 1.0) > 0
        counted = torch.ones_like(owner, dtype=torch.bool) if self.shown is None else self.shown
        # A living token that is hidden stands for none: the model's own mask hides it.
        size = none.scatter_add(1, owner, counted.float()).clamp(min=1)
        if not self.record.config.proportional_attention:
            size = torch.ones_like(size)
        bias = size.log().masked_fill(~lives, -torch.inf)
        bias = torch.nn.functional.pad(bias, (hook.before, hook.after))
        if n.target is torch.ops.aten.scaled_dot_product_attention.default:
            mask = args[3] if len(args) > 3 else kwargs.pop("attn_mask", None)
            added = _per_query(bias, args[0], hook.batch).to(args[0].dtype)
            if mask is not None:
                mask = torch.zeros_like(mask, dtype=added.dtype).masked_fill(~mask, -torch.inf) \
                    if mask.dtype == torch.bool else mask
                added = added + mask
            args = (*args[:3], added, *args[4:])
        else:
            args = (args[0] + _per_query(bias, args[0], hook.batch).to(args[0].dtype), *args[1:])
        result: torch.Tensor = getattr(self, n.op)(n.target, args, kwargs)
        if hook.rows is None:
            return result
        before, after = hook.rows
        index = torch.arange(result.shape[-2], device=owner.device).repeat(owner.shape[0], 1)
        index[:, before : index.shape[1] - after] = owner + before
        index = _per_query(index, result, hook.batch).transpose(-2, -1)
        return result.gather(-2, index.expand_as(result))


def _change(each: torch.Tensor, decided: Decision | None) -> torch.Tensor:
    """The mean of how a token's supports have changed, from how each has, [B, N, C]: dropped tokens hold what their
    owner does."""
    if decided is None or decided.supports is None or decided.shares is None:
        return each
    shares = decided.shares.to(each.dtype)
    return sum(shares[..., [i]] * rows(each, decided.supports[..., i]) for i in range(shares.shape[-1]))  # type: ignore[return-value]


def rows(x: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """x[b, owner[b, n]], [B, N, C]."""
    return torch.stack([image[index] for image, index in zip(x, owner, strict=True)]) if len(x) else x


def on_grid(x: torch.Tensor, state: StateRecord, change: Any) -> torch.Tensor:
    """Apply `change` to the grid tokens [B, N, C] of a state; prefix and suffix stay."""
    moved = x.movedim((state.batch_dim, state.token_dim), (0, 1))
    stop = moved.shape[1] - state.after
    parts = [moved[:, : state.before], change(moved[:, state.before : stop]), moved[:, stop:]]
    return torch.cat(parts, dim=1).movedim((0, 1), (state.batch_dim, state.token_dim))


def _grid(x: torch.Tensor, state: StateRecord) -> torch.Tensor:
    moved = x.movedim((state.batch_dim, state.token_dim), (0, 1))
    return moved[:, state.before : moved.shape[1] - state.after]


def _per_query(values: torch.Tensor, like: torch.Tensor, batch: tuple[int, int, int]) -> torch.Tensor:
    """[B, L] as [.., 1, L] that lines up with `like` [.., rows, columns], whose axes before may merge B and H."""
    at, outside, inside = batch
    wide = values.repeat_interleave(inside, 0).repeat(outside, 1)
    shape = [1] * like.ndim
    shape[at], shape[-1] = wide.shape
    return wide.reshape(shape)
