"""The parts of the page as HTML. Every text that comes from a model goes through `escaped`."""

from __future__ import annotations

from html import escape

from lvtp_fx.pictures.colours import LIMIT, SCALE, Colour
from lvtp_fx.pictures.views import OF_SITE, OVERLAYS, TITLES, Views
from lvtp_fx.report import Report

CAPTIONS = {
    "living": "Dark: dropped here or at an earlier site.",
    "owners": "Tokens of one colour go on as one: the one in a frame stands for them. Not coloured: stands for itself.",
    "entropy": "How evenly a token attends to the others. Grey: dropped earlier.",
    "edges": "Sobel edges of the image, mean of a token.",
    "received": "Attention that a token receives. Grey: dropped earlier.",
    "difference": "Pink: another class than in the dense segmentation.",
}
FIXED = ("dense", "pruned", "difference")


def section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'


def escaped(text: str) -> str:
    return escape(text, quote=True)


def summary(report: Report, views: Views, latency_ms: tuple[float, float] | None) -> str:
    """The refusal, or the figures that matter most."""
    if report.refused:
        return ('<section class="refused" aria-labelledby="refused"><h2 id="refused">Refused</h2>'
                f"<pre>{escaped(report.refused)}</pre></section>")
    tiles = [(f"{report.flops_cut:.1%}", "of the FLOPs saved"), (str(len(report.blocks)), "attention blocks"),
             (str(len(report.sites)), "sites")]
    if report.kept:
        tiles.append((f"{report.kept[-1]} of {report.grid[0] * report.grid[1]}", "grid tokens live to the end"))
    if latency_ms:
        tiles.append((f"{latency_ms[0] / latency_ms[1]:.2f}x", "the speed"))
    if views.agreement:
        tiles.append((f"{sum(views.agreement) / len(views.agreement):.2%}", "of the pixels keep their class"))
    return '<dl class="tiles">' + "".join(f"<div><dt>{b}</dt><dd>{a}</dd></div>" for a, b in tiles) + "</dl>"


def blocks(report: Report) -> str:
    """Tokens of each block: a table whose rows are the bars of a chart."""
    if not report.blocks:
        return "<p>No attention block was found.</p>"
    most, kept, rows = max(block.tokens_dense for block in report.blocks), iter(report.kept), []
    for block in report.blocks:
        name = (f"<code>{escaped(block.path or '(top level)')}</code>"
                f"<small>{escaped(block.source)}</small>")
        note = f"then {next(kept, 0)} grid tokens live on" if block.site else ""
        rows.append(_row(name, (block.tokens_dense, None if report.refused else block.tokens), most, "d", note))
    caption = ("Tokens that the attention of each block runs over, prefix and suffix tokens included. "
               f"The grid has {report.grid[0]} rows and {report.grid[1]} columns.")
    return _chart(caption, "Block", "Tokens", rows, dense_only=bool(report.refused))


def costs(report: Report, latency_ms: tuple[float, float] | None, latency_how: str) -> str:
    """FLOPs and latency, dense against pruned; what was not measured is said, not drawn."""
    figures = [("Whole model", "GFLOPs an image", report.gflops_dense, report.gflops_pruned, ".3f"),
               ("Encoder", "GFLOPs an image", report.gflops_encoder_dense, report.gflops_encoder_pruned, ".3f")]
    if report.latency_ms:
        figures.append(("Latency", "expected from a probe, ms", *report.latency_ms, ".1f"))
    if latency_ms:
        figures.append(("Latency", "measured, median, ms", *latency_ms, ".1f"))
    rows = []
    for name, unit, dense, pruned, form in figures:
        if dense:
            pair = (dense, None if report.refused else pruned)
            note = "" if report.refused else f"{pruned / dense - 1:+.1%}"
            rows.append(_row(f"{name}<small>{unit}</small>", pair, max(dense, pruned), form, note))
    how = f"<p>Latency: {escaped(latency_how)}.</p>" if latency_how else ""
    remark = how if latency_ms else "<p>Latency was not measured.</p>"
    if not rows:
        return f"<p>FLOPs are not known.</p>{remark}"
    caption = "FLOPs are counted on the graphs, scoring and restoring included."
    return _chart(caption, "Cost", "Amount", rows, dense_only=bool(report.refused)) + remark


def _chart(caption: str, first: str, bars: str, rows: list[str], dense_only: bool) -> str:
    """A table with a column of bars; its numbers are what those read who do not see the bars."""
    names = ("dense",) if dense_only else ("dense", "pruned")
    heads = "".join(f'<th scope="col" class="number"><span class="key {name}">{name}</span></th>' for name in names)
    return (f'<table class="chart"><caption>{caption}</caption><thead><tr><th scope="col">{first}</th>'
            f'<th scope="col" class="wide">{bars}</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>')


