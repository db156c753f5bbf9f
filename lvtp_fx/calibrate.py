"""`calibrate`: find sites and keep ratios for a model, on some of its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lvtp_fx import example_inputs
from lvtp_fx.api import Prepared, prepare
from lvtp_fx.calibration.journal import Journal
from lvtp_fx.calibration.progress import progress_bar
from lvtp_fx.calibration.search import deepest, search
from lvtp_fx.calibration.trial import Trial
from lvtp_fx.capture import Capture
from lvtp_fx.config import Config, is_integer, is_number, resolve
from lvtp_fx.digest import digest
from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.example_inputs import Inputs
from lvtp_fx.ops.registry import edition
from lvtp_fx.ranks import current


def calibrate(
    model: nn.Module | ExportedProgram | Capture, images: torch.Tensor | Sequence[Any], *,
    labels: torch.Tensor | Sequence[torch.Tensor] | None = None, flops_cut: float | None = None,
    max_drop: float | None = None, config: Config | None = None, passes: int = 600,
    progress: Callable[[int, int], None] | None = None, journal: str | Path | None = None, **overrides: Any,
) -> Config:
    """Find after which blocks to drop tokens, and how many at each.

    Schedules spread over the depth are tried on a few images, the better half on twice as many, and so on; then the
    best one is changed step by step (sites moved, added, left out; the cut shared out otherwise) while that helps. The
    default schedule is run on all images first, and only what is better there takes its place.

    Where `torch.distributed` is initialised, all processes must call it, with the same arguments (the model on a device
    of each one's own): they share the images out, and all return what one process would.

    Args:
        model: as of `transform`; it is not changed.
        images: of the kind that the model will meet: one tensor [M, ...] of images, or a sequence of example inputs as
            `transform` takes them, each a batch. 16 to 64 images are enough. Nothing else is needed: a schedule is as
            good as its outputs agree with the dense model's (`lvtp_fx.calibration.likeness.likeness`), and that need
            not be the best mean IoU.
        labels: with them, as good as its mean IoU: integers [M, h, w], or one tensor a batch; a label that is no class
            is left out.
        flops_cut: wanted share of FLOPs to save, in (0, 1); or
        max_drop: what may be lost, in (0, 1): the share of pixels that change their class (of other outputs: the
            relative error), with labels the difference of mean IoU (0.01: one point). The largest cut that keeps to it
            is looked for.
        config: other options, its sites and shares are not read; overrides: single fields.
        passes: how many images are run through the model and its pruned forms, at most, by all processes together.
        progress: called with (images done, `passes`); without it a bar is shown where rich is installed and stderr is
            a terminal.
        journal: a file in which every score is kept as it is found: a call that was stopped, made again with it, goes
            on. It is begun anew where the model, the images, the labels, the other options, torch or the number of
            threads are not those that it was written with.

    Returns:
        A `Config` for `transform`, with sites and one keep ratio a site.

    Raises:
        LvtpError: LVTP201 where not exactly one of flops_cut and max_drop is given, for too few passes, or for fields
            that are what is looked for; LVTP105 for no images, or labels that do not fit them; LVTP202 where a cut or a
            drop cannot be reached; and as `transform`.
    """
    _check(flops_cut, max_drop, passes, overrides)
    asked = resolve(config, overrides)
    base = replace(asked, keep_ratio=None, sites="auto", latency_cut=None, check_latency=False)
    batches = _batches(images)
    prepared = prepare(model, batches[0], base)
    inputs = [example_inputs.resolve(prepared.captured.module, batch) for batch in batches]
    with progress_bar("calibrating", passes, progress) as show:
        wanted = _labels(labels, inputs)
        kept = _journal(journal, prepared, base, inputs, wanted)
        trial = Trial(prepared, base, inputs, wanted, passes, show, current(), kept)
        if flops_cut is not None:
            found = search(trial, flops_cut)
        else:
            assert max_drop is not None
            found = deepest(trial, max_drop)
        return replace(trial.config(found), check_latency=asked.check_latency)  # of the one that is taken, by transform


def _batches(images: torch.Tensor | Sequence[Any]) -> list[Any]:
    batches = list(images.split(1)) if isinstance(images, torch.Tensor) else list(images)
    if not batches:
        raise _bad("images", "one image or more", "none", "schedules are compared on them")
    return batches


def _labels(labels: torch.Tensor | Sequence[torch.Tensor] | None, inputs: Sequence[Inputs]) -> list[torch.Tensor]:
    if labels is None:
        return []
    found = list(labels.split(1)) if isinstance(labels, torch.Tensor) else list(labels)
    if len(found) != len(inputs):
        raise _bad("labels", f"{len(inputs)}, one for each of `images`", f"{len(found)}", "they are paired in order")
    return found


def _journal(
    path: str | Path | None, prepared: Prepared, base: Config, inputs: Sequence[Inputs], labels: Sequence[torch.Tensor]
) -> Journal:
    if path is None:
        return Journal(None, "", current())
    read = [leaf for leaf in pytree.tree_leaves([list(inputs), list(labels)]) if isinstance(leaf, torch.Tensor)]
    return Journal(Path(path), digest(prepared.captured.module, read[0].device, (base, edition()), read), current())


def _bad(where: str, expected: str, got: str, why: str) -> LvtpError:
    return LvtpError(
        Code.BAD_EXAMPLE, where=f"calibrate.{where}", expected=expected, got=got, why=why,
        hint="calibrate(model, images, labels=labels, flops_cut=0.35) with images [M, 3, H, W] and labels [M, H, W]",
    )


def _check(flops_cut: float | None, max_drop: float | None, passes: int, overrides: dict[str, Any]) -> None:
    if not is_integer(passes) or passes < 1:
        raise _out_of_range("calibrate.passes", "an integer >= 1", repr(passes), "it bounds the work", "passes=600")
    if (flops_cut is None) == (max_drop is None):
        raise _out_of_range("calibrate", "one of flops_cut and max_drop", "neither" if flops_cut is None else "both",
                            "it says what to look for", "calibrate(model, images, flops_cut=0.35), or max_drop=0.01")
    for name, value, hint in (("flops_cut", flops_cut, "flops_cut=0.35"), ("max_drop", max_drop, "max_drop=0.01")):
        if value is not None and not (is_number(value) and 0 < value < 1):
            raise _out_of_range(f"calibrate.{name}", "a share in (0, 1)", repr(value), "all or nothing needs no search",
                                hint)
    for name, why in (("sites", "it is what calibrate finds"), ("keep_ratio", "it is what calibrate finds"),
                      ("latency_cut", "calibrate aims at FLOPs or at a drop")):
        if name in overrides:
            raise _out_of_range(f"calibrate.{name}", "no such argument", repr(overrides[name]), why,
                                f"leave it out, or transform(model, {name}=...)")


def _out_of_range(where: str, expected: str, got: str, why: str, hint: str) -> LvtpError:
    return LvtpError(Code.CONFIG_OUT_OF_RANGE, where=where, expected=expected, got=got, why=why, hint=hint)
