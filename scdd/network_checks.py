"""Checks of all networks that a configuration names, before anything is run."""

from torch import nn

from scdd.bn_statistics import check_plain, count_batchnorm
from scdd.config.recover import RecoverConfig
from scdd.config.run import RunConfig
from scdd.config.stem import Stem
from scdd.errors import ConfigError
from scdd.models import create_model
from scdd.stages.condense import check_embedding


def check_networks(cfg: RunConfig) -> None:
    """Refuse at once a network that a later step would refuse hours later."""
    size = cfg.dataset.image_size
    if cfg.condense_pairs is not None:
        _network("condense_pairs.pool", cfg.condense_pairs.pool.arch, size, None)
    if cfg.pretrain is not None:
        _network("pretrain", cfg.pretrain.arch, size, None)
    else:
        _network("posttrain", cfg.posttrain.arch, size, None)
    if cfg.condense_pairs is not None and cfg.pretrain is not None:
        _network("squeeze", cfg.squeeze.arch, size, cfg.squeeze.stem)
        return
    layers = {
        name: count_batchnorm(_plain(name, network.arch, size, network.stem))
        for name, network in cfg.squeezes.items()
    }
    if cfg.scorer is not None:
        _network("squeeze_scorer", cfg.scorer.arch, size, cfg.scorer.stem)
    if cfg.condense is not None:
        check_embedding(cfg.condense.arch, size)
    for step, section in cfg.recoveries.items():
        for name, network in cfg.teachers_of(step).items():
            _check_layers(f"{name}.arch = {network.arch}", layers[name], step, section)


def _network(key: str, arch: str, size: int, stem: Stem | None) -> nn.Module:
    try:
        return create_model(arch, 1, size, stem)
    except ConfigError as error:
        raise ConfigError(f"{key}.arch: {error}") from error


def _plain(key: str, arch: str, size: int, stem: Stem | None) -> nn.Module:
    net = _network(key, arch, size, stem)
    try:
        check_plain(net)
    except ConfigError as error:
        raise ConfigError(f"{key}.arch = {arch}: {error}") from error
    return net


def _check_layers(network: str, layers: int, step: str, cfg: RecoverConfig) -> None:
    """Refuse a network without the BatchNorm layers that a step of recovery is to match."""
    if not layers:
        raise ConfigError(
            f"{network} has no BatchNorm layer, whose statistics {step} matches; choose a network "
            "that has, such as resnet8"
        )
    beyond = [number for number in cfg.layer_weights if number >= layers]
    if beyond:
        raise ConfigError(
            f"{step}.layer_weights: there is no layer {beyond[0]}; {network} has {layers} "
            "BatchNorm layers, counted from 0"
        )
