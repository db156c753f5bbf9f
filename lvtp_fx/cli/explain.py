"""`lvtp-fx explain`: what the pass finds in a model, what it would do, and why not where not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import fx

import lvtp_fx
from lvtp_fx import api
from lvtp_fx.capture import Capture
from lvtp_fx.cli.bench import device_name, timed
from lvtp_fx.cli.command import REFUSED, check_writable, command
from lvtp_fx.cli.options import Images, Json, Limit, ModelOptions
from lvtp_fx.cli.output import print_json, print_notes, step
from lvtp_fx.cli.pruning import PruningOptions
from lvtp_fx.cli.timing import Latency
from lvtp_fx.config import Config
from lvtp_fx.errors import one_line
from lvtp_fx.models.images import find_images, read_image
from lvtp_fx.models.named import Named
from lvtp_fx.models.preprocess import resized


@command
def explain(
    model: ModelOptions, pruning: PruningOptions,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures there, too.")] = None,
    graph: Annotated[Path | None, typer.Option(
        help="Write the rewritten graph there as .dot, .gv or .svg (by Graphviz), inserted nodes coloured.")] = None,
    graph_before: Annotated[Path | None, typer.Option(
        help="Write the graph as it was captured there, in the same form; also where the pass refuses it.")] = None,
    images: Images = None, limit: Limit = 8,
    rounds: Annotated[int, typer.Option(
        min=0, help="For --html: timed runs of each model under torch.compile, of one image; 0: not measured.")] = 10,
    as_json: Json = False,
) -> None:
    """Say what would be pruned: attention blocks, sites, tokens a block, GFLOPs; and what was not used, and why.

    Exit code 2 where the pass would refuse the model. With --html, a page that shows it; with --images, on your images.

    Example: lvtp-fx explain timm:vit_small_patch16_dinov3 --head dpt --size 256 --flops-cut 0.2
    """
    if images and html is None:
        raise typer.BadParameter("images are shown on the page that --html writes", param_hint="--images")
    if rounds == 1:
        raise typer.BadParameter("a median takes two runs or more", param_hint="--rounds")
    for path in (html, graph, graph_before):
        if path is not None:
            check_writable(path)
    for option, path in (("--graph", graph), ("--graph-before", graph_before)):
        if path is not None:
            _check_ending(path, option)
    config = pruning.load()
    with step(f"load {model.model}"):
        named = model.load(runs=html is not None)
    inputs = named.inputs(1)
    with step("explain"):
        captured = api.captured_of(named.model, inputs)
        report, fast = _explained(captured, config, with_graph=html is not None or graph is not None)
    if graph_before is not None:
        _graph(graph_before, captured.module, named.name, "--graph-before")
    if graph is not None and fast is not None:
        _graph(graph, fast, named.name, "--graph")
    if html is not None:
        files = find_images(images, limit) if images else []
        latency = timed(named.dense, fast, inputs, rounds, compile_=True) if fast is not None and rounds else None
        _page(html, named, report, fast, files, latency)
    if as_json:
        print_json({"model": named.name, **report.to_dict(), "notes": [*named.notes, *report.notes]})
    else:
        typer.echo(str(report))
        print_notes(named.notes)
    if report.refused:
        typer.echo(one_line(report.refused), err=True)
        raise typer.Exit(REFUSED)


def _explained(
    captured: Capture, config: Config, with_graph: bool
) -> tuple[lvtp_fx.Report, fx.GraphModule | None]:
    """The report, and the graph that it is of where that is asked for and not refused."""
    if with_graph:
        with suppress(lvtp_fx.LvtpError):  # explain puts it into the report, or raises it
            fast = lvtp_fx.transform(captured, config=config)
            return cast(lvtp_fx.Report, fast.report), fast
    return lvtp_fx.explain(captured, config=config), None


def _check_ending(path: Path, option: str) -> None:
    """Fail before minutes of work, and not after them.

    Raises:
        typer.BadParameter: a graph is not written in a file of that name.
    """
    from lvtp_fx.pictures.graph import check_ending

    try:
        check_ending(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _graph(path: Path, module: fx.GraphModule, title: str, option: str) -> None:
    from lvtp_fx.pictures.graph import write

    with step(f"write {path}"):
        try:
            write(path, module, title)
        except RuntimeError as error:  # no Graphviz
            raise typer.BadParameter(str(error), param_hint=option) from None


def _page(
    path: Path, named: Named, report: lvtp_fx.Report, fast: fx.GraphModule | None, files: list[Path],
    latency: tuple[Latency, Latency, str] | None,
) -> None:
    from lvtp_fx.pictures.page import write

    with step(f"write {path}"):
        read = [read_image(file) for file in files]
        x = named.prepared(read) if read else None
        shown = torch.stack([resized(image, named.img_size) for image in read]) / 255 if read else None
        medians_ms, how = None, ""
        if latency is not None:
            dense, pruned, how = latency
            medians_ms = dense.median_ms, pruned.median_ms
            device = torch.device(named.device)
            how = f"{how}, {device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        write(path, named.dense, fast, x, shown, named.class_names or None, named.colours, medians_ms, report=report,
              latency_how=how, title=named.name)
