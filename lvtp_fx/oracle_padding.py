"""Padding, for the dense oracle: which tokens the masks of the captured graph hide from all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from lvtp_fx.record import HookRecord

HIDDEN = -400.0  # of scores: the ops say -500 of masks, and scores are not that large


class Shown(fx.Interpreter):
    """Runs a captured graph, and looks at the scores of some of its attentions, or at their masks.

    Attributes:
        shown: [B, N], False where no other token may attend to this one, in any head of any of these attentions.
    """

    def __init__(self, captured: fx.GraphModule, hooks: Iterable[HookRecord]) -> None:
        super().__init__(captured)
        self.hooks = {hook.name: hook for hook in hooks}
        self.shown: torch.Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.hooks:
            shown = self._of(n, self.hooks[n.name])
            self.shown = shown if self.shown is None else self.shown | shown
        return super().run_node(n)

    def _of(self, n: fx.Node, hook: HookRecord) -> torch.Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        scores: torch.Tensor = args[0]
        if n.target is torch.ops.aten.scaled_dot_product_attention.default:
            mask = args[3] if len(args) > 3 else kwargs["attn_mask"]
            scores = torch.broadcast_to(mask, (*args[0].shape[:-1], args[1].shape[-2]))
        seen = scores if scores.dtype == torch.bool else scores > HIDDEN
        at, outside, inside = hook.batch
        B = seen.shape[at] // (outside * inside)
        seen = seen.movedim(at, 0).unflatten(0, (outside, B, inside)).movedim(1, 0).flatten(1, -3).any(1)
        rows, L = seen.shape[1:]
        if rows == L > 1:
            seen = seen & ~torch.eye(L, dtype=torch.bool, device=seen.device)
        shown: torch.Tensor = seen[..., hook.before : L - hook.after].any(1)
        return shown
