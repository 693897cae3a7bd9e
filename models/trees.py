"""Ensembles of trees as tables: fitted by XGBoost or scikit-learn, read from their ONNX converters, run in torch.

The libraries' own converters say what the trees are (onnxmltools, skl2onnx), one model per quantile: they convert a
regression of several outputs without an error and wrongly. A classifier's leaves hold the shares of all classes. What
they said is held in plain tensors, which torch walks through, a state dict keeps without pickle, and one
TreeEnsembleRegressor node of the exported graph is made of.

Leaves are rounded to a power of two on which every sum of them is exact in float32, so that the order in which a
runtime adds trees does not matter: a forecast that is fed back would else end in another leaf.

Shapes: n rows, F features, M nodes, R trees, V values of a leaf, G ensembles side by side, O = G V outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import GraphPart, ModelError
from models.lag_features import GRID

if TYPE_CHECKING:
    import onnx

Rows = NDArray[np.float32]

BITS = 24  # whole numbers up to 2^BITS are exact in float32
ROWS_AT_ONCE = 4096  # that a walk through the trees holds in memory
AGREEMENT = 1e-5  # with the library, of the size of its predictions, beside the rounding of the leaves


@dataclass(frozen=True)
class XGBoostConfig:
    trees: int = 100  # per model at most; fewer where the validation part says so
    depth: int = 5  # splits from the root to a leaf
    shrinkage: float = 0.1  # of each tree's step
    leaf_rows: int = 20  # least sum of weights in a leaf, in rows
    column_share: float = 0.5  # of the features that a tree may split on
    early_stopping: int = 10  # trees without a lower validation loss after which growing stops; 0 grows all

    def __post_init__(self) -> None:
        _check_trees("xgboost", self.trees, self.depth, self.leaf_rows, self.column_share)
        if not 0 < self.shrinkage <= 1 or self.early_stopping < 0:
            raise ModelError(
                "xgboost needs a shrinkage above 0 and up to 1 and an early_stopping of 0 or more, "
                f"got shrinkage={self.shrinkage} and early_stopping={self.early_stopping}."
            )


@dataclass(frozen=True)
class ForestConfig:
    trees: int = 60
    depth: int = 10  # splits from the root to a leaf
    leaf_rows: int = 10  # least rows in a leaf
    column_share: float = 0.3  # of the features that a split may choose from

    def __post_init__(self) -> None:
        _check_trees("a random forest", self.trees, self.depth, self.leaf_rows, self.column_share)


@dataclass(frozen=True)
class ClassForestConfig(ForestConfig):
    """Purer leaves, and splits that choose from few features: a class is often told by some of very many."""

    trees: int = 150
    depth: int = 16
    leaf_rows: int = 1
    column_share: float = 0.05


def _check_trees(name: str, trees: int, depth: int, leaf_rows: int, column_share: float) -> None:
    if trees < 1 or not 1 <= depth <= 16 or leaf_rows < 1 or not 0 < column_share <= 1:
        raise ModelError(
            f"{name} needs at least 1 tree, a depth from 1 to 16, at least 1 row in a leaf and a column_share above 0 "
            f"and up to 1, got trees={trees}, depth={depth}, leaf_rows={leaf_rows} and column_share={column_share}."
        )


class TreeEnsemble(GraphPart):
    """Sums of trees: (n, F) -> (n, O). Before it is fitted, zeros."""

    feature: Tensor  # (M,) what a node compares
    threshold: Tensor  # (M,) smaller goes to `yes`
    yes: Tensor  # (M,) the next node; of a leaf, itself
    no: Tensor
    value: Tensor  # (M, V) of a leaf
    root: Tensor  # (R,)
    output: Tensor  # (R,) which ensemble the tree belongs to
    bias: Tensor  # (O,)
    depth: int

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self._keep(_Trees.constant(outputs))

    def _keep(self, trees: _Trees) -> None:
        for name, array in vars(trees).items():
            kind = torch.int64 if np.issubdtype(array.dtype, np.integer) else torch.float32
            self.register_buffer(name, torch.from_numpy(array).to(kind))
        self.depth = self._deepest()

    def _deepest(self) -> int:
        """Splits on the longest way from a root to a leaf."""
        here, steps = self.root.unique(), 0
        while bool((inner := self.yes[here] != here).any()):
            here = torch.cat([self.yes[here[inner]], self.no[here[inner]]])
            steps += 1
        return steps

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Tables are as large as what was fitted, whatever was here before."""
        for name in vars(_Trees.constant(1)):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.depth = self._deepest()

    def forward(self, x: Tensor) -> Tensor:
        if self.part_name:
            return self.placeholder(x, self.outputs)
        return (
            torch.cat([self._walk(rows) for rows in x.split(ROWS_AT_ONCE)]) if len(x) else x.new_zeros(0, self.outputs)
        )

    def _walk(self, x: Tensor) -> Tensor:
        node = self.root.expand(len(x), -1)
        for _ in range(self.depth):
            left = x.gather(1, self.feature[node]) < self.threshold[node]
            node = torch.where(left, self.yes[node], self.no[node])
        values = self.value.shape[1]
        total = self.bias.unflatten(0, (-1, values)).expand(len(x), -1, -1)
        return total.index_add(1, self.output, self.value[node]).flatten(1)

    def fit(self, models: Sequence[onnx.ModelProto], predict: Sequence[Callable[[Rows], Rows]], rows: Rows) -> None:
        """Take over fitted models as their library's converter wrote them, and see that they say the same.

        Args:
            models: graphs of one node each, TreeEnsembleRegressors of one output or a TreeEnsembleClassifier whose
                labels are outputs.
            predict: what the library itself predicts, per model: (n,), or (n, O) probabilities.
            rows: (n, F) on which both must agree.

        Raises:
            ModelError: the converted trees predict something else than the library.
        """
        trees = _Trees.joined([_Trees.converted(model, self.outputs // len(models)) for model in models])
        self._keep(trees.on_exact_leaves())
        values = self.value.shape[1]
        rounding = trees.units() / 2 * (np.bincount(trees.output).repeat(values) + 1)
        found = self._walk(torch.from_numpy(rows)).numpy()
        expected = np.column_stack([np.asarray(call(rows), np.float64) for call in predict])
        for output, (said, known) in enumerate(zip(found.T, expected.T, strict=True)):
            difference = float(np.abs(said - known).max())
            if not difference <= AGREEMENT * float(np.abs(known).max()) + rounding[output]:
                raise ModelError(
                    f"output {output} of the converted trees differs from the library's by {difference:.3g} on rows of "
                    f"spread {known.std():.3g}: the installed onnxmltools or skl2onnx does not fit the library."
                )

    def graph(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper

        of_tree = self._trees()
        nodes = np.arange(len(self.value)) - self.root.numpy()[of_tree]  # a node's number within its tree
        leaf = (self.yes == torch.arange(len(self.yes))).numpy()
        value = self.value.numpy()
        says = leaf[:, None] & (value != 0)
        says[:, 0] |= leaf  # a leaf of nothing but zeros is one too
        at, of_leaf = np.nonzero(says)
        node = helper.make_node(
            "TreeEnsembleRegressor",
            ["x"],
            ["y"],
            domain="ai.onnx.ml",
            n_targets=self.outputs,
            base_values=self.bias.tolist(),
            nodes_treeids=of_tree.tolist(),
            nodes_nodeids=nodes.tolist(),
            nodes_featureids=self.feature.tolist(),
            nodes_values=self.threshold.tolist(),
            nodes_modes=np.where(leaf, "LEAF", "BRANCH_LT").tolist(),
            nodes_truenodeids=np.where(leaf, 0, self.yes.numpy() - self.root.numpy()[of_tree]).tolist(),
            nodes_falsenodeids=np.where(leaf, 0, self.no.numpy() - self.root.numpy()[of_tree]).tolist(),
            target_treeids=of_tree[at].tolist(),
            target_nodeids=nodes[at].tolist(),
            target_ids=(self.output.numpy()[of_tree[at]] * value.shape[1] + of_leaf).tolist(),
            target_weights=value[at, of_leaf].tolist(),
        )
        rows, results = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in ("x", "y"))
        graph = helper.make_graph([node], "trees", [rows], [results])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)])

    def _trees(self) -> NDArray[np.int64]:
        """(M,) the tree that each node belongs to: the nodes of a tree follow its root."""
        return np.searchsorted(self.root.numpy(), np.arange(len(self.value)), side="right") - 1


