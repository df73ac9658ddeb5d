"""Progress of long tasks: a bar in a terminal, an occasional line in a log."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

from datxai.errors import escape

log = logging.getLogger("datxai")


class EscapingFormatter(logging.Formatter):
    """Escapes log messages, so that they are safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


class Bar:
    """A progress bar on standard error."""

    def __init__(self, total: int, unit: str):
        from tqdm import tqdm

        live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            bar_format="  {percentage:3.0f} % {bar:30} {n_fmt}/{total_fmt} " + unit + ", {remaining} left",
            leave=False,
            mininterval=0.2 if live else 30,
            delay=0 if live else 30,
            file=sys.stderr,
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, n: int = 1) -> None:
        """Advance the bar by ``n``."""
        self._bar.update(n)

    def say(self, line: str) -> None:
        """Log a line, shown above the bar."""
        self._bar.clear()
        log.info(line)


def parallel(
    function: Callable, tasks: Iterable[tuple], n: int, n_jobs: int, what: str, sizes: Sequence[int] | None = None
) -> Iterator:
    """Results of ``function(*task)`` in the order of the ``n`` tasks, over processes, with progress.

    Tasks are consumed lazily, so memory does not grow with their number. ``n_jobs`` -1 is one process per core, 1 uses
    this process only. ``sizes`` is the number of ``what`` that each task makes, one if left out.
    """
    import joblib

    # A process that has come to hold 300 MB more than at first is replaced. Tasks of one cohort differ by as much.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
    with Bar(n if sizes is None else sum(sizes), what) as bar:
        pool = joblib.Parallel(n_jobs=max(1, min(joblib.effective_n_jobs(n_jobs), n)), return_as="generator")
        for number, result in enumerate(pool(joblib.delayed(function)(*task) for task in tasks)):
            bar.update(1 if sizes is None else sizes[number])
            yield result


def on_one_thread(function: Callable) -> Callable:
    """Decorator: run a task of `parallel` on one thread of BLAS and OpenMP.

    The last digits of its result depend on the number of threads, which would depend on ``n_jobs`` and on how many
    tasks are left.
    """

    @functools.wraps(function)
    def run(*arguments, **keywords):
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1):
            return function(*arguments, **keywords)

    return run
