"""Evaluation: prompting the model, protocols, metrics, resuming."""
