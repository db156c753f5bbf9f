"""The page in a real browser: layout, contrast, keyboard, pictures as they are painted. Needs Chromium, playwright."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lvtp_fx
from lvtp_fx.models.checkpoint import load_bundled
from lvtp_fx.models.scenes import CLASS_NAMES, PALETTE, make_batch
from lvtp_fx.pictures import page
from lvtp_fx.pictures.views import Views, make_views
from lvtp_fx.report import Unmatched
from tests.test_pictures import ATTACK, hostile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium: apt install chromium"),
    pytest.mark.xdist_group("browser"),  # one browser, one process
]
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
# For each text that is seen: its colour, the first opaque colour behind it, and the words.
TEXTS = """() => [...document.querySelectorAll("body *:not(script, noscript, option)")].filter(e =>
  [...e.childNodes].some(c => c.nodeType === 3 && c.textContent.trim()) && e.getClientRects().length).map(e => {
  let behind = e;
  while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [getComputedStyle(e).color, behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)",
          e.textContent.trim()];
})"""
OUTSIDE = """() => [...document.querySelectorAll("body *:not(.skip)")].filter(e => {
  const box = e.getBoundingClientRect();
  return e.getClientRects().length && (box.left < -0.5 || box.right > innerWidth + 0.5);
}).map(e => e.outerHTML.slice(0, 80))"""


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    contexts = []

    def go(path: Path, scheme: str = "light", width: int = 1280) -> Opened:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.errors.append(message.text))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri())
        found.page.wait_for_function("[...document.images].every(i => i.complete)")
        return found

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def views() -> tuple[lvtp_fx.Report, Views]:
    model, spec = load_bundled()
    shown, _ = make_batch((1, 2), spec.img_size[0])
    x = spec.preprocess(shown)
    fast = lvtp_fx.transform(model, (x,))
    return fast.report, make_views(model, fast, x, shown, CLASS_NAMES, PALETTE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, views: tuple[lvtp_fx.Report, Views]) -> dict[str, Path]:
    """Pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    long = lvtp_fx.Report(unmatched=(Unmatched("encoder.layers." * 9, "its scores are capped"),),
                          refused="LVTP102 attention-not-matched at " + "a.very.long.path." * 9)
    texts = {
        "whole": page.render("Segmenter", *views, (20.0, 10.0)), "charts": page.render("Segmenter", views[0], Views()),
        "refused": page.render("Segmenter", long, Views()), "hostile": page.render(ATTACK, *hostile()),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") < 4.5
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") > 4.5


@SCHEMES
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["whole", "charts", "refused", "hostile"])
def test_layout_and_contrast(opened: Open, pages: dict[str, Path], name: str, scheme: str, width: int) -> None:
    found = opened(pages[name], scheme, width)
    assert found.errors == []
    assert [url.partition(":")[0] for url in found.requests if not url.startswith("data:")] == ["file"]
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    assert found.page.evaluate(OUTSIDE) == []
    texts = found.page.evaluate(TEXTS)
    assert len(texts) > 8
    assert [text for text in texts if contrast(text[0], text[1]) < 4.5] == []
    paper = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")


def test_the_checks_see_a_bad_page(opened: Open, pages: dict[str, Path]) -> None:
    found = opened(pages["charts"], "light", 360)
    found.page.evaluate("document.querySelector('h1').style.cssText = 'width: 500px; color: rgb(200, 200, 200)'")
    assert found.page.evaluate("document.documentElement.scrollWidth") > 360
    assert any(text.startswith("<h1") for text in found.page.evaluate(OUTSIDE))
    assert [t[2] for t in found.page.evaluate(TEXTS) if contrast(t[0], t[1]) < 4.5] == ["Segmenter"]


