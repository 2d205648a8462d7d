import pytest

from model.text.format import SequenceFormat
from utils.data.types import Recipe


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(format=SequenceFormat.named("paper"))
