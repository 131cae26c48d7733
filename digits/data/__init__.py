"""Where images and labels come from: sources, data sets, the inbox, the bucket, perturbations."""
