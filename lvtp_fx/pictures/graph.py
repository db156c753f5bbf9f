"""The graph of a module as DOT, and as SVG through Graphviz; nodes of the pass are coloured by what they do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from torch import fx

from lvtp_fx.pictures.maps import op_name
from lvtp_fx.provenance import module_path

# What the inserted ops do, with a colour each: light enough for dark text. Other inserted ops prepare or look up.
ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "score": ("#ffd27f", ("entropy", "edges", "received", "blend", "blank", "hashed", "spread", "pair_rank", "rank",
                          "representatives")),
    "choose": ("#ff9eb5", ("select", "owners", "owners_among", "owners_of", "owners_fused", "supports", "partners",
                           "partners_across", "superpixels")),
    "reduce": ("#9ad0ff", ("merge", "gather", "sizes", "key_bias")),
    "restore": ("#a6e3a1", ("restore", "restore_between", "restore_frozen")),
    "prepare": ("#d9c8ff", ()),
}
PLAIN, ATTENTION, EDGE = "#f2f4f8", "#c9cfdb", "#5b6478"
_SECONDS = 120  # that Graphviz may take


def dot(module: fx.GraphModule, title: str = "") -> str:
    """The graph as DOT text: a node a call, framed by the module that it was traced in. Parameters and sizes are left
    out: their edges would cross everything.

    Args:
        module: what `transform` made; or, for the graph before, `lvtp_fx.capture.capture(...).module`.
        title: a line on top.
    """
    shown = list(_shown(module.graph))
    there = set(shown)
    lines = ["digraph lvtp_fx {", f"  label={_quoted(title)}; labelloc=t; fontname=Helvetica; newrank=true;",
             f'  node [shape=box, style="filled,rounded", fontname=Helvetica, fontsize=10, color="{EDGE}"];',
             f'  edge [color="{EDGE}", arrowsize=0.6];', *_legend(shown)]
    for i, (path, nodes) in enumerate(_runs(shown)):
        texts = [f"{_quoted(node.name)} [label={_quoted(_label(node))}, fillcolor={_quoted(_colour(node))}];"
                 for node in nodes]
        if path:
            lines += [f"  subgraph cluster_{i} {{", f'    label={_quoted(path)}; color="#b5bccb"; fontsize=11;',
                      *(f"    {text}" for text in texts), "  }"]
        else:
            lines += [f"  {text}" for text in texts]
    lines += [f"  {_quoted(source.name)} -> {_quoted(node.name)};" for node in shown for source in node.all_input_nodes
              if source in there]
    return "\n".join([*lines, "}", ""])


def svg(text: str) -> str:
    """DOT text as SVG.

    Raises:
        RuntimeError: Graphviz's `dot` is not installed, or cannot draw it.
    """
    program = shutil.which("dot")
    if program is None:
        raise RuntimeError("SVG needs Graphviz's program dot, which is not on the PATH: install it "
                           "(apt install graphviz, brew install graphviz), or write the graph as .dot")
    try:
        done = subprocess.run([program, "-Tsvg"], input=text, capture_output=True, text=True, timeout=_SECONDS,
                              encoding="utf-8")
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"dot did not finish in {_SECONDS} s: write the graph as .dot") from error
    if done.returncode:
        raise RuntimeError(f"dot cannot draw the graph: {done.stderr.strip()}")
    return done.stdout


def write(path: str | Path, module: fx.GraphModule, title: str = "") -> None:
    """Write the graph as `.dot`, `.gv` or `.svg`, as the name of the file ends; its folder is made where it is missing.

    Raises:
        ValueError: as `check_ending`. RuntimeError: as `svg`.
    """
    path = Path(path)
    check_ending(path)
    text = dot(module, title)
    text = svg(text) if path.suffix == ".svg" else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def check_ending(path: Path) -> None:
    """Whether `write` writes such a file.

    Raises:
        ValueError: for another ending.
    """
    if path.suffix not in (".dot", ".gv", ".svg"):
        raise ValueError(f"a graph is written as .dot, .gv or .svg, got {path.name!r}")


def role(node: fx.Node) -> str | None:
    """The key of `ROLES` for an inserted node, None for a node that was the model's."""
    name = op_name(node)
    if name is None:
        return None
    return next((key for key, (_, ops) in ROLES.items() if name in ops), "prepare")


def _shown(graph: fx.Graph) -> Iterator[fx.Node]:
    """Nodes other than parameters and sizes, and what is computed from sizes alone."""
    sizes: set[fx.Node] = set()
    for node in graph.nodes:
        plain = getattr(node.target, "__module__", "") == "_operator" and node.all_input_nodes
        if "sym_size" in str(node.target) or (plain and sizes.issuperset(node.all_input_nodes)):
            sizes.add(node)
        elif node.op != "get_attr":
            yield node


def _runs(nodes: list[fx.Node]) -> Iterator[tuple[str, list[fx.Node]]]:
    """Nodes in order, in runs of one block; inserted nodes know no module, they stay by themselves."""
    run: list[fx.Node] = []
    path = ""
    for node in nodes:
        here = _block(module_path(node))
        if run and here != path:
            yield path, run
            run = []
        path = here
        run.append(node)
    if run:
        yield path, run


def _block(path: str) -> str:
    """A module path up to its first number: `encoder.blocks.3` of `encoder.blocks.3.mlp.0`."""
    parts = path.split(".")
    if parts[0].startswith("_empty_nn_module_stack"):  # torch's name for no module
        return ""
    end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:end])


def _label(node: fx.Node) -> str:
    target = str(node.target) if node.op != "call_function" else getattr(node.target, "__name__", str(node.target))
    name = op_name(node)
    what = f"lvtp.{name}" if name else target.removesuffix(".default")
    return f"{what}\n{node.name}" if node.op == "call_function" else f"{node.op}\n{node.name}"


def _colour(node: fx.Node) -> str:
    key = role(node)
    if key is not None:
        return ROLES[key][0]
    text = str(node.target)
    return ATTENTION if "scaled_dot_product" in text or "softmax" in text else PLAIN


def _legend(nodes: list[fx.Node]) -> Iterator[str]:
    """The roles that occur, as a row of boxes."""
    found = {role(node) for node in nodes}
    for key, (colour, _) in ROLES.items():
        if key in found:
            yield f'  "legend {key}" [label="lvtp: {key}", fillcolor="{colour}"];'


def _quoted(text: str) -> str:
    """As a DOT string; the names of models may hold anything."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{plain}"'
