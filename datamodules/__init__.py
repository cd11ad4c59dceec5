"""Lightning datamodules: where training data, reference data and sample indices come from."""
