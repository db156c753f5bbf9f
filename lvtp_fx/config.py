"""Options of the pass, validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from lvtp_fx.errors import Code, LvtpError

if TYPE_CHECKING:
    from lvtp_fx.strategies import Strategy

Reduce = Literal["merge", "select"]
Restore = Literal["delta", "copy", "frozen"]
Feature = Literal["auto", "keys", "stream"]
Decoder = Literal["reduced", "full"]
AIMS = ("flops_cut", "latency_cut", "keep_ratio")  # fields that say how much is pruned, each in another way
STRATEGIES = (
    "lvtp", "random", "grid", "shannon", "edges", "received", "fused", "bipartite", "mutual", "superpixels",
)


@dataclass(frozen=True)
class Config:
    """How tokens are reduced. Defaults are the best measured (`bench/`), not the simplest.

    Attributes:
        flops_cut: wanted share of the whole model's FLOPs to save, in [0, 1), as torch's FlopCounterMode counts
            them, inserted nodes included; the keep ratio is solved from it. Not used where `keep_ratio` or
            `latency_cut` is given.
        latency_cut: wanted share of the whole model's time to save, in (0, 1), on the example inputs and their device,
            as a short probe of the model's ops measures it (`lvtp_fx.latency`); None aims at `flops_cut`.
        check_latency: probe the time, and refuse with LVTP204 where the pruned graph would not be faster; always so
            with `latency_cut`.
        keep_ratio: share in (0, 1] of the living tokens that each site keeps; one number, or one a site.
        sites: blocks after whose attention tokens are reduced: "auto" (up to three, to the middle), "every" (all but
            the last), or indices (negative ones count from the end).
        strategy: name of the reduction strategy that says which tokens live on, or an object of one's own that does
            (`lvtp_fx.strategies.Strategy`).
        reduce: "merge": a kept token becomes the size-weighted mean of the tokens it owns; "select": it stays.
        proportional_attention: a token that owns s tokens is attended to with log s added to its score.
        restore: what a dropped token is where the full grid is needed again. "delta": as it was, plus how its owner
            has changed since; "copy": as its owner is now; "frozen": as it was.
        restore_from: with "delta", from how many living tokens a dropped one is restored, >= 1: its owner and those
            most similar to it, weighted by similarity.
        restore_softness: of these weights, > 0: tokens weigh as 1 to e where their cosine similarities differ by it.
        decoder: where blocks behind the encoder attend over the same grid (a mask transformer), "reduced": they run on
            the living tokens as well, and what they add is restored behind them, from owners alone; "full": on all
            tokens.
        qs: the Tsallis orders of the attention entropy; 1 means Shannon.
        entropy_direction: which tokens represent their cluster: "low" entropy (focused attention) or "high" (spread).
        entropy_keys: at most how many keys of a row its entropy is taken over, evenly spread, >= 1. A fixed number
            makes the entropy's cost linear in the tokens.
        entropy_weight: weight of the entropy in a token's importance, >= 0.
        edge_weight: weight of the Sobel edges in a token's importance, >= 0.
        cell: (rows, columns) of the grid cells of the first clustering, each of which keeps a representative.
        feature: what similarity is measured on: the "keys" of the site, mean over heads; the residual "stream", folded
            to as many channels; or "auto": the stream in the first block, whose keys have seen nothing but their own
            patch yet, and keys in all others.
        rounds: in how many parts the tokens beyond the representatives are chosen, >= 1; after each, tokens like those
            already chosen rank lower.
        importance_in_rank: weight of the importance in the ranking within clusters, >= 0.
        edge_in_rank: weight by which the second clustering keeps a cluster's edge tokens back, >= 0.
        neighbour_weight: how much an owner that is nearer on the grid is preferred to one that is more similar, >= 0:
            cosine similarity lost at the squared distance of the grid's longer side.
        align: kept counts, prefix and suffix tokens included, are rounded to a multiple of it, >= 1. "auto": as fast
            kernels like it: of half types, which matrix units multiply in tiles, to at most 32, of float32 to at most
            16, and at most a sixteenth of the grid; else to 1.
    """

    flops_cut: float = 0.35
    latency_cut: float | None = None
    check_latency: bool = False
    keep_ratio: float | tuple[float, ...] | None = None
    sites: Literal["auto", "every"] | tuple[int, ...] = "auto"
    strategy: str | Strategy = "lvtp"
    reduce: Reduce = "merge"
    proportional_attention: bool = True
    restore: Restore = "delta"
    restore_from: int = 1
    restore_softness: float = 0.03
    decoder: Decoder = "reduced"
    qs: tuple[float, ...] = (0.5, 1.0, 2.0)
    entropy_direction: Literal["low", "high"] = "high"
    entropy_keys: int = 64
    entropy_weight: float = 1.0
    edge_weight: float = 0.5
    cell: tuple[int, int] = (2, 2)
    feature: Feature = "auto"
    rounds: int = 6
    importance_in_rank: float = 0.0
    edge_in_rank: float = 0.05
    neighbour_weight: float = 3.0
    align: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        self._check_shares()
        self._check_choices()
        self._check_numbers()

    def _check_shares(self) -> None:
        if not is_number(self.flops_cut) or not 0 <= self.flops_cut < 1:
            _refuse("flops_cut", "a share in [0, 1)", self.flops_cut, "0.35 saves 35 % of the FLOPs")
        if self.latency_cut is not None and (not is_number(self.latency_cut) or not 0 < self.latency_cut < 1):
            _refuse("latency_cut", "a share in (0, 1), or None", self.latency_cut, "0.3 saves 30 % of the time")
        if self.keep_ratio is None:
            return
        if self.latency_cut is not None:
            _refuse("keep_ratio", "None where latency_cut is given", self.keep_ratio, "leave out one of the two")
        ratios = self.keep_ratio if isinstance(self.keep_ratio, tuple) else (self.keep_ratio,)
        if not ratios or not all(is_number(r) and 0 < r <= 1 for r in ratios):
            _refuse("keep_ratio", "a share in (0, 1], or one a site", self.keep_ratio, "keep_ratio=0.7")

    def _check_choices(self) -> None:
        listed = isinstance(self.sites, tuple) and self.sites and all(is_integer(s) for s in self.sites)
        if not listed and not (isinstance(self.sites, str) and self.sites in ("auto", "every")):
            _refuse("sites", '"auto", "every" or block indices', self.sites, "sites=(2, 5, 8)")
        choices_of: dict[str, tuple[str, ...]] = {
            "reduce": get_args(Reduce), "restore": get_args(Restore), "decoder": get_args(Decoder),
            "feature": get_args(Feature), "entropy_direction": ("low", "high"),
        }
        if isinstance(self.strategy, type):
            _refuse("strategy", "a name, or an object", self.strategy, f"strategy={self.strategy.__name__}()")
        if not all(hasattr(self.strategy, part) for part in ("decide", "flops", "smallest_keep_ratio")):
            choices_of["strategy"] = STRATEGIES
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                _refuse(name, f"one of {', '.join(choices)}", getattr(self, name), f"{name}={choices[0]!r}")
        for name in ("proportional_attention", "check_latency"):
            if not isinstance(getattr(self, name), bool):
                _refuse(name, "True or False", getattr(self, name), "leave it out")

    def _check_numbers(self) -> None:
        if not isinstance(self.qs, tuple) or not self.qs or not all(is_number(q) and q > 0 for q in self.qs):
            _refuse("qs", "one or more Tsallis orders > 0", self.qs, "qs=(0.5, 1.0, 2.0)")
        for name in ("entropy_weight", "edge_weight", "neighbour_weight", "importance_in_rank", "edge_in_rank"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                _refuse(name, "a number >= 0", value, f"{name}=0 switches it off")
        cell = self.cell if isinstance(self.cell, tuple) else ()
        if len(cell) != 2 or not all(is_integer(c) and c >= 1 for c in cell):
            _refuse("cell", "(rows, columns), each >= 1", self.cell, "cell=(2, 2)")
        if not is_number(self.restore_softness) or self.restore_softness <= 0:
            _refuse("restore_softness", "a number > 0", self.restore_softness, "restore_from=1 needs none")
        for name in ("align", "entropy_keys", "rounds", "restore_from"):
            value = getattr(self, name)
            if name == "align" and value == "auto":
                continue
            if not is_integer(value) or value < 1:
                _refuse(name, "an integer >= 1" + (', or "auto"' if name == "align" else ""), value, f"{name}=1")


def resolve(config: Config | None, overrides: dict[str, Any]) -> Config:
    """`config`, or the defaults, with `overrides` on top. One that says how much is pruned takes the place of those of
    `config` that would hide it.

    Raises:
        LvtpError: LVTP201 for an unknown field or a value out of range.
    """
    if not isinstance(config, Config | None):
        _refuse("config", "a Config, or None", config, "lvtp_fx.Config(flops_cut=0.35), or flops_cut=0.35 alone")
    known = {f.name for f in fields(Config)}
    for name in overrides:
        if name not in known:
            _refuse(name, f"a field of Config: {', '.join(sorted(known))}", overrides[name], "check the spelling")
    base = {f.name: getattr(config, f.name) for f in fields(Config)} if config is not None else {}
    if any(overrides.get(name) is not None for name in AIMS):
        base |= dict.fromkeys(("latency_cut", "keep_ratio"))  # flops_cut hides none
    return Config(**{**base, **overrides})


def is_number(value: object) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def is_integer(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Python's own number for one of NumPy's, which JSON does not take; a tuple for a list, which cannot be hashed."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(inner) for inner in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _refuse(name: str, expected: str, got: object, hint: str) -> None:
    raise LvtpError(
        Code.CONFIG_OUT_OF_RANGE, where=f"Config.{name}", expected=expected, got=repr(got),
        why="a graph built from it would not be what was asked for", hint=hint,
    )
