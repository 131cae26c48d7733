"""Persistence: the database and its migrations, predictions, request counts, feedback, the ledger, judgements, API keys."""
