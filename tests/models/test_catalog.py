import math
from dataclasses import asdict, fields

import pytest
import torch

from models.catalog import MODELS, build, entry, field_defaults
from models.contract import Fitted, Local, ModelError, Signature, Trainable
from models.memory import MEMORIES, NAMED


def signature(task: str) -> Signature:
    return Signature(task, channels=2, horizon=3, classes=3)


FORECAST = signature("forecast")
LEARNS = {"gradient": Trainable, "closed form": Fitted, "library": Fitted, "per series": Local}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_described_and_builds_with_its_defaults(name):
    model_entry = entry(name)
    assert model_entry.summary
    assert model_entry.tasks
    for config in model_entry.configs:
        config()
    for task in model_entry.tasks:
        model = build(name, signature(task))
        assert type(model).__doc__
        assert model.signature == signature(task)
        assert model.streams == model_entry.streams
        # Training asks the entry how a model learns, and the model to do it.
        assert isinstance(model, LEARNS[model_entry.learns])
        x = torch.randn(2, 4, 2)
        prediction, _ = model.eval().scan(x, torch.ones_like(x), model.initial_state(2))
        assert prediction.shape == (2, 4, *model.signature.prediction_shape)


@pytest.mark.parametrize("name", MODELS)
def test_every_field_is_documented_by_a_default_and_reaches_its_config(name):
    defaults = field_defaults(name)
    task = entry(name).tasks[0]
    build(name, signature(task), **defaults)
    for field, default in defaults.items():
        assert isinstance(default, int | float | str | bool), f"{field} has no plain default"


def test_a_field_given_is_the_field_used():
    model = build("gru", FORECAST, hidden=7, layers=2, embed=3)
    state = model.initial_state(5)
    assert state["rnn.h1"].shape == (5, 7)
    assert model.embed.out_features == 3


def test_a_named_memory_is_built_with_its_own_rule():
    model = build("omega", FORECAST, width=8, heads=2, blocks=1, chunk=5, rate=0.25)
    rule = model.backbone.layers[0].rule
    assert (rule.window, rule.optimiser, rule.chunk) == (4, "descent", 5)
    assert model.initial_state(3)["block0.memory0"].shape == (3, 2, 15, 8)  # 15 monomials of degree 0 to 2


@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_is_in_the_catalog_for_every_task(name):
    assert entry(name).tasks == ("forecast", "classify", "regress")
    assert entry(name).summary == NAMED[name][0]


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_of_chosen_parts_is_the_named_one_that_has_them(name):
    """The same weights, the same answers: the parts are exchangeable, and the names are choices of them."""
    size = {"width": 8, "heads": 2, "blocks": 1, "chunk": 5}
    x = torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(0))
    answers = []
    for model, parts in ((name, {}), ("memory", asdict(MEMORIES[name]))):
        torch.manual_seed(1)
        built = build(model, FORECAST, **size, **parts).eval()
        answers.append(built.scan(x, torch.ones_like(x), built.initial_state(2))[0])
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"degree": 0}, "degree is at least 1"),
        ({"degree": 12}, "degree 12 makes 125,970 features of a head of 8"),
        ({"depth": 5}, "0 .a matrix. to 4 layers"),
        ({"bias": "l1"}, "bias is one of"),
        ({"optimiser": "adam"}, "optimiser is one of"),
        ({"retention": "none"}, "retention is one of"),
        ({"decay_first": True}, "decay_first is defined"),
        ({"window": 0}, "at least 1 token"),
        ({"window": 10**9}, "window is at most"),
        ({"mass": 0.0}, "mass and radius above 0"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(parts, says):
    with pytest.raises(ModelError, match=says):
        build("memory", FORECAST, width=16, heads=2, **parts)


def test_the_fields_of_a_model_hide_none_of_one_another():
    for model in MODELS.values():
        names = [field.name for config in model.configs for field in fields(config)]
        assert len(names) == len(set(names))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match=rf"unknown model 'prophet'; known: {', '.join(MODELS)}\."):
        build("prophet", FORECAST)


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"lstm has no field width; known: .*hidden, layers, dropout\."):
        build("lstm", FORECAST, width=3)
    with pytest.raises(ModelError, match=r"naive has no field hidden; known: none\."):
        build("naive", FORECAST, hidden=3)


def test_a_task_that_a_model_does_not_do_lists_those_that_do():
    with pytest.raises(ModelError, match=r"bilstm does not forecast; these do: naive, ridge, .*gru, .*titans-lmm"):
        build("bilstm", FORECAST)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ridge", {"lags": 1}, "at least 2 lags, .*got lags=1"),
        ("ridge", {"penalty": -1.0}, r"penalty of 0 or more .*penalty=-1\.0"),
        ("ridge", {"level_window": 0}, "level_window=0"),
        ("ridge", {"lags": 24, "period": 24}, "period is 0 or more and less than lags, .*got lags=24, period=24"),
        ("ridge", {"lags": 24, "recent": 3}, "recent at most lags and 0 without a period, .*period=0 and recent=3"),
        ("ridge", {"lags": 24, "period": 7, "recent": 25}, "recent at most lags .*recent=25"),
        ("ridge", {"error_rate": 1e-4}, "error_rate needs a level_window of 2 or more"),
        ("ridge", {"level_window": 9, "error_rate": 2.0}, r"error_rate is 0 to 1, .*got error_rate=2\.0"),
        ("ridge", {"level_window": 9, "error_rate": 0.1, "error_span": 1e7}, r"error_span 1 to 1e\+06 .*=10000000"),
        ("gru", {"hidden": 0}, "hidden=0"),
        ("gru", {"layers": 0}, "layers=0"),
        ("gru", {"dropout": 1.0}, r"dropout=1\.0"),
        ("gru", {"embed": 0}, "embed=0"),
        ("gru", {"norm_window": 1}, "norm_window=1"),
        ("gru", {"prior": 0}, "prior=0"),
        ("gru", {"skip_lags": -1}, "skip_lags=-1"),
        ("titans-lmm", {"chunk": 0}, "chunk is at least 1, not 0"),
        ("atlas", {"heads": 3}, "3 does not divide 64"),
        ("yaad", {"rate": math.nan}, "rate and radius are finite"),
        ("gru", {"median_weight": -0.5}, r"median_weight=-0\.5"),
    ],
)
def test_a_value_out_of_range_is_named(name, settings, message):
    with pytest.raises(ModelError, match=message):
        build(name, FORECAST, **settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "forecast", "channels": 0}, "at least one channel, got 0"),
        ({"task": "forecast", "channels": 1, "horizon": 0}, "at least 1 step, got 0 and 1"),
        ({"task": "forecast", "channels": 1, "season": 0}, "at least 1 step, got 1 and 0"),
        ({"task": "classify", "channels": 1, "classes": 1}, "at least two classes, got 1"),
        ({"task": "regress", "channels": 1, "quantiles": ()}, "rising numbers between 0 and 1"),
        ({"task": "regress", "channels": 1, "quantiles": (0.5, 0.5)}, "rising numbers between 0 and 1"),
        ({"task": "regress", "channels": 1, "quantiles": (0.5, 1.0)}, "rising numbers between 0 and 1"),
    ],
)
def test_a_signature_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        Signature(**fields)
