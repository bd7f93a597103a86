"""The table of a study: scores of every arm, and how they differ from their control."""

from collections.abc import Mapping
from typing import Any

from scdd.progress import duration
from scdd.tables import counted, mean_sd, table


def ablation_table(result: Mapping[str, Any]) -> str:
    """One row an arm; differences are paired seed by seed."""
    asked, rows = result["asked"], result["rows"]
    first, scores = asked["arms"][0]["name"], asked["scores"]
    several = len({arm["against"] or first for arm in asked["arms"][1:]}) > 1
    with_paper = any(arm["paper"] for arm in asked["arms"])
    lines = []
    for arm in asked["arms"]:
        own = [row for row in rows if row["arm"] == arm["name"]]
        compared = result["differences"].get(arm["name"])
        line = [arm["title"] or arm["name"]]
        for number in range(len(scores)):
            line.append(mean_sd([row["scores"][number] for row in own]))
            line.append("-" if compared is None else difference(compared[number]))
        teachers = [row["teacher_top1"] for row in own if row["teacher_top1"] is not None]
        seconds = [sum(row["seconds"].values()) for row in own]
        line += [
            mean_sd(teachers) if teachers else "-",
            duration(sum(seconds) / len(seconds)) if seconds else "-",
        ]
        line += [arm["against"] or first if arm["name"] != first else "-"] if several else []
        line += [arm["paper"] or "-"] if with_paper else []
        lines.append(line)
    columns = [name for score in scores for name in (score, "difference")]
    headers = ["arm", *columns, "teacher", "time", *(["against"] if several else [])]
    config, environment = result["config"], result["environment"]
    trained, paid = _each(config)
    runs = f"mean +- sd of {result['n']} whole runs" if result["n"] > 1 else "one whole run"
    missing = f" Not finished: {', '.join(result['failed'])}." if result["failed"] else ""
    others = "".join(
        f" In the row {arm['title'] or arm['name']}, '{own}' stands in the column '{score}'."
        for arm in asked["arms"]
        for score, own in zip(scores, arm["scores"], strict=bool(arm["scores"]))
        if own != score
    )
    val = rows[0]["val_images"] if rows else 0
    hardware = environment.get("gpu") or environment["processor"]
    control = "the arm it is against" if several else asked["arms"][0]["title"] or first
    note = (
        f"{asked['title']} ({asked['paper']}). Top-1 % on {val} real validation images, last "
        f"epoch, {runs}, {trained} each; "
        f"difference to {control}, seed by seed, with its standard error, and a sign where it is "
        f"more than two of them.{others} Preset {asked['preset']}, {paid}; time: of "
        f"all steps of a run.{missing} {hardware}, "
        f"{counted(environment['cpu_threads'], 'thread')}, torch "
        f"{environment['versions']['torch']}, commit {result['commit']}."
    )
    return f"{table([*headers, *(['paper'] if with_paper else [])], lines)}\n\n{note}\n"


def _each(config: Mapping[str, Any]) -> tuple[str, str]:
    """What is trained in a run to score it, and the room that its images take."""
    pretrain, pairs = config.get("pretrain"), config.get("condense_pairs")
    return (
        counted(pretrain["seeds"], "network")
        if pretrain
        else counted(config["posttrain"]["seeds"], "student"),
        f"N = {pairs['budget_n']}" if pairs else f"ipc {config['ipc']}",
    )


def difference(of: Mapping[str, Any]) -> str:
    """`+1.2 +- 0.3 (+)`."""
    if of["error"] is None:
        return f"{of['mean']:+.1f}"
    return f"{of['mean']:+.1f} +- {of['error']:.1f} ({of['verdict']})"
