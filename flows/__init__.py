"""Prefect flows, their schedules and deployments."""
