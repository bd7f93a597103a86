"""A streaming source: torchvision's crops of the originals, whoever decodes them, to any end."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import ImageFolder

from scdd.augment import draw_views
from scdd.config.dataset import DatasetConfig
from scdd.config.views import ViewConfig
from scdd.datasets import Dataset, ResidentSource, StreamingSource, load_dataset, streaming
from scdd.datasets import load as loading
from scdd.datasets.sources import Request
from scdd.errors import DataError, RunError

SIZE = 16
VIEWS = (ViewConfig(count=2, crop_scale=(0.2, 1.0)), ViewConfig(size=9, crop_scale=(0.05, 0.4)))


def load(root: Path, **changed: object) -> Dataset:
    plain = {"name": "image_folder", "root": str(root), "image_size": SIZE, "storage": "streaming"}
    known = {"workers": 0, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return load_dataset(DatasetConfig.model_validate(plain | known | changed))


def source(root: Path, workers: int = 0) -> StreamingSource:
    train = load(root, workers=workers).train
    assert isinstance(train, StreamingSource)
    return train


def request(number: int, images: int, batch: int = 5) -> Request:
    draw = torch.Generator().manual_seed(number)
    rows = torch.randint(images, (batch,), generator=draw)
    return Request(rows, tuple(view.crop for view in draw_views(VIEWS, batch, SIZE, draw)))


def originals(root: Path) -> list[Image.Image]:
    """The training images as torchvision finds them and Pillow sets them upright."""
    samples = ImageFolder(root / "train").samples
    return [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path, _ in samples]


def plain_crops(images: list[Image.Image], wanted: Request) -> list[Tensor]:
    """Image by image what the request asks for."""
    chosen = [images[row] for row in wanted.rows]
    sizes = torch.tensor([[image.height, image.width] for image in chosen])
    made = []
    for crop in wanted.crops:
        cut = [
            tv.resized_crop(image, *box, [crop.size, crop.size])
            for image, box in zip(chosen, crop.boxes(sizes).tolist(), strict=True)
        ]
        turned = [tv.hflip(x) if flip else x for x, flip in zip(cut, crop.flip, strict=True)]
        made.append(torch.stack([tv.pil_to_tensor(x) for x in turned]).float() / 255)
    return made


def becomes_true(condition: Callable[[], bool]) -> bool:
    """Wait for it, but not for ever."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def no_workers_are_left() -> bool:
    return becomes_true(lambda: not multiprocessing.active_children())


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker:UserWarning")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_crops_are_those_of_torchvision_on_the_original_bit_for_bit(mixed_folder, workers):
    images, stream = originals(mixed_folder), source(mixed_folder, workers)
    assert len(images) == len(stream) == 18 and len({image.size for image in images}) > 7
    wanted = [request(number, len(stream)) for number in range(7)]
    found = list(stream.crops(iter(wanted)))
    assert len(found) == len(wanted)
    for asked, crops in zip(wanted, found, strict=True):
        for crop, expected in zip(crops, plain_crops(images, asked), strict=True):
            assert torch.equal(crop, expected)


def test_images_are_decoded_in_groups_and_the_groups_change_nothing(mixed_folder, monkeypatch):
    stream, wanted = source(mixed_folder), [request(0, 18, batch=18)]
    (at_once,) = stream.crops(wanted)
    monkeypatch.setattr(streaming, "PIXELS_AT_ONCE", 3000)
    (in_groups,) = stream.crops(wanted)
    assert all(map(torch.equal, at_once, in_groups))


def test_of_images_that_have_the_asked_size_both_sources_cut_the_same(write_folder):
    root, _ = write_folder(size=SIZE)
    resident = load(root, storage="resident", workers=None).train
    wanted = [request(number, 10) for number in range(3)]
    for ours, theirs in zip(source(root).crops(wanted), resident.crops(wanted), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).abs().max() < 1.5 / 255


