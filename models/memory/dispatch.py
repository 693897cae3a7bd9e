"""Whether the compiled loops take some tensors."""

from __future__ import annotations

import torch
from torch import Tensor

COMPILED = True


def can_be_compiled(*parts: Tensor) -> bool:
    """Single precision on the CPU, and not while a graph is exported."""
    return (
        COMPILED
        and not torch.compiler.is_compiling()
        and all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts)
    )
