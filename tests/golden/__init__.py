"""Where the reference numbers of the released code are: a small part here, the complete set elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

PART = Path(__file__).parent
# Beside the repository, or where LASAGNA_GOLDEN says. It need not be there.
COMPLETE = Path(os.environ.get("LASAGNA_GOLDEN", PART.parents[2] / "shared" / "golden"))


def folders() -> list[Path]:
    """The small part, always, and the complete set where it is there."""
    return [PART, COMPLETE] if COMPLETE.is_dir() else [PART]
