"""The end of a run of the second family: what its pairs teach, as report.md, and a picture."""

from typing import Any

from scdd.checkpoint import load_weights
from scdd.config.condense_pairs import PretrainConfig
from scdd.distilled import DistilledFile, RepresentationDataset
from scdd.distilled.bill import describe_bill
from scdd.gallery import draw_views
from scdd.report import read_scores, write_report
from scdd.steps import Context
from scdd.tables import counted, mean_sd, table

REMARKS = (
    "- `distilled`: networks learnt the representations of the pairs by regression; a linear",
    "  probe on all real training images tells what their features are worth.",
    "- `distilled, targets stored`: with the targets that the approximation networks stand for;",
    "  the difference is their price. These targets are on no bill.",
    "- `random real`: N real images, with the backbone's representations or with their classes.",
    "- `no pre-training`: the probe on a network as it was initialised.",
    "- A step that was interrupted counts the time since it was last taken up.",
)


def run_report_pairs(context: Context, step: str) -> tuple[str, ...]:
    """Scores, bill and times -> report.md; the first images of the pairs -> gallery.png."""
    cfg, run, folder = context.cfg, context.run, context.run.folder(step)
    assert cfg.pairs_from is not None and cfg.pretrain is not None
    results = read_scores(run.path / "pretrain" / "results.json", "pretrain")
    _, teacher = load_weights(run.path / "squeeze" / "backbone.safetensors")
    files = {
        "distilled": run.path / cfg.pairs_from / "distilled.h5",
        "random real": run.path / "baseline_pairs" / "random_real.h5",
    }
    draw_views(
        folder / "gallery.png",
        {name: RepresentationDataset.open(path) for name, path in files.items()},
    )
    with DistilledFile(files["distilled"]) as file:
        budget_n = file.header.budget_n
        assert budget_n is not None
        bill = describe_bill(file.bill, budget_n)
    lines = [
        f"# {cfg.dataset.name}: {cfg.method}, a budget of {budget_n} images",
        "",
        scores_table(results),
        "",
        pretrain_line(cfg.pretrain, cfg.recipe, results),
        f"Stored: {bill}.",
        f"Teacher: {teacher['arch']}, {teacher['objective']}"
        + ("." if teacher["epoch"] is None else f", {counted(teacher['epoch'], 'epoch')}."),
        "",
        *REMARKS,
        "",
        "![one row a view](gallery.png)",
        "",
    ]
    write_report(context, folder, lines)
    return ("report.md", "gallery.png")


def scores_table(results: dict[str, Any]) -> str:
    """Top-1 in per cent of the linear probe, mean +- sd over the networks of each row."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        arms.setdefault(row["arm"], []).append(row)
    lines = [
        [arm, str(own[0]["pairs"] or "-"), mean_sd([row["top1"] for row in own])]
        for arm, own in arms.items()
    ]
    return table(["learnt from", "images seen", "linear probe"], lines)


def pretrain_line(cfg: PretrainConfig, recipe: str, results: dict[str, Any]) -> str:
    """Everything that moves the numbers, in one sentence."""
    return (
        f"Top-1 % on {results['val_images']} real validation images. Recipe {recipe}; {cfg.arch}, "
        f"{cfg.epochs} epochs of batch {cfg.batch}, sgd lr {cfg.lr:g}, weight decay "
        f"{cfg.weight_decay:g}; linear probe by {cfg.probe.solver}; "
        f"{counted(cfg.seeds, 'seed')}."
    )
