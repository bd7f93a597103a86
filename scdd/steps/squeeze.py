"""Step squeeze: images to backbone.safetensors."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from scdd.checkpoint import save_weights
from scdd.config.checkpoint import CheckpointConfig
from scdd.config.dataset import DatasetConfig
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets import Dataset
from scdd.errors import ConfigError, RunError
from scdd.foreign import Loaded, squeezed_from
from scdd.objectives import Objective
from scdd.progress import say
from scdd.seeding import generator
from scdd.stages.squeeze import check_squeeze, squeeze
from scdd.steps.context import Context, about_network, check_later_steps, kept


def run_squeeze(context: Context, step: str) -> tuple[str, ...]:
    """images -> backbone.safetensors, beside it the kept epochs and what labels have taught."""
    check_trainings(context)
    cfg, images = context.cfg, context.cfg.squeeze_dataset or context.cfg.dataset
    return _squeeze(context, step, cfg.squeeze, images, context.squeeze_dataset, "", cfg.seed)


def check_trainings(context: Context) -> None:
    """Refuse what any of the trainings, or a step after them, would refuse hours later.

    Raises:
        UserError: as `check_squeeze` and `check_later_steps` do.
    """
    cfg, train = context.cfg, context.dataset.train
    check_later_steps(cfg, context.dataset)
    for name, section in cfg.squeezes.items():
        if section.checkpoint is None:
            images = context.squeeze_dataset.train if name == "squeeze" else train
            check_squeeze(section, images, name)
    if cfg.scorer is not None:
        check_squeeze(cfg.scorer, train, "squeeze_scorer")


def run_squeeze_labellers(context: Context, step: str) -> tuple[str, ...]:
    """images -> ARCH/backbone.safetensors and so on, for each of several networks."""
    names: tuple[str, ...] = ()
    for number, cfg in enumerate(context.cfg.squeeze_labellers):
        seed = generator(context.cfg.seed, step, number).initial_seed()
        images = context.cfg.dataset
        key = f"{step}.{number}"
        names += _squeeze(context, key, cfg, images, context.dataset, cfg.arch, seed)
    return names


def run_squeeze_scorer(context: Context, step: str) -> tuple[str, ...]:
    """images -> forgetting.safetensors, by a training with labels of which nothing else is used."""
    cfg, scorer = context.cfg, context.cfg.scorer
    assert scorer is not None
    seed = generator(cfg.seed, step, 0).initial_seed()
    return _squeeze(context, step, scorer, cfg.dataset, context.dataset, "", seed)


def load_instead(
    cfg: SqueezeConfig, checkpoint: CheckpointConfig, images: DatasetConfig, data: Dataset
) -> Loaded:
    """The backbone of a checkpoint, in place of one trained on `data`, whose section `images` is.

    Raises:
        UserError: as `squeezed_from` does.
    """
    return squeezed_from(
        checkpoint,
        cfg.arch,
        data.image_size,
        images.mean,
        images.std,
        cfg.stem,
        len(data.classes),
    )


def _squeeze(
    context: Context,
    key: str,
    cfg: SqueezeConfig,
    images: DatasetConfig,
    data: Dataset,
    subfolder: str,
    seed: int,
) -> tuple[str, ...]:
    """Train or load one backbone into a subfolder of a step; return its files.

    `key` is where the section stands in the configuration, its first word the step.
    """
    step = key.partition(".")[0]
    target = context.run.folder(step) / subfolder
    checkpoint = context.shared_checkpoint(step, subfolder)

    def write(
        suffix: str, backbone: nn.Module, head: dict[str, Tensor] | None, **about: Any
    ) -> None:
        """The classifier and then the backbone as they are now."""
        if not context.world.leads:
            return
        about |= {**about_network(backbone), "mean": data.mean, "std": data.std}
        if head is not None:
            classes = {"classes": data.classes}
            save_weights(target / f"classifier{suffix}.safetensors", head, about | classes)
        save_weights(target / f"backbone{suffix}.safetensors", backbone.state_dict(), about)

    def write_trained(suffix: str, epoch: int, now: Objective) -> None:
        head = now.classifier.state_dict() if now.classifier is not None else None
        write(suffix, now.backbone, head, objective=cfg.objective.name, epoch=epoch)

    if (target / "backbone.safetensors").exists():  # Killed when all but the marker was written.
        pass
    elif cfg.checkpoint is not None:
        target.mkdir(exist_ok=True)
        loaded = load_instead(cfg, cfg.checkpoint, images, data)
        for line in loaded.report.lines():
            say(f"  {line}")
        if context.cfg.probe.solver == "given" and loaded.head is None:
            raise ConfigError(
                f"{key}.checkpoint: brings no classifier for the {len(data.classes)} classes, "
                "which probe.solver = given asks for; choose lbfgs or sgd"
            )
        head = dict(zip(("weight", "bias"), loaded.head, strict=True)) if loaded.head else None
        write("", loaded.backbone, head, objective=loaded.objective, epoch=loaded.epoch)
    else:
        target.mkdir(exist_ok=True)
        objective = squeeze(
            cfg,
            data.train,
            data.val,
            data.image_size,
            seed,
            context.device,
            checkpoint,
            partial(context.run.log, arch=cfg.arch) if context.world.leads else _no_log,
            lambda epoch, now: write_trained(kept(epoch), epoch, now),
            key,
        )
        if objective.forgetting is not None and context.world.leads:
            save_weights(target / "forgetting.safetensors", objective.forgetting, {})
        for epoch in cfg.keep_epochs if context.world.leads else ():
            if not (target / f"backbone{kept(epoch)}.safetensors").exists():
                raise RunError(
                    f"{target}: the backbone of epoch {epoch}, which {key}.keep_epochs names, is "
                    f"gone; make it again with --redo {step}"
                )
        write_trained("", cfg.epochs, objective)
    context.world.barrier()
    checkpoint.remove()
    names = (path.relative_to(context.run.folder(step)) for path in target.glob("*.safetensors"))
    return tuple(sorted(map(str, names)))


def _no_log(stage: str, /, **values: Any) -> None:
    """Ranks other than the first log nothing."""
