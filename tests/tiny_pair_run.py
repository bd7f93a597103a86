"""A run of krr_st or boost that takes seconds."""

SETTINGS = {
    "dataset.train_per_class": 12,
    "squeeze.arch": "resnet8",
    "squeeze.objective.hidden": 16,
    "squeeze.objective.dim": 16,
    "squeeze.epochs": 1,
    "squeeze.batch": 16,
    "condense_pairs.budget_n": 12,
    "condense_pairs.steps": 4,
    "condense_pairs.batch": 16,
    "condense_pairs.pool.models": 2,
    "condense_pairs.pool.age": 3,
    "condense_pairs.pool.arch": "convnet_krr_w32",
    "pretrain.arch": "convnet_krr_w32",
    "pretrain.epochs": 2,
    "pretrain.seeds": 2,
    "pretrain.probe.iterations": 5,
}


def settings(**more: object) -> list[str]:
    found = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    return [word for key, value in found.items() for word in ("--set", f"{key}={value}")]
