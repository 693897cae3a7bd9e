"""Simulates a small fleet of ageing lithium-ion cells. Nothing in the file it writes was measured.

Run as `python -m data.samples.make_battery`; it writes `battery_simulated.parquet` beside this script. The same seed
gives the same file.

The ageing law is that of Xu, Oudalov, Ulbig, Andersson & Kirschen, "Modeling of Lithium-Ion Battery Degradation for
Cell Life Assessment", IEEE Trans. Smart Grid 9(2), 1131-1140 (2018, online 2016), doi 10.1109/TSG.2016.2578950.
After n cycles the lost share of capacity is (their two-exponential law of the solid-electrolyte interphase, SEI)

    L = 1 - a exp(-b f) - (1 - a) exp(-f),     a = 0.0575, b = 121

where the linear ageing f grows in each cycle by a cycle and a calendar part, both sped up by temperature and charge:

    df = (S_d(dod) + k_t t) S_s(soc) S_T(T)
    S_d = 1 / (k_d1 dod^k_d2 + k_d3)          k_d1 = 1.40e5, k_d2 = -0.501, k_d3 = -1.23e5
    S_s = exp(k_s (soc - 0.5))                k_s = 1.04
    S_T = exp(k_T (T - 298) 298 / T)          k_T = 0.0693, T in K
    k_t = 4.14e-10 / s

The numbers are theirs, for LMO cells. The rest is ours, chosen to look like cycling data rather than fitted to any:
self-heating with the square of the charging rate, slow chamber temperature, cell-to-cell spread, a knee (fade that
speeds up with the square of the cycles since the knee), capacity that regenerates after rests and decays again,
resistance that grows with the loss, and measurement noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

SEED = 20240607
CELLS = 24
NOMINAL_CAPACITY_AH = 2.0
END_OF_LIFE = 0.80  # share of the cell's first capacity
MOST_CYCLES = 1000  # every cell ends earlier
CHARGE_RATES_C = (1.0, 1.5, 2.0, 2.5, 3.0)
SAMPLE = Path(__file__).with_name("battery_simulated.parquet")

# Xu et al., table I and section IV
SEI_SHARE, SEI_SPEED = 5.75e-2, 121.0
DOD_1, DOD_2, DOD_3 = 1.40e5, -5.01e-1, -1.23e5
SOC_STRESS, SOC_REFERENCE = 1.04, 0.5
TEMPERATURE_STRESS, REFERENCE_K = 6.93e-2, 298.0
CALENDAR_PER_S = 4.14e-10

# Ours
CHAMBER_DEGC = 41.0
SELF_HEATING_K = 1.1  # at 1 C, grows with the square of the rate
DISCHARGE_S = 3600.0
CAPACITY_NOISE_AH = 0.002
TEMPERATURE_NOISE_K = 0.15
RESISTANCE_NOISE_MOHM = 0.15


@dataclass(frozen=True)
class Cell:
    """What makes one cell differ from another."""

    charge_rate_c: float
    capacity_ah: float  # when new
    ageing: float  # multiplies the linear ageing
    depth: float  # of discharge, 0 to 1
    knee_loss: float  # the share lost when the knee begins
    knee_cycles: float  # after this many more cycles the knee alone has cost 10 %
    resistance_mohm: float  # when new, at 25 degC


def ageing_per_cycle(depth: float, mean_soc: float, temperature_degc: np.ndarray, cycle_s: float) -> np.ndarray:
    """The growth of the linear ageing in one cycle, df above; shape of the temperature.

    Args:
        depth: depth of discharge, 0 to 1.
        mean_soc: mean state of charge, 0 to 1.
        temperature_degc: mean cell temperature in the cycle.
        cycle_s: length of the cycle in seconds.
    """
    temperature_k = temperature_degc + 273.15
    cycling = 1 / (DOD_1 * depth**DOD_2 + DOD_3)
    charge_stress = np.exp(SOC_STRESS * (mean_soc - SOC_REFERENCE))
    heat_stress = np.exp(TEMPERATURE_STRESS * (temperature_k - REFERENCE_K) * REFERENCE_K / temperature_k)
    return (cycling + CALENDAR_PER_S * cycle_s) * charge_stress * heat_stress


def sei_loss(ageing: np.ndarray) -> np.ndarray:
    """The lost share of capacity after linear ageing f, L above."""
    return 1 - SEI_SHARE * np.exp(-SEI_SPEED * ageing) - (1 - SEI_SHARE) * np.exp(-ageing)


def draw_cell(number: int, rng: np.random.Generator) -> Cell:
    """A cell of the fleet; the rates take turns, so that each is seen several times."""
    return Cell(
        charge_rate_c=CHARGE_RATES_C[number % len(CHARGE_RATES_C)],
        capacity_ah=NOMINAL_CAPACITY_AH * rng.normal(1.01, 0.008),
        ageing=float(np.exp(rng.normal(0.0, 0.10))),
        depth=rng.uniform(0.97, 1.0),
        knee_loss=rng.uniform(0.10, 0.14),
        knee_cycles=rng.uniform(120.0, 220.0),
        resistance_mohm=rng.normal(42.0, 1.5),
    )


def simulate_cell(cell: Cell, rng: np.random.Generator) -> pd.DataFrame:
    """Cycle a cell until it has lost a fifth of its capacity.

    Returns:
        One row a cycle: ds (cycle, from 1), y (Ah), temperature (degC), charge_rate (C), resistance (mohm).
    """
    cycles = np.arange(1, MOST_CYCLES + 1)
    chamber = CHAMBER_DEGC + 2.0 * np.sin(2 * np.pi * (cycles / 260 + rng.uniform()))
    chamber += np.cumsum(rng.normal(0.0, 0.05, MOST_CYCLES))
    temperature = chamber + SELF_HEATING_K * cell.charge_rate_c**2
    cycle_s = DISCHARGE_S * (1 + 1 / cell.charge_rate_c)
    ageing = cell.ageing * np.cumsum(ageing_per_cycle(cell.depth, cell.depth / 2, temperature, cycle_s))

    loss = sei_loss(ageing)
    knee = int(np.searchsorted(loss, cell.knee_loss))
    loss = loss + 0.10 * (np.maximum(cycles - knee, 0) / cell.knee_cycles) ** 2
    last = int(np.searchsorted(loss, 1 - END_OF_LIFE)) + 1
    if last >= MOST_CYCLES:
        raise RuntimeError(f"{cell} outlives {MOST_CYCLES} cycles; raise MOST_CYCLES.")

    capacity = cell.capacity_ah * (1 - loss + _regeneration(cycles, rng))
    capacity += rng.normal(0.0, CAPACITY_NOISE_AH, MOST_CYCLES)
    warmth = np.exp(-0.006 * (temperature - 25.0))  # a warm electrolyte conducts better
    resistance = cell.resistance_mohm * (1 + 2.2 * loss) * warmth
    resistance += rng.normal(0.0, RESISTANCE_NOISE_MOHM, MOST_CYCLES)
    measured = temperature + rng.normal(0.0, TEMPERATURE_NOISE_K, MOST_CYCLES)
    return pd.DataFrame(
        {
            "ds": cycles,
            "y": capacity.round(4),
            "temperature": measured.round(2),
            "charge_rate": cell.charge_rate_c,
            "resistance": resistance.round(3),
        }
    ).head(last)


def _regeneration(cycles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Capacity that returns after a rest and is lost again within some ten cycles, as a share, (cycles,)."""
    gained = np.zeros(len(cycles))
    rest = rng.uniform(20, 60)
    while rest < len(cycles):
        since = cycles - rest
        gained += np.where(since >= 0, rng.uniform(0.003, 0.009) * np.exp(-np.maximum(since, 0) / 9.0), 0.0)
        rest += rng.uniform(35, 80)
    return gained


def simulate_fleet(seed: int = SEED) -> pd.DataFrame:
    """All cells, in the long format: unique_id "sim_01"..., and the columns of `simulate_cell`."""
    cells = []
    for number, rng in enumerate(np.random.default_rng(seed).spawn(CELLS)):
        cell = simulate_cell(draw_cell(number, rng), rng)
        cell.insert(0, "unique_id", f"sim_{number + 1:02d}")
        cells.append(cell)
    return pd.concat(cells, ignore_index=True)


def main() -> None:
    simulate_fleet().to_parquet(SAMPLE, index=False, compression="zstd")


if __name__ == "__main__":
    main()
