"""datxai: explainable classification of dopamine transporter SPECT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datxai.api import Pipeline

__version__ = "0.2.0"
__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:  # heavy modules are imported on demand
    if name == "Pipeline":
        from datxai.api import Pipeline

        return Pipeline
    raise AttributeError(f"module 'datxai' has no attribute '{name}'")
