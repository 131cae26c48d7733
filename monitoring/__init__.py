"""Drift and accuracy monitoring: image statistics, drift detection and diagnosis, accuracy, Evidently reports."""
