"""Classes that a model predicts, whatever form its output has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

NO_CLASSES = "the model returns no floating tensor [B, classes, height, width]"


def dense_output(model: nn.Module, images: torch.Tensor) -> Any:
    """The output of a model in eval mode, without gradients; the model's modes are put back."""
    with _evaluating(model), torch.no_grad():
        return model(images)


def labels(output: Any) -> torch.Tensor | None:
    """Predicted classes [B, h, w] int64, on the CPU, and None where the output holds no logits: see `find_logits`."""
    logits = find_logits(output)
    return None if logits is None else logits.argmax(1).cpu()


def find_logits(output: Any, size: tuple[int, int] | None = None) -> torch.Tensor | None:
    """Logits [B, classes, h, w], of two classes or more, in what a segmenter returns; None where there are none.

    `find_planes`, of which one alone becomes two: see `two_planes`.
    """
    planes = find_planes(output, size)
    return None if planes is None else two_planes(planes)


def find_planes(output: Any, size: tuple[int, int] | None = None) -> torch.Tensor | None:
    """A plane a class, [B, planes, h, w], in what a segmenter returns; None where there is none.

    Transformers' queries and their masks, joined; its `logits`; torchvision's `out`; else the first floating tensor
    with four axes, in a nest or an object.

    Args:
        size: (height, width) at which masks of queries are joined, the input's in the papers (Mask2Former, arXiv
            2112.01527; EoMT, arXiv 2503.19108); None for the masks' own.
    """
    masks = _field(output, "masks_queries_logits")
    if masks is not None:
        return _joined(_field(output, "class_queries_logits"), masks, size)
    named = next((found for name in ("logits", "out") if (found := _field(output, name)) is not None), output)
    return next((t for t in floats(named) if t.ndim == 4 and 0 not in t.shape), None)


def two_planes(logits: torch.Tensor) -> torch.Tensor:
    """One plane [B, 1, h, w] is of class 1, and zeros of class 0 go before it: class 1 is where it is positive. Of more
    planes each is a class, and they are returned as they are."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _joined(classes: Any, masks: Any, size: tuple[int, int] | None) -> torch.Tensor | None:
    """A plane a class, from what queries say of their class, [B, Q, classes and none], and where, [B, Q, h, w].

    As transformers' post_process_semantic_segmentation does it. None for other shapes.
    """
    if not (isinstance(classes, torch.Tensor) and isinstance(masks, torch.Tensor)):
        return None
    if classes.ndim != 3 or masks.ndim != 4 or classes.shape[:2] != masks.shape[:2] or classes.shape[2] < 2:
        return None
    if size is not None:
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
    planes = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    # These are sums of probabilities, not logits: of one class, none is negative.
    return planes - 0.5 if planes.shape[1] == 1 else planes


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def floats(output: Any) -> Iterator[torch.Tensor]:
    """The floating tensors of a nest, and those of objects in it that pytree does not know."""
    for leaf in pytree.tree_leaves(output):
        values = vars(leaf).values() if not isinstance(leaf, torch.Tensor) and hasattr(leaf, "__dict__") else (leaf,)
        yield from (x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Modes are set as flags: a `train()` of the user's own may do more, such as merge weights."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
