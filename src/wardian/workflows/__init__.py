"""Workflows: programs outside of sandboxes that drive them durably.

    from wardian.workflows import run, step, workflow

    @step(tries=3)
    def fetch(url):
        return httpx.get(url).json()

    @workflow
    def report(input):
        rows = fetch(input["url"])                 # done once, whatever happens afterwards
        box = run.sandbox("base")                  # as the last step in it left it
        said = box.run("python3 sum.py", files={"rows.json": json.dumps(rows), "sum.py": SUM})
        if run.ask("Publish it?") == "yes":        # nothing is held while it waits: not even this program
            return {"said": said.stdout}

``wardian workflow serve FILE`` runs them. A workflow is begun again from its beginning when it was cut off
or has rested, and steps that were committed give their results without being done. So what is not in a step
must come to the same each time; a workflow that asks otherwise than before ends with ``step_changed`` or
``workflow_changed``.
"""

from wardian.runs.lib.wardian_run import RunError, StepFailed
from wardian.workflows.program import Box, CommandFailed, Done, Workflow, run, step, workflow

__all__ = [
    "Box",
    "CommandFailed",
    "Done",
    "RunError",
    "StepFailed",
    "Workflow",
    "run",
    "step",
    "workflow",
]
