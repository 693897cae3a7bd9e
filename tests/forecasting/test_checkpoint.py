import json
import math
import pickle
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from forecasting import checkpoint
from forecasting.checkpoint import CheckpointError, SafeCheckpoints, best_weights, load, same, save

CHECKPOINT = {
    "epoch": 3,
    "state_dict": {"model.weight": torch.eye(2, 3), "model.count": torch.tensor(7), "other.bias": torch.ones(1)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.randn(3)}}, "betas": (0.9, 0.999)}],
    "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.5), "stopped": False, "note": None}},
    "empty": [{}, (), []],
}

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.text(max_size=5) | st.integers() | st.sampled_from(["tensor", "dict", "list", "tuple"])
trees = st.recursive(
    leaves | st.integers(0, 3).map(lambda size: torch.arange(float(size))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple),
    max_leaves=12,
)  # fmt: skip


def kinds(value):
    """The tree of container types."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return (type(value), [kinds(inner) for inner in value])
    return type(value)


@given(extra=trees)
def test_what_is_saved_is_loaded_to_the_bit(tmp_path_factory, extra):
    path = tmp_path_factory.mktemp("c") / "last.ckpt"
    whole = CHECKPOINT | {"extra": extra}
    save(whole, path)
    back = load(path)
    assert same(back, whole)
    assert kinds(back) == kinds(whole)


def test_types_of_tensors_and_numbers_that_are_not_finite_survive(tmp_path):
    tensors = {
        str(kind): torch.zeros(2, dtype=kind) for kind in (torch.bfloat16, torch.float64, torch.int8, torch.bool)
    }
    shared = torch.arange(4.0)
    whole = {"state_dict": tensors, "views": [shared, shared[1:], shared.view(2, 2).T], "worst": -math.inf}
    save(whole, tmp_path / "c")
    back = load(tmp_path / "c")
    assert same(back, whole)
    assert [value.dtype for value in back["state_dict"].values()] == [value.dtype for value in tensors.values()]


def test_a_named_tuple_comes_back_as_a_tuple(tmp_path):
    pair = namedtuple("pair", "a b")
    save({"state_dict": {}, "size": torch.Size([2, 3]), "pair": pair(1, 2)}, tmp_path / "c")
    assert (load(tmp_path / "c")["size"], load(tmp_path / "c")["pair"]) == ((2, 3), (1, 2))


def test_what_is_neither_number_nor_text_nor_tensor_is_refused_and_the_file_of_before_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    save(CHECKPOINT, path)
    with pytest.raises(CheckpointError, match="numbers, text and tensors, not object"):
        save(CHECKPOINT | {"callback": object()}, path)
    assert same(load(path), CHECKPOINT)


def test_a_write_that_fails_leaves_the_checkpoint_of_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save(CHECKPOINT, path)

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: the checkpoint could not be written .*no space"):
        save(CHECKPOINT | {"epoch": 4}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert load(path)["epoch"] == 3


def test_a_checkpoint_is_safetensors_and_holds_no_pickle(tmp_path):
    path = tmp_path / "last.ckpt"
    SafeCheckpoints().save_checkpoint(CHECKPOINT, path)
    assert len(load_file(path)) == 5 + 1  # opens with the library alone
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not path.read_bytes().startswith((b"PK", b"\x80"))
    assert same(SafeCheckpoints().load_checkpoint(path), CHECKPOINT)


def test_the_weights_of_one_module_lose_its_prefix(tmp_path):
    save(CHECKPOINT, tmp_path / "best.ckpt")
    assert list(best_weights(tmp_path / "best.ckpt", "model")) == ["weight", "count"]


def write_pickle(path):
    torch.save({"state_dict": {}}, path)


def write_weights(path):
    save_file({"a": torch.ones(2)}, path)


def write_plan(plan):
    return lambda path: save_file({"a": torch.ones(2)}, path, metadata={"plan": plan})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "not a readable checkpoint .* --resume takes a last.ckpt"),
        (lambda path: path.write_bytes(b""), "not a readable checkpoint"),
        (lambda path: path.write_bytes(b"\x00" * 1000), "not a readable checkpoint"),
        (lambda path: path.mkdir(), "not a readable checkpoint"),
        (write_pickle, "not a readable checkpoint"),
        (write_weights, "weights but no plan"),
        (write_plan("hello"), "of another plan"),
        (write_plan(json.dumps({"dict": []})), "of another plan"),
        (write_plan(json.dumps({"tensor": "9"})), "of another plan"),
        (write_plan("[1]"), "of another plan"),
    ],
)
def test_a_file_that_is_not_ours_is_named(tmp_path, write, message):
    path = tmp_path / "foreign.ckpt"
    write(path)
    with pytest.raises(CheckpointError, match=rf"foreign.ckpt: .*{message}"):
        load(path)


@given(keep=st.floats(0, 0.999))
def test_a_checkpoint_that_was_cut_off_is_named(tmp_path_factory, keep):
    path = tmp_path_factory.mktemp("c") / "last.ckpt"
    save(CHECKPOINT, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: not a readable checkpoint"):
        load(path)
