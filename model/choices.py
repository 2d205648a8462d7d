"""What settings may be: names, defaults and rules that the command line needs before PyTorch, which takes seconds."""

from __future__ import annotations

from model.errors import UserError

# What --mask_head calls the decoders that take one prompt for a mask, and the detector that takes a class name.
SAM_HEAD, CONCEPT_HEAD = "sam", "concept"
HEADS = (SAM_HEAD, CONCEPT_HEAD)

# What becomes of an image that is no square, for CLIP: its middle is cut out (LLaVA v1), it is padded (LLaVA 1.5), or
# squashed.
ASPECT_RATIOS = ("square", "pad", "stretch")
MAX_LATENT_PROMPTS = 64

# Of the frozen image encoders.
AS_THE_MODEL, BF16 = "", "bf16"
ENCODER_PRECISIONS = (AS_THE_MODEL, BF16)

DEFAULT_NEW_TOKENS = 256  # the same for the API, chat.py, test_sem.py and validation
DEFAULT_MATCH_DISTANCE = 0.2  # edits / length of the longer name: "trees" matches "tree", "cat" not "car"


def check_spatial(spatial_prompt: bool, num_latent_prompts: int, mask_head: str = "") -> None:
    """Raises a UserError unless the settings of the spatial prompt fit together, and to the mask head."""
    if not isinstance(spatial_prompt, bool):
        raise UserError(f"spatial_prompt must be true or false, got {spatial_prompt!r}")
    if type(num_latent_prompts) is not int or not 0 <= num_latent_prompts <= MAX_LATENT_PROMPTS:
        raise UserError(
            f"num_latent_prompts must be from 0 to {MAX_LATENT_PROMPTS}, got {num_latent_prompts!r}"
        )
    if spatial_prompt and mask_head == CONCEPT_HEAD:
        raise UserError(
            f"--spatial_prompt does not go with --mask_head {CONCEPT_HEAD}, which takes no mask prompts; leave it out"
        )
    if num_latent_prompts and not spatial_prompt:
        raise UserError(f"num_latent_prompts {num_latent_prompts} needs --spatial_prompt")


def check_min_area(min_area: int, *, instances: bool, name: str = "min_area") -> None:
    """UserError for a number of pixels below 0, or for one where whole masks are wanted."""
    if min_area < 0:
        raise UserError(f"{name} is a number of pixels, at least 0; got {min_area}")
    if min_area and not instances:
        raise UserError(
            f"{name} leaves out small instances; it needs {name.replace('min_area', 'instances')} too"
        )
