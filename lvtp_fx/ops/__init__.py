"""The dialect: the ops that the pass inserts, `torch.ops.lvtp.*`. Importing this package registers them."""

from contextlib import suppress

from lvtp_fx.ops import cluster, guard, match, nearest, rows, score, select, space

with suppress(ImportError):  # where there is no Triton
    # Before it is needed: FLOPs are counted by the formulas that are known when counting begins.
    from lvtp_fx.ops import row_entropy_triton  # noqa: F401

__all__ = ["cluster", "guard", "match", "nearest", "rows", "score", "select", "space"]
