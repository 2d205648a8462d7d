"""What an ablation compares: the variants, where their runs are, and the commands that train and evaluate them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.reports.report import Report, read_report
from utils.toy.demo import CONFIG

# One list of classes is 150 names, so a query names all of them only without a limit of its own.
WHOLE_LIST = ("--no_random_classes_list", "--num_all_classes", "200", "--model_max_length", "3072")
NO_NEG, ANY_ORDER = ("--no_sequence_augmentation",), ("--no_order_following",)
PAPER, SPATIAL = ("--spatial_prompt=false",), ("--spatial_prompt",)
# What the language model sees of an image that is no square; the recipe cuts out the middle.
PAD, STRETCH = ("--image_aspect_ratio", "pad"), ("--image_aspect_ratio", "stretch")
# Of a language model of 7B; those of the toy recipe are larger in proportion.
PAPER_ADAPTERS = ("--lora_r", "8", "--lora_alpha", "16", "--lora_target_modules", "q_proj,v_proj")


@dataclass(frozen=True)
class Variant:
    """A way to train: the toy recipe with further flags."""

    title: str
    flags: tuple[str, ...] = ()


VARIANTS = {
    "full": Variant("the recipe of the paper", PAPER),
    "whole_list": Variant("without random classes list", (*PAPER, *WHOLE_LIST)),
    "no_neg": Variant("without sequence augmentation", (*PAPER, *NO_NEG)),
    "any_order": Variant("without order following", (*PAPER, *ANY_ORDER)),
    "none": Variant("without all three", (*PAPER, *WHOLE_LIST, *NO_NEG, *ANY_ORDER)),
    "spatial": Variant("the recipe and a spatial prompt", SPATIAL),
    "latent": Variant(
        "the recipe, a spatial prompt and 4 latent prompts", (*SPATIAL, "--num_latent_prompts", "4")
    ),
    "pad": Variant("the recipe on padded images", (*PAPER, *PAD)),
    "stretch": Variant("the recipe on stretched images", (*PAPER, *STRETCH)),
    "spatial_pad": Variant("a spatial prompt on padded images", (*SPATIAL, *PAD)),
    "spatial_stretch": Variant("a spatial prompt on stretched images", (*SPATIAL, *STRETCH)),
    "spatial_few_adapters": Variant("a spatial prompt and the paper's adapters", (*SPATIAL, *PAPER_ADAPTERS)),
}
VAL_DATASETS = "ade20k,refcoco|unc|val,grefcoco|unc|val,ReasonSeg|val"


@dataclass(frozen=True)
class Study:
    """Where the runs are, and what they have in common."""

    out: Path
    steps: int
    train_flags: tuple[str, ...] = ()
    max_samples: int | None = None

    @property
    def dataset(self) -> Path:
        return self.out / "dataset"

    def folder(self, variant: str, seed: int) -> Path:
        return self.out / variant / f"seed{seed}"

    def commands(self, variant: str, seed: int) -> list[list[str]]:
        """Training and evaluation of one run, as a person would type them."""
        run = self.folder(variant, seed)
        train = [
            "train_ds.py", "--config", str(CONFIG), "--dataset_dir", str(self.dataset), "--log_base_dir",
            str(run.parent), "--exp_name", run.name, "--sam_cache", str(self.out / "sam_cache"), "--epochs", "1",
            "--steps_per_epoch", str(self.steps), "--no_eval", "--num_threads", "1", "--seed", str(seed),
            *VARIANTS[variant].flags, *self.train_flags,
        ]  # fmt: skip
        limit = [] if self.max_samples is None else ["--max_samples", str(self.max_samples)]
        evaluate = [
            "test_sem.py", "--version", str(run / "ckpt_model"), "--dataset_dir", str(self.dataset),
            "--val_dataset_list", VAL_DATASETS, "--val_batch_size", "4", "--precision", "fp32", "--num_threads", "1",
            "--report_dir", str(run / "eval"), *limit,
        ]  # fmt: skip
        return [train, evaluate]

    def report(self, variant: str, seed: int) -> Report | None:
        """The report of a run that has been finished."""
        path = self.folder(variant, seed) / "eval" / "report.json"
        return read_report(path) if path.is_file() else None
