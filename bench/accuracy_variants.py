"""What is compared: strategies and ablations by name, each at every cut, and what identifies a figure that is kept."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rivals import rivals

import lvtp_fx
import lvtp_fx.models
import lvtp_fx.passes
from lvtp_fx.config import resolve

# Modules of this folder that figures depend on; those of the package, its passes and its models all count.
BENCH = ("accuracy_counts", "accuracy_density", "accuracy_images", "accuracy_run")


@dataclass(frozen=True)
class Variant:
    """A model of the comparison.

    Attributes:
        strategy: its name in `rivals`. aim: what was asked of it, "cut 0.35" or "keep 0.7".
        config: the fields of `lvtp_fx.Config` that differ from the defaults; None for the dense model.
    """

    strategy: str
    aim: str
    config: dict[str, Any] | None

    @property
    def name(self) -> str:
        return f"{self.strategy}, {self.aim}" if self.aim else self.strategy

    def canonical(self) -> dict[str, Any] | None:
        """All fields of the configuration, so that other defaults are another configuration."""
        return None if self.config is None else asdict(resolve(None, self.config))


DENSE = Variant("dense", "", None)


def parse_setting(text: str) -> tuple[str, Any]:
    """'keep_ratio=0.7' to ("keep_ratio", 0.7); what is no Python literal is a string.

    Raises:
        ValueError: no "=" in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes field=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def variants(cuts: Sequence[float], names: Sequence[str], settings: dict[str, Any]) -> list[Variant]:
    """The named strategies, or those of "all", at every cut, with the settings on top; none twice.

    Raises:
        ValueError: an unknown strategy. LvtpError: LVTP201 for a field of Config that is unknown or out of range.
    """
    known = rivals()
    wanted = list(dict.fromkeys(name for given in names for name in (known if given == "all" else [given])))
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--strategy {unknown[0]!r} is unknown; known are all, {', '.join(known)}")
    found: dict[str, Variant] = {}
    for cut in cuts:
        for name in wanted:
            config = {"flops_cut": cut, **known[name], **settings}
            aim = f"keep {config['keep_ratio']}" if "keep_ratio" in config else f"cut {config['flops_cut']:g}"
            variant = Variant(name, aim, config)
            variant.canonical()  # refuses what is no Config before anything is run
            found[variant.name] = variant
    return list(found.values())


def code_digest() -> str:
    """Of the sources that figures depend on, whether committed or not."""
    files = [path for package in (lvtp_fx, lvtp_fx.passes, lvtp_fx.models) for folder in package.__path__
             for path in Path(folder).rglob("*.py")]
    files += [Path(__file__).with_name(f"{name}.py") for name in BENCH]
    digest = hashlib.sha256()
    for name, text in sorted((path.name, path.read_bytes()) for path in set(files)):
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()[:16]


def key(variant: Variant, checkpoint: str, data: str, split: str, code: str, device: torch.device) -> str:
    """All that a figure depends on but the image, as canonical JSON; checkpoint, data and code are digests."""
    return json.dumps({
        "checkpoint": checkpoint, "data": data, "split": split, "config": variant.canonical(), "code": code,
        "torch": torch.__version__, **{name: version(name) for name in ("timm", "pillow", "numpy")},
        "device": device.type, "threads": torch.get_num_threads(),
    }, sort_keys=True)
