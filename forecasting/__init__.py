"""Training, backtesting, bundles and forecasts.

`load_bundle` runs a trained model with onnxruntime and numpy alone. Importing this package imports neither of them,
nor torch or pandas: each command pays for what it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecasting.bundle import BundleError
    from forecasting.runtime import LoadedBundle, load_bundle
    from forecasting.stream import Stream

__all__ = ["BundleError", "LoadedBundle", "Stream", "load_bundle"]

HOMES = {"BundleError": "bundle", "Stream": "stream"}  # of the others it is the runtime


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'forecasting' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"forecasting.{HOMES.get(name, 'runtime')}"), name)
