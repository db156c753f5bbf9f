"""What LVTP is compared with: other ways to choose tokens, and LVTP without each of its parts.

All run on the same machinery: the same sites, counts, compiler and, where it is not what is taken away, the same
merging, proportional attention and restore. Each rival has the settings at which it was found best on the validation
split.
"""

from __future__ import annotations

from typing import Any

# Merged a little after every block, as they are described, and with similarity alone to tell partners.
EVERY_BLOCK = {"sites": "every", "neighbour_weight": 0.0}


def rivals() -> dict[str, dict[str, Any]]:
    """Name to fields of `lvtp_fx.Config`; "lvtp" is the default."""
    return {
        "lvtp": {},
        "random": {"strategy": "random"},
        "grid": {"strategy": "grid"},
        "shannon": {"strategy": "shannon"},
        "edges": {"strategy": "edges"},
        "received (EViT-like)": {"strategy": "received"},
        "fused (EViT-like)": {"strategy": "fused"},
        "bipartite (ToMe-like)": {"strategy": "bipartite", **EVERY_BLOCK},
        "superpixels (Expedite-like)": {"strategy": "superpixels"},
        "mutual (MPM-like)": {"strategy": "mutual"},
        "lvtp without entropy": {"entropy_weight": 0.0},
        "lvtp with one q": {"qs": (1.0,)},
        "lvtp without edges": {"edge_weight": 0.0, "edge_in_rank": 0.0},
        "lvtp with one clustering": {"edge_in_rank": 0.0},
        "lvtp without merging": {"reduce": "select"},
        "lvtp without proportional attention": {"proportional_attention": False},
        "lvtp without delta": {"restore": "copy"},
        "lvtp with high entropy": {"entropy_direction": "high"},
    }
