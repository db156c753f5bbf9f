"""What LVTP is compared with: other ways to choose tokens, and LVTP without each of its parts.

All run on the same machinery: the same merging, proportional attention, restore and compiler, where none of these is
what is taken away. Sites and settings are the best of those tried on the validation split (README.md), a rival at a
time; they are for encoders of 8 blocks or more.
"""

from __future__ import annotations

from typing import Any

# Found best for those that look at neither attention nor image.
EARLY = {"sites": (1, 2, 3), "neighbour_weight": 3.0}


def rivals() -> dict[str, dict[str, Any]]:
    """Name to fields of `lvtp_fx.Config`; "lvtp" is the default."""
    return {
        "lvtp": {},
        "random": {"strategy": "random", **EARLY},
        "grid": {"strategy": "grid", **EARLY},
        "shannon": {"strategy": "shannon", "sites": "every", "neighbour_weight": 3.0},
        "edges": {"strategy": "edges", "neighbour_weight": 3.0},
        "attention received": {"strategy": "received", "sites": (1, 3, 5), "neighbour_weight": 3.0},
        "fused token (EViT-like)": {"strategy": "fused", "proportional_attention": False, "restore": "frozen"},
        "bipartite (ToMe-like)": {"strategy": "bipartite", "sites": "every"},
        "superpixels (Expedite-like)": {"strategy": "superpixels", "sites": (2,), "neighbour_weight": 8.0},
        "mutual (MPM-like)": {"strategy": "mutual", "sites": (1, 3, 5)},
        "lvtp without entropy": {"entropy_weight": 0.0},
        "lvtp with one q": {"qs": (1.0,)},
        "lvtp without edges": {"edge_weight": 0.0, "edge_in_rank": 0.0},
        "lvtp with one clustering": {"edge_in_rank": 0.0},
        "lvtp in one round": {"rounds": 1},
        "lvtp without places": {"neighbour_weight": 0.0},
        "lvtp on keys alone": {"feature": "keys"},
        "lvtp without merging": {"reduce": "select"},
        "lvtp without proportional attention": {"proportional_attention": False},
        "lvtp without delta": {"restore": "copy"},
        "lvtp restored from three": {"restore_from": 3},
        "lvtp with low entropy": {"entropy_direction": "low"},
        "lvtp with a full decoder": {"decoder": "full"},
    }
