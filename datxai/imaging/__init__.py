"""From a scan to a registered, scaled, quantified and mirrored volume in MNI space."""
