"""Rows of the new tokens, trained in place of the whole embedding and head.

The embedding of a 4B model has 389 million values, and training all of them changes how the base talks. Two rows are
enough for [SEG] and [NEG]: they replace those of the frozen matrices in training, and are written there when the
model is merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TokenRows(nn.Module):
    """The rows of `ids` in the embedding and, unless both are one matrix, in the head."""

    def __init__(
        self, ids: Sequence[int], embedding: Tensor, head: Tensor | None, scale: float = 1.0
    ) -> None:
        """`embedding` and `head` are (vocabulary, hidden_dim); `head` is None where they are tied.

        `scale` is what the embedding multiplies its rows with (Gemma).
        """
        super().__init__()
        self.ids, self.scale = tuple(ids), scale
        self.embedding = nn.Parameter(embedding.detach()[list(ids)].clone())  # (num_ids, hidden_dim)
        self.head = None if head is None else nn.Parameter(head.detach()[list(ids)].clone())

    def forward(
        self, given: Tensor, *, embeddings: Tensor | None = None, logits: Tensor | None = None
    ) -> Tensor:
        """Puts the rows where they belong; one method for both, as ZeRO-3 gathers weights when a module is called.

        Args:
            given: token ids (N, T) with `embeddings`, hidden states (..., hidden_dim) with `logits`.
            embeddings: (N, T, hidden_dim) of the frozen matrix.
            logits: (..., vocabulary) of the frozen head; changed in place.
        """
        if embeddings is not None:
            rows = (self.embedding * self.scale).to(embeddings.dtype)
            for row, index in zip(rows, self.ids, strict=True):
                embeddings = torch.where((given == index).unsqueeze(-1), row, embeddings)
            return embeddings
        assert logits is not None
        rows = self.embedding if self.head is None else self.head
        own = nn.functional.linear(given, rows.to(given.dtype))
        for place, index in enumerate(self.ids):
            logits[..., index] = own[..., place]
        return logits

    @torch.no_grad()
    def write(self, embedding: Tensor, head: Tensor | None) -> None:
        """Writes the rows into the matrices (vocabulary, hidden_dim); `head` is None where they are tied."""
        for matrix, rows in ((embedding, self.embedding), (head, self.head)):
            if matrix is not None and rows is not None:
                matrix[list(self.ids)] = rows.to(matrix.dtype)
