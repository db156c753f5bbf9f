"""The report: what was found, what was done, what it saves. Every number is computed from the graphs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class BlockReport:
    """One attention block.

    Attributes:
        path, source: module path and source line.
        tokens_dense, tokens: tokens that its attention runs over, prefix and suffix included, before and after.
        site: whether tokens are reduced after its attention.
    """

    path: str
    source: str
    tokens_dense: int
    tokens: int
    site: bool


@dataclass(frozen=True)
class Unmatched:
    """Attention that is not used, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `transform` did, or what `explain` says it would do.

    Attributes:
        blocks: the encoder's attention blocks in order, then those of a decoder that attends over the same grid.
        sites: module paths of the blocks that are followed by a reduction.
        grid: (rows, columns) of the token grid.
        kept: grid tokens that live on after each site.
        gflops_dense, gflops_pruned: the whole model, per image, as FlopCounterMode counts (2 FLOPs a multiply-add).
        gflops_encoder_dense, gflops_encoder_pruned: up to the encoder's output, scoring included.
        flops_cut: share of the whole model's FLOPs that was saved.
        latency_ms_dense, latency_ms_pruned: of the example inputs, expected from a probe of the ops one by one; None
            where time was not asked for (`Config.latency_cut`, `Config.check_latency`).
        unmatched: attention that was not used, and why.
        notes: what had to be given up.
        refused: the error that `transform` would raise, or "".
    """

    blocks: tuple[BlockReport, ...] = ()
    sites: tuple[str, ...] = ()
    grid: tuple[int, int] = (0, 0)
    kept: tuple[int, ...] = ()
    gflops_dense: float = 0.0
    gflops_pruned: float = 0.0
    gflops_encoder_dense: float = 0.0
    gflops_encoder_pruned: float = 0.0
    latency_ms_dense: float | None = None
    latency_ms_pruned: float | None = None
    unmatched: tuple[Unmatched, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str = ""

    @property
    def flops_cut(self) -> float:
        return 1 - self.gflops_pruned / self.gflops_dense if self.gflops_dense else 0.0

    @property
    def latency_ms(self) -> tuple[float, float] | None:
        """(dense, pruned), where time was asked for."""
        dense, pruned = self.latency_ms_dense, self.latency_ms_pruned
        return None if dense is None or pruned is None else (dense, pruned)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for machines (JSON)."""
        return {**asdict(self), "flops_cut": self.flops_cut}

    def plot(self, *model_fast_images: Any, **options: Any) -> Figure:
        """Blocks, tokens and FLOPs as a matplotlib figure; `plot(model, fast, images)` adds what happens on images.

        Takes what `lvtp_fx.pictures.figures.plot` takes behind the report, e.g. latency_ms=(dense, pruned).

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from lvtp_fx.pictures.figures import plot
        except ImportError as error:
            raise ImportError("Report.plot needs matplotlib: pip install 'lvtp_fx[demo]'") from error
        return plot(self, *model_fast_images, **options)

    def __str__(self) -> str:
        lines = [*self._block_lines(), *self._cost_lines()]
        lines += [f"not used: {u.where}: {u.reason}" for u in self.unmatched]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"refused: {self.refused}"] if self.refused else []
        return "\n".join(lines)

    def _block_lines(self) -> list[str]:
        if not self.blocks:
            return ["no attention block found"]
        width = max(len(b.path or "(top level)") for b in self.blocks)
        source = max(len("source"), *(len(b.source) for b in self.blocks))
        lines = [f"{'block':{width}}  {'source':{source}}  tokens dense  tokens"]
        for block in self.blocks:
            mark = "  site" if block.site else ""
            lines.append(f"{block.path or '(top level)':{width}}  {block.source:{source}}  "
                         f"{block.tokens_dense:12}  {block.tokens:6}{mark}")
        return lines

    def _cost_lines(self) -> list[str]:
        if not self.gflops_dense:
            return []
        encoder_cut = 1 - self.gflops_encoder_pruned / self.gflops_encoder_dense if self.gflops_encoder_dense else 0.0
        lines = [
            f"GFLOPs an image, whole model: {self.gflops_dense:.3f} -> {self.gflops_pruned:.3f} "
            f"({-self.flops_cut:+.1%})",
            f"GFLOPs an image, encoder:     {self.gflops_encoder_dense:.3f} -> {self.gflops_encoder_pruned:.3f} "
            f"({-encoder_cut:+.1%})",
        ]
        if self.latency_ms is not None:
            dense, pruned = self.latency_ms
            lines.append(f"latency_ms of the example, expected: {dense:.2f} -> {pruned:.2f} "
                         f"({pruned / dense - 1:+.1%})")
        return lines
