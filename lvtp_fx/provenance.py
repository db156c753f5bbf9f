"""Where a node of the captured graph comes from: module path and source line, for messages and reports."""

from __future__ import annotations

import re

from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that the node was traced in (`blocks.3.attn`), or "" at the top level."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""


def source_line(node: fx.Node) -> str:
    """`file.py:123` of the innermost user frame that made the node, or "" where capture kept none."""
    frames = [frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if not frame[0].startswith("<")]
    if not frames:  # "<eval_with_key>.90" is code that torch made
        return ""
    file, line = frames[-1]
    return f"{file.rsplit('/', 1)[-1]}:{line}"


def told_by(source: fx.Node, new: fx.Node) -> fx.Node:
    """A new node, as one of the place in the model that `source` comes from."""
    new.meta = {**source.meta, **new.meta}
    return new


def describe(node: fx.Node) -> str:
    """`blocks.3.attn (node softmax_3, attention.py:88)`: all that is known of a node's place."""
    details = [f"node {node.name}"]
    if line := source_line(node):
        details.append(line)
    return f"{module_path(node) or 'the top level'} ({', '.join(details)})"
