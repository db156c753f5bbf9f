"""Pictures of what the pass did: a self-contained page, matplotlib figures, the graph as DOT and SVG."""
