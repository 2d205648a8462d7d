"""Merge the weights of a training run into a complete model folder.

    python merge_lora_weights_and_save_hf_model.py --version PATH_TO_LLaVA \\
      --weight runs/LaSagnA-7b/ckpt_model --save_path PATH_TO_SAVED_MODEL

--weight is a checkpoint folder of train_ds.py (read directly), or what
zero_to_fp32.py made of it: a file or a folder of shards. Where the run's own
settings are beside the weights, base model, CLIP, SAM, LoRA alpha, prompt and
format need no flag. The model is merged shard by shard: a 7B model takes a few
GB of memory. docs/checkpoints.md describes --layout lisa, --report and
--push_to_hub.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.common.command_line import answer_at_once, parse_config
from utils.config.inference import MergeConfig

if __name__ == "__main__":
    answer_at_once("merge_lora_weights_and_save_hf_model.py", MergeConfig, __doc__)  # slow imports follow

from tqdm import tqdm

from model.checkpoints.checkpoint import TrainedWeights, open_trained
from model.checkpoints.merge import open_merge, save
from model.checkpoints.merged_model import MergedModel
from model.checkpoints.sums import verify_if_known, verify_sums
from model.errors import UserError
from utils.common.commands import command
from utils.common.distributed import dtype_unless_stored
from utils.common.hub import check_login, push_folder
from utils.common.logs import start_logging
from utils.common.paths import check_writable
from utils.reports.model_card import model_card
from utils.reports.report import read_report


@command("merge_lora_weights_and_save_hf_model.py")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(MergeConfig, argv, about=__doc__)
    start_logging()
    target = free_folder(config.save_path)
    report = read_report(config.report) if config.report else None
    if config.push_to_hub:
        check_login(config.push_to_hub)
    trained = open_trained(config.weight, config.tag or None)
    base = base_of(config, trained)
    if config.verify:
        verify_sums(config.weight, "--weight", config.tag or None)
        verify_if_known(base, "--version")
    merged = merge(config, base, trained, target)
    card = model_card(
        target.name, base, merged.config, merged.num_parameters, run=trained.settings.run, report=report
    )
    write(config, merged, target, card)
    print(f"{target} is ready: python chat.py --version {target}")
    if config.push_to_hub:
        print(f"uploaded to {push_folder(target, config.push_to_hub)}, a private repository")
    return 0


def free_folder(path: str) -> Path:
    """The folder to write, which must not hold anything yet: nobody's model is overwritten."""
    if not path:
        raise UserError("--save_path says where the merged model goes")
    folder = Path(path)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"--save_path {path} exists; remove it or choose another name")
    check_writable(folder, "--save_path")
    check_writable(folder.parent, "--save_path")  # where it is made, before it gets its name
    return folder


def base_of(config: MergeConfig, trained: TrainedWeights) -> str:
    """The model that the run started from."""
    version = config.version or trained.settings.place_of("version")
    if not version:
        raise UserError(
            f"the run's settings are not beside {config.weight}; pass --version, the model that training "
            "started from"
        )
    return version


def merge(config: MergeConfig, base: str, trained: TrainedWeights, target: Path) -> MergedModel:
    """The base as it was when training started and the trained weights; flags win over the run's settings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return open_merge(
        base,
        trained,
        scratch=target.parent,
        vision_tower=config.vision_tower,
        sam=config.vision_pretrained,
        dtype=dtype_unless_stored(config.precision),
        lora_alpha=config.lora_alpha,
    )


def write(config: MergeConfig, merged: MergedModel, target: Path, card: str) -> None:
    """Writes the folder, reads it back, and shows how far it is."""
    num_bytes = sum(merged.sizes.values())
    with tqdm(
        total=2 * num_bytes, unit="B", unit_scale=True, desc="writing and reading back", disable=None
    ) as bar:
        save(merged, target, card=card, layout=config.layout, progress=bar.update)


if __name__ == "__main__":
    sys.exit(main())
