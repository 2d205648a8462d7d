"""Write a toy world: cartoon scenes in the official on-disk layouts of the data sets, deterministic by seed.

    python -m utils.toy.world --out ./dataset --seed 0 --num_images 400
    python -m utils.toy.world --out ./dataset --layouts ade20k,refer

Every layout gets `num_images` scenes for training and `num_val` for validation. No two layouts share scenes, except
those that annotate the images of another, as the published ones do: PACO those of COCO, R-RefCOCO and FP-RefCOCO
those of RefCOCO. The last ones that --layouts lists are accepted alternatives of others, and are written only when
named.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from model.errors import UserError
from model.files import read_json
from model.write_errors import writing
from utils.common.commands import command, script_parser
from utils.common.paths import check_writable, path_flag
from utils.toy.layouts.coco import write_coco
from utils.toy.layouts.common import SEED_OF_SPLIT, SceneSource, scene_key, write_json
from utils.toy.layouts.lisa_plus import write_lisa_plus
from utils.toy.layouts.llava_mix import write_llava_mix
from utils.toy.layouts.mapillary import write_mapillary, write_mapillary_1
from utils.toy.layouts.muse import write_muse
from utils.toy.layouts.openimages import write_openimage
from utils.toy.layouts.own import write_own
from utils.toy.layouts.parts import write_paco_lvis, write_pascal_part
from utils.toy.layouts.reason import write_reason, write_reason_test
from utils.toy.layouts.refer import write_refer
from utils.toy.layouts.refer_absent import write_refer_absent
from utils.toy.layouts.refer_more import write_refclef, write_refcoco_plus, write_refcocog
from utils.toy.layouts.refzom import write_refzom
from utils.toy.layouts.semantic import write_ade20k, write_cityscapes
from utils.toy.layouts.voc import write_pascal_context, write_pascal_voc

__all__ = ["WorldConfig", "main", "make_world", "scene_key"]

VERSION = 2  # of the generator; a world of another version is refused
Writer = Callable[[Path, SceneSource], None]
WRITERS: dict[str, Writer] = {
    "ade20k": write_ade20k,
    "coco": write_coco,  # with COCO-Stuff and LLaVA-Instruct
    "cityscapes": write_cityscapes,
    "refer": write_refer,  # refCOCO and gRefCOCO
    "reason": write_reason,
    "mapillary": write_mapillary,
    "openimage": write_openimage,
    "pascal_part": write_pascal_part,
    "paco_lvis": write_paco_lvis,
    "pascal_context": write_pascal_context,
    "pascal_voc": write_pascal_voc,
    "refclef": write_refclef,
    "refcoco+": write_refcoco_plus,
    "refcocog": write_refcocog,
    "reason_test": write_reason_test,
    "refer_absent": write_refer_absent,  # R-RefCOCO and FP-RefCOCO, about the images of RefCOCO
    "muse": write_muse,
    "lisa_plus": write_lisa_plus,  # LISA++
    "refzom": write_refzom,
    "llava_mix": write_llava_mix,  # a sixth of its images are COCO's
    "own": write_own,  # the three kinds of own data
}
SECOND_CHOICE: dict[str, Writer] = {
    "ade20k:ADEChallengeData2016": partial(write_ade20k, top="ADEChallengeData2016"),
    "coco:stuffthingmaps": partial(write_coco, label_folder="coco/stuffthingmaps_trainval2017"),
    "mapillary:v1.2": write_mapillary_1,
    "pascal_context:tif": partial(write_pascal_context, converted=True),
}
MIN_VAL, VAL_SHARE = 4, 5


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The parameters that determine a world."""

    out: str  # folder that becomes the --dataset_dir
    seed: int = 0  # another seed gives another world
    num_images: int = 400  # training scenes of each layout
    num_val: int = 0  # validation scenes of each layout; 0: a fifth of num_images, at least 4
    layouts: str = ""  # which to write, separated by commas; empty: all of WRITERS

    def __post_init__(self) -> None:
        known = (*WRITERS, *SECOND_CHOICE)
        for name in self.chosen:
            if name not in known:
                raise UserError(f"--layouts: unknown layout {name!r}; known: {', '.join(known)}")
        if not 0 <= self.seed < SEED_OF_SPLIT["val"]:
            raise UserError(
                f"seed must be in 0..{SEED_OF_SPLIT['val'] - 1}, got {self.seed}; higher ones are held out"
            )
        if self.num_images < 1 or self.num_val < 0:
            raise UserError(
                f"num_images must be >= 1 and num_val >= 0, got {self.num_images} and {self.num_val}"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The layouts to write, each once."""
        named = [name.strip() for name in self.layouts.split(",") if name.strip()]
        return tuple(dict.fromkeys(named or WRITERS))

    @property
    def source(self) -> SceneSource:
        num_val = self.num_val or max(self.num_images // VAL_SHARE, MIN_VAL)
        return SceneSource(self.seed, self.num_images, num_val)


def make_world(config: WorldConfig) -> bool:
    """Writes the world, or keeps an existing one that has all layouts; returns whether it was written.

    The folder appears complete or not at all.

    Raises:
        ValueError: the folder holds something else.
    """
    out = Path(config.out)
    parameters = {"version": VERSION, **asdict(config.source), "layouts": list(config.chosen)}
    if out.is_dir() and any(out.iterdir()):
        if not (out / "world.json").is_file():
            raise UserError(f"{out} holds files but no world.json; pass an empty or new folder as --out")
        found = read_json(out / "world.json")
        if {**found, "layouts": None} == {**parameters, "layouts": None} and set(config.chosen) <= set(
            found.get("layouts", ())
        ):
            return False
        raise UserError(f"{out} holds another world, {found}, not {parameters}; delete it or change --out")
    check_writable(out, "--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out, "; nothing is left of it"):
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            for name in config.chosen:
                (WRITERS | SECOND_CHOICE)[name](unfinished, config.source)
            write_json(unfinished / "world.json", parameters)
            unfinished.chmod(0o755)  # mkdtemp's folders are readable by their owner only
            unfinished.replace(out)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return True


def parse_arguments(argv: Sequence[str] | None) -> WorldConfig:
    parser = script_parser("utils.toy.world", __doc__)
    helps = {
        "out": "folder to write, the later --dataset_dir",
        "seed": "another seed gives another world",
        "num_images": "training scenes of each layout",
        "num_val": "validation scenes of each layout; 0: a fifth of num_images, at least 4",
        "layouts": f"which to write, separated by commas (default: {', '.join(WRITERS)}); also "
        f"{', '.join(SECOND_CHOICE)}",
    }
    for field in fields(WorldConfig):
        required = field.name == "out"
        parser.add_argument(
            f"--{field.name}",
            type=(lambda text: str(path_flag(text))) if required else field.type,
            required=required,
            default=None if required else field.default,
            help=helps[field.name],
        )
    return WorldConfig(**vars(parser.parse_args(argv)))


@command("utils.toy.world")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 after a one-line message about a user's mistake."""
    config = parse_arguments(argv)
    written = make_world(config)
    source = config.source
    what = "written" if written else "kept, it was complete"
    print(
        f"{config.out}: {source.num_train} training and {source.num_val} validation scenes a layout, {what}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
