"""Running the platform: the command line, local processes and their health, bootstrap, backup, audits and test traffic."""
