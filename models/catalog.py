"""The one list of models: a name, what it can do, and how to build it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from models.arima import Arima, ArimaConfig
from models.attention import AttentionBackbone, AttentionConfig, PatchBackbone, PatchConfig
from models.ces import Ces, CesConfig
from models.class_forest import ClassForest, PathConfig
from models.components import Components, ComponentsConfig
from models.contract import ModelError, Signature, StepModel, TaskKind
from models.ets import Ets, EtsConfig
from models.lag_regression import Forest, LagConfig, LagForecaster, Learner, QuantileConfig, QuantileRegression, XGBoost
from models.lagged import RidgeConfig, RidgeForecaster, RidgeReader
from models.memory import NAMED
from models.memory.backbone import Inner, MemoryBackbone, MemoryConfig
from models.memory.hybrid import ContextConfig, MacBackbone, MagBackbone, MalBackbone, WindowConfig
from models.naive import NaiveConfig, Prior, SeasonalNaive
from models.network import Network, NetworkConfig
from models.recurrent import Bidirectional, Convolutional, ConvolutionalConfig, Recurrent, RecurrentConfig
from models.ridges import Ridges, RidgesConfig
from models.ring_forest import RingConfig, RingForest, RingForestConfig
from models.rocket import Rocket, RocketConfig
from models.sarimax import Sarimax, SarimaxConfig
from models.simple import AverageConfig, Drift, HistoricAverage, WindowAverage
from models.theta import Theta, ThetaConfig
from models.trees import ClassForestConfig, ForestConfig, XGBoostConfig
from models.volatility import Egarch, Garch, VolatilityConfig

Config = Any  # a frozen dataclass of the model


@dataclass(frozen=True)
class Entry:
    summary: str
    build: Callable[..., StepModel]  # (signature, one config of each type in `configs`, in order)
    configs: tuple[type[Config], ...]
    tasks: tuple[TaskKind, ...]
    # by a library that is not torch: of all series together, or of every one of them
    learns: Literal["gradient", "closed form", "library", "per series"]
    streams: bool = True  # a model that does not stream exports scan.onnx alone
    costly: bool = False  # takes seconds to fit a series: is not tried where nobody named it
    covariates: tuple[str, ...] = ("past",)  # what a forecast can take beside its target: past, future (known ahead)


def _naive(signature: Signature, config: NaiveConfig) -> StepModel:
    return SeasonalNaive(signature, config) if signature.task == "forecast" else Prior(signature, config)


def _ridge(signature: Signature, config: RidgeConfig) -> StepModel:
    return RidgeForecaster(signature, config) if signature.task == "forecast" else RidgeReader(signature, config)


def _lags(learner: Callable[..., Learner]) -> Callable[..., StepModel]:
    """A regression on the past by learner(config), whose config is the entry's second."""

    def build(signature: Signature, lags: LagConfig, config: Config) -> StepModel:
        return LagForecaster(signature, lags, learner(config))

    return build


def _network(backbone: Callable[..., nn.Module]) -> Callable[..., StepModel]:
    """A network around backbone(width, config=...), whose config is the entry's second."""

    def build(signature: Signature, network: NetworkConfig, config: Config) -> StepModel:
        return Network(signature, network, partial(backbone, config=config))

    return build


def _memory(signature: Signature, network: NetworkConfig, config: MemoryConfig, inner: Inner) -> StepModel:
    return Network(signature, network, partial(MemoryBackbone, config=config, inner=inner))


def _recurrent(cell: str) -> Callable[..., StepModel]:
    return _network(partial(Recurrent, cell=cell))


def _bidirectional(cell: str) -> Callable[..., StepModel]:
    return _network(partial(Bidirectional, cell=cell))


ALL: tuple[TaskKind, ...] = ("forecast", "classify", "regress")
FORECAST: tuple[TaskKind, ...] = ("forecast",)
WHOLE: tuple[TaskKind, ...] = ("classify", "regress")
NETWORK = (NetworkConfig, RecurrentConfig)
MEMORY = (NetworkConfig, MemoryConfig)
ATTENTIVE: dict[str, tuple[str, Callable[..., nn.Module], type[Config]]] = {
    "titans-mac": ("Titans: the memory as context of segment attention", MacBackbone, ContextConfig),
    "titans-mag": ("Titans: the memory gates sliding-window attention", MagBackbone, WindowConfig),
    "titans-mal": ("Titans: attention over what the memory answers", MalBackbone, WindowConfig),
    "attention": ("transformer over a sliding window", AttentionBackbone, AttentionConfig),
    "patch-transformer": ("causal transformer over patches (PatchTST-like)", PatchBackbone, PatchConfig),
}

