"""A trained network and a method that explains its decisions, one batch of scans at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from datxai.anatomy import Anatomy
from datxai.config import Attribution, Composite, Config, describe
from datxai.device import choose_device
from datxai.errors import InputError
from datxai.files import hash_file
from datxai.run import Run

log = logging.getLogger("datxai")

if TYPE_CHECKING:
    from torch import Tensor, nn

    from datxai.explain.answers import Answers
    from datxai.explain.attribution import Explanation


def describe_method(settings: Config) -> dict:
    """The settings on which a relevance map depends, for the fingerprint of the stage `explain`."""
    composite = asdict(settings.composite) if settings.attribution.method == "lrp" else None
    if composite and composite["rules_from"] and Path(composite["rules_from"]).is_file():
        composite["rules_from"] = hash_file(composite["rules_from"])
    attribution = {key: value for key, value in asdict(settings.attribution).items() if key != "batch_size"}
    atlas = {"atlas": describe(settings.atlas)} if settings.attribution.parcels else {}
    return {"attribution": attribution, "composite": composite, "target": settings.target, **atlas}


def read_composite(composite: Composite, model: nn.Module) -> tuple[list[dict], dict]:
    """The lines of a composite for a network, and its other settings as keywords of `attribute`. A file of the user's
    own rules is executed."""
    from datxai.explain.automatic import choose_rules, find_uncovered
    from datxai.explain.composite import load_rules

    own_rules = None if composite.rules_from is None else load_rules(composite.rules_from)
    options = {"canonizers": composite.canonizers, "bias": composite.bias, "own_rules": own_rules}
    lines = [asdict(layer) for layer in composite.layers]
    if composite.auto:
        chosen, canonizers = choose_rules(model)
        lines, options["canonizers"] = lines + chosen, [*composite.canonizers, *canonizers]
        if uncovered := find_uncovered(model):
            log.warning(
                "composite=auto: no rule of LRP is proven for attention (%s); it keeps its gradient, and relevance may "
                "come or go there.", ", ".join(uncovered),
            )  # fmt: skip
    return lines, options


def predict_label(logits: Sequence[float]) -> dict:
    """The prediction of a pair of logits (normal, reduced): label, probability of reduced, the logits."""
    normal, reduced = map(float, logits)
    return {
        "predicted": int(reduced > normal),
        "p_reduced": float(1 / (1 + np.exp(np.clip(normal - reduced, -700, 700)))),
        "logit_normal": normal,
        "logit_reduced": reduced,
    }


@dataclass(frozen=True, eq=False)
class Explainer:
    """A trained network and a method to explain its decisions.

    Attributes
    ----------
    model, device : the network and its device
    attribution, composite, target : the settings of the method, and the output that is explained
    lines, options : of the composite, as `datxai.explain.attribute` expects them; empty for methods other than lrp
    parcels : int array (X, Y, Z) of the parcels that are removed as a whole, or None for the method's own parts
    """

    model: nn.Module
    device: str
    attribution: Attribution
    composite: Composite
    target: str
    lines: Sequence[Mapping]
    options: Mapping
    parcels: np.ndarray | None

    @classmethod
    def of(cls, settings: Config, run: Run, anatomy: Anatomy | None = None) -> Explainer:
        """The network of a run and the method of these settings; ``anatomy`` is theirs, if it is available."""
        from datxai.model import checkpoint

        device = choose_device(settings)
        model, _ = checkpoint.load(run.model, device, settings.network.target)
        return cls.prepare(model, device, settings, anatomy)

    @classmethod
    def prepare(cls, model: nn.Module, device: str, settings: Config, anatomy: Anatomy | None = None) -> Explainer:
        """The method of these settings for a network on a device; a file of the user's own rules is executed, once."""
        attribution, composite = settings.attribution, settings.composite
        lines, options = read_composite(composite, model) if attribution.method == "lrp" else ((), {})
        if attribution.parcels not in (None, "atlas"):
            raise InputError(
                f"attribution.parcels={attribution.parcels}: expected atlas, or null for the method's own parts."
            )
        parcels = None if attribution.parcels is None else (anatomy or Anatomy.of(settings)).parcels
        return cls(model, device, attribution, composite, settings.target, lines, options, parcels)

    def batch_size(self, shape: Sequence[int]) -> int:
        """How many cases of this shape (X, Y, Z) to explain at once."""
        from datxai.explain.batches import choose_batch_size

        size = self.attribution.batch_size
        if size == "auto":
            fast = self.attribution.method == "lrp" and self.attribution.rules == "fast"
            return choose_batch_size(self.model, (1, *shape), self.device, "fast" if fast else "zennit")
        if not size.isdecimal() or int(size) == 0:
            raise InputError(f"attribution.batch_size={size}: expected auto or a number, such as 4.")
        return int(size)

    def attribute(
        self,
        x: Tensor,
        target: str | int | None = None,
        labels: Sequence[int] | None = None,
        model: nn.Module | None = None,
        ledger: bool = True,
        answers: Answers | None = None,
    ) -> Explanation:
        """The `Explanation` of a batch, a float32 tensor (n, 1, X, Y, Z); ``target`` and ``model`` override one's own.

        ``answers``: cache of the networks' outputs so far (`datxai.explain.answers`), which is used and extended.
        """
        from datxai.explain.attribution import attribute

        method = self.attribution
        chosen: dict[str, Any] = {key: getattr(method, key) for key in ("method", "start", "rules", "precision")}
        return attribute(
            self.model if model is None else model,
            x.to(self.device),
            composite=self.lines,
            target=cast("Any", self.target if target is None else target),
            labels=labels,
            ledger=ledger,
            **chosen,
            at_once=len(x) if method.method == "lrp" else self.batch_size(x.shape[2:]),
            parcels=self.parcels,
            options=method.options,
            answers=answers,
            **self.options,
        )

    def explain(self, x: Tensor, labels: Sequence[int] | None = None) -> list[tuple[np.ndarray, dict]]:
        """Relevance map (X, Y, Z) and its record for each case of a batch, a float32 tensor (n, 1, X, Y, Z)."""
        explanation = self.attribute(x, labels=labels)
        maps = explanation.relevance[:, 0].cpu().numpy()
        method = self._describe()
        return [
            (
                data,
                {"method": method, "logits": pair, "seed": seed, "sum": float(data.sum(dtype=float)), "ledger": ledger},
            )
            for data, pair, seed, ledger in zip(
                maps, explanation.logits.tolist(), explanation.seeds, explanation.ledgers
            )
        ]

    def _describe(self) -> dict:
        """The method as described in a map's record."""
        attribution, composite = self.attribution, self.composite
        method = {"attribution": attribution.method, "target": self.target, "start": attribution.start}
        if attribution.method == "lrp":
            method |= {"composite": composite.name, "rules": attribution.rules, "precision": attribution.precision}
            method |= {} if composite.bias else {"bias": False}
        return method | {key: value for key in ("options", "parcels") if (value := getattr(attribution, key))}
