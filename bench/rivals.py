"""What LVTP is compared with: other ways to choose tokens, and LVTP without each of its parts.

All run on the same machinery: the same merging, proportional attention, restore and compiler, where none of these is
what is taken away. Sites and settings are the best of those tried on the validation split (README.md), a rival at a
time; they are for encoders of 8 blocks or more.
"""

from __future__ import annotations

from typing import Any

# Found better than LVTP's own sites and weight for all that rank tokens by a score, or by none.
SPREAD = {"sites": (1, 3, 5), "neighbour_weight": 3.0}


def rivals() -> dict[str, dict[str, Any]]:
    """Name to fields of `lvtp_fx.Config`; "lvtp" is the default."""
    return {
        "lvtp": {},
        "random": {"strategy": "random", **SPREAD},
        "grid": {"strategy": "grid", **SPREAD},
        "shannon": {"strategy": "shannon", **SPREAD},
        "edges": {"strategy": "edges", **SPREAD},
        "attention received": {"strategy": "received", **SPREAD},
        "fused token (EViT-like)": {"strategy": "fused", "proportional_attention": False, "restore": "frozen"},
        "bipartite (ToMe-like)": {"strategy": "bipartite", "sites": "every"},
        "superpixels (Expedite-like)": {"strategy": "superpixels", "sites": (2,)},
        "mutual (MPM-like)": {"strategy": "mutual", "sites": "every"},
        "lvtp without entropy": {"entropy_weight": 0.0},
        "lvtp with one q": {"qs": (1.0,)},
        "lvtp without edges": {"edge_weight": 0.0, "edge_in_rank": 0.0},
        "lvtp with one clustering": {"edge_in_rank": 0.0},
        "lvtp in one round": {"rounds": 1},
        "lvtp without places": {"neighbour_weight": 0.0},
        "lvtp without merging": {"reduce": "select"},
        "lvtp without proportional attention": {"proportional_attention": False},
        "lvtp without delta": {"restore": "copy"},
        "lvtp with high entropy": {"entropy_direction": "high"},
    }
