"""Pictures: colours and PNGs, classes of any output, the page, figures, the graph as DOT and SVG."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import fx, nn

import lvtp_fx
from lvtp_fx.capture import capture
from lvtp_fx.classes import dense_output, labels
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.checkpoint import load_bundled
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE, make_batch
from lvtp_fx.pictures import figures, graph, page
from lvtp_fx.pictures.colours import NO_VALUE, SCALE, heat, palette, png
from lvtp_fx.pictures.views import OF_SITE, SiteViews, Views, make_views
from lvtp_fx.report import BlockReport, Report, Unmatched

ATTACK = '</script><script>document.title="ran"</script>"\'><img src=x onerror=alert(1)>'
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program dot is not installed")


@pytest.fixture(scope="module")
def bundled() -> SimpleNamespace:
    """The bundled segmenter, transformed, and two scenes."""
    model, spec = load_bundled()
    shown, _ = make_batch((1, 2), spec.img_size[0])
    x = spec.preprocess(shown)
    captured = capture(model, (x,), {})
    return SimpleNamespace(model=model, captured=captured, fast=lvtp_fx.transform(captured), x=x, shown=shown)


class Parsed(HTMLParser):
    """A page as a browser splits it: tags with their attributes, texts of scripts and of everything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem != "style":
            self.text += data


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("flat", [True, False])  # either filter of the rows
def test_png_is_what_was_drawn(channels: int, flat: bool) -> None:
    noise, rows = np.random.default_rng(0).integers(0, 256, (1, 50, channels)), np.arange(70)[:, None, None]
    pixels = np.full((7, 50, channels), 9, np.uint8) if flat else (noise + 3 * rows).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (0, 4, 3)])
def test_png_refuses_what_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        png(np.zeros(shape, np.uint8))


def test_palette_keeps_what_is_given_and_repeats_nothing() -> None:
    colours = palette(150, [(1, 2, 3), (4, 5, 6)])
    assert colours[:2] == [(1, 2, 3), (4, 5, 6)]
    assert len(set(colours)) == 150
    assert palette(1, PALETTE) == [PALETTE[0]]


def test_heat_runs_from_end_to_end_and_marks_what_has_no_value() -> None:
    pixels = heat(np.array([[-9.0, -2.0, 0.0, 2.0, np.nan]])).tolist()[0]
    assert [tuple(p) for p in pixels] == [SCALE[0], SCALE[0], SCALE[4], SCALE[8], NO_VALUE]


def forms(logits: torch.Tensor) -> dict[str, Any]:
    pair = namedtuple("pair", ("loss", "logits"))
    tokens = torch.zeros(2, 5, 4)
    return {"tensor": logits, "tuple": (tokens, logits), "dict": {"tokens": tokens, "out": logits},
            "named": pair(tokens, logits), "object": SimpleNamespace(loss=None, logits=logits),
            "nested": {"aux": [tokens], "z": (logits, torch.zeros(2, 9, 4, 4))}}


@pytest.mark.parametrize("form", forms(torch.zeros(1)))
def test_classes_of_every_form_of_output(form: str) -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = labels(forms(logits)[form])
    assert found is not None
    assert torch.equal(found, logits.argmax(1))


def test_one_class_is_a_threshold_and_no_logits_are_no_classes() -> None:
    found = labels(torch.tensor([[[[-1.0, 2.0]]]]))
    assert found is not None
    assert found.tolist() == [[[0, 1]]]
    assert labels((torch.zeros(2, 3), torch.zeros(1, 2, 3, 4, dtype=torch.int64))) is None


def test_dense_model_runs_in_eval_mode_and_keeps_its_modes() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Sequential(nn.BatchNorm2d(3).eval()))
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(dense_output(model, x), x, atol=1e-4)
    assert [m.training for m in model.modules()] == [True, True, True, False]


