"""What it costs that a key counts for the tokens it stands for: attention with log sizes added to its scores, by form.

    python bench/key_weights.py                                   # 12 heads of 64 channels, 500 to 4,000 tokens, CPU
    python bench/key_weights.py --device cuda --dtype bfloat16 --batch 8
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from latency import where
from rich.console import Console
from rich.progress import track
from torch.nn.attention.flex_attention import flex_attention

from lvtp_fx.cli.timing import in_turn

Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CHANNELS = 8  # that are added to a head: one is needed, kernels like multiples of eight


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """All keys count the same: what the others are measured against."""
    return F.scaled_dot_product_attention(q, k, v)


def mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """An additive mask [B, 1, 1, N], which is what the pass inserts."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None])


def channel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """More channels: ones in the queries, the bias over the scale in the keys, so that no mask is needed."""
    B, H, N, D = q.shape
    one = F.pad(q.new_ones(B, H, N, 1), (0, CHANNELS - 1))
    weight = F.pad(bias[:, None, :, None].expand(B, H, N, 1) * D**0.5, (0, CHANNELS - 1))
    out = F.scaled_dot_product_attention(torch.cat([q, one], -1), torch.cat([k, weight], -1),
                                         F.pad(v, (0, CHANNELS)), scale=D**-0.5)
    return out[..., :D]


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """flex_attention with the bias in its score function."""
    out = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[b, j])
    assert isinstance(out, torch.Tensor)
    return out


FORMS: Mapping[str, Form] = {"plain": plain, "mask": mask, "channel": channel, "flex": flex}


def measure(B: int, H: int, N: int, D: int, dtype: torch.dtype, device: str, turns: int) -> dict[str, float]:
    """Milliseconds of each form, compiled and in turn, medians over the turns; checked to be the same attention."""
    q, k, v = (torch.randn(B, H, N, D, dtype=dtype, device=device) for _ in range(3))
    bias = torch.randint(1, 9, (B, N), device=device).log().to(dtype)
    torch.compiler.reset()
    runs = [torch.compile(form, fullgraph=True) for form in FORMS.values()]
    with torch.inference_mode():
        outs = dict(zip(FORMS, [run(q, k, v, bias) for run in runs], strict=True))
        for name in ("channel", "flex"):
            torch.testing.assert_close(outs[name].float(), outs["mask"].float(), rtol=0,
                                       atol=1e-5 if dtype == torch.float32 else 3e-2)
        times = in_turn(runs, q, k, v, bias, rounds=turns)
    return {name: statistics.median(each) for name, each in zip(FORMS, times, strict=True)}


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="keys and queries")] = None,
    batch: Annotated[int, typer.Option(help="images")] = 1,
    heads: Annotated[int, typer.Option(help="of 64 channels")] = 12,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16 or float16")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    turns: Annotated[int, typer.Option(min=3, help="timed runs of each form, in turn")] = 15,
    out: Annotated[Path, typer.Option(help="Markdown to write")] = Path("out/key_weights.md"),
) -> None:
    """Time the forms in turn and write a table."""
    cases = list(product(dtype or ["float32"], tokens or [500, 1000, 2000, 4000]))
    lines = [f"# Attention whose keys count for several tokens, batch {batch}, {heads} heads, {where(device)}", "",
             "| dtype | tokens | plain, ms | mask | channel | flex |", "|---|---|---|---|---|---|"]
    for name, N in track(cases, "forms", console=Console(stderr=True)):
        ms = measure(batch, heads, N, 64, getattr(torch, name), device, turns)
        ratios = " | ".join(f"{ms[form] / ms['plain']:.2f}x" for form in FORMS if form != "plain")
        lines.append(f"| {name} | {N:,} | {ms['plain']:.2f} | {ratios} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    Console().print(out.read_text(), markup=False)


if __name__ == "__main__":
    typer.run(main)
