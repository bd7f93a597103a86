"""Steps that several runs side by side have in common: made once, and links to the same files."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from record import commit

from scdd.checkpoint import load_weights
from scdd.config.run import RunConfig
from scdd.files import link_or_copy
from scdd.method_steps import Step, steps_of
from scdd.progress import say
from scdd.run import RunDirectory
from scdd.step_identity import settings_of


def facts_of(cfg: RunConfig, run: Path) -> dict[str, Any]:
    """What a finished run has found, and the seconds that its steps took, its own or shared."""
    students = json.loads((run / "results.json").read_text())
    return teacher_of(cfg, run) | {
        "val_images": students["val_images"],
        "students": students["rows"],
    }


def teacher_of(cfg: RunConfig, run: Path) -> dict[str, Any]:
    """What is known of a run that may have ended before its students."""
    teacher = run / "probe" / "teacher.safetensors"
    steps, seconds = RunDirectory(run), {}
    for step in steps_of(cfg):
        done = steps.done(step.name)
        if done is not None:
            seconds[step.name] = done["seconds"]
    return {
        "commit": commit(),
        "teacher_top1": load_weights(teacher)[1]["val_top1"] if teacher.exists() else None,
        "seconds": seconds,
    }


def share_steps(cfg: RunConfig, run: Path) -> None:
    """Take over steps that another run beside this one has made with the same settings.

    As links to the same files, which no run changes once they are there. `distill` then finds them
    done, and checks settings and inputs as of its own.
    """
    others = [folder for folder in sorted(run.parent.glob("*")) if folder != run]
    taken: dict[str, Path] = {}
    for step in steps_of(cfg):
        if step.name == "report" or (run / step.name).exists():
            continue
        for folder in others:
            if not (folder / step.name / "done.json").exists():
                continue
            if _same_settings(step, cfg, folder) and _same_inputs(step, run, folder):
                link_folder(folder / step.name, run / step.name)
                taken[step.name] = folder
                break
    for name, folder in taken.items():
        say(f"  {name}: that of {folder.name}")


def _same_settings(step: Step, cfg: RunConfig, other: Path) -> bool:
    made = json.loads((other / step.name / "settings.json").read_text())
    return made["settings"] == json.loads(json.dumps(settings_of(cfg, step)))


def _same_inputs(step: Step, run: Path, other: Path) -> bool:
    """Whether all steps that this one reads are the same files in both runs."""
    markers = [(run / name / "done.json", other / name / "done.json") for name in step.inputs]
    return all(
        ours.exists() and json.loads(ours.read_text())["outputs"] == _outputs(theirs)
        for ours, theirs in markers
    )


def _outputs(marker: Path) -> Any:
    return json.loads(marker.read_text())["outputs"] if marker.exists() else None


def link_folder(made: Path, shown: Path) -> None:
    """Make a finished step appear in another run; its marker comes last, as in the step itself."""
    aside = shown.with_name(f".{shown.name}.taken")
    shutil.rmtree(aside, ignore_errors=True)
    for path in sorted(made.rglob("*")):
        target = aside / path.relative_to(made)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
    os.rename(aside, shown)
