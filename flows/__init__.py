"""When things happen: Prefect flows, their schedules, and the command line."""
