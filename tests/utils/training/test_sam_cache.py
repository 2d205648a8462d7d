"""SAM's embeddings on disk: never stale, never damaged, shared by any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.decoders.sam import SamSegmenter
from model.decoders.transform import ImageTransform
from model.encoder_precision import cast_encoder
from model.inputs import Levels, ModelInputs
from tests.tiny_weights import SAM, noise_image, random_sam
from utils.data.sam_keys import checksum, encoder_key, image_key
from utils.data.types import Batch
from utils.training import sam_cache
from utils.training.sam_cache import SamCache

SHAPES = ((4, 3, 3),)  # of SAM
THREE = ((2, 12, 12), (4, 6, 6), (8, 3, 3))  # of SAM 2
TRANSFORM = ImageTransform(64)


def open_cache(folder: Path, **changes: object) -> SamCache:
    return SamCache(folder, "encoder", **({"shapes": SHAPES, "dtype": torch.bfloat16} | changes))


def embedding(seed: int = 0, dtype: torch.dtype = torch.bfloat16, shapes=SHAPES) -> Levels:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def same(found: Levels, expected: Levels) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def key_of(number: int) -> str:
    return image_key(noise_image(20, 30, number), TRANSFORM)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("shapes", [SHAPES, THREE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_stored_comes_back_bit_for_bit_in_its_number_format(tmp_path, dtype, shapes):
    cache = open_cache(tmp_path, dtype=dtype, shapes=shapes)
    expected = embedding(dtype=dtype, shapes=shapes)
    assert cache.load(key_of(0)) is None
    assert cache.store(key_of(0), expected)
    found = open_cache(tmp_path, dtype=dtype, shapes=shapes).load(key_of(0))
    assert {level.dtype for level in found} == {dtype}
    assert same(found, expected)
    assert files_of(tmp_path) == [f"{key_of(0)}.safetensors"]


def test_an_entry_that_is_there_is_not_written_again(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.store(key_of(0), embedding())
    written = cache.path(key_of(0)).stat().st_mtime_ns
    assert not cache.store(key_of(0), embedding())
    assert cache.path(key_of(0)).stat().st_mtime_ns == written


def test_the_entry_is_memory_mapped_and_outlives_its_replacement(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(key_of(0), embedding())
    found = cache.load(key_of(0))
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert key_of(0) in mapped.read_text()
    cache.path(key_of(0)).unlink()
    assert same(found, embedding())


def truncate(path: Path, cache: SamCache) -> None:
    os.truncate(path, path.stat().st_size - 5)


def empty(path: Path, cache: SamCache) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path, cache: SamCache) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rename_another(path: Path, cache: SamCache) -> None:
    cache.store(key_of(1), embedding(1))
    cache.path(key_of(1)).replace(path)


def write_without_metadata(path: Path, cache: SamCache) -> None:
    save_file({"embedding": embedding()[0]}, path)


def write_another_shape(path: Path, cache: SamCache) -> None:
    small = embedding()[0][:2].contiguous()
    metadata = {"key": path.stem, "crc32": str(checksum((small,)))}
    save_file({"embedding": small}, path, metadata)


def write_another_number_format(path: Path, cache: SamCache) -> None:
    wide = embedding()[0].float()
    save_file({"embedding": wide}, path, {"key": path.stem, "crc32": str(checksum((wide,)))})


def write_another_kind_of_decoder(path: Path, cache: SamCache) -> None:
    levels = {f"level_{i}": level for i, level in enumerate(embedding(shapes=THREE))}
    save_file(levels, path, {"key": path.stem, "crc32": str(checksum(tuple(levels.values())))})


def write_a_pickle(path: Path, cache: SamCache) -> None:
    path.write_bytes(pickle.dumps(embedding()))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        flip_a_bit,
        rename_another,
        write_without_metadata,
        write_another_shape,
        write_another_number_format,
        write_another_kind_of_decoder,
        write_a_pickle,
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_replaced(damage, tmp_path, caplog):
    cache = open_cache(tmp_path)
    cache.store(key_of(0), embedding())
    path = cache.path(key_of(0))
    damage(path, cache)
    assert cache.load(key_of(0)) is None
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert "encoded again" in caplog.text
    assert cache.store(key_of(0), embedding())
    assert same(cache.load(key_of(0)), embedding())
    assert len(caplog.records) == 1


def write_many(folder: str, barrier, keys: list[str]) -> None:
    cache = open_cache(Path(folder))
    barrier.wait()
    for number, key in enumerate(keys):
        cache.store(key, embedding(number))


def test_two_processes_that_write_the_same_entries_leave_one_good_file_of_each(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, keys = context.Barrier(2), [key_of(number) for number in range(50)]
    writers = [context.Process(target=write_many, args=(str(tmp_path), barrier, keys)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert files_of(tmp_path) == sorted(f"{key}.safetensors" for key in keys)
    cache = open_cache(tmp_path)
    assert all(same(cache.load(key), embedding(number)) for number, key in enumerate(keys))


def test_what_the_file_system_refuses_is_said_once_and_training_goes_on(tmp_path, caplog, monkeypatch):
    cache = open_cache(tmp_path)

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        assert [cache.store(key_of(number), embedding()) for number in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert files_of(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(
            ValueError, match=r"--sam_cache .* cannot be written to \(.*\); name another folder"
        ):
            open_cache(tmp_path / place)


# ---------------------------------------------------------------------------------------- room


def size_of_an_entry(tmp_path: Path) -> int:
    cache = open_cache(tmp_path / "measured")
    cache.store(key_of(0), embedding())
    return cache.path(key_of(0)).stat().st_size


def limited(folder: Path, num_entries: float, size: int, **changes: object) -> SamCache:
    return open_cache(folder, max_gb=num_entries * size / sam_cache.GIGABYTE, **changes)


def test_nothing_is_added_to_a_full_folder_and_nothing_is_lost(tmp_path, caplog):
    size = size_of_an_entry(tmp_path)
    cache = limited(tmp_path / "cache", 5.5, size)
    stored = [cache.store(key_of(number), embedding(number)) for number in range(20)]
    assert stored == [True] * 5 + [False] * 15
    assert [("--sam_cache_gb" in record.getMessage()) for record in caplog.records] == [True]
    assert same(cache.load(key_of(0)), embedding(0))
    flip_a_bit(cache.path(key_of(0)), cache)
    assert cache.store(key_of(0), embedding(0))  # takes no more room than before


def test_what_another_run_or_another_encoder_left_counts(tmp_path):
    size = size_of_an_entry(tmp_path)
    for number in range(3):
        open_cache(tmp_path / "cache").store(key_of(number), embedding())
    other = SamCache(tmp_path / "cache", "other", shapes=SHAPES, dtype=torch.bfloat16)
    other.store(key_of(0), embedding())
    cache = limited(tmp_path / "cache", 6.5, size)
    assert [cache.store(key_of(number), embedding()) for number in range(9)] == [
        *[False] * 3,  # they are there
        *[True] * 2,
        *[False] * 4,
    ]


def test_processes_that_add_in_turn_share_the_room_and_count_seldom(tmp_path, monkeypatch):
    size = size_of_an_entry(tmp_path)
    counted = []
    measure = sam_cache._measure
    monkeypatch.setattr(sam_cache, "_measure", lambda folder: counted.append(0) or measure(folder))
    caches = [limited(tmp_path / "cache", 200, size, num_writers=2) for _ in range(2)]
    stored = sum(caches[number % 2].store(key_of(number), embedding()) for number in range(400))
    assert 198 <= stored <= 201
    assert len(counted) <= 40


def test_without_a_limit_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sam_cache, "_measure", None)
    cache = open_cache(tmp_path)
    assert all(cache.store(key_of(number), embedding()) for number in range(5))


def test_the_description_tells_images_and_bytes(tmp_path):
    cache = open_cache(tmp_path, max_gb=3)
    cache.store(key_of(0), embedding())
    assert "embeddings of 1 images" in cache.describe()
    assert "of 3 allowed" in cache.describe()


# ------------------------------------------------------------------------------------ encoders


@pytest.fixture
def sam() -> SamSegmenter:
    return random_sam()


def test_an_encoder_that_is_cast_has_entries_of_its_own_in_the_number_format_of_the_rest(sam, tmp_path):
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    exact = encoder_key(sam)
    cast_encoder(sam.image_encoder, torch.bfloat16, torch.float32)
    cache = SamCache.of(sam, tmp_path)
    embedding = tuple(level[0] for level in sam.encode(image, [(64, 64)]))
    assert cache.store(key_of(0), embedding)
    assert same(cache.load(key_of(0)), embedding)
    # The same rounded weights give other entries where the rest is in float32, in bfloat16 or where all is exact.
    assert len({exact, cache.encoder_key, encoder_key(sam.float()), encoder_key(sam.bfloat16())}) == 3


# ------------------------------------------------------------------------------------- batches


def batch_of(sam: SamSegmenter, cache: SamCache, images: list[Tensor]) -> Batch:
    """What Collate makes of square images of SAM's size."""
    keys = tuple(image_key(image.permute(1, 2, 0).numpy(), TRANSFORM) for image in images)
    known = [cache.load(key) for key in keys]
    missing = tuple(index for index, found in enumerate(known) if found is None)
    found = [embedding for embedding in known if embedding is not None]
    sizes = tuple((SAM.image_size - 8 * index, SAM.image_size) for index in range(len(images)))
    nothing = torch.zeros(len(images), 0, dtype=torch.long)
    inputs = ModelInputs(
        input_ids=nothing,
        attention_mask=nothing,
        vlm_images={},
        placeholders=(),
        token_grids=(),
        grid_places=(),
        sam_images=torch.stack([images[index] for index in missing]) if missing else None,
        sam_embeddings=tuple(map(torch.stack, zip(*found, strict=True))) if found else None,
        resized_sizes=sizes,
        original_sizes=sizes,
        image_of_row=tuple(range(len(images))),
        seg_rows=nothing.flatten(),
        seg_columns=nothing.flatten(),
        seg_images=(),
    )
    names = ("a",) * len(images)
    return Batch(inputs=inputs, sources=names, datasets=names, skipped=(), sam_keys=keys, sam_missing=missing)


