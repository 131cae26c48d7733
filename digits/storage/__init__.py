"""Persistence: the database and its migrations, predictions, feedback, the ledger, API keys."""
