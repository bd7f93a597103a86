"""Parameters and multiply-accumulates against counts by hand."""

from typing import Any

from scdd.models import create_model
from scdd_apps.report import count_cell
from scdd_apps.report_cost import macs, parameters


def test_vgg11_at_16_px_costs_what_its_layers_say():
    model = create_model("vgg11", 10, 16)
    # (inputs, outputs, side of the map) of each 3x3 convolution: three pools are left at 16 px.
    layers = [
        (3, 64, 16),
        (64, 128, 8),
        (128, 256, 4),
        (256, 256, 4),
        (256, 512, 2),
        (512, 512, 2),
        (512, 512, 2),
        (512, 512, 2),
    ]
    assert macs(model, 16) == sum(9 * i * o * side**2 for i, o, side in layers) + 512 * 10
    assert parameters(model) == sum((9 * i + 3) * o for i, o, _ in layers) + 512 * 10 + 10


def test_attention_counts_its_two_products():
    model: Any = create_model("vit_tiny", 10, 16)
    patch = model.backbone.patch_embed.proj.kernel_size[0]
    patches = (16 // patch) ** 2
    tokens, width, depth = patches + 1, 192, 12
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens**2 * width
    assert macs(model, 16) == patches * 3 * patch**2 * width + depth * block + width * 10


def test_counts_are_written_for_people():
    assert [count_cell(n) for n in (812, 9_231_114, 52_398_080, 1.5e9, 2e12)] == [
        "812",
        "9.23 M",
        "52.4 M",
        "1.5 G",
        "2 T",
    ]