def test_a_batch_is_completed_in_its_order_whatever_is_known_of_it(sam, tmp_path, monkeypatch):
    side = SAM.image_size
    images = list(torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8))
    sizes = [(side - 8 * index, side) for index in range(4)]
    [expected] = sam.encode(torch.stack(images), sizes)
    keys = [image_key(image.permute(1, 2, 0).numpy(), TRANSFORM) for image in images]
    encoded = []
    encode = sam.encode
    monkeypatch.setattr(sam, "encode", lambda *args: encoded.append(len(args[0])) or encode(*args))
    for number, known in enumerate([(), (1,), (0, 3), (0, 1, 2, 3)]):
        cache = SamCache.of(sam, tmp_path / str(number))
        for index in known:
            cache.store(keys[index], (expected[index],))
        done = cache.complete(batch_of(sam, cache, images), sam)
        [embeddings] = done.inputs.sam_embeddings
        torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)
        assert done.inputs.sam_images is None
        assert all(torch.equal(embeddings[index], expected[index]) for index in known)
        again = cache.complete(batch_of(sam, cache, images), sam)
        assert same(again.inputs.sam_embeddings, done.inputs.sam_embeddings)
    assert encoded == [4, 3, 2]


def test_when_one_process_must_encode_all_do(sam, tmp_path, monkeypatch):
    """Under ZeRO-3, where the encoder's weights are gathered by all processes together."""
    images = list(torch.randint(0, 256, (2, 3, SAM.image_size, SAM.image_size), dtype=torch.uint8))
    cache = SamCache.of(sam, tmp_path, together=True)
    asked, elsewhere = [], [False]

    def any_process(encodes: bool, device: torch.device) -> bool:
        asked.append(encodes)
        return encodes or elsewhere[0]

    monkeypatch.setattr(sam_cache, "_any_process", any_process)
    encoded = []
    encode = sam.encode
    monkeypatch.setattr(sam, "encode", lambda *args: encoded.append(len(args[0])) or encode(*args))
    first = cache.complete(batch_of(sam, cache, images), sam)
    assert (asked, encoded) == ([True], [2])
    for expected in ([2], [2, 1]):
        done = cache.complete(batch_of(sam, cache, images), sam)
        assert encoded == expected
        assert same(done.inputs.sam_embeddings, first.inputs.sam_embeddings)
        elsewhere[0] = True
    assert asked == [True, False, False]
