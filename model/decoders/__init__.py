"""Images and prompt embeddings in, masks out."""
