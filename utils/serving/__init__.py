"""A trained model as people use it: a conversation in the terminal, files for other programs, a server."""
