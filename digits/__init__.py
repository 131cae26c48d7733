"""What every room agrees on: settings, the pixel contract, data sets, the prediction log and the ledger."""
