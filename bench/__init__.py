"""Every performance figure in the docs is one command here."""