# What a converter calls the leaves of each kind of node.
_LEAVES = {"TreeEnsembleRegressor": "target", "TreeEnsembleClassifier": "class"}


@dataclass(frozen=True)
class _Trees:
    """The buffers of a `TreeEnsemble`; the nodes of a tree stand together, its root first."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    yes: NDArray[np.int64]
    no: NDArray[np.int64]
    value: NDArray[np.float32]  # (M, V)
    root: NDArray[np.int64]
    output: NDArray[np.int64]
    bias: NDArray[np.float32]

    @classmethod
    def constant(cls, outputs: int) -> _Trees:
        """One leaf, which adds nothing."""
        zero = np.zeros(1, np.int64)
        nothing = np.zeros(1, np.float32)
        return cls(zero, nothing, zero, zero, nothing[:, None], zero, zero, np.zeros(outputs, np.float32))

    @classmethod
    def converted(cls, model: onnx.ModelProto, values: int) -> _Trees:
        """What the one node of a converter's graph says, its thresholds moved between two feature values.

        values: V; a class that no row had stays at 0.
        """
        from onnx import helper

        (node,) = model.graph.node
        fields = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        modes = np.array([mode.decode() for mode in fields["nodes_modes"]])
        aggregate = fields.get("aggregate_function", b"SUM").decode()
        unknown = set(modes) - {"LEAF", "BRANCH_LT", "BRANCH_LEQ"}
        leaves, classes = _LEAVES.get(node.op_type, ""), np.array(fields.get("classlabels_int64s", [0]))
        if not leaves or unknown or aggregate != "SUM" or fields.get("n_targets", 1) != 1:
            raise ModelError(
                f"a converter wrote trees that are not understood: {node.op_type}, {aggregate}, {unknown}."
            )
        tree = np.array(fields["nodes_treeids"])
        number = np.array(fields["nodes_nodeids"])
        place = {key: index for index, key in enumerate(zip(tree.tolist(), number.tolist(), strict=True))}
        leaf, itself = modes == "LEAF", np.arange(len(tree))

        def to(field: str) -> NDArray[np.int64]:
            children = zip(tree.tolist(), fields[field], leaf.tolist(), strict=True)
            found = [-1 if ends else place[of, child] for of, child, ends in children]
            return np.where(leaf, itself, np.array(found, np.int64))

        root = np.flatnonzero(number == 0)
        value = np.zeros((len(tree), values), np.float32)
        keys = [place[key] for key in zip(fields[f"{leaves}_treeids"], fields[f"{leaves}_nodeids"], strict=True)]
        of_class = np.array(fields[f"{leaves}_ids"])
        if len(classes) == 2:  # the converter writes the second alone, as the first
            value[leaf, classes[0]] = 1 / len(root)
            value[keys, classes[0]] -= np.array(fields[f"{leaves}_weights"], np.float32)
            of_class = of_class + 1
        value[keys, classes[of_class]] = fields[f"{leaves}_weights"]
        if (np.diff(root) <= 0).any() or not np.array_equal(
            tree, tree[root][np.searchsorted(root, itself, "right") - 1]
        ):
            raise ModelError("a converter wrote trees whose nodes do not stand together, root first.")
        # Features are multiples of 1 / GRID: x < a and x <= b are the same as x < the middle of two of them.
        steps = np.array(fields["nodes_values"], np.float64) * GRID
        between = np.where(modes == "BRANCH_LT", np.ceil(steps) - 0.5, np.floor(steps) + 0.5) / GRID
        threshold = np.where(leaf, 0.0, between).astype(np.float32)
        feature = np.where(leaf, 0, np.array(fields["nodes_featureids"])).astype(np.int64)
        bias = np.array(fields.get("base_values") or [0.0] * values, np.float32)
        output = np.zeros(len(root), np.int64)
        return cls(feature, threshold, to("nodes_truenodeids"), to("nodes_falsenodeids"), value, root, output, bias)

    @classmethod
    def joined(cls, parts: Sequence[_Trees]) -> _Trees:
        """One ensemble whose outputs are the parts', in order."""
        first = np.cumsum([0, *(len(part.value) for part in parts)])
        columns = {
            "yes": [part.yes + start for part, start in zip(parts, first, strict=False)],
            "no": [part.no + start for part, start in zip(parts, first, strict=False)],
            "root": [part.root + start for part, start in zip(parts, first, strict=False)],
            "output": [part.output + index for index, part in enumerate(parts)],
        }
        columns |= {name: [getattr(part, name) for part in parts] for name in ("feature", "threshold", "value", "bias")}
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})

    def units(self) -> NDArray[np.float64]:
        """(O,) powers of two, so small that no sum of an output's leaves in them is above 2^BITS."""
        largest = np.maximum.reduceat(np.abs(self.value.astype(np.float64)), self.root)  # (R, V)
        total = np.abs(self.bias.astype(np.float64)).reshape(-1, self.value.shape[1])
        np.add.at(total, self.output, largest)
        return 2.0 ** (np.ceil(np.log2(np.where(total > 0, total, 1.0))) - BITS).ravel()

    def on_exact_leaves(self) -> _Trees:
        """Leaves and bias as multiples of the units."""
        units = self.units()
        of_tree = units.reshape(-1, self.value.shape[1])[self.output]
        of_node = of_tree.repeat(np.diff([*self.root, len(self.value)]), 0)
        value = (np.round(self.value / of_node) * of_node).astype(np.float32)
        return replace(self, value=value, bias=(np.round(self.bias / units) * units).astype(np.float32))


