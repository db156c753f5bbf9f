"""What tests/test_torchrun.py starts on several processes: torchrun -m tests.sharded FOLDER.

Each writes what it got to FOLDER/RANK.pt; `run` without a group is what one process gets.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.nn.parallel import DistributedDataParallel

import lvtp_fx
from lvtp_fx.api import prepare
from lvtp_fx.calibration.journal import Journal
from lvtp_fx.calibration.schedules import Choice, default_schedule
from lvtp_fx.calibration.trial import Trial
from lvtp_fx.config import Config
from lvtp_fx.ranks import Ranks, joined
from tests.tiny import fused, picture, vit

BATCH = 8
CPU = torch.device("cpu")


def run(ranks: Ranks) -> dict[str, Any]:
    """Outputs of this process's part of the batch, the mean gradient, the weights after a step, what was calibrated."""
    model, x = vit(fused).double(), picture(BATCH).double()
    fast = lvtp_fx.transform(model, (x,), sites=(0, 1), keep_ratio=0.5, rounds=1)
    wrapped = DistributedDataParallel(fast) if ranks.world > 1 else fast
    own = x.chunk(ranks.world)[ranks.rank]
    output = wrapped(own)
    output.square().mean().backward()
    found = {"output": output.detach(), "gradients": [p.grad.clone() for p in fast.parameters()]}
    torch.optim.SGD(fast.parameters(), lr=0.1).step()
    found["weights"] = [p.detach().clone() for p in fast.parameters()]
    model = vit(fused)
    images = picture(5)
    found["config"] = lvtp_fx.calibrate(model, images, max_drop=0.3, passes=40)
    found["trial"] = qualities(model, images, ranks)
    found["refused"] = refusal(model, images)
    return found


def qualities(model: nn.Module, images: torch.Tensor, ranks: Ranks) -> list[tuple[float, int]]:
    """How good a schedule is on the first images, and how many passes are left then."""
    config = Config()
    prepared = prepare(model, images[:1], config)
    trial = Trial(prepared, config, [((x,), {}) for x in images.split(1)], [], 40, lambda done: None, ranks,
                  Journal(None, "", ranks))
    choice = Choice(default_schedule(trial.trunk), 0.2)
    return [(trial.quality(choice, count), trial.left) for count in (1, 2, 4, 5)]


def refusal(model: nn.Module, images: torch.Tensor) -> str:
    """Of a label that only the process with the second image sees."""
    labels = [torch.zeros(1, 8, 8, dtype=torch.int64) for _ in images]
    labels[1] = labels[1].float()
    try:
        lvtp_fx.calibrate(model, images, labels=labels, flops_cut=0.2, passes=40)
    except lvtp_fx.LvtpError as error:
        return str(error)
    return ""


def sharded(ranks: Ranks) -> torch.Tensor:
    """The part of this process of what a batch that is one sharded tensor gives."""
    x = picture(BATCH).double()
    fast = lvtp_fx.transform(vit(fused).double(), (x,), sites=(0, 1), keep_ratio=0.5, rounds=1)
    mesh = init_device_mesh("cpu", (ranks.world,))
    over_shards = local_map(fast, out_placements=[Shard(0)], in_placements=([Shard(0)],), device_mesh=mesh)
    with torch.no_grad():
        output = over_shards(distribute_tensor(x, mesh, [Shard(0)]))
    assert output.shape[0] == BATCH
    part: torch.Tensor = output.to_local()
    return part


if __name__ == "__main__":
    with joined(CPU) as ranks:
        torch.save({**run(ranks), "sharded": sharded(ranks)}, Path(sys.argv[1]) / f"{ranks.rank}.pt")
