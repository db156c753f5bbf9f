"""The bundled segmenter on scenes it has never seen, dense against pruned: cost, latency, quality, a picture.

    python -m lvtp_fx.demo --out out/demo.png --flops-cut 0.35
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import torch

import lvtp_fx

try:
    from rich.table import Table

    from lvtp_fx.cli.command import check_writable
    from lvtp_fx.cli.output import console, print_json, step, track
    from lvtp_fx.cli.timing import WARM_UP, Latency, Run, compiled, latencies
    from lvtp_fx.models.checkpoint import load_bundled
    from lvtp_fx.models.metrics import SegmentationMeter
    from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE, make_batch
    from lvtp_fx.models.train import HELD_OUT
    from lvtp_fx.pictures.examples import Rows, draw
except ImportError as error:
    raise ImportError("the demo needs more than torch: pip install 'lvtp_fx[demo]'") from error

EXAMPLES = 3  # rows of the picture


def predict(run: Run, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Classes [B, H, W] of all normalised images."""
    return torch.cat([run(batch).argmax(1) for batch in batches])


def block_table(report: lvtp_fx.Report) -> Table:
    """Tokens of each block's attention."""
    table = Table("block", title="tokens an attention block runs over")
    for name in ("dense", "pruned"):
        table.add_column(name, justify="right")
    table.add_column("")
    for block in report.blocks:
        dropped = "then tokens are dropped" if block.site else ""
        table.add_row(block.path, str(block.tokens_dense), str(block.tokens), dropped)
    return table


def figure_table(
    title: str, report: lvtp_fx.Report, times: Sequence[Latency], meters: Sequence[SegmentationMeter]
) -> Table:
    """Dense against pruned: everything that was measured."""
    table = Table("", title=title)
    for name in ("dense", "pruned", "change"):
        table.add_column(name, justify="right")
    dense, pruned = times
    for name, before, after in (
        ("GFLOPs", report.gflops_dense, report.gflops_pruned),
        ("GFLOPs, encoder", report.gflops_encoder_dense, report.gflops_encoder_pruned),
    ):
        table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after / before - 1:+.1%}")
    speed = f"{dense.median_ms / pruned.median_ms:.2f}x speed"
    table.add_row("latency_ms, median", f"{dense.median_ms:.1f}", f"{pruned.median_ms:.1f}", speed)
    table.add_row("latency_ms, quartiles", *(f"{t.low_ms:.1f} to {t.high_ms:.1f}" for t in times))
    near = f"boundary mIoU ({meters[0].boundary_px} px), %"
    shares = {"mIoU, %": [m.miou() for m in meters], near: [m.boundary_miou() for m in meters]}
    for name, (before, after) in shares.items():
        change = f"{100 * (after - before):+.2f} points"
        table.add_row(name, f"{100 * before:.2f}", f"{100 * after:.2f}", change)
    table.add_row("agreement with dense, %", "", f"{100 * meters[1].agreement():.2f}")
    return table


def main(
    out: Path = Path("out/demo.png"), flops_cut: float = 0.35, batch_size: int = 4, images: int = 64, rounds: int = 20,
    as_json: bool = False,
) -> None:
    """Prune the bundled segmenter, check it, time it, score it, and draw what it does.

    Args:
        out: PNG to write. flops_cut: share of the FLOPs to save. batch_size: images a batch. images: held-out scenes
            to score, in full batches. rounds: timed runs of each model. as_json: print one JSON object, no tables.

    Raises:
        LvtpError: as `transform`. OSError: `out` cannot be written.
    """
    check_writable(out)
    count = -(-images // batch_size) * batch_size
    with step(f"make {count} scenes"):
        model, spec = load_bundled()
        scenes, labels = make_batch(range(HELD_OUT, HELD_OUT + count), spec.img_size[0])
        x = spec.preprocess(scenes)
    with step("transform"):
        fast = lvtp_fx.transform(model, (x[:1],), flops_cut=flops_cut)
    with step("verify against the dense oracle"):
        check = lvtp_fx.verify(model, fast, (x[:2],))
    with torch.inference_mode():
        with step("compile both"):
            *runs, how = compiled(model, fast, x[:batch_size])
        turns = partial(track, text=f"time both, {rounds} rounds in turn", total=WARM_UP + rounds)
        times = latencies(runs, x[:batch_size], rounds=rounds, turns=turns)
        batches = x.split(batch_size)
        dense, pruned = (
            predict(run, track(batches, f"score {name} on {count} scenes", len(batches)))
            for run, name in zip(runs, ("dense", "pruned"), strict=True))
    meters = [SegmentationMeter(spec.classes, spec.ignore_index) for _ in runs]
    for meter, prediction in zip(meters, (dense, pruned), strict=True):
        meter.update(prediction, labels, dense)
    report = cast(lvtp_fx.Report, fast.report)
    with step("draw"):
        title = (f"lvtp_fx: {report.flops_cut:.0%} fewer FLOPs, "
                 f"{times[0].median_ms / times[1].median_ms:.2f}x the speed, "
                 f"{meters[1].agreement():.2%} of the pixels predicted as before")
        shown = slice(0, EXAMPLES)  # the first ones, not chosen ones
        decisions = lvtp_fx.decisions(fast, (x[shown],))
        rows = Rows(scenes[shown], dense[shown], pruned[shown], decisions, report.grid)
        draw(out, rows, CLASS_NAMES, PALETTE, title)
    if as_json:
        scores = [{"miou": m.miou(), "boundary_miou": m.boundary_miou(), **asdict(t)}
                  for m, t in zip(meters, times, strict=True)]
        print_json({"images": count, "batch": batch_size, "rounds": rounds, "how": how, "torch": torch.__version__,
                    "threads": torch.get_num_threads(), "dense": scores[0], "pruned": scores[1],
                    "agreement": meters[1].agreement(), "oracle_error": check.max_error, "written": str(out),
                    "report": report.to_dict()})
        return
    screen = console()
    screen.print(block_table(report))
    screen.print(figure_table(f"{count} held-out scenes of {spec.img_size[0]} px", report, times, meters))
    threads = torch.get_num_threads()
    screen.print(f"latency of one batch of {batch_size}: {rounds} rounds in turn, {threads} threads, {how}\n"
                 f"verified: largest relative error {check.max_error:.1e}, {check.tolerance:.0e} allowed\n"
                 f"written: {out}")


if __name__ == "__main__":
    import sys

    from lvtp_fx.cli.main import app

    app(["demo", *sys.argv[1:]])
