"""A Ray of one machine, quiet, whose workers import this checkout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Ray Data's own settings warn of their own old names whenever they are copied.
WARNINGS = r"ignore:`use_\w+` is deprecated:DeprecationWarning:ray\.data"


@contextmanager
def local_cluster(num_cpus: int) -> Iterator[None]:
    import ray
    import ray.data

    with pytest.MonkeyPatch.context() as patch:
        # Not through Ray's runtime environment, for which it would start other workers than the
        # ones that it starts beforehand.
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            num_cpus=num_cpus,
            num_gpus=0,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=100 << 20,
            # Or they would wait for whatever else runs here.
            _system_config={"worker_niceness": 0},
        )
        context = ray.data.DataContext.get_current()
        patch.setattr(context, "enable_progress_bars", False)
        try:
            yield
        finally:
            ray.shutdown()
