"""What the passes know: one frozen record, filled in pass by pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from lvtp_fx.config import Config
from lvtp_fx.passes.axes.flow import Flow
from lvtp_fx.passes.axes.label import Label
from lvtp_fx.record import Record


@dataclass(frozen=True)
class AttentionMatch:
    """One attention, as a single `scaled_dot_product_attention` node.

    Attributes:
        node: that node; q, k, v [..., N, D] and the mask are its arguments.
        hook: name in the captured graph of the node where a key bias would go (softmax, or the fused attention).
        path, source: module path and source line.
    """

    node: fx.Node
    hook: str
    path: str
    source: str


@dataclass(frozen=True)
class Miss:
    """Something that looks like attention but is not used, and why; `near` orders misses, the nearest first."""

    path: str
    where: str
    reason: str
    near: int


@dataclass(frozen=True)
class Block:
    """An attention of the trunk and the states of the residual stream that follow it.

    Attributes:
        attention: the match.
        state: the first cut point of the stream after the attention (after its residual add, before the MLP,
            where the block has such a point), [B, N, C].
    """

    attention: AttentionMatch
    state: fx.Node


@dataclass(frozen=True)
class LaterStream:
    """A residual stream behind the encoder whose blocks attend over the same grid, as in a mask transformer.

    Attributes:
        attentions: its blocks.
        states: of the stream, in order; the first one is where it enters the last token space.
        members: all nodes between the first and the last state.
    """

    attentions: tuple[AttentionMatch, ...]
    states: tuple[fx.Node, ...]
    members: frozenset[fx.Node]


@dataclass(frozen=True)
class Trunk:
    """The encoder: attention blocks that share one residual stream over the patch grid.

    Attributes:
        root: the node where the token axis is born.
        image: the picture that the patch embedding reads, of four axes: `find_image`. None where there is none.
        grid: (rows, columns) of the token grid.
        blocks: in order.
        states: the states of the residual stream, in order; the last one is the encoder's output.
        members: all nodes between the root and the last state.
        later: streams over the same grid that begin behind the encoder's output.
    """

    root: fx.Node
    image: fx.Node | None
    grid: tuple[int, int]
    blocks: tuple[Block, ...]
    states: tuple[fx.Node, ...]
    members: frozenset[fx.Node]
    later: tuple[LaterStream, ...] = ()


@dataclass(frozen=True)
class Site:
    """Where tokens are reduced: after `block`, from `parent` to `kept` grid tokens."""

    block: int
    parent: int
    kept: int


@dataclass(frozen=True)
class Clock:
    """Measured milliseconds, of a whole batch of example inputs.

    Attributes:
        node_ms: of each op of the captured graph, attention normalised, by the name of its node.
        shrinking_ms: the part of it that shrinks with the op's work; the rest (weights to read, the call itself) stays.
        inserted_ms: of everything that the pass inserts, as last measured; 0 before that.
    """

    node_ms: dict[str, float]
    shrinking_ms: dict[str, float]
    inserted_ms: float = 0.0

    @property
    def dense_ms(self) -> float:
        """Of the whole model as it was captured."""
        return sum(self.node_ms.values())


@dataclass(frozen=True)
class Plan:
    """Everything between capture and the rewritten graph.

    Attributes:
        graph_module: the captured graph, attention normalised.
        captured: the captured graph as it was, which the dense oracle interprets.
        config: the options.
        batch: the integer that stands for the symbolic batch size in labels.
        added_flops: of one image, what the matched graph has more of than the captured one: scores that something else
            reads, too, are computed beside the fused attention.
        clock: where time was measured.
    """

    graph_module: fx.GraphModule
    captured: fx.GraphModule
    config: Config
    batch: int
    added_flops: float = 0.0
    attentions: tuple[AttentionMatch, ...] = ()
    misses: tuple[Miss, ...] = ()
    labels: dict[fx.Node, Label] = field(default_factory=dict)
    flows: dict[fx.Node, Flow] = field(default_factory=dict)
    trunk: Trunk | None = None
    sites: tuple[Site, ...] = ()
    spaces: dict[fx.Node, int] = field(default_factory=dict)
    pruned: fx.Graph | None = None
    record: Record | None = None
    clock: Clock | None = None

    @property
    def nearest_miss(self) -> Miss | None:
        """The attention that is not used, but nearest to it."""
        return max(self.misses, key=lambda miss: miss.near, default=None)

    @property
    def later(self) -> tuple[LaterStream, ...]:
        """The streams behind the encoder that are to be reduced too."""
        return self.trunk.later if self.trunk is not None and self.config.decoder == "reduced" else ()

    @property
    def reducible(self) -> frozenset[fx.Node]:
        """The nodes that may be computed on fewer tokens."""
        assert self.trunk is not None
        return self.trunk.members.union(*(stream.members for stream in self.later))

    @property
    def states(self) -> tuple[fx.Node, ...]:
        """The states of the encoder's stream and of the later ones."""
        assert self.trunk is not None
        return (*self.trunk.states, *(state for stream in self.later for state in stream.states))