def test_keyboard_reaches_the_controls_and_changes_the_site(
    opened: Open, pages: dict[str, Path], views: tuple[lvtp_fx.Report, Views]
) -> None:
    tab = opened(pages["whole"]).page
    order = []
    for _ in range(3):
        tab.keyboard.press("Tab")
        order.append(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order == ["skip", "image", "site"]
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    living, fixed = tab.locator("img[data-layer=living]"), tab.locator("img[data-layer=dense]")
    before = living.get_attribute("src"), fixed.get_attribute("src")
    seen = [tab.get_attribute("#site", "aria-valuetext")]
    for _ in range(2):
        tab.keyboard.press("ArrowRight")
        seen.append(tab.get_attribute("#site", "aria-valuetext"))
    assert seen == [f"{i + 1} of 3, after {site.site}, {site.kept} of 576 tokens live on"
                    for i, site in enumerate(views[1].sites)]
    assert seen[2].endswith(tab.inner_text("#site-now"))
    assert living.get_attribute("src") != before[0]
    assert fixed.get_attribute("src") == before[1]
    assert views[1].sites[2].site in (living.get_attribute("alt") or "")
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("ArrowDown")  # the other image
    assert tab.input_value("#image") == "1"
    assert fixed.get_attribute("src") != before[1]
    assert tab.inner_text("#agreement").startswith(f"{views[1].agreement[1]:.2%}")


def painted(tab: Any, layer: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What is seen in the frame of a picture: [192, 192, 3]."""
    frame = tab.locator(f".stack:has(img[data-layer={layer}])")
    # Laid out so that a pixel of the image is one of the screen, at a whole position.
    frame.evaluate("e => { e.style.cssText = 'position: fixed; inset: 0 auto auto 0; width: 192px; border-radius: 0; "
                   "z-index: 9'; }")
    raw = frame.screenshot()
    frame.evaluate("e => { e.style.cssText = ''; }")
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), float)


@SCHEMES
def test_frames_show_the_picture_over_the_image(
    opened: Open, pages: dict[str, Path], views: tuple[lvtp_fx.Report, Views], scheme: str
) -> None:
    tab = opened(pages["whole"], scheme).page
    for layer, found in {**views[1].sites[0].pictures, **views[1].fixed}.items():
        pixels = found[0]
        large = np.asarray(Image.fromarray(pixels).resize((192, 192), Image.Resampling.NEAREST), float)
        alpha = large[..., 3:] / 255 if large.shape[2] == 4 else 1.0
        under = views[1].images[0].astype(float)
        if layer in ("owners", "difference"):
            under = 1.1 * (0.8 * (under @ [0.2126, 0.7152, 0.0722] - 127.5) + 127.5)[..., None].repeat(3, 2)
        expected = (alpha * large[..., :3] + (1 - alpha) * under).clip(0, 255)
        seen = painted(tab, layer)
        off, upside_down = (float(np.abs(seen - other).mean()) for other in (expected, expected[::-1]))
        assert off < 1 < 20 < upside_down, (layer, off, upside_down)
        drawn = np.broadcast_to(np.asarray(alpha) > 0, seen.shape)
        off, without = (float(np.abs(seen - other)[drawn].mean()) for other in (expected, under))
        assert off < 1 < 20 < without, (layer, off, without)


def test_hostile_texts_do_not_run(opened: Open, pages: dict[str, Path]) -> None:
    found = opened(pages["hostile"])
    assert found.page.title() == f"lvtp_fx: {ATTACK}"
    assert found.page.inner_text("h1") == ATTACK
    assert found.page.locator("script").count() == 2
    # Were one text let through unescaped, the page's policy would still stop it.
    found.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    found.page.wait_for_timeout(100)
    assert found.page.title() != "1"


def test_image_inputs_of_one_need_no_choice(opened: Open, tmp_path: Path) -> None:
    model = torch.nn.Conv2d(3, 2, 1)
    views = make_views(model, None, torch.rand(1, 3, 8, 8))
    (tmp_path / "one.html").write_text(page.render("Conv2d", lvtp_fx.Report(), views), encoding="utf-8")
    found = opened(tmp_path / "one.html")
    assert found.errors == []
    assert found.page.locator("#image, #site").count() == 0
    assert found.page.locator("img[data-layer=dense]").evaluate("e => e.naturalWidth") == 8
