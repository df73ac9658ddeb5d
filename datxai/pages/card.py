"""The model card of a bundle in Markdown: a summary of the run, and two checklists with the items it cannot answer.

The checklists are the 2024 update of CLAIM (Tejani et al., doi:10.1148/ryai.240300) and TRIPOD+AI (Collins et al. 2024,
doi:10.1136/bmj-2023-078378); their items are abbreviated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from datxai.pages.content import ModelCard
from datxai.pages.tables import MEASURES, arrange_table1, format_cell, format_measure

NAMES = {
    "cnn": "network", "roi_relevance": "sign of the relevance in the putamen",
    "sbr": "cutoff of the binding ratio", "cart": "tree of binding ratios",
}  # fmt: skip
USE, COHORT, FIGURES, LIMITS = "Intended use", "Cohort", "Figures", "Limits"
IMAGING, NETWORK, TRAINING, EXPLANATION = "Imaging", "Network", "Training", "Explanation"
OUTPUT, HELD, MADE = "What it says of a scan", "What the bundle holds", "Made by"
INTRODUCTIONS = {  # of sections
    IMAGING: "Every scan is registered to MNI space, judged, divided by its uptake in the reference region, measured, "
    "mirrored if so set (the side with the lower putamen to the left), and resampled onto the grid.",
    NETWORK: "One network, no ensemble, of {parameters:,} parameters.",
}
CLAIM = {  # item: its name, and the section above that answers it (None: a run cannot)
    "1": ("Identification as a study of AI methodology", None),
    "2": ("Summary of design, methods, results and conclusions", None),
    "3": ("Background, intended use and role of the AI approach", USE),
    "4": ("Aims, objectives and hypotheses", None),
    "5": ("Prospective or retrospective study", None),
    "6": ("Study goal", USE),
    "7": ("Data sources", COHORT),
    "8": ("Inclusion and exclusion criteria", None),
    "9": ("Data preprocessing", IMAGING),
    "10": ("Selection of data subsets", None),
    "11": ("De-identification methods", None),
    "12": ("How missing data were handled", None),
    "13": ("Image acquisition protocol", None),
    "14": ("Definition of the reference standard", None),
    "15": ("Rationale for the reference standard", None),
    "16": ("Source of reference standard annotations", None),
    "17": ("Annotation of the test set", None),
    "18": ("Inter- and intrarater variability", None),
    "19": ("How data were assigned to partitions", COHORT),
    "20": ("Level at which partitions are disjoint", COHORT),
    "21": ("Intended sample size", None),
    "22": ("Detailed description of the model", NETWORK),
    "23": ("Software libraries, frameworks and packages", MADE),
    "24": ("Initialization of model parameters", TRAINING),
    "25": ("Details of the training approach", TRAINING),
    "26": ("Method of selecting the final model", TRAINING),
    "27": ("Ensembling techniques", NETWORK),
    "28": ("Metrics of model performance", FIGURES),
    "29": ("Measures of significance and uncertainty", FIGURES),
    "30": ("Robustness or sensitivity analysis", None),
    "31": ("Methods for explainability", EXPLANATION),
    "32": ("Evaluation on internal data", FIGURES),
    "33": ("Testing on external data", None),
    "34": ("Clinical trial registration", None),
    "35": ("Numbers included and excluded", COHORT),
    "36": ("Demographic and clinical characteristics of each partition", COHORT),
    "37": ("Performance metrics and their uncertainty", FIGURES),
    "38": ("Estimates of diagnostic performance and their precision", FIGURES),
    "39": ("Failure analysis of incorrect results", None),
    "40": ("Study limitations", LIMITS),
    "41": ("Implications for practice, intended use", USE),
    "42": ("Full study protocol", None),
    "43": ("Availability of software, trained model and data", HELD),
    "44": ("Sources of funding and other support", None),
}
TRIPOD = {
    "1": ("Title", None),
    "2": ("Abstract", None),
    "3a": ("Healthcare context and rationale", None),
    "3b": ("Target population and intended purpose", USE),
    "3c": ("Known health inequalities", None),
    "4": ("Objectives", None),
    "5a": ("Sources of data", COHORT),
    "5b": ("Dates of data", None),
    "6a": ("Study setting and centres", None),
    "6b": ("Eligibility criteria", None),
    "6c": ("Treatments received", None),
    "7": ("Data preparation", IMAGING),
    "8a": ("Outcome and how it was assessed", None),
    "8b": ("Outcome assessors", None),
    "8c": ("Blinding of outcome assessment", None),
    "9a": ("Choice of initial predictors", None),
    "9b": ("Definition of predictors", IMAGING),
    "9c": ("Predictor assessors", None),
    "10": ("Sample size", None),
    "11": ("Missing data", None),
    "12a": ("How data were used and partitioned", COHORT),
    "12b": ("How predictors were handled", IMAGING),
    "12c": ("Type of model, building steps, tuning, internal validation", TRAINING),
    "12d": ("Heterogeneity across clusters", None),
    "12e": ("Measures of performance", FIGURES),
    "12f": ("Model updating", None),
    "12g": ("How predictions are calculated", OUTPUT),
    "13": ("Class imbalance", TRAINING),
    "14": ("Fairness", None),
    "15": ("Output of the model", OUTPUT),
    "16": ("Training versus evaluation data", None),
    "17": ("Ethical approval", None),
    "18a": ("Funding", None),
    "18b": ("Conflicts of interest", None),
    "18c": ("Protocol", None),
    "18d": ("Registration", None),
    "18e": ("Data sharing", None),
    "18f": ("Code sharing", MADE),
    "19": ("Patient and public involvement", None),
    "20a": ("Flow of participants", COHORT),
    "20b": ("Characteristics of participants", COHORT),
    "20c": ("Comparison with development data", None),
    "21": ("Participants and events in each analysis", FIGURES),
    "22": ("Full model specification", HELD),
    "23a": ("Performance with confidence intervals", FIGURES),
    "23b": ("Heterogeneity of performance across clusters", None),
    "24": ("Results of model updating", None),
    "25": ("Interpretation", None),
    "26": ("Limitations", LIMITS),
    "27a": ("Handling of poor or unavailable input", OUTPUT),
    "27b": ("Interaction and expertise that users need", None),
    "27c": ("Next steps for research", None),
}


def render_card(card: ModelCard) -> str:
    """The card as Markdown."""
    lines = [
        f"# {card.name}",
        "",
        "Filled in by `datxai bundle` from what a finished run has recorded. **Research use, not diagnostic.**",
        *_describe_use(card),
        *_describe_cohort(card),
        *_describe_figures(card),
        *_describe_limits(card),
        *_describe_output(card),
        *(line for title in (IMAGING, NETWORK, TRAINING, EXPLANATION) for line in _describe_settings(card, title)),
        *_describe_content(card),
        *_heading(MADE),
        *(f"- {name}: {value}" for name, value in card.made_by.items()),
        *_list_items("CLAIM, 2024 update", "Tejani et al. 2024, doi:10.1148/ryai.240300", CLAIM),
        *_list_items("TRIPOD+AI", "Collins et al. 2024, doi:10.1136/bmj-2023-078378", TRIPOD),
    ]
    return "\n".join(lines) + "\n"


def _heading(title: str) -> list[str]:
    return ["", f"## {title}", ""]


def _describe_use(card: ModelCard) -> Iterator[str]:
    yield from _heading(USE)
    yield (
        "To study how a network classifies dopamine transporter SPECT (FP-CIT) as normal or reduced, and why: each "
        "decision comes with a relevance map. It is for researchers, and no medical device: no decision about a "
        "patient may rest on it."
    )
    if "phantom" in card.data:
        yield "It was trained on simulated scans: it shows how methods behave, not how patients do."


def _describe_cohort(card: ModelCard) -> Iterator[str]:
    yield from _heading(COHORT)
    yield (
        f"Data: {card.data}. Labels: 0 normal, 1 reduced, as the run was given them. {card.split} All scans of a "
        f"subject are in one set. Scans that could not be used: {card.left_out}."
    )
    yield ""
    header, *rows = arrange_table1(card.table1)
    yield from _table(header, rows)
    yield ""
    yield f"Ages are mean ± SD; those of fewer than {card.least} people are not reported."


def _describe_figures(card: ModelCard) -> Iterator[str]:
    yield from _heading(FIGURES)
    first = next(iter(card.classifiers.values()))
    yield (
        f"Test set, {first['n']} cases ({first['tn'] + first['fp']} normal, {first['fn'] + first['tp']} reduced), with "
        f"95 % intervals (Wilson; score interval of the AUC):"
    )
    yield ""
    rows = [
        [title, *(format_measure(key, row.get(key), row.get(f"{key}_ci95")) for row in card.classifiers.values())]
        for key, title in MEASURES.items()
    ]
    yield from _table(["", *(NAMES.get(name, name) for name in card.classifiers)], rows)
    yield ""
    fit = card.calibration
    temperature = f"{fit['temperature']:.3g}" if fit["determined"] else "not determined; no probability is reported"
    yield f"- temperature from the {fit['n']} validation cases: {temperature}"
    yield f"- the most relevant voxel lies in the striatum in {card.peaks['inside']} of {card.peaks['n']} maps"
    yield f"- maps more like those of the other class: {card.inconsistent}"
    if card.mean_map_correlation is not None:
        yield f"- correlation of the mean maps of true negatives and true positives: {card.mean_map_correlation:.2f}"
    yield f"- precision: {_describe_rounding(card)}"


def _describe_rounding(card: ModelCard) -> str:
    if card.rounding is None:
        return f"{card.precision}, the weights are those of the run bit for bit"
    changes = card.rounding
    return (
        f"{card.precision}; rounding changes the logits of the {changes['cases']} test cases by "
        f"{changes['logit']:.2g} at most, and their maps by {changes['map']:.2g} of the map's norm at most; decisions "
        f"that change: {changes['decisions']}"
    )


def _describe_limits(card: ModelCard) -> Iterator[str]:
    yield from _heading(LIMITS)
    yield "- The figures are those of one split of one cohort; other cameras, reconstructions and people may differ."
    yield "- It calls every scan normal or reduced, even one with another tracer, organ or disease."
    yield "- The ranges of normal binding ratios are those of this cohort, on its camera and with its reconstruction."
    yield "- A relevance map says what moved the network, not what causes the disease."


def _describe_output(card: ModelCard) -> Iterator[str]:
    yield from _heading(OUTPUT)
    yield (
        "Two logits, normal and reduced, of which the larger decides; the probability of reduced after temperature "
        "scaling where a temperature was determined; binding ratios with the 95 % prediction interval of normal cases; "
        "the relevance map in MNI space and in the scan's own. A scan that cannot be read, registered or measured is "
        "refused in one sentence; a doubtful one is read with a warning."
    )


def _describe_settings(card: ModelCard, title: str) -> Iterator[str]:
    yield from _heading(title)
    if title in INTRODUCTIONS:
        yield INTRODUCTIONS[title].format(parameters=card.parameters)
        yield ""
    for name, value in card.settings.get(title, {}).items():
        if value not in (None, [], {}):
            yield f"- {name}: {f'{value:g}' if isinstance(value, float) else format_cell(value)}"


def _describe_content(card: ModelCard) -> Iterator[str]:
    yield from _heading(HELD)
    yield from (f"- `{name}`: {size:,} bytes" for name, size in card.members.items())
    yield ""
    yield "It holds statistics over many scans and people, and nothing on a single one: no scan, name or file path."
    yield ""
    counts = ", ".join(f"{name} {n}" for name, n in card.groups.items())
    has_means = min(card.groups.values()) >= card.least
    yield (
        f"- mean relevance maps: over test cases, {counts}; "
        + ("held" if has_means else f"left out, since a mean over fewer than {card.least} comes close to a single case")
    )
    if card.mean_scan_of is not None:
        yield f"- mean training scan, which the network subtracts: over {card.mean_scan_of} cases, within the weights"
    yield "- normal ranges: coefficients of regressions, none of fewer than 10 normal cases"
    yield (
        "- the test in numbers: counts of calls, AUC with its variance, scores of calibration; by sex and decade of "
        f"age in groups of {card.least} cases or more; cutoff and tree of binding ratios"
    )
    if "shift.safetensors" in card.members:
        yield "- for recognising scans unlike the training scans: means, spreads and main axes of their features"
    yield (
        "- weights: they may reveal that somebody's scan was among those that the network was trained with (membership "
        "inference); whoever shares them has to weigh this"
    )


def _list_items(title: str, source: str, items: Mapping[str, tuple[str, str | None]]) -> Iterator[str]:
    yield from _heading(f"{title} ({source})")
    yield "What the run answers, and where:"
    yield ""
    answered = [[number, name, section] for number, (name, section) in items.items() if section is not None]
    yield from _table(["item", "name", "section"], answered)
    yield ""
    yield "What only the authors of the study can answer:"
    yield ""
    yield from (f"- {number}. {name}" for number, (name, section) in items.items() if section is None)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)
