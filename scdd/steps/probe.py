"""Steps probe and probe_labellers: backbone.safetensors to teacher.safetensors."""

from pathlib import Path

from scdd.checkpoint import load_weights, save_weights
from scdd.config.known_checkpoints import find
from scdd.config.probe import ProbeConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets.pixel_statistics import with_statistics
from scdd.errors import CheckpointError, ConfigError
from scdd.preflight import accuracy_floor, check_teacher
from scdd.progress import Bar, say
from scdd.seeding import generator
from scdd.stages.probe import FeatureShard, Head, probe, shard_features, shards_of
from scdd.steps.context import Context, about_network, kept, teacher_file
from scdd.steps.shards import remove_shards
from scdd.tables import size

IMAGENET_CLASSES = 1000


def run_probe(context: Context, step: str) -> tuple[str, ...]:
    """backbone -> teacher.safetensors, which must classify the validation images well enough."""
    cfg = context.cfg
    _make_teacher(context, step, "squeeze", "", cfg.probe, cfg.seed)
    _check_teacher(context, step, "", cfg.squeeze)
    return ("teacher.safetensors",)


def run_probe_labellers(context: Context, step: str) -> tuple[str, ...]:
    """ARCH/backbone -> ARCH/teacher.safetensors, as `run_probe` does, for each of several networks.

    One that brought a classifier keeps it. So become the backbones that squeeze has kept of earlier
    epochs, which may be as weak as they are.
    """
    cfg = context.cfg
    made: tuple[str, ...] = ()
    for number, squeezed in enumerate(cfg.squeeze_labellers):
        arch, folder = squeezed.arch, context.run.path / "squeeze_labellers" / squeezed.arch
        seed = generator(cfg.seed, step, number).initial_seed()
        for epoch in (None, *squeezed.keep_epochs):
            brought = (folder / _classifier_file(epoch)).exists()
            settings = cfg.probe.model_copy(update={"solver": "given"}) if brought else cfg.probe
            _make_teacher(context, step, "squeeze_labellers", arch, settings, seed, epoch)
            made += (f"{arch}/{teacher_file(epoch)}",)
        _check_teacher(context, step, arch, squeezed)
    return made


def _make_teacher(
    context: Context,
    step: str,
    squeeze: str,
    subfolder: str,
    cfg: ProbeConfig,
    seed: int,
    epoch: int | None = None,
) -> None:
    """Probe the backbone in a subfolder of the step `squeeze`; the teacher has the same place.

    `epoch` tells which of those that squeeze has kept; None: the last. Ranks share the features,
    which lie in shards until the teacher is there; one rank fits it.
    """
    data, folder = context.dataset, context.run.folder(step) / subfolder
    target, shards = folder / teacher_file(epoch), folder / f"features{kept(epoch)}"
    backbone, about = context.network(squeeze, subfolder, f"backbone{kept(epoch)}.safetensors")
    train, val = (with_statistics(s, about["mean"], about["std"]) for s in (data.train, data.val))

    def path(shard: FeatureShard) -> Path:
        return shards / f"view-{shard.view:02d}-image-{shard.first:08d}.safetensors"

    plan = shards_of(cfg, len(train))
    mine = context.world.share(plan)
    if plan:
        width = int(backbone.feature_dim)  # type: ignore[arg-type]
        rows = sum(shard.last - shard.first for shard in plan)
        say(f"  features, until the step is done: {size(4 * width * rows)}")
    with Bar(step, len(mine)) as bar:
        for shard in mine:
            if not (path(shard).exists() or target.exists()):
                context.deadline.between()
                features = shard_features(cfg, backbone, train, shard, seed, context.device)
                save_weights(path(shard), {"features": features}, {})
            bar.advance()
    context.world.barrier()
    if not context.world.leads:
        return
    checkpoint = context.checkpoint(step, subfolder + kept(epoch))
    if not target.exists():
        head = context.run.path / squeeze / subfolder / _classifier_file(epoch)
        result = probe(
            cfg,
            backbone,
            train,
            val,
            seed,
            context.device,
            checkpoint,
            stored=lambda shard: load_weights(path(shard))[0]["features"],
            given=_given_head(head, train.classes) if cfg.solver == "given" else None,
        )
        found = {
            "solver": cfg.solver,
            **result.chosen,
            "val_top1": result.accuracy.top1,
            "val_top5": result.accuracy.top5,
        }
        tried = list(result.tried.items())
        context.run.log(step, arch=about["arch"], epoch=about["epoch"], **found, tried=tried)
        about = {**about, **about_network(result.teacher), "classes": train.classes, **found}
        save_weights(target, result.teacher.state_dict(), about)
    checkpoint.remove()
    remove_shards(shards)
    if epoch is not None:
        top1 = load_weights(target)[1]["val_top1"]
        say(f"  {subfolder} after epoch {epoch}: {top1:.1f} % on the validation images")


def _classifier_file(epoch: int | None) -> str:
    """Name of the classifier that squeeze leaves beside a backbone, if it has taught one."""
    return f"classifier{kept(epoch)}.safetensors"


def _check_teacher(context: Context, step: str, labeller: str, squeezed: SqueezeConfig) -> None:
    """Say how good a teacher is, and refuse one that is not worth going on with.

    `labeller` names the one of several; empty: that of `probe`.
    """
    if not context.world.leads:
        return
    _, about = load_weights(context.run.path / step / labeller / "teacher.safetensors")
    images, classes = len(context.dataset.val), len(about["classes"])
    checkpoint = squeezed.checkpoint
    # What is published is the accuracy on the thousand classes of ImageNet-1K.
    known = checkpoint.known if checkpoint and classes == IMAGENET_CLASSES else None
    expected = find(known).linear_top1 if known else None
    floor = accuracy_floor(context.cfg.probe, classes, expected)
    say(
        f"  {labeller or 'teacher'}: {about['val_top1']:.1f} % on the {images} validation images; "
        f"at least {floor.top1:.1f} % wanted"
    )
    check_teacher(about["val_top1"], images, floor, labeller or None)


def _given_head(path: Path, classes: tuple[str, ...]) -> Head:
    """The classifier that squeeze left.

    Raises:
        ConfigError: if it left none, or one of other classes.
    """
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
