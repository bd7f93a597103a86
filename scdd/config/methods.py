"""The methods, the sections that each has beside the common ones, and how one becomes another."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from scdd.config.condense import DsaOperation

Method = Literal[
    "scdd",
    "sre2l",
    "random",
    "herding",
    "forgetting",
    "k_center",
    "dm",
    "krr_st",
    "boost",
    "scdd_pairs",
    "krr_st_labels",
    "boost_labels",
]

TAUGHT = ("squeeze_labellers", "probe")
"""Keys of the methods that have a teacher."""
LABELLED = (*TAUGHT, "relabel", "posttrain")
"""Keys of the methods whose images have soft labels."""
OF_CLASSES = ("ipc", *LABELLED)
"""Keys of the methods whose images have classes as well."""
OWN_SECTIONS: dict[str, tuple[str, ...]] = {
    "scdd": ("recover", "recover_real", *OF_CLASSES),
    "sre2l": ("recover", "recover_real", *OF_CLASSES),
    "random": ("select", *OF_CLASSES),
    "herding": ("select", *OF_CLASSES),
    "forgetting": ("select", "squeeze_scorer", *OF_CLASSES),
    "k_center": ("select", *OF_CLASSES),
    "dm": ("condense", *OF_CLASSES),
    "krr_st": ("condense_pairs", "pretrain"),
    "boost": ("condense_pairs", "pretrain"),
    "scdd_pairs": ("recover", "represent", "pretrain", "ipc", *TAUGHT),
    "krr_st_labels": ("condense_pairs", *LABELLED),
    "boost_labels": ("condense_pairs", *LABELLED),
}
"""Sections that not every method has; the first is that of the step which makes the images."""
MAY_BE_LEFT_OUT = ("recover_real", "squeeze_scorer", *OF_CLASSES)
"""Those that a method has only where they are given, or that have defaults whatever the method."""
IMAGES_OF = {"scdd_pairs": "scdd", "krr_st_labels": "krr_st", "boost_labels": "boost"}
"""The bridges: methods whose images are those of another, with targets of the other family."""
WITHOUT_CLASSES = ("krr_st_labels", "boost_labels")
"""Methods that label images of no class."""
RAW = {"parameterisation": "raw", "rotations": False, "approximation": False}
"""How condense_pairs is set where nothing of Boost is wanted."""

assert OWN_SECTIONS.keys() == set(get_args(Method))


def concerns(method: str, key: str) -> bool:
    """Whether a method has use for a key at the top of the configuration."""
    return key in OWN_SECTIONS[method] or all(key not in own for own in OWN_SECTIONS.values())


def with_own_sections(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the sections of their method, empty where the user gives none.

    Raises:
        ValueError: if there is a section that the method has no use for.
    """
    method = settings.get("method", "scdd")
    if not _is_method(method):  # Which the check of the key will say.
        return dict(settings)
    own = OWN_SECTIONS[method]
    for name in _idle(settings, method):
        raise ValueError(
            f"{name}: method {method} has no use for this section; take it out, or choose another "
            "method"
        )
    needed = [name for name in own if name not in MAY_BE_LEFT_OUT]
    for name in needed:
        if settings.get(name, {}) is None:
            raise ValueError(f"{name}: wants a section of settings, found None")
    whole: dict[str, Any] = {name: {} for name in needed} | dict(settings)
    if IMAGES_OF.get(method, method) == "krr_st" and isinstance(whole["condense_pairs"], dict):
        whole["condense_pairs"] = RAW | whole["condense_pairs"]
    if method in WITHOUT_CLASSES and isinstance(whole.setdefault("posttrain", {}), dict):
        whole["posttrain"] = {"labels": ["soft"]} | whole["posttrain"]
    return whole


def change_method(settings: dict[str, Any], method: str) -> list[str]:
    """Make settings those of another method; return what else had to change, in words.

    What only the method before had use for is taken out. The squeeze of SRe2L learns from labels,
    for the same number of epochs, and the teacher has its classifier. DM does not mirror images
    that are labelled without. Images of no class teach nothing but soft labels.
    """
    if not _is_method(method) or method == settings.get("method", "scdd"):
        return []
    settings["method"] = method
    idle = _idle(settings, method)
    notes = [f"{' and '.join(idle)} left out"] if idle else []
    for name in idle:
        del settings[name]
    for name in OWN_SECTIONS[method]:
        if settings.get(name, {}) is None:
            del settings[name]
    if method == "dm":
        notes += _do_not_mirror(settings)
    if method in WITHOUT_CLASSES:
        notes += _forget_classes(settings)
    return notes + (_learn_from_labels(settings) if method == "sre2l" else [])


def supervised_like(squeeze: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a squeeze as long as the given one that learns from labels, on one view."""
    view, *_ = squeeze.get("views") or [{}]
    return {**squeeze, "objective": {"name": "supervised"}, "views": [{**view, "count": 1}]}


def _learn_from_labels(settings: dict[str, Any]) -> list[str]:
    notes = []
    squeeze, probe = settings.get("squeeze") or {}, settings.get("probe") or {}
    objective = (squeeze.get("objective") or {}).get("name", "moco_v2")
    if objective != "supervised" and squeeze.get("checkpoint") is None:
        settings["squeeze"] = supervised_like(squeeze)
        notes.append("squeeze.objective is supervised, on one view, for as many epochs")
    if probe.get("solver") != "given":
        settings["probe"] = probe | {"solver": "given"}
        notes.append("probe.solver is given")
    return notes


def _do_not_mirror(settings: dict[str, Any]) -> list[str]:
    if (settings.get("relabel") or {}).get("flip", True):
        return []
    settings["condense"] = {"dsa": [name for name in get_args(DsaOperation) if name != "flip"]}
    return ["condense.dsa has no flip, as relabel has none"]


def _forget_classes(settings: dict[str, Any]) -> list[str]:
    own = settings.get("posttrain") or {}
    taught = {"labels": ["soft"], "hard_weight": 0.0}
    changed = {key: value for key, value in taught.items() if own.get(key, value) != value}
    if changed:
        settings["posttrain"] = own | changed
    words = {"labels": "posttrain.labels is [soft]", "hard_weight": "posttrain.hard_weight is 0"}
    return [words[key] for key in changed]


def _is_method(name: Any) -> bool:
    return isinstance(name, str) and name in OWN_SECTIONS


def _idle(settings: Mapping[str, Any], method: str) -> list[str]:
    """Sections that stand there though only other methods have use for them."""
    return [
        key for key, value in settings.items() if value is not None and not concerns(method, key)
    ]
