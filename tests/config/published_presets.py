"""Settings of the presets that follow the tables of the paper (arXiv:2404.07976)."""

from typing import Any

# MoCo v2 on small images: the authors' CIFAR notebook, which Tables 14 and 15 point to.
CIFAR_SQUEEZE: dict[str, Any] = {
    "arch": "resnet18",
    "objective": {
        "name": "moco_v2",
        "dim": 128,
        "mlp": False,
        "queue": 4096,
        "momentum": 0.99,
        "temperature": 0.1,
        "symmetric": False,
        "key_splits": 8,
    },
    "epochs": 200,
    "batch": 512,
    "optimizer": "sgd",
    "lr": 0.06,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "views": [
        {
            "count": 2,
            "crop_scale": [0.08, 1.0],
            "flip": 0.5,
            "jitter": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.4,
            "hue": 0.1,
            "grey": 0.2,
            "blur": 0.0,
        }
    ],
    "knn_k": 200,
    "knn_temperature": 0.1,
}

# Table 14, with lr and alpha of the released command, and its post-training.
CIFAR_RECOVER: dict[str, Any] = {
    "iterations": 1000,
    "batch": 100,
    "lr": 0.4,
    "betas": [0.5, 0.9],
    "weight_decay": 1e-4,
    "alpha": 0.005,
    "first_bn_multiplier": 10,
    "crop": "none",
    "roll": 4,
}
CIFAR_RELABEL: dict[str, Any] = {
    "views": 200,
    "crop": "padded",
    "padding": 4,
    "flip": True,
    "mix": "mixup",
    "mix_alpha": 0.8,
    "teacher_bn": "batch",
    "group": 64,
}
CIFAR_POSTTRAIN: dict[str, Any] = {
    "arch": "resnet18",
    "epochs": 200,
    "batch": 64,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "decay": "all",
    "schedule": "epoch",
    "stretch": 3,
    "temperature": 30,
    "precision": "fp32",
    "seeds": 3,
}

# lr and alpha of recover with each teacher. The rest is Table 16, but for the iterations, which are
# those of section 3.1 and of the 53.13 % in Table 4.
TABLE_13 = {
    "moco_v2": (0.35, 0.25),
    "moco_v3": (0.25, 0.0005),
    "swav": (0.3, 0.001),
    "dino": (0.25, 0.01),
}


