"""Daily prices: two indices that come with `arch`, four that do not, and the stocks of StockNet.

The target `y` is the close (the adjusted close for single stocks). Always compare with the last-value forecast: for
prices it is a hard one. Prices are points or money, never negative; the other bars are channels only when asked for,
because today's high and volume are known no earlier than today's close.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data.frame import ID, TIME, Channel, Dataset, Splits, check_frame

ARCH_ORIGIN = (
    "Yahoo Finance, 1999-01-04 to 2018-12-31, as packaged in arch.data (K. Sheppard, https://github.com/bashtage/arch)."
)
INDICES_ORIGIN = "VatsalSin/Stock-Market-Indices-Dataset on GitHub, from Yahoo Finance."
STOCKNET_ORIGIN = (
    "yumoxu/stocknet-dataset on GitHub. Cite: Xu & Cohen, Stock Movement Prediction from Tweets and Historical "
    "Prices, ACL 2018, P18-1183."
)


def sp500() -> Dataset:
    """S&P 500, daily close in index points, 1999 to 2018. Origin: `ARCH_ORIGIN`."""
    from arch.data import sp500 as source

    return _arch_index("sp500", source.load())


def nasdaq() -> Dataset:
    """NASDAQ composite, daily close in index points, 1999 to 2018. Origin: `ARCH_ORIGIN`."""
    from arch.data import nasdaq as source

    return _arch_index("nasdaq", source.load())


def _arch_index(name: str, bars: pd.DataFrame) -> Dataset:
    bars = bars.rename(columns=str.lower).rename(columns={"adj close": "adj_close"})
    frame = bars.rename_axis(TIME).reset_index().assign(unique_id=name, y=bars["close"].to_numpy())
    # Fixed dates, so that figures on these sets compare: the last two years test, the two before validate.
    splits = Splits(
        train_until=pd.Timestamp("2014-12-31"),
        validation_until=pd.Timestamp("2016-12-31"),
        test_until=pd.Timestamp("2018-12-31"),
    )
    return _daily(name, frame, "points", splits)


def index(path: Path) -> Dataset:
    """One index of `indices/`, daily close in index points.

    Splits are those of the reference protocol: train to 2017-12, of which we keep the last half year for validation,
    test 2018-01 to 2019-06. Origin: `INDICES_ORIGIN`.
    """
    name = f"indices/{path.stem}"
    bars = pd.read_csv(path, parse_dates=["date"])
    notes = []
    # Exchanges open on a few Saturdays and Sundays (budget days, Diwali). They would need a seven-day grid that is
    # two sevenths empty.
    weekend = bars["date"].dt.dayofweek >= 5
    if weekend.any():
        bars = bars[~weekend]
        notes.append(f"{name}: {weekend.sum()} weekend sessions have been left out; the grid is business days.")
    frame = bars.rename(columns={"date": TIME}).assign(unique_id=path.stem, y=bars["close"])
    splits = Splits(
        train_until=pd.Timestamp("2017-06-30"),
        validation_until=pd.Timestamp("2017-12-31"),
        test_until=pd.Timestamp("2019-06-30"),
    )
    return _daily(name, frame.reset_index(drop=True), "points", splits, tuple(notes))


def stocknet(path: Path) -> Dataset:
    """Adjusted closes in US dollars of the StockNet stocks, 2012-09-04 to 2015-12-31.

    Splits are those of the paper: train to 2015-08-01, development to 2015-10-01, test to 2016-01-01 (all exclusive).
    Origin: `STOCKNET_ORIGIN`.
    """
    bars = pd.read_parquet(path)
    frame = bars.rename(columns={"symbol": ID, "date": TIME}).assign(y=bars["adj_close"])
    splits = Splits(
        train_until=pd.Timestamp("2015-07-31"),
        validation_until=pd.Timestamp("2015-09-30"),
        test_until=pd.Timestamp("2015-12-31"),
    )
    return _daily("stocknet", frame, "USD", splits)


def _daily(name: str, frame: pd.DataFrame, unit: str, splits: Splits, notes: tuple[str, ...] = ()) -> Dataset:
    prices = [column for column in ("open", "high", "low", "close", "adj_close") if column in frame]
    target = Channel("y", unit, low=0.0)
    # Units of volume differ by vendor (shares, contracts, thousands), so none is given.
    spare = (*(Channel(column, unit, low=0.0) for column in prices), Channel("volume", "", low=0.0))
    checked, mended = check_frame(frame, source=name, task="forecast", channels=(target, *spare))
    return Dataset(
        name=name,
        frame=checked,
        task="forecast",
        channels=(target,),
        freq="B",
        season=1,  # prices have no weekly season: the naive forecast is the random walk
        horizon=5,
        splits=splits,
        target="y",
        notes=(*notes, *mended),
        spare=spare,
    )
