"""What is refused of a graph that Dynamo traced, beyond what `transform` refuses: results that would change unseen."""

from __future__ import annotations

import torch
from torch import fx

from lvtp_fx.errors import Code, LvtpError
from lvtp_fx.provenance import describe
from lvtp_fx.randomness import random_nodes


def refuse_side_effects(graph: fx.GraphModule) -> None:
    """Refuse a graph that draws random numbers or writes into what it was given, as in training mode.

    Raises:
        LvtpError: LVTP101, with the node.
    """
    for node in random_nodes(graph.graph):
        raise changes_in_training(describe(node), f"{node.target}, which draws random numbers")
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise changes_in_training(describe(node), f"{node.target}, which writes into a tensor of the model")


def changes_in_training(where: str, got: str) -> LvtpError:
    return LvtpError(
        Code.CAPTURE_FAILED, where=where, expected="a graph that computes its outputs from its inputs alone", got=got,
        why="tokens are pruned as in eval mode, and what the model draws or updates in training would change unseen",
        hint="model.eval(), which may be trained too; or dropout and drop path 0, and normalisation in eval mode",
    )
