"""The commands, one module per noun; slow imports stand inside the functions, so that `digits --help` stays fast."""
