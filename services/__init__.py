"""How strangers ask: the HTTP service and the page to draw on."""
