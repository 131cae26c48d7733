"""Drift, accuracy and traffic monitoring: image statistics, drift detection and diagnosis, baselines, Evidently reports."""