def _row(name: str, pair: tuple[float, float | None], most: float, form: str, note: str) -> str:
    kinds = [(kind, value) for kind, value in zip(("dense", "pruned"), pair, strict=True) if value is not None]
    # Widths are attributes: the page's policy allows no style but that of its own sheet.
    bars = "".join(f'<rect class="{kind}" y="{9 * i}" width="{100 * value / most:.2f}%" height="7"/>'
                   for i, (kind, value) in enumerate(kinds))
    numbers = "".join(f'<td class="number">{value:{form}}</td>' for _, value in kinds)
    remark = f'<span class="note">{note}</span>' if note else ""
    return (f'<tr><th scope="row">{name}</th><td class="wide"><svg class="bars" aria-hidden="true">{bars}</svg>'
            f"{remark}</td>{numbers}</tr>")


def unmatched(report: Report) -> str:
    """Attention that is not used, and why; and what had to be given up."""
    rows = "".join(f'<tr><th scope="row"><code>{escaped(u.where)}</code></th><td>{escaped(u.reason)}</td></tr>'
                   for u in report.unmatched)
    table = ('<table><caption>Attention that stays as it was.</caption><thead><tr><th scope="col">Where</th>'
             f'<th scope="col">Why</th></tr></thead><tbody>{rows}</tbody></table>')
    notes = "".join(f"<li>{escaped(note)}</li>" for note in report.notes)
    nothing = "<p>Nothing: all attention that was found is matched.</p>" if report.blocks else "<p>None was found.</p>"
    return (table if rows else nothing) + (f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "")


def pictures(views: Views) -> str:
    """Controls and frames; the script fills in the pictures."""
    if not views.images:
        return "<p>No images were given.</p>"
    reasons = "".join(f"<li>{TITLES[name]}: {escaped(why)}.</li>" for name, why in views.absent.items())
    missing = f"<h3>Left out</h3><ul>{reasons}</ul>" if reasons else ""
    there = [name for name in OF_SITE if any(name in site.pictures for site in views.sites)]
    maps = f'<div class="frames">{"".join(map(_frame, there))}</div>' if there else "<p>No token is dropped.</p>"
    scale = _scale() if set(there) - {"living", "owners"} else ""
    fixed = _frame("image") + "".join(_frame(name) for name in FIXED if name in views.fixed)
    return (
        f'<div class="controls">{_choice(len(views.images))}{_slider(len(views.sites))}</div>{maps}{scale}'
        f'<h3>What is predicted</h3><p id="agreement"></p><div class="frames">{fixed}</div>'
        f"{_classes(views.classes)}{missing}"
    )


def _choice(count: int) -> str:
    if count == 1:
        return ""
    options = "".join(f'<option value="{i}">{i + 1} of {count}</option>' for i in range(count))
    return f'<div class="control"><label for="image">Image</label><select id="image">{options}</select></div>'


def _slider(count: int) -> str:
    if not count:
        return ""
    # The script writes the same words into aria-valuetext, which is read out: the output need not be.
    return ('<div class="control slider"><label for="site">Site</label>'
            f'<input id="site" type="range" min="1" max="{count}" value="1" step="1" aria-valuetext="1 of {count}">'
            '</div><output id="site-now" for="site" aria-live="off"></output>')


def _frame(name: str) -> str:
    title = TITLES.get(name, "Image")
    colour = "" if name == "living" else " grey"
    base = f'<img data-base alt="" class="under{colour}">' if name in OVERLAYS else ""
    kind = "smooth" if name in ("owners", "image") else "sharp"
    source = "data-base" if name == "image" else f'data-layer="{name}" data-title="{title}"'
    caption = f"<small>{CAPTIONS[name]}</small>" if name in CAPTIONS else ""
    return (f'<figure><div class="stack">{base}<img {source} class="{kind}" alt="{title}"></div>'
            f"<figcaption><strong>{title}</strong>{caption}</figcaption></figure>")


def _scale() -> str:
    stops = "".join(f'<stop offset="{i / (len(SCALE) - 1):.3f}" stop-color="rgb{colour}"/>'
                    for i, colour in enumerate(SCALE))
    return (f'<p class="scale"><span>&minus;{LIMIT:g}</span><svg aria-hidden="true"><defs><linearGradient id="scale">'
            f'{stops}</linearGradient></defs><rect width="100%" height="100%" fill="url(#scale)"/></svg>'
            f"<span>+{LIMIT:g} standard deviations from the mean of the image</span></p>")


def _classes(classes: list[tuple[str, Colour]]) -> str:
    items = "".join(f'<li><svg aria-hidden="true"><rect width="100%" height="100%" fill="rgb{colour}"/></svg>'
                    f"{escaped(name)}</li>" for name, colour in classes)
    return f'<ul class="classes" aria-label="Classes">{items}</ul>' if items else ""