def test_exported_program_is_shown_too() -> None:
    program = torch.export.export(nn.Conv2d(3, 2, 1).eval(), (torch.rand(2, 3, 4, 4),))
    assert dense_output(program.module(), torch.rand(2, 3, 4, 4)).shape == (2, 2, 4, 4)


def test_page_holds_every_picture_of_every_image(bundled: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    page.write(path, bundled.model, bundled.fast, bundled.x, bundled.shown, CLASS_NAMES, PALETTE, (20.0, 10.0))
    parsed = Parsed(path.read_text(encoding="utf-8"))
    data = json.loads(parsed.scripts[0])
    assert [len(found) for found in (data["images"], data["agreement"], *data["fixed"].values())] == [2] * 5
    assert [list(site["pictures"]) for site in data["sites"]] == [["living", "owners", "entropy", "edges"]] * 3
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["images"][0].split(",")[1]))))
    assert np.abs(first / 255 - bundled.shown[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    slider = next(attrs for tag, attrs in parsed.tags if tag == "input")
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "1", "3")
    for word in ("2.00x", "20.0", "10.0", *CLASS_NAMES, "Nothing: all attention"):
        assert word in parsed.text
    for block in bundled.fast.report.blocks:
        assert block.path in parsed.text
    assert "not measured" not in parsed.text


def test_page_asks_for_nothing_outside_itself(bundled: SimpleNamespace, tmp_path: Path) -> None:
    page.write(tmp_path / "page.html", bundled.model, bundled.fast, bundled.x)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert [v for _, attrs in parsed.tags for k, v in attrs.items() if k in ("src", "href")] == ["#content"]
    assert not re.search(r"https?:|@import", text)
    policy = next(attrs["content"] or "" for _, attrs in parsed.tags if "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def hostile() -> tuple[Report, Views]:
    report = Report(
        blocks=(BlockReport(ATTACK, ATTACK, 8, 4, True),), sites=(ATTACK,), grid=(2, 4), kept=(4,), gflops_dense=2.0,
        gflops_pruned=1.0, unmatched=(Unmatched(ATTACK, ATTACK),), notes=(ATTACK,))
    model = nn.Conv2d(3, 2, 1)
    views = make_views(model, None, torch.rand(1, 3, 4, 4), None, [ATTACK, ATTACK])
    return report, replace(views, sites=[SiteViews(ATTACK, 4, 8, {"edges": views.images})], absent={"dense": ATTACK})


def test_no_text_of_a_model_becomes_markup() -> None:
    report, views = hostile()
    parsed = Parsed(page.render(ATTACK, report, views))
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert not any("onerror" in attrs for _, attrs in parsed.tags)
    # Title, heading, class or classes, missing picture, path, source, where, why, note.
    assert parsed.text.count(ATTACK) >= 9
    assert ATTACK in json.loads(parsed.scripts[0])["sites"][0]["label"]
    refused = Parsed(page.render("m", Report(refused=ATTACK), Views()))
    assert [tag for tag, _ in refused.tags].count("script") == 2
    assert ATTACK in refused.text


def test_page_of_a_refusal_shows_it_and_no_pruned_numbers(bundled: SimpleNamespace, tmp_path: Path) -> None:
    report = lvtp_fx.explain(bundled.captured, flops_cut=0.97)
    page.write(tmp_path / "page.html", bundled.model, None, bundled.x, report=report)
    parsed = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    text = parsed.text
    numbers = [attrs for tag, attrs in parsed.tags if tag == "td" and attrs.get("class") == "number"]
    swatches = 7  # of the classes
    bars = len([tag for tag, _ in parsed.tags if tag == "rect"]) - swatches
    assert len(numbers) == bars == len(report.blocks) + 2
    for word in ("LVTP202", "Dense segmentation", "Pruned segmentation: the model was refused",
                 "Attention entropy: the model was refused", "Latency was not measured"):
        assert word in text
    assert "of the FLOPs saved" not in text
    assert "pruned" not in text
    assert text.count("dense") == 2  # the heads of both tables


def test_bars_are_as_long_as_their_numbers(bundled: SimpleNamespace) -> None:
    """Of the longest bar of the chart of blocks, and of the longer one of a pair of costs."""
    report = bundled.fast.report
    text = page.render("m", report, Views(), latency_ms=(40.0, 30.0))
    rows = re.findall(r"<tr>.*?</tr>", text)
    drawn = [([float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)%"', row)],
              [float(number) for number in re.findall(r'<td class="number">([\d.]+)</td>', row)]) for row in rows]
    drawn = [(widths, numbers) for widths, numbers in drawn if widths]
    assert len(drawn) == len(report.blocks) + 3  # the whole model, the encoder, latency
    most = max(block.tokens_dense for block in report.blocks)
    for i, (widths, numbers) in enumerate(drawn):
        whole = most if i < len(report.blocks) else max(numbers)
        assert widths == pytest.approx([100 * number / whole for number in numbers], abs=0.1)
    assert drawn[-1] == ([100.0, 75.0], [40.0, 30.0])


def test_page_without_images_says_so(bundled: SimpleNamespace, tmp_path: Path) -> None:
    for images in (None, bundled.x[:0]):
        page.write(tmp_path / "page.html", bundled.model, bundled.fast, images)
        parsed = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert "No images were given." in parsed.text
        assert not {"input", "select", "img"} & {tag for tag, _ in parsed.tags}


def test_page_refuses_what_it_cannot_draw(bundled: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="report"):
        page.write(path, bundled.model, None)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        page.write(path, bundled.model, bundled.fast, bundled.x[0])
    with pytest.raises(ValueError, match="shown must be"):
        page.write(path, bundled.model, bundled.fast, bundled.x, bundled.shown[:1])
    with pytest.raises(LvtpError, match="LVTP302"):
        page.write(path, bundled.model, bundled.model)
    assert not path.exists()


def test_plot_draws_the_numbers_of_the_report(bundled: SimpleNamespace) -> None:
    report = cast(Report, bundled.fast.report)
    tokens, flops, latency = report.plot(latency_ms=(20.0, 10.0)).axes
    assert [bar.get_width() for bar in tokens.patches] == (
        [b.tokens_dense for b in report.blocks] + [b.tokens for b in report.blocks])
    assert [bar.get_width() for bar in flops.patches] == [
        report.gflops_dense, report.gflops_encoder_dense, report.gflops_pruned, report.gflops_encoder_pruned]
    assert [bar.get_width() for bar in latency.patches] == [20.0, 10.0]
    assert len(report.plot().axes) == 2
    expected = replace(report, latency_ms_dense=8.0, latency_ms_pruned=6.0).plot().axes[2]
    assert [bar.get_width() for bar in expected.patches] == [8.0, 6.0]
    assert [label.get_text() for label in expected.get_yticklabels()] == ["expected"]


def test_expected_latency_is_not_taken_for_a_measured_one(bundled: SimpleNamespace) -> None:
    report = replace(bundled.fast.report, latency_ms_dense=81.2, latency_ms_pruned=63.4)
    text = Parsed(page.render("m", report, Views())).text
    for word in ("expected from a probe", "81.2", "63.4", "Latency was not measured."):
        assert word in text
    assert "the speed" not in text
    assert "expected from a probe" not in Parsed(page.render("m", bundled.fast.report, Views())).text


def test_plot_of_images_shows_what_the_page_shows(bundled: SimpleNamespace) -> None:
    figure = figures.plot(bundled.fast.report, bundled.model, bundled.fast, bundled.x[:1], bundled.shown[:1])
    titles = [ax.get_title() for ax in figure.axes]
    kept = [f"{path}: {count} of 576 live" for path, count in zip(
        bundled.fast.report.sites, bundled.fast.report.kept, strict=True)]
    assert {"Image", "Dense segmentation", "Pruned segmentation", *kept} <= set(titles)
    assert [titles.count(name) for name in ("Owners", "Attention entropy", "Edges")] == [3, 3, 3]
    views = make_views(bundled.model, bundled.fast, bundled.x[:1], bundled.shown[:1])
    pictures = [views.images[0], *(found[0] for found in views.fixed.values())]
    pictures += [site.pictures[name][0] for site in views.sites for name in OF_SITE if name in site.pictures]
    drawn = [ax.images[-1].get_array() for ax in figure.axes if ax.images]
    assert len(drawn) == 4 + 4 * 3
    assert all(np.array_equal(a, b) for a, b in zip(drawn, pictures, strict=True))
    with pytest.raises(ValueError, match="dense model"):
        bundled.fast.report.plot(images=bundled.x)


def test_plot_of_hostile_and_of_empty_reports_draws() -> None:
    report, _ = hostile()
    broken = Report(blocks=(BlockReport("$x^", "", 8, 4, False),), notes=("$\\frac{", ATTACK), refused="no $")
    for one in (report, broken, Report()):
        one.plot().savefig(io.BytesIO())


def without(module: str, code: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules[{module!r}] = None; import lvtp_fx; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_matplotlib_is_needed_for_figures_only() -> None:
    failed = without("matplotlib", "lvtp_fx.Report().plot()")
    assert "ImportError: Report.plot needs matplotlib: pip install 'lvtp_fx[demo]'" in failed.stderr
    code = "from lvtp_fx.pictures import page, views; page.render('m', lvtp_fx.Report(), views.Views())"
    assert without("matplotlib", code).returncode == 0
    plain = without("nothing", "lvtp_fx.Report().plot(); print('matplotlib.pyplot' in sys.modules)")
    assert plain.stdout.strip() == "False"


def test_graph_colours_our_nodes_and_no_others(bundled: SimpleNamespace) -> None:
    after = graph.dot(bundled.fast)
    ours = [node for node in bundled.fast.graph.nodes if "lvtp" in str(node.target)]
    colours = {graph.role(node) for node in ours}
    assert colours == {"score", "choose", "reduce", "restore", "prepare"}
    for node in ours:
        line = next(line for line in after.splitlines() if line.strip().startswith(f'"{node.name}" ['))
        assert graph.ROLES[graph.role(node) or ""][0] in line
    before = graph.dot(bundled.captured.module)
    assert not any(colour in before for colour, _ in graph.ROLES.values())
    assert before.count("label=\"scaled_dot") == after.count("label=\"scaled_dot") == 8


@needs_dot
def test_svg_has_a_shape_a_node(bundled: SimpleNamespace, tmp_path: Path) -> None:
    graph.write(tmp_path / "new" / "graph.svg", bundled.fast, 'a "title" \\ <b>')
    text = (tmp_path / "new" / "graph.svg").read_text(encoding="utf-8")
    for node in bundled.fast.graph.nodes:
        assert (f"<title>{node.name}</title>" in text) == (node.op != "get_attr" and "sym_size" not in str(node.target))
    assert "&lt;b&gt;" in text


def test_graph_files_are_refused_with_a_reason(
    bundled: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    graph.write(tmp_path / "graph.dot", bundled.fast)
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8").startswith("digraph")
    with pytest.raises(RuntimeError, match=r"install it.*or write the graph as \.dot"):
        graph.write(tmp_path / "graph.svg", bundled.fast)
    with pytest.raises(ValueError, match=r"graph\.png"):
        graph.write(tmp_path / "graph.png", bundled.fast)
    assert not (tmp_path / "graph.svg").exists()


def test_dot_quotes_what_it_is_given() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    text = graph.dot(fx.symbolic_trace(Odd()), 'quote " slash \\ line\nend')
    assert 'label="quote \\" slash \\\\ line\\nend"' in text
