"""What we notice afterwards: image statistics, drift, accuracy."""
