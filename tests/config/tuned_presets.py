"""Settings of the presets that reproduce no table: their values were tuned here."""

from typing import Any

PAIRS: dict[str, Any] = {
    "recipe": "custom",
    "dataset": {"name": "digits", "image_size": 16},
    "squeeze": {
        "arch": "resnet8x2",
        "objective": {"name": "barlow_twins", "hidden": 512, "dim": 512},
        "epochs": 30,
        "batch": 128,
        "optimizer": "adamw",
        "lr": 0.002,
        "warmup_epochs": 2,
        "views": [
            {
                "count": 2,
                "crop_scale": [0.5, 1.0],
                "flip": 0.0,
                "saturation": 0.0,
                "hue": 0.0,
                "grey": 0.0,
            }
        ],
    },
    "condense_pairs": {
        "budget_n": 10,
        "steps": 1000,
        "batch": 128,
        "lr": 0.003,
        "outer_aug": "none",
        "pool": {"models": 5, "arch": "convnet_krr_w32", "age": 200},
    },
    "pretrain": {
        "arch": "convnet_krr_w32",
        "seeds": 5,
        "epochs": 500,
        "probe": {"solver": "lbfgs", "iterations": 200},
    },
}

OF_BOOST = PAIRS["condense_pairs"] | {"lr": 0.02}
"""Coefficients want a higher rate than pixels."""

OF_DIGITS: dict[str, Any] = {
    "probe": {"crop_scale": [0.3, 1.0], "flip": False},
    "recover": {
        "iterations": 1000,
        "alpha": 0.5,
        "lr": 0.1,
        "crop": "sample",
        "crop_scale": [0.3, 1.0],
        "flip": False,
    },
    "relabel": {
        "views": 400,
        "crop_scale": [0.2, 1.0],
        "flip": False,
        "mix": "cutmix",
        "teacher_bn": "batch",
        "group": 25,
    },
    "posttrain": {
        "arch": "resnet8",
        "epochs": 600,
        "batch": 25,
        "lr": 2e-3,
        "temperature": 2,
        "stretch": 1.5,
    },
}

TUNED: dict[str, dict[str, Any]] = {
    "digits": {
        "method": "scdd",
        "recipe": "custom",
        "ipc": 10,
        "dataset": {"name": "digits", "image_size": 16},
        "squeeze": PAIRS["squeeze"]
        | {"objective": {"name": "moco_v2", "queue": 1024, "momentum": 0.99, "temperature": 0.2}},
        "recover_real": {
            "start": "real",
            "iterations": 100,
            "alpha": 0.5,
            "lr": 0.005,
            "crop": "sample",
            "crop_scale": [0.3, 1.0],
            "flip": False,
        },
        **OF_DIGITS,
    },
    "cifar10_cpu": {
        "method": "scdd",
        "recipe": "custom",
        "ipc": 10,
        "dataset": {
            "name": "image_folder",
            "root": "data/cifar10",
            "image_size": 32,
            "train_per_class": 1000,
        },
        "squeeze": {
            "arch": "resnet8x2",
            "objective": {"name": "moco_v2", "queue": 2048, "momentum": 0.99, "temperature": 0.2},
            "epochs": 16,
            "batch": 128,
            "optimizer": "adamw",
            "lr": 2e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 1,
            "views": [{"count": 2, "crop_scale": [0.2, 1.0]}],
            "knn_every": 4,
        },
        "probe": {"crops": 2, "crop_scale": [0.3, 1.0]},
        "recover": {
            "iterations": 1000,
            "lr": 0.1,
            "alpha": 0.1,
            "crop": "sample",
            "crop_scale": [0.3, 1.0],
        },
        "recover_real": {
            "start": "real",
            "iterations": 100,
            "lr": 0.01,
            "alpha": 0.1,
            "crop": "sample",
            "crop_scale": [0.3, 1.0],
        },
        "relabel": {
            "views": 300,
            "crop_scale": [0.2, 1.0],
            "mix": "cutmix",
            "teacher_bn": "batch",
            "group": 25,
        },
        "posttrain": {
            "arch": "resnet8",
            "epochs": 400,
            "batch": 25,
            "lr": 2e-3,
            "temperature": 4,
            "stretch": 1.5,
        },
    },
    "digits_krr_st": PAIRS | {"method": "krr_st"},
    "digits_boost": PAIRS | {"method": "boost", "condense_pairs": OF_BOOST},
    "cifar10_boost_cpu": {
        "method": "boost",
        "recipe": "custom",
        "dataset": {
            "name": "image_folder",
            "root": "data/cifar10",
            "image_size": 32,
            "train_per_class": 1000,
        },
        "squeeze": {
            "arch": "resnet10w16",
            "objective": {
                "name": "barlow_twins",
                "dim": 512,
                "hidden": 512,
                "off_diagonal": 0.005,
            },
            "epochs": 30,
            "batch": 128,
            "optimizer": "adamw",
            "lr": 2e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 1,
        },
        "condense_pairs": {
            "budget_n": 100,
            "pairs": 100,
            "steps": 2000,
            "batch": 256,
            "outer_aug": "flip",
            "lr": 1e-2,
            "pool": {"models": 5, "arch": "convnet_krr_w32", "age": 200},
        },
        "pretrain": {
            "arch": "convnet_krr_w32",
            "seeds": 3,
            "epochs": 300,
            "probe": {"solver": "lbfgs", "iterations": 200},
        },
    },
    "digits_scdd_pairs": {
        "method": "scdd_pairs",
        "ipc": 1,
        **{key: PAIRS[key] for key in ("recipe", "dataset", "squeeze", "pretrain")},
        **{key: OF_DIGITS[key] for key in ("probe", "recover")},
    },
    "digits_boost_labels": {
        "method": "boost_labels",
        **{key: PAIRS[key] for key in ("recipe", "dataset", "squeeze")},
        "condense_pairs": OF_BOOST,
        **{key: OF_DIGITS[key] for key in ("probe", "relabel")},
        "posttrain": OF_DIGITS["posttrain"] | {"seeds": 3},
    },
}
