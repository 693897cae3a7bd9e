"""Training checkpoints without pickle: tensors in safetensors, everything else as JSON in the same file's header.

Lightning's own checkpoints are pickles, and loading one can run code; this plugin is the whole of what is needed to
resume instead. Containers keep their kind (a dict's integer keys, tuples), so an optimiser's state survives.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forecasting.writing import replacing


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the file."""


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(item, tensors) for item in value]}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise CheckpointError(f"a checkpoint holds numbers, text and tensors, not {type(value).__name__}: {value!r}.")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def save(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write beside and rename: a kill while saving leaves the checkpoint of before.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    plan = json.dumps(_encode(checkpoint, tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as part:
            save_file(tensors, part, metadata={"plan": plan})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written ({error}).") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Raises CheckpointError where the file is absent or is not one of ours."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            plan = (file.metadata() or {}).get("plan")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); --resume takes a last.ckpt.") from error
    if plan is None:
        raise CheckpointError(f"{path}: not a training checkpoint of mnemo: it has weights but no plan.")
    try:
        checkpoint = _decode(json.loads(plan), tensors)
        if not isinstance(checkpoint["state_dict"], dict):
            raise TypeError("state_dict is not a dict")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a training checkpoint of mnemo: of another plan ({error}).") from error
    return checkpoint


class SafeCheckpoints(CheckpointIO):
    """Lightning's way to files, for `Trainer(plugins=[...])`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # Versions of migrations and class names are of no use to us and may hold what JSON cannot.
        kept = {key: value for key, value in checkpoint.items() if key != "hparams_type"}
        save(kept, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def best_weights(path: str | os.PathLike[str], prefix: str) -> dict[str, Tensor]:
    """The weights of the module that the learner holds as `prefix`."""
    weights = load(path)["state_dict"]
    return {name.removeprefix(f"{prefix}."): value for name, value in weights.items() if name.startswith(f"{prefix}.")}


def same(left: Any, right: Any) -> bool:
    """Whether two checkpoints hold the same, to the bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
