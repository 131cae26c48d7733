"""Prefect flows, their schedules and deployments."""

import logging

# The process of a deployed run begins in Prefect, which sets no level: its page would show our warnings only.
logging.getLogger("digits").setLevel(logging.INFO)
