"""Training stages: what is learnt, from how much memory, with which losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from msa_jax.config import ConfigError, from_mapping
from msa_jax.fields import (
    Count,
    CountOrZero,
    NonNegative,
    OneOf,
    Positive,
    Share,
    check_fields,
)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of the curriculum. The optimiser starts anew in every stage.

    Attributes:
        memory_tokens: tokens of one group's memory.
        groups: memories per step, over all devices.
        queries_per_group: questions that share a memory; the positives of one are negatives of
            the others.
        active_tokens: tokens of a question with its response.
        mixture: weight of each source of `data.sources` that gives questions; None for the number
            of its questions.
        cluster: questions that come together because they are neighbours in their source, so that
            their memory holds documents that are hard to tell apart.
        attended_docs: documents that a question attends to in a router layer; None for the model's
            top_k_docs. With few, most of them right, a model soon learns to read an id out of a
            document's chunks; to tell the right document from many can come after that.
        answer_fraction: share of samples that train the answer, where a question has one; None for
            that of the data.
        read_negatives: given negatives, at most, whose originals a conversation has read beside
            those that it needs, or before them. A model that has only ever read what is right
            believes whatever it reads.
        router_learning_rate: learning rate of the router projections; None for `learning_rate`.
        warmup_steps: steps in which the learning rate rises linearly.
        schedule: "cosine" falls to zero at the last step, "constant" stays.
        lm_weight: weight of the next-token loss. A loss of weight 0 is not computed.
        aux_weight: weight of the router loss.
        answer_weight: weight of the next-token loss over answer tokens only.
        naming_weight: weight of the loss by which the token before an id attends to the documents
            that are to be named, among those that a layer chose. An id is soon copied; which one to
            copy is learnt late from the next-token loss alone.
        aux_loss: "decoupled" or "plain" InfoNCE.
        joint_weight: share of the router loss, in [0, 1], that is taken of the layers' mean score,
            by which the engine ranks documents; the rest is of each layer by itself.
        temperature: of the router loss.
        trainable: "all"; "routers" for the router projections alone; "lora" for the routers and
            low-rank updates of other linear layers, merged into these when the stage ends.
        frozen: parameters that do not train whatever `trainable` says, by parts of their paths:
            "embedder", "mlp", "plain_0/attention/q_proj".
        lora_rank: rank of the updates.
        lora_alpha: updates are scaled by lora_alpha / lora_rank; None for lora_rank.
        lora_targets: linear layers that get an update, by parts of their paths. A router among
            them trains by its update alone.
    """

    name: str
    steps: Count
    learning_rate: NonNegative
    memory_tokens: Count
    groups: Count
    queries_per_group: Count
    active_tokens: Count
    mixture: Mapping[str, Positive] | None = None
    cluster: Count = 1
    attended_docs: Count | None = None
    answer_fraction: Share | None = None
    read_negatives: CountOrZero = 0
    router_learning_rate: NonNegative | None = None
    warmup_steps: CountOrZero = 0
    schedule: Annotated[str, OneOf(("cosine", "constant"))] = "cosine"
    lm_weight: NonNegative = 1.0
    aux_weight: NonNegative = 0.1
    answer_weight: NonNegative = 0.0
    naming_weight: NonNegative = 0.0
    aux_loss: Annotated[str, OneOf(("decoupled", "plain"))] = "decoupled"
    joint_weight: Share = 0.0
    temperature: Positive = 0.1
    trainable: Annotated[str, OneOf(("all", "routers", "lora"))] = "all"
    frozen: tuple[str, ...] = ()
    lora_rank: Count = 16
    lora_alpha: Positive | None = None
    lora_targets: tuple[str, ...] = (
        *("attention/q_proj", "attention/k_proj", "attention/v_proj", "attention/o_proj"),
        "mlp",
    )

    def __post_init__(self):
        def refuse(field: str, rule: str):
            value = getattr(self, field)
            raise ConfigError(f"stages.{self.name}.{field} must be {rule}, not {value!r}.")

        check_fields(self, f"stages.{self.name}.")
        if self.queries_per_group % self.cluster:
            refuse("cluster", f"a divisor of queries_per_group ({self.queries_per_group})")
        if self.mixture is not None:
            if not self.mixture:
                refuse("mixture", "weights of one source at the least")
            object.__setattr__(self, "mixture", dict(self.mixture.items()))
        if self.warmup_steps > self.steps:
            refuse("warmup_steps", f"at most steps ({self.steps})")
        if self.trainable == "routers" and not self.aux_weight:
            refuse("aux_weight", "above zero when only routers train: no other loss reaches them")
        if not (self.lm_weight or self.aux_weight or self.answer_weight):
            refuse("lm_weight", "above zero when the other two losses have no weight")


def stages_from_config(config: Mapping[str, Any]) -> tuple[StageConfig, ...]:
    """The stages that `config.curriculum` names, in its order, from `config.stages.<name>`.

    Raises:
        ConfigError: for an empty curriculum or a stage that is named and not described.
    """
    for section in ("curriculum", "stages"):
        if section not in config:
            raise ConfigError(f"config lacks {section}, required to train.")
    curriculum, described = tuple(config["curriculum"]), config["stages"]
    if not curriculum:
        raise ConfigError("config.curriculum names no stage; name one of config.stages.")
    for name in curriculum:
        if name not in described:
            raise ConfigError(
                f"config.curriculum names {name!r}, which is not one of config.stages: "
                f"{', '.join(described)}."
            )
    return tuple(
        from_mapping(StageConfig, {"name": name, **described[name]}, f"config.stages.{name}")
        for name in curriculum
    )