def fit_xgboost(
    part: TreeEnsemble,
    config: XGBoostConfig,
    rows: tuple[Rows, Rows],
    checks: tuple[Rows, Rows],
    levels: Sequence[float],
    seed: int,
) -> None:
    """One booster per quantile level, each with as many trees as its validation loss asks for.

    Args:
        rows, checks: features (n, F) and targets (n,) to learn from and, later in time, to stop by.
        levels: of the outputs, in order.
    """
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    train = xgboost.QuantileDMatrix(rows[0], label=rows[1])
    check = xgboost.QuantileDMatrix(checks[0], label=checks[1], ref=train)
    models: list[onnx.ModelProto] = []
    predict: list[Callable[[Rows], Rows]] = []
    for level in levels:
        booster = xgboost.train(
            {
                "objective": "reg:quantileerror",
                "quantile_alpha": level,
                "tree_method": "hist",
                "max_depth": config.depth,
                "eta": config.shrinkage,
                "min_child_weight": config.leaf_rows,
                "colsample_bytree": config.column_share,
                "seed": seed,
            },
            train,
            config.trees,
            evals=[(check, "validation")],
            early_stopping_rounds=config.early_stopping or None,
            verbose_eval=False,
        )
        if config.early_stopping:
            booster = booster[: booster.best_iteration + 1]
        features = [("x", FloatTensorType([None, rows[0].shape[1]]))]
        models.append(convert_xgboost(booster, initial_types=features, target_opset=15))
        predict.append(booster.inplace_predict)
    part.fit(models, predict, np.concatenate([rows[0][:1000], checks[0][:1000]]))


