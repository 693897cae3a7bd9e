"""Training, backtesting, bundles and forecasts.

`load_bundle` runs a trained model with onnxruntime and numpy alone. Importing this package imports neither of them,
nor torch or pandas: each command pays for what it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecasting.bundle import BundleError
    from forecasting.runtime import LoadedBundle, Stream, load_bundle

__all__ = ["BundleError", "LoadedBundle", "Stream", "load_bundle"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'forecasting' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("forecasting.bundle" if name == "BundleError" else "forecasting.runtime"), name)
