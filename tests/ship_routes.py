"""The ways to run a transformed model, each as a function from images to (output, tokens kept at each site)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from safetensors.torch import load_model, save_model
from torch import fx, nn

import lvtp_fx
from lvtp_fx import ship
from tests.backend_helpers import Inner
from tests.tiny import fused, picture, vit

OPTIONS: dict[str, Any] = {"keep_ratio": 0.5, "sites": (0, 1), "rounds": 1}
Run = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


@dataclass(frozen=True)
class Made:
    """A model, transformed; `shown`: the same graph, which returns the tokens that it keeps as well."""

    model: nn.Module
    fast: fx.GraphModule
    shown: fx.GraphModule

    def expected(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with torch.no_grad():
            output, *kept = self.shown(x)
        return output, kept


def made() -> Made:
    model = vit(fused)
    fast = lvtp_fx.transform(model, (picture(),), **OPTIONS)
    return Made(model, fast, showing_tokens(fast))


def showing_tokens(fast: fx.GraphModule) -> fx.GraphModule:
    """The graph with the tokens kept at each site, [B, K] indices into the parent's, behind its output."""
    graph = copy.deepcopy(fast.graph)
    graph.set_codegen(fx.graph.CodeGen())
    (output,) = graph.find_nodes(op="output")
    kept = graph.find_nodes(op="call_function", target=torch.ops.lvtp.select.default)
    output.args = ((output.args[0][0], *kept),)
    return fx.GraphModule(fast, graph)


def of_tuple(call: Callable[..., Any]) -> Run:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        output, *kept = call(x)
        return output, kept

    return run


def compiled(it: Made, folder: Path) -> Run:
    torch._dynamo.reset()
    return of_tuple(torch.compile(it.shown, fullgraph=True, dynamic=True))


def backend(it: Made, folder: Path) -> Run:
    torch._dynamo.reset()
    inner = Inner("inductor")
    call = torch.compile(it.model, backend="lvtp_fx", dynamic=True, options={"inner": inner, **OPTIONS})
    return lambda x: (call(x), inner.kept)


def exported(it: Made, folder: Path) -> Run:
    ship.save_exported(it.shown, (picture(1),), folder / "model.pt2")
    return of_tuple(torch.export.load(folder / "model.pt2").module())


def aoti(it: Made, folder: Path) -> Run:
    ship.save_aoti(it.shown, (picture(1),), folder / "model.aoti.pt2")
    return of_tuple(torch._inductor.aoti_load_package(str(folder / "model.aoti.pt2")))


def onnx(it: Made, folder: Path) -> Run:
    ship.save_onnx(it.shown, (picture(1),), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    name = session.get_inputs()[0].name
    return of_tuple(lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.detach().numpy()})])


def safetensors(it: Made, folder: Path) -> Run:
    """Weights of the dense model, read into a transformed one that had others."""
    save_model(it.model, str(folder / "model.safetensors"))
    other = copy.deepcopy(it.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    fast = lvtp_fx.transform(other, (picture(),), **OPTIONS)
    load_model(fast, str(folder / "model.safetensors"))
    return of_tuple(showing_tokens(fast))


ROUTES: dict[str, Callable[[Made, Path], Run]] = {
    "torch.compile": compiled, "backend": backend, "export": exported, "AOTInductor": aoti, "ONNX": onnx,
    "safetensors": safetensors,
}