def fit_forest(part: TreeEnsemble, config: ForestConfig, rows: tuple[Rows, Rows], seed: int) -> None:
    """A random forest for the mean; rows: features (n, F) and targets (n,)."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(**_of_library(config, seed)).fit(*rows)
    part.fit([_converted(forest, rows[0])], [forest.predict], rows[0][:2000])


def fit_class_forest(
    part: TreeEnsemble, config: ForestConfig, rows: tuple[Rows, NDArray[np.int64]], seed: int, *, extra: bool = False
) -> None:
    """A random forest for the probability of each output; rows: features (n, F) and labels (n,), 0 to O - 1.

    With `extra` one of extra trees, whose thresholds are drawn.

    Raises:
        ModelError: there is one label alone.
    """
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

    forest = (ExtraTreesClassifier if extra else RandomForestClassifier)(**_of_library(config, seed)).fit(*rows)
    if len(forest.classes_) < 2:
        raise ModelError("a forest needs two classes to tell apart, the training data hold one.")

    def predict(features: Rows) -> Rows:
        found = np.zeros((len(features), part.outputs), np.float32)
        found[:, forest.classes_] = forest.predict_proba(features)
        return found

    part.fit([_converted(forest, rows[0], {id(forest): {"zipmap": False}})], [predict], rows[0][:2000])


def _of_library(config: ForestConfig, seed: int) -> dict[str, Any]:
    return {
        "n_estimators": config.trees,
        "max_depth": config.depth,
        "min_samples_leaf": config.leaf_rows,
        "max_features": config.column_share,
        "random_state": seed,
        "n_jobs": -1,
    }


def _converted(forest: Any, features: Rows, options: dict[int, Any] | None = None) -> onnx.ModelProto:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    types = [("x", FloatTensorType([None, features.shape[1]]))]
    return convert_sklearn(forest, initial_types=types, target_opset={"": 15, "ai.onnx.ml": 3}, options=options)
