"""Step probe: backbone.safetensors to teacher.safetensors."""

from pathlib import Path

from scdd.checkpoint import load_weights, save_weights
from scdd.config.known_checkpoints import find
from scdd.datasets.pixel_statistics import with_statistics
from scdd.errors import CheckpointError, ConfigError
from scdd.preflight import accuracy_floor, check_teacher
from scdd.progress import Bar, say
from scdd.stages.probe import FeatureShard, Head, probe, shard_features, shards_of
from scdd.steps.context import Context, about_network
from scdd.steps.shards import remove_shards
from scdd.tables import size

IMAGENET_CLASSES = 1000


def run_probe(context: Context, step: str) -> tuple[str, ...]:
    """backbone -> teacher.safetensors, which must classify the real validation images well enough.

    Ranks share the features, which lie in shards until the teacher is there; one rank fits it.
    """
    cfg, data, folder = context.cfg, context.dataset, context.run.folder(step)
    target, shards = folder / "teacher.safetensors", folder / "features"
    backbone, about = context.network("squeeze", "backbone.safetensors")
    train, val = (with_statistics(s, about["mean"], about["std"]) for s in (data.train, data.val))

    def path(shard: FeatureShard) -> Path:
        return shards / f"view-{shard.view:02d}-image-{shard.first:08d}.safetensors"

    plan = shards_of(cfg.probe, len(train))
    mine = context.world.share(plan)
    if plan:
        width = int(backbone.feature_dim)  # type: ignore[arg-type]
        rows = sum(shard.last - shard.first for shard in plan)
        say(f"  features, until the step is done: {size(4 * width * rows)}")
    with Bar(step, len(mine)) as bar:
        for shard in mine:
            if not (path(shard).exists() or target.exists()):
                features = shard_features(
                    cfg.probe, backbone, train, shard, cfg.seed, context.device
                )
                save_weights(path(shard), {"features": features}, {})
            bar.advance()
    context.world.barrier()
    if not context.world.leads:
        return ("teacher.safetensors",)
    checkpoint = context.checkpoint(step)
    if not target.exists():
        result = probe(
            cfg.probe,
            backbone,
            train,
            val,
            cfg.seed,
            context.device,
            checkpoint,
            stored=lambda shard: load_weights(path(shard))[0]["features"],
            given=_given_head(context, train.classes) if cfg.probe.solver == "given" else None,
        )
        found = {
            "solver": cfg.probe.solver,
            **result.chosen,
            "val_top1": result.accuracy.top1,
            "val_top5": result.accuracy.top5,
        }
        context.run.log(step, **found, tried=list(result.tried.items()))
        about = {**about, **about_network(result.teacher), "classes": train.classes, **found}
        save_weights(target, result.teacher.state_dict(), about)
    checkpoint.remove()
    remove_shards(shards)
    _check_teacher(context, target)
    return ("teacher.safetensors",)


def _check_teacher(context: Context, path: Path) -> None:
    """Say how good the teacher is, and refuse one that is not worth going on with."""
    about, images = load_weights(path)[1], len(context.dataset.val)
    classes, checkpoint = len(about["classes"]), context.cfg.squeeze.checkpoint
    # What is published is the accuracy on the thousand classes of ImageNet-1K.
    known = checkpoint.known if checkpoint and classes == IMAGENET_CLASSES else None
    expected = find(known).linear_top1 if known else None
    floor = accuracy_floor(context.cfg.probe, classes, expected)
    say(
        f"  teacher: {about['val_top1']:.1f} % on the {images} validation images; at least "
        f"{floor.top1:.1f} % wanted"
    )
    check_teacher(about["val_top1"], images, floor)


def _given_head(context: Context, classes: tuple[str, ...]) -> Head:
    """The classifier that squeeze left.

    Raises:
        ConfigError: if it left none, or one of other classes.
    """
    path = context.run.path / "squeeze" / "classifier.safetensors"
    instead = "set probe.solver to lbfgs or sgd"
    if not path.exists():
        raise ConfigError(f"{path}: is not there, as squeeze has brought no classifier; {instead}")
    weights, about = load_weights(path)
    try:
        head = Head(weights["weight"], weights["bias"])
    except KeyError as error:
        raise CheckpointError(f"{path}: holds no {error} of a linear layer; {instead}") from error
    if len(head.bias) != len(classes):
        raise ConfigError(
            f"{path}: tells {len(head.bias)} classes apart, but dataset has {len(classes)}; "
            + instead
        )
    known = tuple(about.get("classes", classes))
    if known != classes:
        own, other = next(pair for pair in zip(classes, known, strict=True) if len(set(pair)) > 1)
        raise ConfigError(f"{path}: knows class '{other}' where dataset has '{own}'; {instead}")
    return head
