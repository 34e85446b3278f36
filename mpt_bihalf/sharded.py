"""Tensors that lie in parts on several processes, as FSDP and tensor parallelism leave them.

Which weights are kept, and what sign they get, is decided over a whole filter, layer or network: a part does not tell.
To gather the others here would wait for their processes, for good where those do not ask too.
"""

from __future__ import annotations

from torch import Tensor

REMEDY = (
    "lies in parts on several processes: do this before the model is sharded, or with a plain model under the same "
    "method that its full state dictionary is loaded into (in all processes get_model_state_dict of "
    "torch.distributed.checkpoint.state_dict, with full_state_dict=True)"
)


def is_whole(tensor: Tensor) -> bool:
    """Whether this process has all of it."""
    return not hasattr(tensor, "full_tensor")  # as a DTensor has; to import its class takes a second


def refuse_part(name: str, tensor: Tensor) -> None:
    """Raise ValueError where this process has but a part of this tensor."""
    if not is_whole(tensor):
        raise ValueError(f"{name} {REMEDY}")
