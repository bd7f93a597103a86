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


def test_it_refuses_a_file_that_the_run_would_refuse(stock: Path):
    stock.write_bytes(stock.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut short"):
        estimated(stock)
