"""Images and tokens in, hidden states out."""
