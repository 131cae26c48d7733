"""What every package shares: settings, the image contract, the reference sample, intervals; with the sub-packages data and storage."""
