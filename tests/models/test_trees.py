import io

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from models.contract import ModelError
from models.lag_features import GRID
from models.trees import ForestConfig, TreeEnsemble, XGBoostConfig, fit_class_forest, fit_forest, fit_xgboost


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features on their grid, and a target that needs two of them together."""
    rng = np.random.default_rng(seed)
    x = (np.round(rng.normal(size=(count, 6)) * GRID) / GRID).astype(np.float32)
    return x, (x[:, 0] * np.sign(x[:, 1]) + 0.3 * rng.normal(size=count)).astype(np.float32)


def boosted(outputs: int = 3) -> TreeEnsemble:
    part = TreeEnsemble(outputs)
    levels = (0.1, 0.5, 0.9)[:outputs]
    fit_xgboost(part, XGBoostConfig(trees=15, depth=3), rows(600, 0), rows(200, 1), levels, seed=0)
    return part


@pytest.fixture(scope="module")
def ensemble() -> TreeEnsemble:
    return boosted()


def test_quantiles_of_boosted_trees_are_those_of_xgboost_itself():
    import xgboost

    part = TreeEnsemble(1)
    config = XGBoostConfig(trees=15, depth=3, early_stopping=0, column_share=1.0)
    fit_xgboost(part, config, rows(600, 0), rows(200, 1), (0.9,), seed=0)
    data = xgboost.QuantileDMatrix(*rows(600, 0))
    options = {"objective": "reg:quantileerror", "quantile_alpha": 0.9, "max_depth": 3, "eta": 0.1}
    booster = xgboost.train(options | {"min_child_weight": 20, "seed": 0}, data, 15)
    x, y = rows(5000, 2)
    found = part(torch.from_numpy(x))[:, 0].numpy()
    np.testing.assert_allclose(found, booster.inplace_predict(x), atol=1e-4)
    assert 0.8 < (y <= found).mean() < 0.97


def test_a_forest_is_that_of_scikit_learn():
    from sklearn.ensemble import RandomForestRegressor

    part = TreeEnsemble(1)
    fit_forest(part, ForestConfig(trees=8, depth=4, column_share=1.0), rows(600, 0), seed=3)
    forest = RandomForestRegressor(8, max_depth=4, min_samples_leaf=10, max_features=1.0, random_state=3)
    x, _ = rows(500, 2)
    expected = forest.fit(*rows(600, 0)).predict(x)
    np.testing.assert_allclose(part(torch.from_numpy(x))[:, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("labels", [(0, 1), (1, 3), (0, 1, 2), (3, 0, 2, 1)])
def test_a_forest_of_classes_is_that_of_scikit_learn_and_its_graph(labels):
    from sklearn.ensemble import RandomForestClassifier

    part = TreeEnsemble(4)
    x, y = rows(600, 0)
    label = np.array(labels)[np.digitize(y, np.quantile(y, np.linspace(0, 1, len(labels) + 1)[1:-1]))]
    fit_class_forest(part, ForestConfig(trees=8, depth=6, leaf_rows=2), (x, label), seed=3)
    forest = RandomForestClassifier(8, max_depth=6, min_samples_leaf=2, max_features=0.3, random_state=3)
    new, _ = rows(500, 2)
    expected = np.zeros((500, 4))
    expected[:, sorted(labels)] = forest.fit(x, label).predict_proba(new)
    found = part(torch.from_numpy(new)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    session = onnxruntime.InferenceSession(part.graph().SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": new})[0], found)


def test_growing_stops_where_the_validation_rows_stop_gaining():
    x, y = rows(600, 0)
    noise = np.random.default_rng(0).normal(size=len(y)).astype(np.float32)
    sizes = []
    for target in (y, noise):
        part = TreeEnsemble(1)
        fit_xgboost(part, XGBoostConfig(trees=40, depth=3), (x, target), (x[::-1].copy(), target), (0.5,), seed=0)
        sizes.append(len(part.root))
    assert max(sizes) < 40  # the checks have the rows in another order than their targets: nothing helps there


def test_the_graph_says_the_same_to_the_bit(ensemble):
    session = onnxruntime.InferenceSession(ensemble.graph().SerializeToString(), providers=["CPUExecutionProvider"])
    x, _ = rows(3000, 5)
    found = session.run(None, {"x": x})[0]
    assert np.array_equal(found, ensemble(torch.from_numpy(x)).numpy())
    assert np.array_equal(session.run(None, {"x": x[:1]})[0], found[:1])


def test_leaves_add_up_to_the_same_in_any_order(ensemble):
    x = torch.from_numpy(rows(500, 6)[0])
    order = torch.randperm(len(ensemble.root), generator=torch.Generator().manual_seed(0))
    shuffled = TreeEnsemble(3)
    shuffled.load_state_dict(ensemble.state_dict())
    shuffled.root, shuffled.output = ensemble.root[order], ensemble.output[order]
    assert torch.equal(shuffled(x), ensemble(x))


def test_an_ensemble_is_kept_and_rebuilt_without_pickle(ensemble):
    kept = safetensors.torch.save(ensemble.state_dict())
    other = TreeEnsemble(3)
    other.load_state_dict(safetensors.torch.load(io.BytesIO(kept).read()))
    x = torch.from_numpy(rows(500, 7)[0])
    assert torch.equal(other(x), ensemble(x))
    assert bool(ensemble(x).any())


def test_a_conversion_that_is_wrong_is_refused(monkeypatch):
    import onnxmltools

    def wrong(*arguments, **options):
        model = convert(*arguments, **options)
        for attribute in model.graph.node[0].attribute:
            if attribute.name == "target_weights":
                attribute.floats[:] = [1.01 * weight for weight in attribute.floats]
        return model

    convert = onnxmltools.convert_xgboost
    monkeypatch.setattr(onnxmltools, "convert_xgboost", wrong)
    with pytest.raises(ModelError, match="output 0 of the converted trees differs from the library's by"):
        boosted(1)


@pytest.mark.parametrize(("config", "fields"), [
    (XGBoostConfig, {"trees": 0}), (XGBoostConfig, {"shrinkage": 0.0}), (ForestConfig, {"depth": 30}),
    (ForestConfig, {"column_share": 1.5}),
])  # fmt: skip
def test_fields_out_of_range_are_named(config, fields):
    with pytest.raises(ModelError, match=next(iter(fields))):
        config(**fields)
