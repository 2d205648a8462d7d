"""Answers of a trained model: segment, chat, generate, constrained decoding."""
