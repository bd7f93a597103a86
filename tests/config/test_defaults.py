"""The defaults of the code: the released code of the paper, and MoCo."""

from scdd.config.recover import RecoverConfig
from scdd.config.squeeze import SqueezeConfig


def test_the_defaults_of_recover_are_the_released_code_on_imagenet():
    cfg = RecoverConfig()
    assert (cfg.iterations, cfg.lr, cfg.alpha) == (1000, 0.1, 0.01)
    assert (cfg.betas, cfg.weight_decay, cfg.first_bn_multiplier) == ((0.5, 0.9), 0.0, 10.0)
    assert (cfg.crop, cfg.crop_scale, cfg.flip) == ("batch", (0.08, 1.0), True)


def test_the_defaults_of_squeeze_are_those_of_moco_where_the_presets_are_silent():
    cfg = SqueezeConfig()
    assert (cfg.optimizer, cfg.lr, cfg.final_lr, cfg.momentum) == ("sgd", 0.03, 0.0, 0.9)
    assert (cfg.weight_decay, cfg.decay, cfg.clip, cfg.warmup_epochs) == (1e-4, "all", 0.0, 0)
    assert (cfg.keep_epochs, cfg.precision, cfg.compile) == ((), "auto", False)
    assert (cfg.zero_init_residual, cfg.collapse_below) == (False, 0.02)
    (view,) = cfg.views
    assert (view.count, view.size, view.crop_scale, view.flip) == (2, None, (0.2, 1.0), 0.5)
    assert (view.jitter, view.brightness, view.contrast) == (0.8, 0.4, 0.4)
    assert (view.saturation, view.hue, view.grey) == (0.4, 0.1, 0.2)
    assert (view.blur, view.blur_sigma, view.solarise) == (0.0, (0.1, 2.0), 0.0)
