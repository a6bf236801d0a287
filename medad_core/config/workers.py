"""What Ray reserves for the workers of a run (`flow.ray_workers`).

One decision: the GPUs of a stage's workers say whether the stage computes on a GPU. The machine that starts a run on a
cluster often has none, so what torch finds there says nothing.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from medad_core.config.base import Section


class WorkerResources(Section):
    """What Ray reserves for one worker of a stage; `gpus` below 1 is a share of one."""

    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    memory_gib: float = Field(0.0, ge=0, description="0 reserves none")

    @field_validator("cpus", "gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"should be a whole number, or a share below 1, not {value:g}")
        return value


class RayWorkers(Section):
    """The resources of a worker of each stage, runner ray."""

    slices: WorkerResources = WorkerResources()
    maps: WorkerResources = WorkerResources()
    prompts: WorkerResources = WorkerResources()
    answers: WorkerResources = WorkerResources()

    def stages(self) -> dict[str, WorkerResources]:
        """The resources by stage, in the order of the stages."""
        return {"slices": self.slices, "maps": self.maps, "prompts": self.prompts, "answers": self.answers}
