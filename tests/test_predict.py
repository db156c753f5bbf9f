"""Label maps of images of any size: whole and in windows, and their colours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lvtp_fx.calibration.likeness import tally
from lvtp_fx.classes import labels
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.checkpoint import Spec
from lvtp_fx.models.images import find_images, read_image
from lvtp_fx.models.palette import save_labels, to_rgb, voc_palette
from lvtp_fx.models.predict import Predictor, logits_of, starts
from lvtp_fx.models.preprocess import ProcessorPreprocess, SpecPreprocess, resized

SPEC = Spec((32, 48), 3, None, 255.0, (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))
PREPROCESS = SpecPreprocess(SPEC)
IMAGE = torch.randint(0, 256, (3, 70, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def colours(x: torch.Tensor) -> torch.Tensor:
    """A segmenter that looks at one pixel at a time: the channel that is largest."""
    return x


def places(x: torch.Tensor) -> torch.Tensor:
    """A segmenter whose logits depend on where in the window a pixel is."""
    return x * torch.linspace(-1, 2, x.shape[3]) + torch.linspace(0, 1, x.shape[2])[:, None]


def test_preprocessing_is_that_of_the_spec() -> None:
    small = resized(IMAGE, SPEC.img_size)
    assert torch.allclose(PREPROCESS(IMAGE, SPEC.img_size), SPEC.preprocess(small[None] / 255)[0], atol=1e-5)
    assert PREPROCESS(IMAGE, None).shape == (3, 70, 100)
    assert not torch.allclose(PREPROCESS(small, None), small / 255, atol=1e-2)


def test_image_processor_keeps_its_filter_and_statistics_but_not_its_size() -> None:
    from transformers import BeitImageProcessor

    own = BeitImageProcessor(size={"height": 32, "width": 48}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    made = ProcessorPreprocess(own, None)
    assert made.img_size == (32, 48)
    assert torch.equal(made(IMAGE, (32, 48)), own(images=[IMAGE], return_tensors="pt")["pixel_values"][0])
    assert ProcessorPreprocess(own, (16, 24))(IMAGE, (16, 24)).shape == (3, 16, 24)
    assert made(IMAGE, None).shape == (3, 70, 100)


def test_cropping_image_processor_gives_the_size_of_its_crop_and_does_not_crop() -> None:
    from transformers import BeitImageProcessor

    own = BeitImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=True, crop_size={"height": 32, "width": 32})
    made = ProcessorPreprocess(own, None)
    assert made.img_size == (32, 32)
    corner = torch.zeros(3, 64, 64, dtype=torch.uint8)
    corner[:, :8, :8] = 255
    assert made(corner, (32, 32))[:, 0, 0].min() > made(corner, (32, 32))[:, -1, -1].max()  # a crop would lose it


def test_image_processor_without_a_size_is_refused() -> None:
    from transformers import BeitImageProcessor

    with pytest.raises(ValueError, match="no fixed height and width"):
        ProcessorPreprocess(BeitImageProcessor(size={"shortest_edge": 32}), None)


def test_logits_are_found_in_what_segmenters_return() -> None:
    from transformers.modeling_outputs import SemanticSegmenterOutput

    logits, other = torch.rand(1, 3, 4, 4), torch.rand(1, 5, 4, 4)
    for output in (logits, {"aux": other, "out": logits}, SemanticSegmenterOutput(logits=logits),
                   (torch.rand(1, 7), logits), {"x": logits}):
        assert logits_of(output) is logits
    with pytest.raises(LvtpError, match=r"LVTP401 .*(?s:.)*got: \(1, 7\)"):
        logits_of((torch.rand(1, 7),))


@pytest.mark.parametrize("options", [{}, {"stride": 20}])
def test_one_plane_is_of_class_1_where_it_is_positive(options: dict[str, Any]) -> None:
    def binary(x: torch.Tensor) -> torch.Tensor:
        return places(x)[:, :1]

    def two(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([binary(x) * 0, binary(x)], 1)

    [found], [expected] = (Predictor(run, PREPROCESS, **options)([IMAGE]) for run in (binary, two))
    assert torch.equal(found, expected)
    assert set(found.unique().tolist()) == {0, 1}
    x = PREPROCESS(IMAGE, SPEC.img_size)[None]
    assert torch.equal(labels(binary(x)), (binary(x)[:, 0] > 0).long())  # and so do the pictures
    assert logits_of(binary(x)).shape[1] == 2  # which is how classes are counted
    label = (binary(x)[:, 0] > 0).long()
    assert tally(binary(x), label).tolist() == torch.bincount(label.flatten(), minlength=2).diag().tolist()


def queries(classes: int) -> Any:
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

    generator = torch.Generator().manual_seed(0)
    return Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=torch.randn(2, 9, classes + 1, generator=generator),
        masks_queries_logits=torch.randn(2, 9, 384, 384, generator=generator))  # the size that the processor works at


def test_queries_are_joined_to_classes_as_their_image_processor_does() -> None:
    from transformers import Mask2FormerImageProcessor

    output = queries(classes=5)
    expected = torch.stack(Mask2FormerImageProcessor().post_process_semantic_segmentation(output))
    assert logits_of(output).shape == (2, 5, 384, 384)
    assert torch.equal(logits_of(output).argmax(1), expected)
    assert len(expected.unique()) == 5
    for form in (dict(output), SimpleNamespace(**output)):
        assert torch.equal(labels(form), expected)
    output["class_queries_logits"] = output["class_queries_logits"][:, :8]
    with pytest.raises(LvtpError, match=r"LVTP401 .*(?s:.)*got: \(2, 8, 6\), \(2, 9, 384, 384\)"):
        logits_of(output)


def test_queries_of_one_class_are_that_class_where_it_is_more_likely_than_not() -> None:
    output = queries(classes=1)
    output["class_queries_logits"][..., 0] -= 2.5
    share = output["class_queries_logits"].softmax(-1)[..., 0]
    likely = (share[..., None, None] * output["masks_queries_logits"].sigmoid()).sum(1) - 0.5
    found = labels(output)
    assert found is not None
    sure = likely.abs() > 1e-5
    assert torch.equal(found[sure], (likely > 0).long()[sure])
    assert set(found.unique().tolist()) == {0, 1}


def test_whole_image_is_resized_and_its_logits_resized_back() -> None:
    predict = Predictor(places, PREPROCESS)
    logits = places(PREPROCESS(IMAGE, SPEC.img_size)[None])
    expected = F.interpolate(logits, (70, 100), mode="bilinear", align_corners=False)[0].argmax(0)
    [found] = predict([IMAGE])
    assert (found.shape, found.dtype) == ((70, 100), torch.int64)
    assert torch.equal(found, expected)


def test_batches_and_sizes_may_differ() -> None:
    images = [IMAGE, IMAGE[:, :40, :40], IMAGE[:, 10:50]]
    alone = [Predictor(places, PREPROCESS)([image])[0] for image in images]
    together = Predictor(places, PREPROCESS, batch_size=2)(images)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [tuple(labels.shape) for labels in together] == [(70, 100), (40, 40), (40, 100)]


@pytest.mark.parametrize("stride", [7, 20, 32])
def test_windows_of_a_pixelwise_model_give_the_whole(stride: int) -> None:
    """Every pixel is in some window, at its own place, and none is counted twice."""
    [found] = Predictor(colours, PREPROCESS, stride=stride, batch_size=5)([IMAGE])
    covered = PREPROCESS(IMAGE, None).argmax(0)
    assert torch.equal(found, covered)


def test_logits_are_averaged_where_windows_overlap() -> None:
    [found] = Predictor(places, PREPROCESS, stride=20, batch_size=3)([IMAGE])
    x = PREPROCESS(IMAGE, None)
    total, count = torch.zeros(3, 70, 100), torch.zeros(70, 100)
    for top in (0, 20, 38):
        for left in (0, 20, 40, 52):
            total[:, top:top + 32, left:left + 48] += places(x[None, :, top:top + 32, left:left + 48])[0]
            count[top:top + 32, left:left + 48] += 1
    assert count.min() == 1
    assert torch.equal(found, (total / count).argmax(0))
    assert not torch.equal(found, Predictor(places, PREPROCESS, stride=32)([IMAGE])[0])


@pytest.mark.parametrize(("length", "window", "stride", "expected"), [
    (10, 10, 4, [0]), (11, 10, 4, [0, 1]), (20, 10, 4, [0, 4, 8, 10]), (20, 10, 10, [0, 10]), (20, 10, 99, [0, 10]),
])
def test_windows_reach_the_end_and_not_beyond(length: int, window: int, stride: int, expected: list[int]) -> None:
    assert starts(length, window, stride) == expected


def test_image_smaller_than_the_window_is_enlarged_to_cover_it() -> None:
    seen: list[tuple[int, ...]] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x

    [found] = Predictor(run, PREPROCESS, stride=16)([IMAGE[:, :20, :96]])
    assert found.shape == (20, 96)
    assert {shape[2:] for shape in seen} == {(32, 48)}
    assert len(seen) == len(starts(154, 48, 16))  # 20 x 96 becomes 32 x 154


def test_short_side_is_resized_before_the_window_slides() -> None:
    count = 0

    def run(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return x

    [found] = Predictor(run, PREPROCESS, stride=16, short_side=35)([IMAGE])
    assert found.shape == (70, 100)
    assert count == len(starts(35, 32, 16)) * len(starts(50, 48, 16))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"stride": 0}, "stride must be >= 1"), ({"stride": 33}, "stride must be <= 32, the window's side"),
    ({"batch_size": 0}, "batch_size must be >= 1"),
    ({"short_side": 9}, "short_side needs a stride"),
])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(colours, PREPROCESS, **wrong)


def test_palette_is_pascal_vocs() -> None:
    assert voc_palette(21)[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert voc_palette(21)[15] == (192, 128, 128)
    assert len(set(voc_palette(256))) == 256
    rgb = to_rgb(torch.tensor([[0, 15]]), voc_palette(21))
    assert rgb.permute(1, 2, 0).tolist() == [[[0, 0, 0], [192, 128, 128]]]
    with pytest.raises(ValueError, match=r"labels must be in \[0, 15\)"):
        to_rgb(torch.tensor([[0, 15]]), voc_palette(15))


def test_saved_labels_show_colours_and_hold_classes(tmp_path: Path) -> None:
    labels = torch.arange(21).repeat(4, 1)
    save_labels(tmp_path / "new" / "map.png", labels, voc_palette(21))
    with Image.open(tmp_path / "new" / "map.png") as file:
        assert np.array_equal(np.array(file), labels.numpy())
        assert file.convert("RGB").getpixel((15, 0)) == (192, 128, 128)
    with pytest.raises(ValueError, match="classes up to 255, got 256"):
        save_labels(tmp_path / "map.png", torch.tensor([[256]]), voc_palette(300))


def test_images_are_found_by_name_and_read_upright(tmp_path: Path) -> None:
    for name, size in (("b.png", (8, 6)), ("a.JPG", (8, 6))):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = tmp_path / "turned.jpg"
    Image.new("L", (8, 6)).save(turned, exif=exif)
    assert [path.name for path in find_images([tmp_path])] == ["a.JPG", "b.png", "turned.jpg"]
    assert find_images([turned, tmp_path], limit=1) == [turned]
    image = read_image(tmp_path / "b.png")
    assert (tuple(image.shape), image.dtype, image[:, 0, 0].tolist()) == ((3, 6, 8), torch.uint8, [10, 20, 30])
    assert read_image(turned).shape == (3, 8, 6)


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(LvtpError, match=r"LVTP105 .* at .*nowhere(?s:.)*no such file or folder"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(LvtpError, match=r"(?s)sub.*got: no file"):
        find_images([tmp_path / "sub"])
    with pytest.raises(LvtpError, match=r"(?s)got: none"):
        find_images([])
    with pytest.raises(LvtpError, match=r"(?s)LVTP105 .*broken\.png.*an image that Pillow can read"):
        read_image(tmp_path / "broken.png")
    Image.effect_noise((400, 400), 50).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    with pytest.raises(LvtpError, match=r"LVTP105 .*cut\.png"):
        read_image(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes(whole)
    assert read_image(tmp_path / "cut.png").shape == (3, 400, 400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LvtpError, match=r"(?s)LVTP105 .*exceeds limit"):
        read_image(tmp_path / "cut.png")
