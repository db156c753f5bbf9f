"""The rewritten graph of a small segmenter, whole: what a reader of a printed graph sees."""

from __future__ import annotations

from collections import Counter

import expecttest
import torch
from torch import fx

import lvtp_fx
from lvtp_fx.models.segmenter import Segmenter, SegmenterConfig
from lvtp_fx.ops.registry import edition


def lines(graph: fx.Graph) -> str:
    """A line a call, numbered by op: the names that export gives differ between versions of torch."""
    names: dict[fx.Node, str] = {}
    count: Counter[str] = Counter()
    out = []
    for node in graph.nodes:
        names[node] = node.name
        if node.op == "call_function":
            op = str(node.target).removesuffix(".default").replace("<built-in function getitem>", "getitem")
            short = op.split(".")[1] if "." in op else op
            count[short] += 1
            names[node] = f"{short}{count[short]}"
            args = fx.node.map_arg(list(node.args), lambda n: _Named(names[n]))
            shown = ", ".join("<edition>" if arg == edition() else str(arg) for arg in args)
            out.append(f"{names[node]} = {op}({shown})")
    return "\n".join(out)


class _Named:
    """Prints as a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Golden(expecttest.TestCase):
    def test_one_site(self) -> None:
        torch.manual_seed(0)
        config = SegmenterConfig(img_size=32, patch_size=8, C=8, depth=2, heads=2, classes=2)
        fast = lvtp_fx.transform(Segmenter(config), (torch.rand(1, 3, 32, 32),), keep_ratio=0.5, sites=(0,))
        self.assertExpectedInline(lines(fast.graph), """\
check_input1 = lvtp.check_input(image, image, [-1, 3, 32, 32], , torch.float32)
sym_size1 = aten.sym_size.int(check_input1, 0)
conv2d1 = aten.conv2d(check_input1, embed_weight, embed_bias, [8, 8])
reshape1 = aten.reshape(conv2d1, [sym_size1, 8, 16])
transpose1 = aten.transpose.int(reshape1, 1, 2)
add1 = aten.add.Tensor(transpose1, pos_embed)
expand1 = aten.expand(cls_token, [sym_size1, -1, -1])
cat1 = aten.cat([expand1, add1], 1)
layer_norm1 = aten.layer_norm(cat1, [8], blocks_0_norm1_weight, blocks_0_norm1_bias, 1e-05, False)
linear1 = aten.linear(layer_norm1, blocks_0_qkv_weight, blocks_0_qkv_bias)
reshape2 = aten.reshape(linear1, [sym_size1, 17, 3, 2, 4])
permute1 = aten.permute(reshape2, [2, 0, 3, 1, 4])
unbind1 = aten.unbind.int(permute1)
getitem1 = getitem(unbind1, 0)
getitem2 = getitem(unbind1, 1)
getitem3 = getitem(unbind1, 2)
scaled_dot_product_attention1 = aten.scaled_dot_product_attention(getitem1, getitem2, getitem3)
transpose2 = aten.transpose.int(scaled_dot_product_attention1, 1, 2)
reshape3 = aten.reshape(transpose2, [sym_size1, 17, 8])
linear2 = aten.linear(reshape3, blocks_0_proj_weight, blocks_0_proj_bias)
add2 = aten.add.Tensor(cat1, linear2)
positions1 = lvtp.positions(add2, 16, <edition>)
ones1 = lvtp.ones(positions1)
features1 = lvtp.features(add2, 1, 0, 4)
comparable1 = lvtp.comparable(features1, positions1, 4, 4, 3.0)
getitem4 = getitem(comparable1, 0)
getitem5 = getitem(comparable1, 1)
edges1 = lvtp.edges(check_input1, 4, 4)
compose1 = lvtp.compose(edges1, positions1)
entropy1 = lvtp.entropy(getitem1, getitem2, None, None, 1, 0, [0.5, 1.0, 2.0], 1)
blend1 = lvtp.blend(entropy1, compose1, 1.0, 0.5)
representatives1 = lvtp.representatives(blend1, positions1, 4, 4, 2, 2)
rank1 = lvtp.rank(getitem4, getitem5, representatives1, blend1, compose1, 0.0, 0.05, 8, 6)
select1 = lvtp.select(rank1, 8)
dropped1 = lvtp.dropped(select1, 16)
owners1 = lvtp.owners(getitem4, getitem5, select1, dropped1)
sizes1 = lvtp.sizes(ones1, owners1, 8)
merge1 = lvtp.merge(add2, select1, dropped1, owners1, ones1, sizes1, 1, 0)
layer_norm2 = aten.layer_norm(merge1, [8], blocks_0_norm2_weight, blocks_0_norm2_bias, 1e-05, False)
linear3 = aten.linear(layer_norm2, blocks_0_mlp_0_weight, blocks_0_mlp_0_bias)
gelu1 = aten.gelu(linear3)
linear4 = aten.linear(gelu1, blocks_0_mlp_2_weight, blocks_0_mlp_2_bias)
add3 = aten.add.Tensor(merge1, linear4)
layer_norm3 = aten.layer_norm(add3, [8], blocks_1_norm1_weight, blocks_1_norm1_bias, 1e-05, False)
linear5 = aten.linear(layer_norm3, blocks_1_qkv_weight, blocks_1_qkv_bias)
reshape4 = aten.reshape(linear5, [sym_size1, 9, 3, 2, 4])
permute2 = aten.permute(reshape4, [2, 0, 3, 1, 4])
unbind2 = aten.unbind.int(permute2)
getitem6 = getitem(unbind2, 0)
getitem7 = getitem(unbind2, 1)
getitem8 = getitem(unbind2, 2)
key_bias1 = lvtp.key_bias(None, sizes1, 1, 0, 0, getitem6)
scaled_dot_product_attention2 = aten.scaled_dot_product_attention(getitem6, getitem7, getitem8, key_bias1)
transpose3 = aten.transpose.int(scaled_dot_product_attention2, 1, 2)
reshape5 = aten.reshape(transpose3, [sym_size1, 9, 8])
linear6 = aten.linear(reshape5, blocks_1_proj_weight, blocks_1_proj_bias)
add4 = aten.add.Tensor(add3, linear6)
layer_norm4 = aten.layer_norm(add4, [8], blocks_1_norm2_weight, blocks_1_norm2_bias, 1e-05, False)
linear7 = aten.linear(layer_norm4, blocks_1_mlp_0_weight, blocks_1_mlp_0_bias)
gelu2 = aten.gelu(linear7)
linear8 = aten.linear(gelu2, blocks_1_mlp_2_weight, blocks_1_mlp_2_bias)
add5 = aten.add.Tensor(add4, linear8)
restore1 = lvtp.restore(add5, add2, merge1, owners1, 1, 0)
layer_norm5 = aten.layer_norm(restore1, [8], norm_weight, norm_bias, 1e-05, False)
slice1 = aten.slice.Tensor(layer_norm5, 0, 0, 9223372036854775807)
slice2 = aten.slice.Tensor(slice1, 1, 1, 9223372036854775807)
linear9 = aten.linear(slice2, head_weight, head_bias)
transpose4 = aten.transpose.int(linear9, 1, 2)
reshape6 = aten.reshape(transpose4, [sym_size1, 128, 4, 4])
pixel_shuffle1 = aten.pixel_shuffle(reshape6, 8)""")
