"""Pool of worker processes that decode and encode images, and replacement of those that die."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edje_qdrant.errors import ConfigError, WorkerDiedError
from edje_qdrant.images import DecodeLimits, error_reason
from edje_qdrant.ingest.decode import KnownImage
from edje_qdrant.ingest.encode import EncodedBatch
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.worker import Failure, Ready, WorkerSettings, work
from edje_qdrant.types import FailedImage

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["EncodingPool", "check_devices"]

# Batches sent to one worker (one is encoded while the next is decoded), and batches in progress
# between being read and being written, for each worker.
_HELD, _UNDER_WAY = 2, 4
# The run ends after this many workers died without an image being encoded in between.
_MOST_LOST = 20


@dataclass(eq=False, slots=True)
class _Task:
    number: int
    images: list[KnownImage]
    lost: int = 0  # workers that died while they had it
    outcome: EncodedBatch | None = None


@dataclass(eq=False, slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str
    ready: bool = False
    tasks: dict[int, _Task] = field(default_factory=dict)


class EncodingPool:
    """Distribute batches to worker processes; a context manager that ends them.

    Workers are started when there is work for them. A worker that dies is replaced, and each of
    its batches is sent to a worker that has no other; if that one dies too, the batch is sent image
    by image. So only an image that kills every worker that reads it is reported as failed.

    Args:
        model: The model; written once to a temporary file, which the workers memory-map.
        devices: The device of each worker, from `check_devices`.
        limits: Of the decoder processes of each worker.
        file_fields: The fields of payloads that are taken from the files.
    """

    def __init__(
        self,
        model: EDJEModel,
        devices: Sequence[str],
        limits: DecodeLimits,
        file_fields: FileFields = FileFields(),  # noqa: B008 - frozen
    ) -> None:
        self._model = model
        self._devices = devices
        self._limits = limits
        self._file_fields = file_fields
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._workers: list[_Worker | None] = [None] * len(devices)
        self._numbers = count()
        self._order: list[_Task] = []  # in the order in which they are yielded
        self._waiting: list[_Task] = []  # not sent to a worker yet
        self._failed_starts = self._lost = 0

    def __enter__(self) -> EncodingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers, even if they are working."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()
        self._workers = [None] * len(self._devices)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def encode(self, batches: Iterable[list[KnownImage]]) -> Iterator[EncodedBatch]:
        """Yield the outcome of each batch, in order; only a few batches are held at a time.

        A batch with which two workers died is yielded as one batch for each image.

        Raises:
            ConfigError: The model cannot be sent to other processes, or a device cannot be used or
                has too little memory.
            WorkerDiedError: Workers die one after another.
            RuntimeError: The model failed to encode; contains the worker's traceback.
        """
        source = iter(batches)
        more = True
        while True:
            while more and len(self._order) < _UNDER_WAY * len(self._devices):
                images = next(source, None)
                if images is None:
                    more = False
                    break
                task = _Task(next(self._numbers), images)
                self._order.append(task)
                self._waiting.append(task)
                self._distribute()
                self._receive(0)
            if not self._order:
                return
            self._distribute()
            while self._order and (outcome := self._order[0].outcome) is not None:
                del self._order[0]
                yield outcome
            if self._order:
                self._distribute()
                self._receive(None)

    def _distribute(self) -> None:
        starting = sum(worker is not None and not worker.ready for worker in self._workers)
        for slot, worker in enumerate(self._workers):
            if worker is None and starting < len(self._waiting):
                self._workers[slot] = self._start(self._devices[slot])
                starting += 1
        for task in [*self._waiting]:
            free = self._free_for(task)
            if free is None:
                continue
            try:
                free.connection.send((task.number, task.images))
            except OSError:
                return  # it died; receiving from it will raise EOFError
            free.tasks[task.number] = task
            self._waiting.remove(task)

    def _free_for(self, task: _Task) -> _Worker | None:
        """Return the least busy worker, or an idle one for a batch with which a worker died."""
        free = [
            worker
            for worker in self._workers
            if worker is not None
            and worker.ready
            and len(worker.tasks) < (1 if task.lost else _HELD)
            and not any(held.lost for held in worker.tasks.values())
        ]
        return min(free, key=lambda worker: len(worker.tasks), default=None)

    def _receive(self, timeout: float | None) -> None:
        """Receive messages from workers; without a timeout, wait for at least one."""
        workers = {worker.connection: worker for worker in self._workers if worker is not None}
        for connection in wait([*workers], timeout):
            worker = workers[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            if isinstance(message, Ready):
                worker.ready = True
                self._failed_starts = 0
            elif isinstance(message, Failure):
                raise self._error(worker, message)
            else:
                number, outcome = message
                worker.tasks.pop(number).outcome = outcome
                self._lost = 0

    def _error(self, worker: _Worker, failure: Failure) -> Exception:
        if worker.ready and failure.refused is not None:
            return ConfigError(failure.refused)
        if worker.ready:
            return RuntimeError(
                f"encoding failed in a process on {worker.device}:\n{failure.traceback}"
            )
        last = failure.traceback.strip().splitlines()[-1]
        return ConfigError(f"a process cannot load the model on {worker.device}: {last}")

    def _replace(self, worker: _Worker) -> None:
        """Remove a worker that died, and decide how its tasks are repeated."""
        worker.connection.close()
        worker.process.join(10)
        worker.process.kill()
        worker.process.join()
        self._workers[self._workers.index(worker)] = None
        end = _ending(worker.process.exitcode)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > 1:
                raise WorkerDiedError(
                    f"two processes died while they were starting (the last, on {worker.device}, "
                    f"{end}); see their output on stderr. A script that uses processes must have "
                    "its entry point under `if __name__ == '__main__':`"
                )
            return
        self._lost += 1
        if self._lost >= _MOST_LOST:
            held = next((task for task in worker.tasks.values()), None)
            at = f" at {held.images[0].listed.path}" if held else ""
            raise WorkerDiedError(
                f"{self._lost} processes died one after another (the last {end}{at}); if there is "
                "too little memory, lower batch_size, processes or workers and run again: what was "
                "added is kept"
            )
        for task in reversed(worker.tasks.values()):
            self._repeat(task, end)

    def _repeat(self, task: _Task, end: str) -> None:
        task.lost += 1
        repeated = [task]
        if task.lost > 1 and len(task.images) > 1:
            repeated = [
                _Task(next(self._numbers), [image], lost=task.lost) for image in task.images
            ]
            at = self._order.index(task)
            self._order[at : at + 1] = repeated
        elif task.lost > 1:
            path = task.images[0].listed.path
            reason = f"each process that read it {end}"
            task.outcome = EncodedBatch(failed=[FailedImage(path, reason)])
            return
        self._waiting[:0] = repeated

    def _start(self, device: str) -> _Worker:
        context = multiprocessing.get_context("spawn")
        settings = WorkerSettings(
            self._model_file(),
            device,
            max(1, torch.get_num_threads() // len(self._devices)),
            self._limits,
            self._file_fields,
        )
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, settings), name=f"edje-encode-{device}", daemon=True
        )
        try:
            with _hold_interrupts():
                process.start()
        except BaseException:
            if process.pid is not None:
                process.kill()
                process.join()
            ours.close()
            raise
        finally:
            theirs.close()  # so that the connection is closed when the worker dies
        return _Worker(process, ours, device)

    def _model_file(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="edje-model-")
            try:
                torch.save(self._model, Path(self._folder.name) / "model.pt")
            except Exception as error:  # pickle raises what the pickled objects raise
                raise ConfigError(
                    f"the model cannot be sent to other processes ({error_reason(error)}); leave "
                    "out processes and devices"
                ) from error
        return str(Path(self._folder.name) / "model.pt")


def check_devices(
    processes: int, devices: Sequence[str] | None, default: torch.device | str
) -> list[str]:
    """Return the device of each worker process; an empty list if no process is asked for.

    Args:
        processes: Number of processes; 0 for one for each of `devices`.
        devices: Assigned in turn; None for `default` alone.
        default: The model's device.

    Raises:
        ConfigError: A device cannot be used here, or there are more devices than processes.
    """
    if devices is None:
        return [str(default)] * processes
    if isinstance(devices, str) or not devices:
        raise ConfigError(f"devices is {devices!r}; give a list, such as ['cuda:0', 'cuda:1']")
    for name in devices:
        _check_device(name)
    if 0 < processes < len(devices):
        raise ConfigError(
            f"{len(devices)} devices but {processes} processes; give at least one process for each "
            "device, or leave processes out"
        )
    return [str(devices[number % len(devices)]) for number in range(processes or len(devices))]


def _check_device(name: Any) -> None:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"there is no device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no device {name}; visible GPUs: {torch.cuda.device_count()}")


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the context ends, and block it in the processes started in the context.

    If it interrupted the start of a process, the new process would receive an incomplete message
    and print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # if it were started later, it would unblock the signal
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    # Any thread may receive the signal; the main thread handles it, even while it blocks it.
    handles = handler is not None and threading.current_thread() is threading.main_thread()
    if handles:
        signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handles:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)
