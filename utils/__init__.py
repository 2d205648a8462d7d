"""Data, configuration, metrics and reports around the model."""
