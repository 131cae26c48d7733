"""Running the platform: the command line, local processes, bootstrap, backup and health."""
