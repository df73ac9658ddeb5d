"""The device that networks run on."""

from __future__ import annotations

import logging

from datxai.config import Config
from datxai.errors import InputError
from datxai.memory import keep_freed_memory

log = logging.getLogger("datxai")


def choose_device(settings: Config) -> str:
    """The requested device; ``auto`` is a GPU if available. Warns if bf16 has no hardware support."""
    import torch

    keep_freed_memory()
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={settings.device} cannot be used here ({reason}); try device=auto.") from error
    lowered = "bf16" in (settings.training.precision, settings.attribution.precision)
    if lowered and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("  precision=bf16: this processor has no instructions for it, float32 is much faster")
    return device
