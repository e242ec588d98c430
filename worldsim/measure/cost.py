"""What a computation costs before it is run at full size: operations, floating-point operations, bytes moved, bytes alive.

`Cost` counts them of whatever runs inside it, on any device, so that a small batch tells about a large one:
`training/studies/scaling.py` foretells seconds from them, `training/rl/foresight.py` memory."""

import weakref
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from worldsim.core.cores import cgroup


class Cost(TorchDispatchMode):
    """``with Cost() as cost: ...`` counts; parameters and whatever else was there before costs nothing.

    Fused attention has no formula on a CPU, and counts no FLOP there.

    Attributes:
        operations: calls of kernels; views of a tensor are none.
        flops: floating-point operations of matrix products and convolutions, two for each multiplication with its addition.
        moved: bytes that the operations read and wrote, each as if nothing were cached [B].
        alive: bytes of tensors made inside that are still there [B].
        peak: the most of them at any time [B].
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.flops = self.moved = self.alive = self.peak = 0
        self._known: set[int] = set()  # storages that were counted, by their address in Python

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Networks may be compiled while they are counted; otherwise they would never be again."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in read:
            self._lives(tensor.untyped_storage(), 0)  # if it is new here, it was there before
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            storage = tensor.untyped_storage()
            self._lives(storage, storage.nbytes())
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.operations += 1
            self.moved += sum(tensor.nbytes for tensor in (*read, *made))
            if (count := flop_registry.get(func.overloadpacket)) is not None:
                self.flops += count(*args, **kwargs, out_val=out)
        return out

    def _lives(self, storage: torch.UntypedStorage, size: int) -> None:
        """Counts a storage that is new, until it is gone."""
        key = id(storage)
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._dies, key, size)

    def _dies(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take there [B]: of a GPU with what torch keeps for itself.

    Of a container it is what its limit leaves, for which files in memory make room.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = psutil.virtual_memory().available
    limit, used = cgroup("memory.max"), cgroup("memory.current")
    if not (limit.isdigit() and used.isdigit()):
        return free
    files = sum(int(value) for name, value in map(str.split, cgroup("memory.stat").splitlines()) if name.endswith("active_file"))
    return max(0, min(free, int(limit) - int(used) + files))


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
