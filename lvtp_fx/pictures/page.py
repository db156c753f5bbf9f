"""One self-contained page: what was found and done, what it saves, and what happens on given images."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, cast

import torch
from torch import nn

from lvtp_fx.decisions import original
from lvtp_fx.pictures import sections
from lvtp_fx.pictures.colours import Colour, data_uri
from lvtp_fx.pictures.views import Views, make_views
from lvtp_fx.report import Report


def write(
    path: str | Path, model: nn.Module, fast: nn.Module | None, images: torch.Tensor | None = None,
    shown: torch.Tensor | None = None, class_names: Sequence[str] | None = None,
    palette: Sequence[Colour] | None = None, latency_ms: tuple[float, float] | None = None, *,
    report: Report | None = None, latency_how: str = "", title: str = "",
) -> None:
    """Write the page; its folder is made where it is missing. It needs no network and no other file.

    Args:
        path: the file.
        model: the dense model; it is run on the images in eval mode, and not changed.
        fast: what `transform` made of it, or its compiled form; None where it refused.
        images: [B, 3, H, W] as the models take them; None or an empty batch leave out what needs images.
        shown: the same images as RGB in [0, 1], on which the maps are laid; None: each is stretched to [0, 1].
        class_names, palette: of the classes, (r, g, b) in 0..255; made up where they are missing or too few.
        latency_ms: measured medians of one batch, (dense, pruned); None: the page says that it was not measured.
        latency_how: what the page says of how latency was measured.
        report: needed where `fast` is None; by default that of `fast`.
        title: of the page; the model's class without it.

    Raises:
        LvtpError: LVTP302 where `fast` is not what `transform` made.
        ValueError: neither `fast` nor `report` is given; wrong shapes; see `lvtp_fx.pictures.views.make_views`.
    """
    if report is None:
        if fast is None:
            raise ValueError("a page needs fast, or the report of what was refused: report=lvtp_fx.explain(...)")
        report = cast(Report, original(fast)[0].report)
    views = make_views(model, fast, images, shown, class_names, palette)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(title or type(model).__name__, report, views, latency_ms, latency_how), encoding="utf-8")


def render(
    title: str, report: Report, views: Views, latency_ms: tuple[float, float] | None = None, latency_how: str = ""
) -> str:
    """The page as text. Whatever stands in `title`, the report or the class names is shown, and never run."""
    style, script, data = _part("page.css"), _part("page.js"), _as_json(_pictures(views))
    parts = [
        sections.section("blocks", "Blocks and tokens", sections.blocks(report)),
        sections.section("costs", "Cost", sections.costs(report, latency_ms, latency_how)),
        sections.section("unmatched", "Not matched, and why", sections.unmatched(report)),
    ]
    # Pictures come first, where there are any.
    parts.insert(0 if views.images else len(parts), sections.section("pictures", "Images", sections.pictures(views)))
    return Template(_part("page.html")).substitute(
        title=sections.escaped(title), style=style, script=script, data=data,
        style_hash=_hash(style), script_hash=_hash(script),
        summary=sections.summary(report, views, latency_ms), sections="\n".join(parts),
    )


def _pictures(views: Views) -> dict[str, Any]:
    """What the script shows, by image and site."""
    return {
        "images": [data_uri(image) for image in views.images],
        "agreement": [f"{share:.2%} of the pixels keep their class" for share in views.agreement],
        "fixed": {name: [data_uri(image) for image in found] for name, found in views.fixed.items()},
        "sites": [
            {"label": f"after {site.site or '(top level)'}, {site.kept} of {site.tokens} tokens live on",
             "pictures": {name: [data_uri(image) for image in found] for name, found in site.pictures.items()}}
            for site in views.sites
        ],
    }


def _as_json(value: Any) -> str:
    """JSON that no text in it can end early: `</script>` and `<!--` need a <."""
    return json.dumps(value).replace("<", "\\u003c")


def _part(name: str) -> str:
    return (resources.files("lvtp_fx.pictures") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Of a script or a style sheet, for the page's Content-Security-Policy: no other one runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
