"""Two processes that train together over gloo and run what they are asked, for a whole session.

To start them takes seconds, so one pair serves all tests.
"""

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

SECONDS = 300
"""After which a call is taken for stuck: one process waits for another that never comes."""


class TwoProcesses:
    """Calls a function of a module in both processes, of rank 0 and 1; started when first used."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what `function(*args)` returns on each rank: tensors, in plain containers.

        Raises:
            AssertionError: with the traceback of the process that failed.
        """
        import torch

        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        answers: dict[int, Any] = {}
        while len(answers) < 2:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = wait(waiting, SECONDS)
            if not ready:
                self._fail(f"{function.__name__} did not end in {SECONDS} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    answer = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=True)
                except EOFError:
                    answer = {"error": "the process died"}
                if "error" in answer:
                    self._fail(f"rank {rank}: {answer['error']}")
                answers[rank] = answer["result"]
        return [answers[0], answers[1]]

    def stop(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _fail(self, why: str) -> NoReturn:
        # One process may wait for the other for ever, so both go.
        self.stop()
        raise AssertionError(why)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def serve(rank: int, port: int, pipe: Connection) -> None:
    """Join the other process, as under torchrun, and answer until the pipe closes."""
    import torch

    from scdd.distributed import joined

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with joined():
        while True:
            try:
                function, args = pipe.recv()
                answer = {"result": function(*args)}
            except EOFError:
                return
            except Exception:
                answer = {"error": traceback.format_exc()}
            data = io.BytesIO()
            torch.save(answer, data)
            pipe.send_bytes(data.getvalue())
