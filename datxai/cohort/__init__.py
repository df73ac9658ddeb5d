"""The subjects of a cohort: participants, their scans, readers' labels, and the split into sets."""
