"""Evaluations as Ray tasks, on this machine or a cluster, with fractions of a GPU."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from etude.nas.deeparchitect.running import WorkerLost

__all__ = ["RayExecutor"]


class RayExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls are Ray tasks.

        with RayExecutor(num_gpus=0.5) as executor:              # two candidates a GPU
            search(searcher, Training(data, device="cuda"), 64, workers=8, executor=executor)

    The function and what it holds, such as data, is sent once. etude must be installed on the nodes.

    Args:
        num_cpus, num_gpus: what a task takes; Ray places it where that is free.
        address: of a running cluster, such as "auto" or "ray://host:10001". Without one, and if Ray does not run yet,
            a local Ray is started; `shutdown` stops what was started here.
        local_cpus: of the local Ray; all cores if None.

    Raises:
        ImportError: if Ray is not installed.
    """

    def __init__(
        self,
        num_cpus: float | int = 1,
        num_gpus: float | int = 0,
        address: str | None = None,
        local_cpus: int | None = None,
    ):
        try:
            import ray
        except ImportError as error:
            raise ImportError("RayExecutor needs Ray: pip install 'etude[ray]'") from error
        if num_cpus < 0 or num_gpus < 0:
            raise ValueError(f"num_cpus and num_gpus must not be negative, got {num_cpus} and {num_gpus}")
        self._ray = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            here = {"num_cpus": local_cpus, "include_dashboard": False} if address is None else {"address": address}
            ray.init(**here, log_to_driver=False)
        self._call = ray.remote(_call).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)
        self._sent: dict[int, tuple[Any, Any]] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Calls `fn` on some node. A worker or node that dies gives `WorkerLost`, an error of `fn` itself."""
        future: Future = Future()
        future.set_running_or_notify_cancel()
        # Callables are sent once: an evaluation holds its data.
        sent = [self._once(arg) if callable(arg) else arg for arg in args]
        self._call.remote(fn, *sent, **kwargs).future().add_done_callback(lambda done: self._pass_on(done, future))
        return future

    def _once(self, item: Any) -> Any:
        if id(item) not in self._sent:
            self._sent[id(item)] = item, self._ray.put(item)
        return self._sent[id(item)][1]

    def _pass_on(self, done: Future, future: Future) -> None:
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error.cause if isinstance(error.cause, Exception) else error)
        elif isinstance(error, self._ray.exceptions.RayError):
            future.set_exception(WorkerLost(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
        else:
            future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._sent.clear()
        if self._owns and self._ray.is_initialized():
            self._ray.shutdown()


def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)
