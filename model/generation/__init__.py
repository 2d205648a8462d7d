"""Inference: segment, chat, free generation, constrained decoding."""
