"""The dialect: the ops that the pass inserts, `torch.ops.lvtp.*`. Importing this package registers them."""

from lvtp_fx.ops import cluster, guard, match, score, select, space

__all__ = ["cluster", "guard", "match", "score", "select", "space"]
