"""Show the metrics of a run in TensorBoard (needs `pip install tensorboard`, and no PyTorch).

python examples/to_tensorboard.py runs/demo && tensorboard --logdir runs/demo
"""

import json
import sys
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def main(folder: str) -> None:
    """Write an event file into the run's folder, with a curve for each number in metrics.jsonl."""
    writer = EventFileWriter(folder)
    for text in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        numbers = {name: value for name, value in line.items() if isinstance(value, float)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        writer.add_event(Event(step=line["step"], summary=Summary(value=values)))
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
