"""A tiny untrained model that the tests of this folder talk to, and one that says what it is told."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.load import load_model
from model.text.tokens import encode_text
from tests.tiny_weights import write_base


@pytest.fixture(scope="session")
def tiny(llama_tokenizer_folder, tmp_path_factory):
    """Decoded under constraint; float32. Tests leave it as it is."""
    folders = write_base(tmp_path_factory.mktemp("serving"), llama_tokenizer_folder)
    return load_model(folders.llava, dtype=torch.float32, **folders.parts)[0]


@pytest.fixture
def says(tiny, monkeypatch):
    """Makes the model answer every question in words with these pieces."""

    def say(*pieces):
        processor, size = tiny.processor, tiny.config.image_token_id
        ids = [*encode_text(processor.tokenizer, pieces), processor.token_ids.eos]
        answer = iter(())

        def scripted(states):
            nonlocal answer
            token = next(answer, None)
            if token is None:
                answer = iter(ids)
                token = next(answer)
            return torch.nn.functional.one_hot(torch.full(states.shape[:-1], token), size).float()

        monkeypatch.setattr(tiny, "text_logits", scripted)
        return tiny

    return say
