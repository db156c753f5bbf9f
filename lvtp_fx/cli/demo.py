"""`lvtp-fx demo`: what `python -m lvtp_fx.demo` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvtp_fx.cli.command import command
from lvtp_fx.cli.options import Json


@command
def demo(
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("out/demo.png"),
    flops_cut: Annotated[float, typer.Option(help="Share of the FLOPs to save, in [0, 1).")] = 0.35,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 4,
    images: Annotated[int, typer.Option(min=1, help="Held-out scenes to score, in full batches.")] = 64,
    rounds: Annotated[int, typer.Option(min=2, help="Timed runs of each model.")] = 20,
    as_json: Json = False,
) -> None:
    """Prune the bundled segmenter on scenes it has never seen: check it, time it, score it, draw what it does."""
    from lvtp_fx.demo import main  # here: it needs matplotlib, which the other commands do not

    main(out, flops_cut, batch_size, images, rounds, as_json)
