"""One file a foreign checkpoint layout: how to recognise it, and its key map as data."""
