"""The HTTP API and the drawing page: the BentoML service, its prediction log and write-ahead log, and the served version."""
