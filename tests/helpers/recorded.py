"""CUDA graphs by their rules, on a machine that has none."""

from args_fast.engine.graphs import StepGraphs


class Recorded(StepGraphs):
    """Notes what is captured, and replays it by calling it: what a device does on a replay is what
    the captured function did to the tensors that it held. So it shows whether the engine's buffers
    are where a graph would look for them; it does not show that the models can be captured."""

    def __init__(self):
        super().__init__(enabled=True)
        self.captured = []
        self.replays = 0

    def _capture(self, function):
        self.captured.append(function)

        def replay():
            self.replays += 1
            function()

        return replay


def record(engine):
    """Let an engine replay its steps, whichever runners it will make."""
    make = engine.bursts._make_runner

    def recorded(key):
        runner = make(key)
        runner.graphs = Recorded()
        return runner

    engine.bursts._make_runner = recorded
    return engine
