"""A process that has imported everything and forks a child for each command it is asked to run.

Each child is a process of its own that runs the real `main`, without the seconds that importing
torch takes. The server itself computes nothing, so there are no threads that a fork would lose.
"""

import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

# Index of the path that an event makes or takes away, among the arguments of Python's audit event.
CHANGES = {"os.rename": 1, "os.remove": 0, "os.link": 1, "os.rmdir": 0}


def serve() -> None:
    """Answer one JSON request a line until standard input ends."""
    import matplotlib.backends.backend_agg  # noqa: F401

    import scdd.cli
    import scdd.estimate
    import scdd.evaluation
    import scdd.inspection  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command: its exit code (negative: the signal that ended it), and what was watched."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child(request, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as notes:
        watched = [json.loads(line) for line in notes]
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "watched": watched}


def child(request: dict[str, Any], notes: int) -> NoReturn:
    """Become `python -m scdd ARGS` in a folder, with output to files."""
    code = 1
    try:
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(name, flags), number)
        sys.argv = ["scdd", *request["args"]]
        if request["root"]:
            sys.addaudithook(watch(request["root"], set(request["survive"]), notes))
        from scdd.cli import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(root: str, survive: set[str], notes: int):
    """Hook that notes checkpoints read below `root`, and kills before the first new change.

    A change is a rename, link or removal below `root`; those in `survive` are let through.
    """

    def note(kind: str, what: str) -> None:
        os.write(notes, json.dumps([kind, what]).encode() + b"\n")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).endswith(".checkpoint") and args[1] == "r":
            note("read", Path(args[0]).name)
        if event not in CHANGES:
            return
        path = os.path.abspath(os.fspath(args[CHANGES[event]]))
        nothing_to_remove = event == "os.remove" and not os.path.lexists(path)
        if path.startswith(root + os.sep) and not nothing_to_remove:
            name = re.sub(r"\.\d+\.tmp$", ".tmp", os.path.relpath(path, root))
            change = f"{event} {name}"
            if change not in survive:
                note("killed", change)
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    serve()
