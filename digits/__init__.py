"""What every room agrees on: settings, the image contract, the reference sample, intervals; with the sub-packages data and storage."""
