"""What is asked of a model: forecast, classify or regress, over which channels, how far and in which detail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from data.calendar import calendar_channels
from data.frame import Channel, Dataset

if TYPE_CHECKING:
    from models.contract import Signature

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class TaskError(ValueError):
    """A task that does not fit its data, or cannot be done; the message says what would."""


@dataclass(frozen=True)
class Task:
    """One question to one kind of stream.

    `channels` are what enters the model, in order; of a forecast, channel 0 is also what is forecast.
    """

    kind: Literal["forecast", "classify", "regress"]
    target: str  # name of the column that is forecast, classified or regressed
    channels: tuple[Channel, ...]
    freq: str | int | float | None  # step of `ds`: a pandas alias, cycles or seconds; None for rows in order
    horizon: int = 1  # steps
    season: int = 1  # steps
    quantiles: tuple[float, ...] = DECILES
    labels: tuple[str, ...] = ()
    future: tuple[str, ...] = ()  # the last so many channels, whose values are known a horizon ahead
    calendar: tuple[str, ...] = ()  # features of `ds`: the very last channels, computed wherever the model runs

    @property
    def signature(self) -> Signature:
        from models.contract import Signature

        return Signature(
            task=self.kind,
            channels=len(self.channels),
            horizon=self.horizon if self.kind == "forecast" else 1,
            season=self.season,
            quantiles=self.quantiles,
            classes=len(self.labels),
            future=len(self.future),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "target": self.target,
            "channels": [channel.to_json() for channel in self.channels],
            "freq": self.freq,
            "horizon": self.horizon,
            "season": self.season,
            "quantiles": list(self.quantiles),
            "labels": list(self.labels),
            "future": list(self.future),
            "calendar": list(self.calendar),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Task:
        return cls(
            kind=fields["kind"],
            target=fields["target"],
            channels=tuple(Channel.from_json(channel) for channel in fields["channels"]),
            freq=fields["freq"],
            horizon=fields["horizon"],
            season=fields["season"],
            quantiles=tuple(fields["quantiles"]),
            labels=tuple(fields["labels"]),
            future=tuple(fields.get("future", ())),  # before there were any, cards did not say so
            calendar=tuple(fields.get("calendar", ())),
        )

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        *,
        horizon: int | None = None,
        season: int | None = None,
        quantiles: tuple[float, ...] = DECILES,
        future: tuple[str, ...] = (),
    ) -> Task:
        """The data set's own task, with its defaults where nothing is asked.

        future: the covariates that are known ahead, which must be the data set's last channels, in this order; what
            its calendar gives comes behind them.
        """
        from data.panel import labels_of

        if horizon is not None and horizon < 1:
            raise TaskError(f"the horizon is at least 1 step, got {horizon}.")
        if season is not None and season < 1:
            raise TaskError(f"the season is at least 1 step (1 means none), got {season}.")
        if any(not 0 < q < 1 for q in quantiles) or list(quantiles) != sorted(set(quantiles)) or not quantiles:
            raise TaskError(f"quantiles are rising numbers between 0 and 1, got {', '.join(map(str, quantiles))}.")
        names = tuple(channel.name for channel in dataset.channels)
        if future and dataset.task != "forecast":
            raise TaskError(
                f"{dataset.name}: only a forecast has covariates that are known ahead, and this is to {dataset.task}. "
                f"Name {', '.join(future)} in --covariates."
            )
        if future and names[1:][-len(future) :] != tuple(future):
            raise TaskError(
                f"{dataset.name}: what is known ahead are the last covariates of a forecast, in order; got "
                f"{', '.join(future)} of the channels {', '.join(names)} to {dataset.task}."
            )
        if dataset.freq is None and dataset.task == "forecast":
            raise TaskError(f"{dataset.name}: the step of its times is not known; give --freq.")
        return cls(
            kind=dataset.task,
            target=dataset.target,
            channels=dataset.inputs,
            freq=dataset.freq,
            horizon=(horizon or dataset.horizon) if dataset.task == "forecast" else 1,
            season=season or dataset.season,
            quantiles=quantiles,
            labels=labels_of(dataset) if dataset.task == "classify" else (),
            future=(*future, *calendar_channels(dataset.calendar)),
            calendar=dataset.calendar,
        )
