"""Step pretrain: every network is pre-trained once, then probed and fine-tuned on every task."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scdd import checkpoint as checkpoints
from scdd.config.load import load_config
from scdd.config.run import RunConfig
from scdd.datasets.pixel_statistics import with_statistics
from scdd.distilled import RepresentationDataset
from scdd.method_steps import steps_of
from scdd.pipeline import distill
from scdd.run import RunDirectory
from scdd.seeding import generator
from scdd.stages import pretrain as stage
from scdd.stages.finetune import finetune
from scdd.stages.pretrain import linear_probe, new_network, pretrain
from scdd.step_identity import settings_of
from scdd.steps import pretrain as step
from scdd.steps.context import Context
from scdd.training import evaluate
from tests.tiny_pair_run import settings
from tests.tiny_run import write_image_folder

CPU = torch.device("cpu")
ARMS = ["distilled", "random real", "random real, class labels", "no pre-training"]
TASKS = ["digits", "insects", "digits (2)"]
TUNED = {"iterations": 3, "batch": 16, "flip": 0.0, "crop_padding": 1}


@pytest.fixture(scope="module")
def insects(quiet_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("real") / "insects")


@pytest.fixture(scope="module")
def cfg(insects: Path) -> RunConfig:
    tasks = [
        {"name": "image_folder", "root": str(insects), "image_size": 16},
        {"name": "digits", "image_size": 16, "train_per_class": 5},
    ]
    changes = settings(pretrain__seeds=1, pretrain__finetune=json.dumps(TUNED))[1::2]
    return load_config("digits_krr_st", [*changes, f"pretrain.transfer={json.dumps(tasks)}"])


@pytest.fixture(scope="module")
def made(cfg: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the pairs."""
    return distill(cfg, tmp_path_factory.mktemp("run"), until="baseline_pairs")


def run_step(cfg: RunConfig, made: Path, out: Path) -> list[dict[str, Any]]:
    """Take up the step pretrain in a copy of the run, or where it stopped; return its rows."""
    if not out.exists():
        shutil.copytree(made, out)
    step.run_pretrain(Context(cfg, RunDirectory(out), CPU, ()), "pretrain")
    return json.loads((out / "pretrain" / "results.json").read_text())["rows"]


def test_each_score_is_that_of_the_stages_on_the_images_of_the_task(
    cfg: RunConfig, made: Path, tmp_path: Path
):
    rows = run_step(cfg, made, tmp_path / "run")
    assert [(row["arm"], row["task"], row["by"]) for row in rows] == [
        (arm, task, by) for arm in ARMS for task in TASKS for by in ("linear probe", "fine-tuning")
    ]
    found = {(row["arm"], row["task"], row["by"]): row["top1"] for row in rows}
    context, section = Context(cfg, RunDirectory(made), CPU, ()), cfg.pretrain
    assert section is not None and section.finetune is not None
    data = RepresentationDataset.open(made / "distilled.h5")
    seed = generator(cfg.seed, "pretrain.network", 0).initial_seed()
    (insects, few) = context.transfer
    assert len(few.train) == 50 and len(insects.train) == 36
    nets = {
        "distilled": pretrain(section, data.images(0), data.targets(0), seed, CPU),
        "no pre-training": new_network(section.arch, 16, 1, seed),
    }
    for arm, net in nets.items():
        for name, task in zip(TASKS, (context.dataset, insects, few), strict=True):
            train, val = (with_statistics(s, data.mean, data.std) for s in (task.train, task.val))
            trunk = net.get_submodule("trunk")
            probed = linear_probe(section.probe, trunk, train, val, seed, CPU)
            assert found[arm, name, "linear probe"] == probed.top1
            tuned = finetune(section.finetune, trunk, train, seed, CPU)
            assert found[arm, name, "fine-tuning"] == evaluate(tuned, val, CPU).top1


def test_killed_at_any_write_it_ends_the_same_and_no_epoch_is_trained_twice(
    cfg: RunConfig, made: Path, tmp_path: Path
):
    cfg = cfg.model_copy(update={"checkpoint_minutes": 0.0})
    whole, out = run_step(cfg, made, tmp_path / "whole"), tmp_path / "killed"
    epochs, kills = [], 0

    class Killed(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        train_epoch, save, write = stage._epoch, checkpoints.Checkpoint.save, step.write_json
        written: list[Any] = []

        def counted(*args: Any) -> Any:
            epochs.append(args[-1])
            return train_epoch(*args)

        def killed_after(work: Any) -> Any:
            def working(*args: Any) -> None:
                work(*args)
                written.append(args)
                if len(written) == 3:  # Progress, and a kill at every place in turn.
                    raise Killed

            return working

        patch.setattr(stage, "_epoch", counted)
        patch.setattr(checkpoints.Checkpoint, "save", killed_after(save))
        patch.setattr(step, "write_json", killed_after(write))
        while True:
            written.clear()
            try:
                rows = run_step(cfg, made, out)
                break
            except Killed:
                kills += 1
    assert rows == whole and kills > 20
    assert cfg.pretrain is not None
    assert len(epochs) == 3 * cfg.pretrain.epochs  # Nothing is learnt without pre-training.


def test_without_fine_tuning_and_transfer_there_is_one_score_a_network(
    cfg: RunConfig, made: Path, tmp_path: Path
):
    assert cfg.pretrain is not None
    plain = cfg.pretrain.model_copy(update={"finetune": None, "transfer": (), "epochs": 1})
    rows = run_step(cfg.model_copy(update={"pretrain": plain}), made, tmp_path / "run")
    assert [(row["arm"], row["task"], row["by"]) for row in rows] == [
        (arm, "digits", "linear probe") for arm in ARMS
    ]


def test_the_settings_of_the_step_say_nothing_of_where_images_lie(cfg: RunConfig, insects: Path):
    (own,) = (one for one in steps_of(cfg) if one.name == "pretrain")
    recorded = settings_of(cfg, own)
    assert str(insects) not in json.dumps(recorded)
    assert [task["name"] for task in recorded["pretrain"]["transfer"]] == ["image_folder", "digits"]
    assert cfg.pretrain is not None
    plain = cfg.pretrain.model_copy(update={"transfer": (), "finetune": None})
    before = settings_of(cfg.model_copy(update={"pretrain": plain}), own)["pretrain"]
    assert "transfer" not in before  # As runs have recorded it that knew of no such key.
