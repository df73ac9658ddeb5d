"""Statistics over cases: classification, calibration, relevance of groups and regions, comparison of runs."""
