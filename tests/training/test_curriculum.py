import dataclasses

import pytest
from ml_collections import ConfigDict

from msa_jax.config import ConfigError
from msa_jax.training.config import train_config, with_defaults
from msa_jax.training.curriculum import stages_from_config
from tests.training.tiny import model_config, stage_config

STAGE = {
    "steps": 2,
    "learning_rate": 0.1,
    "memory_tokens": 64,
    "groups": 1,
    "queries_per_group": 1,
    "active_tokens": 8,
}


def run_config(**changes):
    model = dataclasses.asdict(model_config())
    values = {
        "workdir": "somewhere",
        "model": model,
        "data": {"documents": "documents.jsonl", "questions": "questions.jsonl"},
        "curriculum": ("warmup", "main"),
        "stages": {"main": STAGE, "warmup": {**STAGE, "aux_weight": 1.0}, "unused": STAGE},
    }
    return ConfigDict(values | changes)


def test_stages_come_in_the_order_of_the_curriculum():
    stages = stages_from_config(run_config())
    assert [stage.name for stage in stages] == ["warmup", "main"]
    assert [stage.aux_weight for stage in stages] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curriculum": ("final",)}, "names 'final', which is not one of config.stages: main"),
        ({"curriculum": ()}, "names no stage"),
        ({"stages": {"main": {**STAGE, "step": 3}}, "curriculum": ("main",)}, "'steps'"),
        ({"stages": {"main": {"steps": 3}}, "curriculum": ("main",)}, "lacks learning_rate"),
    ],
)
def test_a_curriculum_that_cannot_be_used_is_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message):
        stages_from_config(run_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aux_loss": "focal"}, "aux_loss must be one of decoupled, plain, not 'focal'"),
        ({"trainable": "some"}, "trainable must be one of all, routers, lora, not 'some'"),
        ({"frozen": "embedder"}, "frozen must be a tuple, not 'embedder'"),
        ({"lora_rank": 0}, "lora_rank must be a positive whole number"),
        ({"lora_alpha": 0.0}, "lora_alpha must be a positive number or None, not 0.0"),
        ({"groups": 0}, "groups must be a positive whole number"),
        ({"temperature": 0.0}, "temperature must be a positive number, not 0.0"),
        ({"learning_rate": -1.0}, "learning_rate must be a number from 0 on, not -1.0"),
        ({"warmup_steps": 5}, r"warmup_steps must be at most steps \(4\)"),
        ({"trainable": "routers", "aux_weight": 0.0}, "only routers train"),
        ({"lm_weight": 0.0, "aux_weight": 0.0}, "have no weight"),
    ],
)
def test_a_stage_that_cannot_train_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        stage_config(**changes)


def test_defaults_can_be_overridden_and_change_nothing():
    config = run_config()
    filled = with_defaults(config)
    assert train_config(filled) == train_config(config)
    filled.stages.main.router_learning_rate = 1  # An int where a float belongs, as flags give.
    filled.model.memory.router_layers = (0,)
    filled.optimizer.clip_norm = 2.0
    run = train_config(filled)
    assert run.stages[1].router_learning_rate == 1.0
    assert run.model.router_layers == (0,)
    assert run.optimizer.clip_norm == 2.0


def test_an_unknown_field_is_one_sentence():
    with pytest.raises(ConfigError, match="config.log_evry is not a field of TrainConfig; did you"):
        train_config(run_config(log_evry=3))