def public_teacher(
    name: str,
    checkpoint: dict[str, str],
    probe: dict[str, Any],
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
) -> dict[str, Any]:
    """ImageNet-1K from weights that others published."""
    lr, alpha = TABLE_13[name]
    return {
        "method": "scdd",
        "recipe": "paper",
        "ipc": 50,
        "dataset": {
            "name": "image_folder",
            "root": "data/imagenet",
            "image_size": 224,
            "storage": "streaming",
            "mean": [0.485, 0.456, 0.406],
            "std": list(std),
        },
        "squeeze": {"arch": "resnet50", "checkpoint": checkpoint},
        "probe": probe,
        "recover": {
            "iterations": 3000,
            "batch": 50,
            "lr": lr,
            "weight_decay": 1e-4,
            "alpha": alpha,
            "roll": 32,
        },
        "relabel": {"views": 30, "mix": "cutmix"},
        "posttrain": {"arch": "resnet18", "schedule": "epoch", "seeds": 3},
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar100_ipc50": {
        "method": "scdd",
        "recipe": "paper",
        "ipc": 50,
        "dataset": {
            "name": "cifar100",
            "root": "data",
            "image_size": 32,
            "mean": [0.5071, 0.4867, 0.4408],
            "std": [0.2675, 0.2565, 0.2761],
        },
        "squeeze": CIFAR_SQUEEZE,
        "recover": CIFAR_RECOVER,
        "relabel": CIFAR_RELABEL,
        "posttrain": CIFAR_POSTTRAIN,
    },
    "cifar10_ipc10": {
        "method": "scdd",
        "recipe": "custom",
        "ipc": 10,
        "dataset": {
            "name": "cifar10",
            "root": "data",
            "image_size": 32,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2023, 0.1994, 0.2010],
        },
        "squeeze": CIFAR_SQUEEZE,
        "recover": CIFAR_RECOVER,
        "relabel": CIFAR_RELABEL,
        "posttrain": CIFAR_POSTTRAIN,
    },
    # Table 15; post-training after the nearest public code.
    "tiny_imagenet_ipc50": {
        "method": "scdd",
        "recipe": "paper",
        "ipc": 50,
        "dataset": {
            "name": "image_folder",
            "root": "data/tiny-imagenet-200",
            "image_size": 64,
            "mean": [0.4802, 0.4481, 0.3975],
            "std": [0.2302, 0.2265, 0.2262],
        },
        "squeeze": CIFAR_SQUEEZE,
        "recover": {
            "iterations": 1000,
            "batch": 100,
            "lr": 0.6,
            "betas": [0.5, 0.9],
            "weight_decay": 1e-4,
            "alpha": 0.1,
            "first_bn_multiplier": 10,
            "crop": "batch",
            "crop_scale": [0.08, 1.0],
            "flip": True,
        },
        "relabel": {
            "views": 100,
            "crop": "resized",
            "crop_scale": [0.08, 1.0],
            "flip": True,
            "randaugment": {"count": 2, "magnitude": 9},
            "mix": "none",
            "teacher_bn": "running",
        },
        "posttrain": {
            "arch": "resnet18",
            "epochs": 500,
            "batch": 64,
            "optimizer": "sgd",
            "lr": 0.2,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "decay": "all",
            "schedule": "epoch",
            "warmup_epochs": 5,
            "warmup_from": 0.01,
            "temperature": 20,
            "scale_loss": True,
            "seeds": 3,
        },
    },
    # Tables 13 (lr and alpha of MoCo v2) and 16, with the iterations of section 3.1.
    "imagenet_ipc50": {
        "method": "scdd",
        "recipe": "paper",
        "ipc": 50,
        "dataset": {
            "name": "image_folder",
            "root": "data/imagenet",
            "image_size": 224,
            "storage": "streaming",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "squeeze": {
            "arch": "resnet50",
            "objective": {
                "name": "moco_v2",
                "dim": 128,
                "mlp": True,
                "queue": 65536,
                "momentum": 0.999,
                "temperature": 0.2,
                "symmetric": False,
                "key_splits": 8,
            },
            "epochs": 200,
            "batch": 256,
            "optimizer": "sgd",
            "lr": 0.03,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "views": [
                {
                    "count": 2,
                    "crop_scale": [0.2, 1.0],
                    "flip": 0.5,
                    "jitter": 0.8,
                    "brightness": 0.4,
                    "contrast": 0.4,
                    "saturation": 0.4,
                    "hue": 0.1,
                    "grey": 0.2,
                    "blur": 0.5,
                    "blur_sigma": [0.1, 2.0],
                }
            ],
            "knn_every": 0,
        },
        "probe": {"solver": "sgd", "crop_scale": [0.08, 1.0]},
        "recover": {
            "iterations": 3000,
            "batch": 50,
            "lr": 0.35,
            "betas": [0.5, 0.9],
            "weight_decay": 1e-4,
            "alpha": 0.25,
            "first_bn_multiplier": 10,
            "crop": "batch",
            "crop_scale": [0.08, 1.0],
            "flip": True,
            "roll": 32,
        },
        "relabel": {
            "views": 30,
            "crop": "resized",
            "crop_scale": [0.08, 1.0],
            "flip": True,
            "mix": "cutmix",
            "mix_alpha": 1.0,
            "teacher_bn": "running",
        },
        "posttrain": {
            "arch": "resnet18",
            "epochs": 300,
            "batch": 64,
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.01,
            "decay": "matrices",
            "schedule": "epoch",
            "temperature": 20,
            "seeds": 3,
        },
    },
    "imagenet_moco_v3": public_teacher(
        "moco_v3",
        {
            "path": "weights/r-50-300ep.pth.tar",
            "head": "weights/linear-300ep.pth.tar",
            "known": "moco_v3_300ep",
        },
        {"solver": "given"},
    ),
    "imagenet_moco_v2": public_teacher(
        "moco_v2",
        {"path": "weights/moco_v2_200ep_pretrain.pth.tar", "known": "moco_v2_200ep"},
        {"solver": "sgd", "crop_scale": [0.08, 1.0]},
    ),
    "imagenet_swav": public_teacher(
        "swav",
        {
            "path": "weights/swav_800ep_pretrain.pth.tar",
            "head": "weights/swav_800ep_eval_linear.pth.tar",
            "known": "swav_800ep",
        },
        {"solver": "given"},
        std=(0.228, 0.224, 0.225),
    ),
    "imagenet_dino": public_teacher(
        "dino",
        {
            "path": "weights/dino_resnet50_pretrain.pth",
            "head": "weights/dino_resnet50_linearweights.pth",
            "known": "dino_800ep",
        },
        {"solver": "given"},
    ),
}