def test_whole_images_are_those_of_a_resident_source(mixed_folder):
    stream, rows = load(mixed_folder), torch.tensor([3, 17, 0, 3])
    for size in (SIZE, 11):
        resident = load(mixed_folder, storage="resident", workers=None, image_size=size)
        for ours, theirs in ((stream.train, resident.train), (stream.val, resident.val)):
            assert ours.classes == theirs.classes and torch.equal(ours.labels, theirs.labels)
            index = rows % len(ours)
            found = ours.read(index, None if size == SIZE else size)
            assert found.dtype == torch.uint8 and torch.equal(found, theirs.read(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_is_followed_at_a_bounded_distance_and_may_be_left(mixed_folder, workers):
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield request(number, 18)

    images, stream = originals(mixed_folder), source(mixed_folder, workers).crops(requests())
    for number, crops in enumerate(itertools.islice(stream, 30)):
        assert number < taken <= number + 1 + 2 * workers
        assert torch.equal(crops[0], plain_crops(images, request(number, 18))[0])
    assert len(multiprocessing.active_children()) == workers
    stream.close()
    assert no_workers_are_left()


def test_nothing_is_taken_and_nobody_works_before_the_first_crop_is_wanted(mixed_folder):
    def requests() -> Iterator[Request]:
        pytest.fail("a request was taken")
        yield

    source(mixed_folder, 2).crops(requests())
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_the_stream_where_it_stands_with_one_sentence(mixed_folder, workers):
    stream, images = source(mixed_folder, workers), originals(mixed_folder)
    path = mixed_folder / "train" / "bee" / "grey.png"
    row = [Path(name) for name, _ in ImageFolder(mixed_folder / "train").samples].index(path)
    path.write_bytes(path.read_bytes()[:200])
    wanted = [request(number, row) for number in range(9)]
    wanted[5].rows[3] = row
    crops = stream.crops(wanted)
    for asked in wanted[:5]:
        assert torch.equal(next(crops)[0], plain_crops(images, asked)[0])
    with pytest.raises(DataError) as caught:
        next(crops)
    assert str(caught.value).startswith(f"{path}: cannot be read as an image (")
    assert str(caught.value).endswith("); repair or remove the file")
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert no_workers_are_left()
    with pytest.raises(DataError, match=r"bee/grey\.png: cannot be read"):
        stream.read(torch.arange(18))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_suspiciously_many_pixels_is_refused(mixed_folder, monkeypatch, workers):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    stream = source(mixed_folder, workers)
    with pytest.raises(DataError, match="decompression bomb"):
        list(stream.crops([request(0, 18, batch=18)]))


def test_the_workers_end_when_what_uses_them_fails(mixed_folder):
    def use() -> None:
        for _ in source(mixed_folder, 2).crops(request(number, 18) for number in range(50)):
            assert len(multiprocessing.active_children()) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert no_workers_are_left()


def test_a_failure_of_the_requests_is_not_taken_for_one_of_the_workers(mixed_folder):
    def requests() -> Iterator[Request]:
        yield request(0, 18)
        raise RuntimeError("no more ideas")

    with pytest.raises(RuntimeError, match=r"^no more ideas$"):
        list(source(mixed_folder, 1).crops(requests()))


def test_a_worker_that_dies_is_told_with_what_to_lower(mixed_folder, monkeypatch):
    # As the system kills a process when memory is short.
    monkeypatch.setattr(streaming, "_cut", lambda work: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunError, match=r"has died \(.*pid.*\).*lower dataset\.workers") as caught:
        list(source(mixed_folder, 1).crops([request(0, 18)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_not_moved(mixed_folder, workers):
    state = torch.get_rng_state()
    list(source(mixed_folder, workers).crops([request(0, 18)]))
    assert torch.equal(torch.get_rng_state(), state)


def test_several_streams_of_one_source_do_not_disturb_each_other(mixed_folder):
    stream = source(mixed_folder, 1)
    wanted = [request(number, 18) for number in range(4)]
    pairs = zip(stream.crops(wanted), stream.crops(wanted), strict=True)
    assert all(torch.equal(one[0], other[0]) for one, other in pairs)


def endless(root: Path, errors: Path, pids: Connection, blocked: bool) -> None:
    """Stream in a process of one's own until something ends it; say who works."""
    os.setsid()
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = source(root, 2)
    if blocked:  # Whoever reads the last image waits for ever.
        (root / "train" / "bee" / "turned.jpg").unlink()
        os.mkfifo(root / "train" / "bee" / "turned.jpg")

    def requests() -> Iterator[Request]:
        for number in itertools.count():
            yield request(number, 17)._replace(rows=torch.full((5,), 17 if number > 1 else 2))

    for number, _ in enumerate(stream.crops(requests())):
        if number == 1:
            pids.send([child.pid for child in multiprocessing.active_children()])


@pytest.fixture
def start_endless(mixed_folder, tmp_path):
    """Return `start(blocked)`, giving a process that streams, its workers and its errors."""
    started: list[int] = []

    def start(blocked: bool) -> tuple[ForkProcess, list[int], Path]:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        errors = tmp_path / "errors.txt"
        process = fork.Process(target=endless, args=(mixed_folder, errors, theirs, blocked))
        process.start()
        started.append(process.pid)
        assert ours.poll(60), errors.read_text()
        workers = ours.recv()
        started.extend(workers)
        return process, workers, errors

    yield start
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def all_have_ended(pids: list[int]) -> bool:
    def ended(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state in "ZX"  # Ended, and not yet missed by anyone.

    return becomes_true(lambda: all(map(ended, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_after_ctrl_c_no_worker_is_left_and_none_of_them_complains(start_endless):
    process, workers, errors = start_endless(blocked=False)
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to all of them.
    process.join()
    assert all_have_ended(workers)
    said = errors.read_text()
    assert said.count("Traceback") == said.count("\nKeyboardInterrupt") == 1, said


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_when_the_main_process_is_killed_even_workers_that_wait_for_a_file_end(start_endless):
    process, workers, _ = start_endless(blocked=True)
    process.kill()
    process.join()
    assert all_have_ended(workers)


@pytest.mark.parametrize("changed", [{"holdout": 0.3}, {"train_per_class": 2}])
def test_the_same_images_are_chosen_and_held_out_as_of_a_resident_set(mixed_folder, changed):
    stream = load(mixed_folder, **changed)
    resident = load(mixed_folder, storage="resident", workers=None, **changed)
    for ours, theirs in ((stream.train, resident.train), (stream.val, resident.val)):
        assert isinstance(theirs, ResidentSource)
        assert len(ours) == len(theirs) and torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.read(torch.arange(len(ours))), theirs.images)


def test_a_subset_is_cropped_from_its_own_images(mixed_folder):
    images = originals(mixed_folder)
    chosen = images[:2] + images[9:11]
    wanted = request(0, 4)
    (crops,) = load(mixed_folder, train_per_class=2).train.crops([wanted])
    assert torch.equal(crops[0], plain_crops(chosen, wanted)[0])


def test_statistics_are_measured_on_images_as_far_apart_as_can_be(write_folder, monkeypatch):
    root, pixels = write_folder(train=6)
    train = [x for name, x in pixels.items() if name.startswith("train")]
    for measured, rows in ((4000, range(12)), (4, (0, 3, 6, 9))):
        monkeypatch.setattr(loading, "MEASURED", measured)
        dataset = load(root, image_size=8, mean=None, std=None)
        raw = np.stack([train[row] for row in rows]) / 255.0
        np.testing.assert_allclose(dataset.mean, raw.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(dataset.std, raw.std((0, 1, 2)), rtol=1e-12)
        assert dataset.val.mean == dataset.mean


def test_with_given_statistics_nothing_is_decoded_when_a_set_is_loaded(mixed_folder):
    for path in mixed_folder.rglob("*.png"):
        path.write_bytes(b"no image")
    assert len(load(mixed_folder).train) == 18
    with pytest.raises(DataError, match="cannot be read as an image"):
        load(mixed_folder, mean=None)


def test_an_empty_class_is_named_before_anything_is_decoded(mixed_folder):
    (mixed_folder / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"train/cat holds no image \(found: nothing"):
        load(mixed_folder, mean=None)


def test_how_images_are_stored_belongs_to_the_digest_and_how_many_workers_not(mixed_folder):
    digests = [load(mixed_folder, workers=workers).digest for workers in (0, 3, None)]
    digests.append(load(mixed_folder, storage="resident", workers=None).digest)
    assert len(set(digests)) == 2 and digests[0] != digests[3]


def test_nothing_is_written_while_streaming(mixed_folder, cache):
    before = sorted(mixed_folder.rglob("*"))
    dataset = load(mixed_folder, workers=1)
    list(dataset.train.crops([request(0, 18)]))
    dataset.val.read(torch.arange(4))
    assert not cache.exists() and sorted(mixed_folder.rglob("*")) == before


def test_workers_not_given_are_one_for_each_core_that_a_process_has_to_itself(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 24)
    found = {}
    for processes in ("1", "4", "48"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found[processes] = streaming.default_workers()
    assert found == {"1": 16, "4": 6, "48": 1}
