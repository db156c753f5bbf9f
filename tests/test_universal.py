"""Folders of transformers' universal segmenters: queries and their masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lvtp_fx
from lvtp_fx.errors import LvtpError
from lvtp_fx.models.named import load_named
from lvtp_fx.models.request import Request
from tests.zoo import randomise

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
         "num_queries": 6, "num_blocks": 1, "num_upscale_blocks": 1, "num_labels": 5}
IMAGE = torch.randint(0, 256, (3, 50, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(params=["eomt", "eomt_dinov3"])
def eomt_folder(request: Any, tmp_path: Path) -> Path:
    import transformers as hf

    model = hf.EomtForUniversalSegmentation(hf.EomtConfig(**SMALL, mlp_ratio=2)) if request.param == "eomt" else \
        hf.EomtDinov3ForUniversalSegmentation(hf.EomtDinov3Config(**SMALL, intermediate_size=64))
    model = randomise(model, 0)
    with torch.no_grad():  # queries that are sure of their class, so that classes differ from place to place
        model.class_predictor.weight *= 100
        model.query.weight *= 10
    model.save_pretrained(tmp_path / "model")
    hf.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_eomt_is_loaded_and_predicts_as_its_image_processor_does(eomt_folder: Path) -> None:
    from transformers import AutoImageProcessor

    named = load_named(Request(f"hf:{eomt_folder}"))
    assert named.img_size == (64, 64)
    assert named.count_classes() == len(named.class_names) == 5
    assert not named.notes
    [found] = named.predictor()([IMAGE])
    processor = AutoImageProcessor.from_pretrained(eomt_folder)
    with torch.no_grad():
        output = named.dense(named.prepared([IMAGE]))
    [expected] = processor.post_process_semantic_segmentation(output, target_sizes=[(50, 60)])
    assert torch.equal(found, expected)
    assert len(found.unique()) > 1
    square = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert torch.equal(named.prepared([square]), processor(images=[square], return_tensors="pt")["pixel_values"])


def test_eomt_is_pruned_and_says_what_was_fixed(eomt_folder: Path) -> None:
    named = load_named(Request(f"hf:{eomt_folder}"))
    x = named.prepared([IMAGE, IMAGE.flip(2)])
    fast = lvtp_fx.transform(named.model, (x,), keep_ratio=0.8)
    assert "attn_mask_probs" in fast.report.notes[0]
    assert lvtp_fx.verify(named.dense, fast, (x,)).max_error < 2e-5
    dense, pruned = (named.predictor(run)([IMAGE])[0] for run in (None, fast))
    assert 0.5 < float((dense == pruned).double().mean()) <= 1


def test_image_processor_that_splits_images_is_noted(eomt_folder: Path) -> None:
    from transformers import EomtImageProcessor

    EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": None},
                       do_split_image=True).save_pretrained(eomt_folder)
    named = load_named(Request(f"hf:{eomt_folder}"))
    assert named.notes == ("its image processor splits images into windows, which a stride does here",)
    wide = torch.randint(0, 256, (3, 64, 100), dtype=torch.uint8)
    assert named.prepared([wide]).shape == (1, 3, 64, 64)
    [labels] = named.predictor(stride=36)([wide])  # its two windows, which overlap by 28 px
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(eomt_folder)
    inputs = processor(images=[wide], return_tensors="pt")
    with torch.no_grad():
        output = named.dense(inputs["pixel_values"])
    output.patch_offsets = inputs["patch_offsets"]
    [expected] = processor.post_process_semantic_segmentation(
        output, target_sizes=[(64, 100)], size={"shortest_edge": 64, "longest_edge": None})
    assert float((labels == expected).double().mean()) == 1


def test_mask2former_is_loaded_at_any_size_and_refused_by_the_pass(tmp_path: Path) -> None:
    import transformers as hf

    backbone = hf.SwinConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
                             out_features=["stage1", "stage2", "stage3", "stage4"])
    config = hf.Mask2FormerConfig(backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
                                  encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=2,
                                  encoder_layers=1, decoder_layers=2, num_queries=6, num_labels=4)
    hf.Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    hf.Mask2FormerImageProcessor().save_pretrained(tmp_path)
    named = load_named(Request(f"hf:{tmp_path}", size=(80, 112)))  # no multiples of the processor's 32
    assert named.prepared([IMAGE]).shape == (1, 3, 80, 112)
    assert named.count_classes() == 4
    [labels] = named.predictor()([IMAGE])
    assert labels.shape == (50, 60)
    with pytest.raises(LvtpError, match=r"LVTP10[12] "):
        lvtp_fx.transform(named.model, named.inputs(1), flops_cut=0.1)
