"""What a training on several nodes does first: all processes meet and add a number, again and again, until released."""

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist

job = json.loads(Path("/etc/finetune/config.json").read_text())["job"]["name"]
release = Path("/mnt/claims/finetune-shared", f"{job}.release")

dist.init_process_group("gloo")
rank, world, released = dist.get_rank(), dist.get_world_size(), 0.0
while not released:
    total = torch.tensor([rank + 1.0, float(rank == 0 and release.exists())])
    dist.all_reduce(total)
    assert total[0] == world * (world + 1) / 2, total
    print(f"rank {rank} of {world} has met the others", flush=True)
    released = total[1].item()
    time.sleep(0.5)
dist.destroy_process_group()
