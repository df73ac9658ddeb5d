"""What numbers and maps say: classification, calibration, relevance of groups and regions, comparison of runs."""
