"""A field is a flag is a YAML key."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from model.backbones.llava import LlavaBackbone
from model.errors import UserError
from model.losses import DEFAULT_WEIGHTS
from utils.common.command_line import parse_config
from utils.common.config_files import as_yaml, save_config
from utils.config.chat import ChatConfig
from utils.config.data import absolute_own_data
from utils.config.inference import MergeConfig, TestConfig
from utils.config.training import TrainConfig

REQUIRED = {
    TrainConfig: "--version=a",
    TestConfig: "--version=a",
    ChatConfig: "--version=a",
    MergeConfig: "--weight=a",
}
NEEDS = {
    "cuda_graphs": ("--no_gradient_checkpointing", "--pad_to_multiple_of=32")
}  # what a setting goes with


def train(*flags: str) -> TrainConfig:
    return parse_config(TrainConfig, ["--version=llava", *flags])


@pytest.fixture
def yaml_file(tmp_path):
    def write(content: str) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def test_the_defaults_are_the_recipe_of_the_paper():
    config = train()
    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert (config.lr, config.beta1, config.beta2, config.weight_decay) == (3e-4, 0.9, 0.95, 0)
    assert (config.warmup_steps, config.grad_clip, config.precision, config.zero_stage) == (
        100,
        1.0,
        "bf16",
        2,
    )
    assert (config.batch_size, config.grad_accumulation_steps, config.num_steps) == (2, 10, 36 * 500)
    assert (config.model_max_length, config.num_all_classes, config.num_expressions) == (1024, 80, 5)
    assert config.loss_weights == DEFAULT_WEIGHTS
    assert DEFAULT_WEIGHTS == {
        "cross_entropy": 1.0, "mask_bce": 2.0, "dice": 0.5, "map_bce": 1.0, "map_dice": 0.25,
        "presence": 1.0,
    }  # fmt: skip
    format = config.sequence_format
    assert format.name == "paper"
    assert format.random_classes_list
    assert format.sequence_augmentation
    assert format.order_following


@pytest.mark.parametrize("kind", REQUIRED)
def test_every_setting_has_a_meaning_and_a_flag(kind):
    config = parse_config(kind, [REQUIRED[kind]])
    for entry in dataclasses.fields(kind):
        assert entry.metadata["help"]
        value = getattr(config, entry.name)
        if isinstance(value, bool):
            on = parse_config(kind, [REQUIRED[kind], f"--{entry.name}", "true", *NEEDS.get(entry.name, ())])
            off = parse_config(kind, [REQUIRED[kind], f"--{entry.name}=false"])
            assert (getattr(on, entry.name), getattr(off, entry.name)) == (True, False)
            if value:  # on by default, so there is a switch
                assert not getattr(parse_config(kind, [REQUIRED[kind], f"--no_{entry.name}"]), entry.name)


def test_values_arrive_in_all_the_ways_to_write_them():
    config = train(
        "--lr", "1e-4", "--batch_size=3", "--dataset=sem_seg||vqa", "--no_eval", "--no_order_following"
    )
    assert (config.lr, config.batch_size, config.dataset) == (1e-4, 3, "sem_seg||vqa")
    assert config.no_eval
    assert not config.sequence_format.order_following
    assert parse_config(TestConfig, ["--version=m", "--max_samples=3"]).max_samples == 3
    assert parse_config(ChatConfig, ["--version=m", "--presence_threshold=0.4"]).presence_threshold == 0.4


def test_flags_win_over_the_file_and_the_file_over_the_defaults(yaml_file):
    path = yaml_file(
        "version: base\nlr: 1e-5\nbatch_size: 4\norder_following: false\nsample_rates: 1,2,3,4\n"
    )
    config = parse_config(TrainConfig, ["--batch_size=8", "--config", path])
    assert (config.version, config.lr, config.batch_size) == ("base", 1e-5, 8)
    assert (config.order_following, config.sample_rates, config.epochs) == (False, "1,2,3,4", 36)
    assert parse_config(TrainConfig, [f"--config={path}", "--order_following"]).order_following


def test_no_value_in_the_file_means_the_default(yaml_file):
    path = yaml_file("version: m\nmax_samples:\n")
    assert parse_config(TestConfig, ["--config", path]).max_samples is None
    assert train("--config", yaml_file("")).lr == 3e-4


def test_saved_settings_are_read_back_and_a_flag_still_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where ./runs, which would become absolute, does not exist
    config = train("--val_dataset=ade20k", "--no_order_following", "--exp_name=größe: 1", "--lr=1e-5")
    save_config(config, tmp_path / "run.yaml")
    again = ["--config", str(tmp_path / "run.yaml")]
    assert parse_config(TrainConfig, again) == config
    assert (
        parse_config(TrainConfig, [*again, "--val_dataset_list=cityscapes"]).val_dataset_list == "cityscapes"
    )


def test_a_number_that_was_taken_back_stays_so_in_a_file(tmp_path, monkeypatch):
    """`none`, where the default is a number, is not the default."""
    monkeypatch.chdir(tmp_path)  # where ./runs, which would become absolute, does not exist
    config = train("--max_bad_steps=none", "--save_every_minutes=none", "--rank_timeout=none")
    save_config(config, tmp_path / "run.yaml")
    assert parse_config(TrainConfig, ["--config", str(tmp_path / "run.yaml")]) == config
    (tmp_path / "mine.yaml").write_text("version: m\nmax_bad_steps:\nlr:\n")
    mine = train("--config", str(tmp_path / "mine.yaml"))
    assert (mine.max_bad_steps, mine.lr) == (None, 3e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--exp_name=1e5", "--sample_rates=1,2", "--lr=1e-05", "--seed=7"],
        ["--exp_name=yes", "--sem_seg_rates=6_2", "--lora_dropout=0"],
        [
            "--exp_name=größe: #1",
            "--val_dataset_list=ade20k,refcoco|unc|val",
            "--dataset=sem_seg||own_sem:a b",
        ],
        ["--exp_name=none", "--no_pack", "--spatial_prompt", "--num_latent_prompts=2", "--beta2=0.1"],
    ],
)
def test_settings_as_yaml_give_the_same_settings(flags, tmp_path):
    config = train(*flags)
    path = tmp_path / "settings.yaml"
    path.write_text(as_yaml(config, left_out=("print_config",)), encoding="utf-8")
    again = parse_config(TrainConfig, ["--config", str(path)])
    assert again == config
    assert as_yaml(again, left_out=("print_config",)) == path.read_text(encoding="utf-8")


def test_own_data_in_a_list_becomes_absolute_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my scans").mkdir()
    entries = "sem_seg||own_sem:./my scans|train||own_coco:gone"
    expected = f"sem_seg||own_sem:{tmp_path / 'my scans'}|train||own_coco:gone"
    assert absolute_own_data(entries, "||") == expected
    assert absolute_own_data("ade20k,refcoco|unc|val", ",") == "ade20k,refcoco|unc|val"


def test_trackers_are_named_each_once():
    assert train().trackers == ("tensorboard",)
    assert train("--report_to=wandb, tensorboard,wandb").trackers == ("wandb", "tensorboard")
    assert train("--report_to=none").trackers == ()


@pytest.mark.parametrize("kind", [TrainConfig, TestConfig])
def test_val_dataset_is_another_name(kind, yaml_file):
    for flags in (
        ["--val_dataset=refcoco|unc|testA"],
        ["--val-dataset", "refcoco|unc|testA"],
        ["--config", yaml_file("val_dataset: refcoco|unc|testA")],
        ["--config", yaml_file("val_dataset: ade20k"), "--val_dataset_list=refcoco|unc|testA"],
        ["--config", yaml_file("val_dataset_list: ade20k"), "--val_dataset=refcoco|unc|testA"],
        ["--config", yaml_file("val_dataset_list: refcoco|unc|testA\nval_dataset: ''")],
    ):
        assert parse_config(kind, ["--version=a", *flags]).val_dataset_list == "refcoco|unc|testA"


def test_of_both_names_of_a_setting_the_later_flag_wins_and_a_file_may_use_one(yaml_file):
    assert train("--val_dataset=ade20k", "--val_dataset_list=cityscapes").val_dataset_list == "cityscapes"
    assert train("--val_dataset_list=cityscapes", "--val_dataset=ade20k").val_dataset_list == "ade20k"
    with pytest.raises(UserError, match="'val_dataset_list' is given twice, also by its other name"):
        train("--config", yaml_file("val_dataset: ade20k\nval_dataset_list: cityscapes"))


def test_a_name_that_people_may_try_is_an_error_that_says_the_right_one(yaml_file):
    """`format` is how complex queries are written; the merge script writes a layout."""
    with pytest.raises(UserError, match=r"unknown flag --format=lisa; did you mean --layout\?"):
        parse_config(MergeConfig, ["--weight=a", "--format=lisa"])
    with pytest.raises(UserError, match=r"unknown setting 'format' of MergeConfig; did you mean 'layout'\?"):
        parse_config(MergeConfig, ["--weight=a", "--config", yaml_file("format: lisa")])


def test_hyphens_are_read_as_underscores():
    config = train("--exp-name=a-b", "--no-pack", "--max-val-samples", "3", "--fast-resize")
    assert (config.exp_name, config.pack, config.max_val_samples, config.fast_resize) == (
        "a-b",
        False,
        3,
        True,
    )


def test_none_takes_the_number_of_a_file_back(yaml_file):
    path = yaml_file("version: m\nmax_val_samples: 8\nnum_threads: 2\nclasses_per_query: 5\n")
    config = train("--config", path, "--max_val_samples=none", "--num_threads", "None")
    assert (config.max_val_samples, config.num_threads, config.classes_per_query) == (None, None, 5)
    with pytest.raises(UserError, match=r"--max_val_samples must be > 0, got 0; leave it out for all"):
        train("--max_val_samples=0")
    with pytest.raises(UserError, match=r"--batch_size.*'none'"):
        train("--batch_size=none")


@pytest.mark.parametrize("kind", REQUIRED)
def test_parsing_leaves_the_class_as_it_was(kind):
    before = {
        entry.name: (entry.type, entry.default, dict(entry.metadata)) for entry in dataclasses.fields(kind)
    }
    parse_config(kind, [REQUIRED[kind]])
    after = {
        entry.name: (entry.type, entry.default, dict(entry.metadata)) for entry in dataclasses.fields(kind)
    }
    assert after == before


def test_settings_can_be_made_without_a_command_line_and_are_checked_too():
    with pytest.raises(ValueError, match="--precision 'int4' is not known; choose one of: fp32, bf16, fp16"):
        TrainConfig(version="a", precision="int4")
    with pytest.raises(ValueError, match="--format"):
        TrainConfig(version="a", format="xml")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig(version="a").lr = 1.0


def test_adapters_are_looked_for_in_the_language_model_alone():
    import re

    layers = train("--lora_target_modules= q_proj, o_proj ,").adapters["layers"]
    pattern = LlavaBackbone(None, None).lora_pattern(layers)
    assert re.fullmatch(pattern, "model.language_model.layers.0.self_attn.o_proj")
    assert not re.fullmatch(pattern, "model.vision_tower.encoder.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.language_model.layers.0.self_attn.v_proj")


@pytest.mark.parametrize("kind", [TestConfig, ChatConfig])
def test_scripts_that_ask_a_model_load_it_alike(kind):
    assert parse_config(kind, ["--version=a"]).loading == {
        "dtype": None, "encoder_precision": "", "attn_implementation": "auto", "quantization": None,
    }  # fmt: skip
    flags = ["--version=a", "--precision=fp16", "--load_in_4bit", "--attn_implementation=eager",
             "--encoder_precision=bf16"]  # fmt: skip
    assert parse_config(kind, flags).loading == {
        "dtype": torch.float16, "encoder_precision": "bf16", "attn_implementation": "eager",
        "quantization": "4bit",
    }  # fmt: skip
    assert parse_config(kind, ["--version=a", "--load_in_8bit"]).loading["quantization"] == "8bit"


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        (TrainConfig, ["--version="], "--version says"),
        (TrainConfig, ["--epochs=0"], "--epochs must be > 0, got 0"),
        (TrainConfig, ["--steps_per_epoch=-5"], "--steps_per_epoch must be > 0, got -5"),
        (TrainConfig, ["--grad_accumulation_steps=0"], "--grad_accumulation_steps must be > 0"),
        (TrainConfig, ["--lr=0"], "--lr must be > 0, got 0.0"),
        (TrainConfig, ["--lr=nan"], "--lr must be > 0, got nan"),
        (TrainConfig, ["--lr=inf"], "--lr must be > 0, got inf"),
        (TrainConfig, ["--weight_decay=nan"], "--weight_decay must be >= 0, got nan"),
        (TrainConfig, ["--warmup_steps=-1"], "--warmup_steps must be >= 0"),
        (TrainConfig, ["--lora_alpha=0"], "--lora_alpha must be > 0"),
        (TrainConfig, ["--lora_r=-1"], "--lora_r must be >= 0"),
        (TrainConfig, ["--lora_dropout=1.5"], "--lora_dropout must be a fraction, 0 to 1, got 1.5"),
        (TrainConfig, ["--explanatory=nan"], "--explanatory must be a fraction"),
        (TrainConfig, ["--beta2=1"], r"--beta2 must be in \[0, 1\), got 1.0"),
        (TrainConfig, ["--exp_name="], "--exp_name '' must be the name of a folder"),
        *(
            (TrainConfig, [f"--exp_name={name}"], f"must be the name of a folder in --log_base_dir, {why}")
            for name, why in (
                (" x", "and begins or ends with a blank; write it without"),
                ("x ", "and begins or ends with a blank"),
                ("x\u00a0", "without separators and control characters"),
                ("x.", "and ends with a dot"),
                ("...", "and ends with a dot"),
                ("x\n", "without separators and control characters"),
                ("x\u200b", "without separators and control characters"),
                ("x\u202ey", "without separators and control characters"),
                ("x\udcff", "without separators and control characters"),
                ("x\\y", "without separators and control characters"),
                ("..", "and names none of its own"),
            )
        ),
        (TrainConfig, ["--batch_size=two"], "--batch_size.*'two'"),
        (TrainConfig, ["--zero_stage=5"], "--zero_stage.*5.*0, 1, 2, 3"),
        (TrainConfig, ["--lr"], "--lr: expected one argument"),
        (TrainConfig, ["llava"], "unknown flag llava; --help lists them"),
        (TrainConfig, ["--order_folowing"], "did you mean --order_following"),
        (TrainConfig, ["--no_order_folowing"], "did you mean --no_order_following"),
        (TrainConfig, ["--batch_siz=2"], "did you mean --batch_size"),
        (TestConfig, ["--val_batch_size=0"], "--val_batch_size must be > 0"),
        (TestConfig, ["--max_samples=0"], "--max_samples must be > 0"),
        (TestConfig, ["--version="], "the folder that the merge script wrote"),
        (TrainConfig, ["--pack=perhaps"], "--pack: must be true or false, got 'perhaps'"),
        (TrainConfig, ["--profile=-1"], "--profile must be >= 0"),
        (TrainConfig, ["--config"], "--config: expected one argument"),
        (TrainConfig, ["--config="], "--config .*does not exist"),
        (
            TestConfig,
            ["--num_threads=-1"],
            "--num_threads must be > 0, got -1; leave it out for torch's choice",
        ),
        (ChatConfig, ["--presence_threshold=-1"], "--presence_threshold must be a fraction"),
        (ChatConfig, ["--max_new_tokens=0"], "--max_new_tokens must be > 0"),
        *(
            (kind, flags, message)
            for kind in (TestConfig, ChatConfig)
            for flags, message in (
                (["--load_in_8bit", "--load_in_4bit"], "exclude each other; choose one"),
                (["--attn_implementation=flash"], "--attn_implementation.*'flash'"),
                (["--precision=int8"], "--precision.*int8.*auto"),
            )
        ),
        (ChatConfig, ["--max_request_mb=inf"], "--max_request_mb must be > 0, got inf, which is not finite"),
        (ChatConfig, ["--max_megapixels=1e308"], r"--max_megapixels must be at most 1e\+06, got 1e\+308"),
        (TrainConfig, ["--disk_patience=inf"], "--disk_patience must be >= 0, got inf, which is not finite"),
        (TrainConfig, ["--save_every_minutes=nan"], "--save_every_minutes must be > 0, got nan"),
        (TrainConfig, ["--lora_r=100000"], "--lora_r must be at most 65,536"),
        (TrainConfig, ["--pad_to_multiple_of=0"], "--pad_to_multiple_of must be > 0"),
        (TrainConfig, ["--pad_to_multiple_of=10000"], "--pad_to_multiple_of must be at most 4,096"),
        (TrainConfig, [f"--seed={10**30}"], "--seed: must be smaller than 2\\^63, got a number of 31 digits"),
        *(
            (kind, flags, message)
            for kind in (TrainConfig, TestConfig)
            for flags, message in (
                (["--rank_timeout=1e308"], "--rank_timeout must be at most"),
                (["--workers=100000"], "--workers must be at most 1,024, got 100000"),
                (["--num_threads=100000"], "--num_threads must be at most 1,024"),
            )
        ),
        (MergeConfig, ["--weight="], "--weight says"),
        (MergeConfig, ["--precision=int8"], "--precision.*int8"),
    ],
)
def test_impossible_values_name_flag_value_and_rule(kind, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_config(kind, [REQUIRED[kind], *flags])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "batchsize: 2",
            "settings.yaml: unknown setting 'batchsize' of TrainConfig; did you mean 'batch_size'",
        ),
        ("xyzzy: 2", "unknown setting 'xyzzy'"),
        ("batch_size: many", "--batch_size.*'many'"),
        ("- batch_size", "must hold 'name: value' lines"),
        ("batch_size: [2", "settings.yaml is not YAML"),
        ("precision: int8", "--precision"),
        ("lr: 1\nlr: 2", "'lr' is given twice; leave one out"),
        ("lr: [1, 2]", "lr must be one value, and is a list"),
        ("exp_name: {a: b}", "exp_name must be one value, and is a dict"),
        ("exp_name: !!binary aGk=", "exp_name must be one value, and is a bytes"),
        ("exp_name: yes", "exp_name must be a text, and YAML reads this word as True; put it into quotes"),
        ("a: &a {lr: 1}\n<<: *a", "merges .<<. are not read"),
        (
            "a: &a {lr: 1}\n"
            + "".join(
                f"{name}: &{name} {{<<: [{', '.join([f'*{of}'] * 9)}]}}\n"
                for of, name in pairwise("abcdefghij")
            ),
            "merges .<<. are not read",
        ),
    ],
)
def test_mistakes_in_a_file_are_named(content, message, yaml_file):
    with pytest.raises(ValueError, match=message) as problem:
        train("--config", yaml_file(content))
    assert "\n" not in str(problem.value)


def test_a_file_that_is_not_there_is_an_error():
    with pytest.raises(
        FileNotFoundError, match=r"--config nowhere\.yaml does not exist; shipped ones are in configs/"
    ):
        train("--config=nowhere.yaml")
