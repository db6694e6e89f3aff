"""`python -m msa_jax.train` for two processes on a busy machine, of which one may be killed."""

from typing import Any

from msa_jax import distributed, train
from msa_jax.training import step, trainer

# Dead is who was not heard of for so long.
distributed.HEARTBEAT_SECONDS = 15


class CompiledByAll(step.StageProgram):
    """A stage that no process begins before the others are ready, too.

    Between CPUs, a step waits for 30 seconds only for a process that still compiles.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        jitted = self.step

        def first_step(*state_and_batch: Any) -> Any:
            self.step = jitted.lower(*state_and_batch).compile()
            wait = distributed.multihost.get_barrier_sync_fn()
            wait(key=f"compiled {self.stage.name}", timeout_ms=240_000)
            return self.step(*state_and_batch)

        self.step = first_step


trainer.StageProgram = CompiledByAll

if __name__ == "__main__":
    train.run()
