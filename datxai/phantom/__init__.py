"""The digital phantom cohort: heads with FP-CIT uptake, a population with disease and readers, and a SPECT camera."""
