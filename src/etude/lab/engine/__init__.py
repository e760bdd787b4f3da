"""What executes trials: `inline` in this process, `process` in persistent local workers, `ray` on a cluster."""

from etude.lab.engine.base import Done, Engine, Event, Progress
from etude.lab.engine.factory import ENGINES, make_engine

__all__ = ["ENGINES", "Done", "Engine", "Event", "Progress", "make_engine"]
