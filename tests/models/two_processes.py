"""Two gloo processes train small models with DDP and FSDP2; test_distributed.py reads what they found.

    python two_processes.py FOLDER

Each process writes FOLDER/<rank>.pt: {case: {"logits", "losses", "gradients", "weights", "log"}}. They are forked, so
the imports are made once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bertfast import dispatch
from harness import seeds
from models.ecosystem import collate, examples, pair

STEPS, ROWS, RATE = 2, 8, 0.02
HEADS = ("BertForMaskedLM", "BertForSequenceClassification")


def rows_of(name: str, step: int, rank: int) -> list[dict]:
    """A process's half of a step's examples."""
    return examples(name, ROWS, seed=step)[rank::2]


def many_texts() -> dict[str, torch.Tensor]:
    """For errors whose mean says more than chance does."""
    return collate(examples("BertForSequenceClassification", 48, seed=9))


def checkpointed(model: torch.nn.Module) -> None:
    name = "activation_checkpointing_enable"
    getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    import peft

    seeds.restart(4)
    fields = {"r": 2, "target_modules": ["query", "dense"], "init_lora_weights": False}
    peft.inject_adapter_in_model(peft.LoraConfig(**fields), model)
    return model


def ddp(model: torch.nn.Module, checkpoint: bool) -> torch.nn.Module:
    if checkpoint:
        checkpointed(model)
    return DistributedDataParallel(model)


def fsdp(model: torch.nn.Module, checkpoint: bool, parts: str, half: bool) -> torch.nn.Module:
    """`parts`: what is sharded by itself, beside the root."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    if checkpoint:
        checkpointed(model)
    if parts != "root":
        for layer in model.bert.encoder.layer:
            fully_shard(layer, mp_policy=policy)
    if parts == "layers and encoder":
        fully_shard(model.bert, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


CASES = {
    **{f"DDP {name}": (name, ddp, (False,)) for name in HEADS},
    "DDP checkpointing": (HEADS[1], ddp, (True,)),
    **{f"FSDP2 {name}": (name, fsdp, (False, "layers", False)) for name in HEADS},
    "FSDP2 checkpointing": (HEADS[1], fsdp, (True, "layers", False)),
    "FSDP2 root only": (HEADS[1], fsdp, (False, "root", False)),
    "FSDP2 encoder too": (HEADS[1], fsdp, (False, "layers and encoder", False)),
    "DDP LoRA": (HEADS[1], ddp, (False,)),
    "FSDP2 LoRA": (HEADS[1], fsdp, (False, "layers", False)),
    "FSDP2 bf16": (HEADS[1], fsdp, (False, "layers", True)),
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trained(model: torch.nn.Module, wrap, arguments: tuple, name: str, rank: int) -> dict:
    """Steps of SGD, of which the last one's gradients are kept."""
    model = wrap(model.train(), *arguments)
    optimizer, losses = torch.optim.SGD(model.parameters(), RATE), []
    first = None
    if "Sequence" in name:
        with torch.no_grad():
            first = model(**many_texts()).logits.float()
    with dispatch.record() as log:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = model(**collate(rows_of(name, step, rank))).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    named = [(key.removeprefix("module."), value) for key, value in model.named_parameters()]
    return {
        "logits": first,
        "losses": torch.stack(losses),
        "gradients": {key: whole(value.grad) for key, value in named if value.grad is not None},
        "weights": {key: whole(value) for key, value in named},
        "log": list(log),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for case, (name, wrap, arguments) in CASES.items():
        theirs, ours = pair(name)
        ours = with_lora(ours) if "LoRA" in case else ours
        found[case] = trained(ours, wrap, arguments, name, rank)
        if "bf16" in case:
            found[f"{case}, transformers"] = trained(theirs, wrap, arguments, name, rank)
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
