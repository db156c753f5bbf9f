"""Dense and pruned models over the same images: what is not kept yet is evaluated, by one process or by many.

Images are evaluated one at a time: in a batch, sums may be added up in another order, and the figures would depend on
how the images were dealt out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accuracy_counts import pack
from accuracy_density import density_counts, distance_bins
from accuracy_images import Checkpoint, Images
from accuracy_store import Kept, Store
from accuracy_variants import DENSE, Variant
from rich.progress import Progress
from torch import fx

import lvtp_fx
from lvtp_fx import example_inputs
from lvtp_fx.capture import Capture, capture
from lvtp_fx.decisions import observe
from lvtp_fx.models.checkpoint import Spec
from lvtp_fx.models.metrics import SegmentationMeter
from lvtp_fx.ranks import Ranks

EVERY = 4  # images a process evaluates before all is gathered and kept

Built = tuple[fx.GraphModule | None, dict[str, Any]]  # None for the dense model and where a cut is refused; its cost


def run(
    checkpoint: Checkpoint, images: Images, variants: Sequence[Variant], keys: Sequence[str], store: Store,
    ranks: Ranks, device: torch.device, progress: Progress,
) -> list[Kept]:
    """The figures of the dense model, then of each variant, on all images.

    Args:
        keys: of the dense model and of each variant, in `store`.

    Returns:
        One `Kept` a model, in the first process; the others get no rows but their own.

    Raises:
        LvtpError: the model cannot be captured. UnreadableError: a file of the store cannot be read.
    """
    models = (DENSE, *variants)
    kept = [store.load(key) for key in keys] if ranks.first else [Kept() for _ in keys]
    known = ranks.share([(entry.cost, sorted(entry.rows)) for entry in kept])
    missing = [set() if "refused" in cost else set(images.ids) - set(ids) for cost, ids in known]
    unmade = [i for i, (cost, _) in enumerate(known) if missing[i] or not cost]
    built = _build(checkpoint, [models[i] for i in unmade], device, progress)
    graphs = dict(zip(unmade, built, strict=True))
    for i, (_, cost) in graphs.items():
        kept[i].cost = cost
        if "refused" in cost:
            missing[i] = set()
        if ranks.first:
            store.save(keys[i], kept[i])
    todo = [place for place, name in enumerate(images.ids) if any(name in names for names in missing)]
    task = progress.add_task(f"images of {checkpoint.name}", total=len(todo))
    for start in range(0, len(todo), EVERY * ranks.world):
        own = todo[start : start + EVERY * ranks.world][ranks.rank :: ranks.world]
        found: dict[tuple[int, str], torch.Tensor] = {}
        for place in own:
            name = images.ids[place]
            wanted = {i: graphs[i] for i, names in enumerate(missing) if name in names}
            rows = _evaluate(checkpoint, images, place, wanted, device)
            found.update({(i, name): row for i, row in rows.items()})
            progress.advance(task, ranks.world)
        for (i, name), row in (item for part in ranks.gather(found) for item in part.items()):
            kept[i].rows[name] = row
        if ranks.first:
            for i in (i for i, names in enumerate(missing) if names):
                store.save(keys[i], kept[i])
    progress.update(task, completed=len(todo))
    return kept


def build(captured: Capture, variant: Variant) -> Built:
    """The pruned graph and its cost, or the refusal."""
    if variant.config is None:
        return None, cost(lvtp_fx.explain(captured), dense=True)
    try:
        graph = lvtp_fx.transform(captured, **variant.config)
    except lvtp_fx.LvtpError as refusal:
        return None, {"refused": str(refusal)}
    return graph, cost(graph.report, dense=False)


def cost(report: Any, dense: bool) -> dict[str, Any]:
    """Figures of a graph: GFLOPs an image, share of FLOPs saved, living tokens after each site, token grid."""
    kind = "dense" if dense else "pruned"
    return {"gflops": getattr(report, f"gflops_{kind}"), "gflops_encoder": getattr(report, f"gflops_encoder_{kind}"),
            "flops_cut": 0.0 if dense else report.flops_cut, "kept": [] if dense else list(report.kept),
            "grid": list(report.grid)}


def captured_model(checkpoint: Checkpoint, device: torch.device) -> Capture:
    """Captured once for all variants: that takes most of the time."""
    model = checkpoint.model.to(device)
    example = checkpoint.spec.preprocess(torch.zeros(1, 3, *checkpoint.spec.img_size, device=device))
    return capture(model, *example_inputs.resolve(model, (example,)))


def _build(
    checkpoint: Checkpoint, models: Sequence[Variant], device: torch.device, progress: Progress
) -> list[Built]:
    if not models:
        return []
    task = progress.add_task(f"graphs of {checkpoint.name}", total=len(models))
    captured, built = captured_model(checkpoint, device), []
    for model in models:
        built.append(build(captured, model))
        progress.advance(task)
    return built


def predict(graph: fx.GraphModule, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Classes [1, H, W] of one image, and the tokens [K] that live on after the last site, or None without a site."""
    logits, decisions, _ = observe(graph, (x,))
    return logits.argmax(1), decisions[-1].kept[0] if decisions else None


def _evaluate(
    checkpoint: Checkpoint, images: Images, place: int, wanted: dict[int, Built], device: torch.device
) -> dict[int, torch.Tensor]:
    """Counts of one image, of each model that is wanted. The dense model runs in any case: agreement needs it."""
    spec = checkpoint.spec
    image, label = (tensor.to(device) for tensor in images.load(place))
    x, bins = spec.preprocess(image), distance_bins(label, spec.ignore_index)
    with torch.inference_mode():
        dense = checkpoint.model(x).argmax(1)
        rows = {}
        for i, (graph, found) in wanted.items():
            prediction, living = (dense, None) if graph is None else predict(graph, x)
            rows[i] = _count(prediction, dense, label, spec, bins, found["grid"], living)
    return rows


def _count(
    prediction: torch.Tensor, dense: torch.Tensor, label: torch.Tensor, spec: Spec, bins: torch.Tensor,
    grid: Sequence[int], living: torch.Tensor | None,
) -> torch.Tensor:
    meter = SegmentationMeter(spec.classes, spec.ignore_index)
    meter.update(prediction, label, dense)
    rows, columns = grid
    return pack(meter, density_counts(prediction, label, spec.ignore_index, bins, (rows, columns), living))
