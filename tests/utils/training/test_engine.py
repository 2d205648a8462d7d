"""The Protocol of the engine says what DeepSpeed's offers."""

from __future__ import annotations

import inspect

from deepspeed import DeepSpeedEngine

from utils.training.engine import Engine


def test_deepspeed_offers_every_method_with_its_arguments():
    for name, wanted in inspect.getmembers(Engine, inspect.isfunction):
        if name.startswith("_"):
            continue
        offered = inspect.signature(getattr(DeepSpeedEngine, name)).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in offered.values()):
            assert set(inspect.signature(wanted).parameters) <= set(offered), name
