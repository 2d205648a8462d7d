"""SAM: image encoder, prompt encoder and mask decoder, from images and prompt embeddings to mask logits."""
