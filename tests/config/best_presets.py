"""Settings of the presets that follow what came after SC-DD: EDC, FADRM, RDED, DELT."""

from typing import Any


def supervised(
    labellers: tuple[str, ...],
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    least_crop: float,
    **more: float,
) -> dict[str, Any]:
    """A ResNet-18 and other nets trained with labels, on crops and flips alone."""
    training: dict[str, Any] = {
        "objective": {"name": "supervised"},
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "views": [{"crop_scale": [least_crop, 1.0], "jitter": 0.0, "grey": 0.0}],
        **more,
    }
    return {
        "squeeze": {"arch": "resnet18", **training},
        "squeeze_labellers": [{"arch": arch, **training} for arch in labellers],
    }


FADRM_LABELLERS = ("shufflenet_v2_x0_5", "mobilenet_v2")
EDC_LABELLERS = (*FADRM_LABELLERS, "convnet_bn")


# FADRM (arXiv:2506.24125): three merges between four times 500 iterations; labels from the
# BatchNorm statistics of 8 images, steps of 8 + 8, a cosine that ends at half the rate.
FADRM_RECOVER: dict[str, Any] = {"iterations": 2000, "merges": 3, "lr": 0.25}
FADRM_RELABEL: dict[str, Any] = {"mix": "cutmix", "teacher_bn": "batch", "group": 8}
FADRM_POSTTRAIN: dict[str, Any] = {
    "arch": "resnet18",
    "batch": 16,
    "micro_batches": 2,
    "stretch": 2,
    "schedule": "epoch",
    "seeds": 3,
}
COMMON: dict[str, Any] = {
    "method": "scdd",
    "recipe": "best",
    "ipc": 10,
    "probe": {"solver": "given"},
}

BEST: dict[str, dict[str, Any]] = {
    # EDC (arXiv:2404.13733), as far as it can be said.
    "cifar10_best": COMMON
    | supervised(EDC_LABELLERS, 10, 64, 0.05, 0.0, 0.75, final_lr=0.05)
    | {
        "dataset": {"name": "cifar10", "root": "data", "image_size": 32},
        "recover": {
            "start": "real",
            "teachers": "all",
            "iterations": 75,
            "lr": 0.05,
            "crop_scale": [0.5, 1.0],
        },
        "relabel": {
            "views": 1000,
            "randaugment": {"count": 2, "magnitude": 9},
            "mix": "cutmix",
            "teachers": "all",
        },
        "posttrain": {
            "arch": "resnet18",
            "epochs": 1000,
            "batch": 25,
            "lr_schedule": "multistep",
            "schedule": "epoch",
            "loss": "mse",
            "hard_weight": 0.025,
            "ema": 0.99,
            "seeds": 3,
        },
    },
    "cifar100_best": COMMON
    | supervised(FADRM_LABELLERS, 200, 128, 0.1, 5e-4, 0.75)
    | {
        "dataset": {"name": "cifar100", "root": "data", "image_size": 32},
        "recover": FADRM_RECOVER | {"start": "median", "teachers": "all", "roll": 4},
        "relabel": FADRM_RELABEL | {"views": 1000, "teachers": "all"},
        "posttrain": FADRM_POSTTRAIN | {"epochs": 1000},
    },
    "tiny_imagenet_best": COMMON
    | supervised(FADRM_LABELLERS, 100, 128, 0.1, 5e-4, 0.08)
    | {
        "dataset": {"name": "image_folder", "root": "data/tiny-imagenet-200", "image_size": 64},
        "recover": FADRM_RECOVER
        | {"start": "median", "teachers": "all", "order": "shuffled", "roll": 4},
        "relabel": FADRM_RELABEL | {"views": 300, "teachers": "all"},
        "posttrain": FADRM_POSTTRAIN,
    },
    "imagenet_best": COMMON
    | {
        "dataset": {
            "name": "image_folder",
            "root": "data/imagenet",
            "image_size": 224,
            "storage": "streaming",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "squeeze": {
            "arch": "resnet18",
            "checkpoint": {"path": "weights/resnet18-f37072fd.pth"},
        },
        "recover": FADRM_RECOVER | {"start": "rded", "order": "shuffled", "roll": 32},
        "relabel": FADRM_RELABEL | {"views": 300},
        "posttrain": FADRM_POSTTRAIN,
    },
}
