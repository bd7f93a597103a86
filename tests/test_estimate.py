"""A dry run with a backbone from a file."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from scdd.config.load import check, read_yaml
from scdd.errors import CheckpointError
from scdd.estimate import estimate

DIGITS = Path(__file__).parents[1] / "configs" / "digits.yaml"
CPU = torch.device("cpu")


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """Weights with the stock stem, though the images have 32 pixels."""
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18(num_classes=1000).state_dict(), path)
    return path


def estimated(path: Path) -> str:
    settings = read_yaml(DIGITS)
    settings["dataset"] |= {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    settings["squeeze"] |= {"arch": "resnet18", "checkpoint": {"path": str(path)}}
    return estimate(check(settings, "digits"), CPU)


def flops_an_image(text: str, step: str) -> float:
    cells = next(line for line in text.splitlines() if line.startswith(f"| {step} ")).split("|")
    images = float(cells[2].split(" x ")[0])
    return float(cells[3]) / images


def test_it_costs_what_the_net_of_the_file_costs_and_says_what_was_found(stock: Path):
    text = estimated(stock)
    # fvcore and others count 1.8 GMAC at 224 px; at 32 px the maps are 49 times smaller.
    assert flops_an_image(text, "probe") == pytest.approx(2 * 1.82e9 / 49, rel=0.1)
    assert "squeeze.checkpoint\n  layout: torchvision or timm" in text
    assert "| squeeze  " in text and "moments" in text


def test_labellers_cost_their_probe_and_their_turns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scdd.estimate.PROBE_SECONDS", 1e-3)
    supervised = {"arch": "resnet8", "objective": {"name": "supervised"}, "views": [{"count": 1}]}
    settings = read_yaml(DIGITS) | {"ipc": 3}
    settings["dataset"] |= {"train_per_class": 20}
    settings["squeeze"] |= {"objective": {"queue": 128}, "batch": 64}
    moco = {"arch": "resnet14", "objective": {"queue": 128}, "batch": 64}
    settings["squeeze_labellers"] = [supervised | {"batch": 64}, moco]
    settings["recover"] = {"teachers": "all", "iterations": 50}
    settings["recover_real"] = {"teachers": "labellers", "iterations": 5}
    settings["relabel"] = {"teachers": "labellers", "views": 7, "crop": "none", "codec": "int8"}
    settings["squeeze_labellers"][1]["keep_epochs"] = [3, 5]
    text = estimate(check(settings, "digits"), CPU)

    def cells(step: str, column: int = 1) -> list[str]:
        rows = [line.split("|")[1:] for line in text.splitlines() if line.startswith(f"| {step} ")]
        return [row[column].strip() for row in rows]

    # 200 images, whole and as one crop, after three epochs; the supervised one has a classifier.
    assert cells("probe_labellers") == ["1.2e+03 x resnet14"]
    # 30 images in 50 iterations shared by three, in 5 by two.
    shares = ["510 x resnet8x2", "510 x resnet8", "480 x resnet14"]
    assert cells("recover") == shares
    assert cells("recover_real") == ["90 x resnet8", "60 x resnet14"]
    for step in ("relabel", "relabel_real", "baseline"):
        assert cells(step) == ["210 x resnet8", "210 x resnet14"]
        # Pixels; 14 bytes a label and a bit an image in the file, 14 and a byte in the shards.
        disk = 30 * 3 * 16**2 + 7 * (30 * 14 + 4) + 7 * (30 * 14 + 30)
        assert cells(step, 3) == [f"{disk / 1000:.1f} kB", "0 B"]


def test_it_refuses_a_file_that_the_run_would_refuse(stock: Path):
    stock.write_bytes(stock.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut short"):
        estimated(stock)
