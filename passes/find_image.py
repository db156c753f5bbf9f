"""Find the picture whose edges count: what the patch embedding reads."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
import torch
from torch import fx

from lvtp_fx.passes.axes.label import Kind, has_kind, length
from lvtp_fx.passes.label_axes import CONVOLUTIONS
from lvtp_fx.plan import Plan


def find_image(plan: Plan, flow: nx.DiGraph, root: fx.Node, grid: tuple[int, int]) -> fx.Node | None:
    """What the first convolution on the way to the tokens (`root`) reads: there a picture has floats, normalised, and
    its channels lie on axis 1, whatever the model was given.

        image (uint8, or [B, height, width, 3]) -> to float, permute -> x -> conv2d -> flatten = root       x is it

    Inputs of four axes are looked at, too, for models that cut patches without one; labels say where rows and columns
    lie. There must be one for each image of the tokens: a model may make several of one. Of several (a depth map or a
    mask beside the image) the one with the most channels, and of these the first.
    """
    above = nx.ancestors(flow, root) | {root}
    way = [node for node in plan.graph_module.graph.nodes if node in above]
    pictures = [*_convolved(way, flow), *(node for node in way if node.op == "placeholder")]
    images = next((length(axis) for axis in plan.labels[root] if has_kind(axis, Kind.BATCH)), None)
    fitting = [(channels, node) for node in pictures if (channels := _channels(plan, node, grid))
               and images in (None, length(plan.labels[node][0]))]
    return max(fitting, key=lambda pair: pair[0], default=(0, None))[1]


def _convolved(way: list[fx.Node], flow: nx.DiGraph) -> Iterator[fx.Node]:
    """What is read by convolutions behind which, seen from the tokens, there is no other."""
    convolutions = {node for node in way if node.target in CONVOLUTIONS}
    for node in way:
        source = node.args[0] if node in convolutions else None
        if isinstance(source, fx.Node) and not convolutions.intersection(nx.ancestors(flow, node)):
            yield source


def _channels(plan: Plan, node: fx.Node, grid: tuple[int, int]) -> int:
    """Channels of a picture with more pixels than tokens, 0 for what is none."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or not value.is_floating_point():
        return 0
    label = plan.labels[node]
    last = has_kind(label[1], Kind.HEIGHT) and has_kind(label[2], Kind.WIDTH)  # [B, height, width, channels]
    rows, columns = value.shape[1:3] if last else value.shape[2:]
    return int(value.shape[3 if last else 1]) if rows > grid[0] and columns > grid[1] else 0