MODELS: dict[str, Entry] = {
    "naive": Entry("last season's value; frequencies", _naive, (NaiveConfig,), ALL, "closed form", covariates=()),
    "ridge": Entry("closed-form map of the last lags", _ridge, (RidgeConfig,), ALL, "closed form", covariates=()),
    "ridges": Entry(
        "mean of ridges of several look-backs", Ridges, (RidgesConfig,), FORECAST, "closed form", covariates=()
    ),
    "ets": Entry("exponential smoothing, fitted per series", Ets, (EtsConfig,), FORECAST, "per series", covariates=()),
    "arima": Entry("seasonal ARIMA, fitted per series", Arima, (ArimaConfig,), FORECAST, "per series", covariates=()),
    "theta": Entry("the theta method, fitted per series", Theta, (ThetaConfig,), FORECAST, "per series", covariates=()),
    "ces": Entry(
        "complex exponential smoothing, fitted per series",
        Ces,
        (CesConfig,),
        FORECAST,
        "per series",
        covariates=(),
    ),
    "sarimax": Entry(
        "seasonal ARIMA that skips gaps, fitted per series",
        Sarimax,
        (SarimaxConfig,),
        FORECAST,
        "per series",
        covariates=("future",),
        costly=True,
    ),
    "components": Entry(
        "level, trend and season, fitted per series",
        Components,
        (ComponentsConfig,),
        FORECAST,
        "per series",
        covariates=("future",),
    ),
    "quantile-regression": Entry(
        "linear quantiles of lags and rolling statistics",
        _lags(QuantileRegression),
        (LagConfig, QuantileConfig),
        FORECAST,
        "library",
        covariates=("past", "future"),
    ),
    "random-forest": Entry(
        "random forest on lags and rolling statistics",
        _lags(Forest),
        (LagConfig, ForestConfig),
        FORECAST,
        "library",
        covariates=("past", "future"),
    ),
    "xgboost": Entry(
        "boosted trees per quantile on lags and rolling statistics",
        _lags(XGBoost),
        (LagConfig, XGBoostConfig),
        FORECAST,
        "library",
        covariates=("past", "future"),
    ),
    "class-forest": Entry(
        "random forest on statistics or the path of the past",
        ClassForest,
        (PathConfig, ClassForestConfig),
        ("classify",),
        "library",
    ),
    "ring-forest": Entry(
        "two forests and a memory of gestures, for a ring of EMG sensors",
        RingForest,
        (RingConfig, RingForestConfig),
        ("classify",),
        "library",
    ),
    "rnn": Entry("recurrent network with tanh cells", _recurrent("rnn"), NETWORK, ALL, "gradient"),
    "lstm": Entry("long short-term memory", _recurrent("lstm"), NETWORK, ALL, "gradient"),
    "gru": Entry("gated recurrent unit", _recurrent("gru"), NETWORK, ALL, "gradient"),
    "conv-lstm": Entry(
        "LSTM behind causal convolutions",
        _network(partial(Convolutional, cell="lstm")),
        (NetworkConfig, ConvolutionalConfig),
        ALL,
        "gradient",
    ),
    "birnn": Entry("tanh network, both directions", _bidirectional("rnn"), NETWORK, WHOLE, "gradient", streams=False),
    "bilstm": Entry("LSTM, both directions", _bidirectional("lstm"), NETWORK, WHOLE, "gradient", streams=False),
    "bigru": Entry("GRU, both directions", _bidirectional("gru"), NETWORK, WHOLE, "gradient", streams=False),
}
SIMPLE: dict[str, tuple[str, Callable[..., StepModel], type[Config]]] = {
    "drift": ("random walk with drift", Drift, NaiveConfig),
    "seasonal-drift": (
        "last season's value and a season's mean change",
        partial(Drift, seasonal=True),
        NaiveConfig,
    ),
    "window-average": ("mean of the last observed values", WindowAverage, AverageConfig),
    "historic-average": ("mean of all observed values", HistoricAverage, NaiveConfig),
}
VOLATILITY: dict[str, tuple[str, Callable[..., StepModel]]] = {
    "garch": ("random walk whose variance has a memory, for prices", Garch),
    "egarch": ("the same, where falls may raise the variance more", Egarch),
}
MODELS["rocket"] = Entry(
    "random convolution kernels, averaged over time", Rocket, (RocketConfig,), ("classify",), "gradient"
)
MODELS |= {
    name: Entry(summary, model, (config,), FORECAST, "closed form", covariates=())
    for name, (summary, model, config) in SIMPLE.items()
}
MODELS |= {
    name: Entry(summary, model, (VolatilityConfig,), FORECAST, "library", covariates=())
    for name, (summary, model) in VOLATILITY.items()
}
MODELS |= {
    name: Entry(summary, _network(partial(MemoryBackbone, inner=inner)), MEMORY, ALL, "gradient")
    for name, (summary, inner) in NAMED.items()
}
MODELS["memory"] = Entry("a memory of parts that you choose", _memory, (*MEMORY, Inner), ALL, "gradient")
MODELS |= {
    name: Entry(summary, _network(backbone), (NetworkConfig, config), ALL, "gradient")
    for name, (summary, backbone, config) in ATTENTIVE.items()
}


def entry(name: str) -> Entry:
    if name not in MODELS:
        raise ModelError(f"unknown model '{name}'; known: {', '.join(MODELS)}.")
    return MODELS[name]


def field_defaults(name: str) -> dict[str, Any]:
    """Every field that `build(name, ...)` takes, with its default."""
    return {field.name: field.default for config in entry(name).configs for field in fields(config)}


def build(name: str, signature: Signature, **settings: Any) -> StepModel:
    """The named model, untrained. One that takes no covariates known ahead has them as channels like any other.

    Raises:
        ModelError: an unknown name, a task that the model does not do, an unknown field or a value out of range.
    """
    model = entry(name)
    if signature.task not in model.tasks:
        able = [other for other, entry in MODELS.items() if signature.task in entry.tasks]
        raise ModelError(f"{name} does not {signature.task}; these do: {', '.join(able)}.")
    known = field_defaults(name)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ModelError(f"{name} has no field {', '.join(unknown)}; known: {', '.join(known) or 'none'}.")
    configs = [
        config(**{field.name: settings[field.name] for field in fields(config) if field.name in settings})
        for config in model.configs
    ]
    if "future" not in model.covariates:
        signature = replace(signature, future=0)
    return model.build(signature, *configs)
