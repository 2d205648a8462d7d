"""Fifty clients at once, honest and others, against the server of chat.py."""
