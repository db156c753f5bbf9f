"""Images of several sizes: one graph a size, made when it is first met."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from lvtp_fx.api import captured_of, transform
from lvtp_fx.batch_axis import BATCH_STAND_IN, batch_size, is_batched
from lvtp_fx.capture import TRACING
from lvtp_fx.config import Config, is_integer, resolve
from lvtp_fx.errors import Code, LvtpError

Key = tuple[Any, ...]
Entry = tuple[fx.GraphModule, Callable[..., Any]]


class BySize(nn.Module):
    """A segmenter for images of any size that the model itself takes.

    A captured graph holds one token grid. This module looks at the shapes of its inputs, batch left out, transforms the
    model for shapes that it has not met, and calls the graph that fits. The batch size is free within each graph,
    unless the model fixes it. Values of inputs that are no tensors count as shapes do.

        fast = lvtp_fx.BySize(model, flops_cut=0.35, compile={"fullgraph": True})
        fast(torch.rand(1, 3, 512, 512)); fast(torch.rand(4, 3, 512, 768))     # two graphs
        lvtp_fx.verify(model, fast.graph(x), (x,))

    Threads may share it. While one of them meets a new size, torch.export keeps oneDNN and cuDNN off in the whole
    process: what the others compute meanwhile takes longer, and is rounded otherwise in its last bits.

    Args:
        model: as for `transform`; its parameters are shared by all graphs, and it may be trained or loaded into after,
            in place: `load_state_dict(..., assign=True)` gives it other parameters, which needs a new `BySize`.
        config, overrides: as for `transform`.
        compile: keyword arguments for torch.compile of each graph, or None to leave them as they are.
        max_sizes: how many graphs are kept; the one not used for longest goes first.

    Raises:
        LvtpError: as `transform`, at the first call with a size; LVTP201 for max_sizes < 1.
    """

    def __init__(
        self, model: nn.Module, *, config: Config | None = None, compile: dict[str, Any] | None = None,
        max_sizes: int = 8, **overrides: Any,
    ) -> None:
        super().__init__()
        if not is_integer(max_sizes) or max_sizes < 1:
            raise LvtpError(
                Code.CONFIG_OUT_OF_RANGE, where="max_sizes", expected="an integer >= 1", got=repr(max_sizes),
                why="each image size needs a graph", hint="max_sizes=8",
            )
        self.model, self.config = model, resolve(config, overrides)
        self.compile_options, self.max_sizes = compile, max_sizes
        self._graphs: OrderedDict[Key, Entry] = OrderedDict()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, from the graph for this size."""
        return self._entry(args, kwargs)[1](*args, **kwargs)

    def graph(self, *args: Any, **kwargs: Any) -> fx.GraphModule:
        """The transformed graph for these inputs, not compiled, as `transform` returns it; made if need be."""
        return self._entry(args, kwargs)[0]

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Shapes, batch left out, of the first tensor of each graph that is kept, the latest used last."""
        return [key[0][0] for key in self._graphs]

    def _entry(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        key = _key(args, kwargs)
        fixed = (*key, batch_size(args, kwargs))  # of a model that allows no other batch
        if found := self._known(key, fixed):  # does not wait for another thread that meets a new size
            return found
        with TRACING:
            if found := self._known(key, fixed):
                return found
            captured = captured_of(self.model, (args, kwargs))
            made = transform(captured, config=self.config)
            fast = made if self.compile_options is None else torch.compile(made, **self.compile_options)
            self._graphs[key if captured.batch == BATCH_STAND_IN else fixed] = made, fast
            while len(self._graphs) > self.max_sizes:
                self._graphs.popitem(last=False)
            return made, fast

    def _known(self, *keys: Key) -> Entry | None:
        """The graph of one of these keys, which is then the one used last."""
        for key in keys:
            if found := self._graphs.get(key):
                with suppress(KeyError):  # another thread may have let it go meanwhile
                    self._graphs.move_to_end(key)
                return found
        return None


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    """Shapes without the batch; types, devices and plain values; and the structure that holds them."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    batch = batch_size(args, kwargs)
    shapes, rest = [], []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            batched = is_batched(leaf, batch)
            shapes.append((*leaf.shape[1:],) if batched else (*leaf.shape,))
            rest.append((leaf.dtype, leaf.device, batched))
        else:
            rest.append(leaf)
    return tuple(shapes), tuple(rest), structure
