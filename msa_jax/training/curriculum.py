"""Training stages: what is learnt, from how much memory, with which losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from msa_jax.config import ConfigError, from_mapping
from msa_jax.data.config import BatchShape, ListShape
from msa_jax.fields import (
    Count,
    CountOrZero,
    NonNegative,
    OneOf,
    Positive,
    Share,
    Within,
    check_fields,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseStage:
    """What every stage of the curriculum says. The optimiser starts anew in every stage.

    Attributes:
        groups: parts of a step that devices share, over all of them.
        queries_per_group: questions of a group.
        mixture: weight of each source of `data.sources` that gives questions; None for the number
            of its questions.
        warmup_steps: steps in which the learning rate rises linearly.
        schedule: "cosine" falls to zero at the last step, "constant" stays.
    """

    name: str
    steps: Count
    learning_rate: NonNegative
    groups: Count
    queries_per_group: Count
    mixture: Mapping[str, Positive] | None = None
    warmup_steps: CountOrZero = 0
    schedule: Annotated[str, OneOf(("cosine", "constant"))] = "cosine"

    def __post_init__(self):
        check_fields(self, f"stages.{self.name}.")
        if self.mixture is not None:
            if not self.mixture:
                self.refuse("mixture", "weights of one source at the least")
            object.__setattr__(self, "mixture", dict(self.mixture.items()))
        if self.warmup_steps > self.steps:
            self.refuse("warmup_steps", f"at most steps ({self.steps})")

    def refuse(self, field: str, rule: str) -> None:
        """Refuses the value of a field.

        Raises:
            ConfigError: always.
        """
        value = getattr(self, field)
        raise ConfigError(f"stages.{self.name}.{field} must be {rule}, not {value!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig(BaseStage):
    """A stage of memories: a model learns to route, to name and to answer.

    Attributes:
        kind: "memory".
        memory_tokens: tokens of one group's memory.
        groups: memories per step, over all devices.
        queries_per_group: questions that share a memory; the positives of one are negatives of
            the others.
        active_tokens: tokens of a question with its response.
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

    kind: Annotated[str, OneOf(("memory",))] = "memory"
    memory_tokens: Count
    active_tokens: Count
    cluster: Count = 1
    attended_docs: Count | None = None
    answer_fraction: Share | None = None
    read_negatives: CountOrZero = 0
    router_learning_rate: NonNegative | None = None
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
        super().__post_init__()
        if self.queries_per_group % self.cluster:
            self.refuse("cluster", f"a divisor of queries_per_group ({self.queries_per_group})")
        if self.trainable == "routers" and not self.aux_weight:
            rule = "above zero when only routers train: no other loss reaches them"
            self.refuse("aux_weight", rule)
        if not (self.lm_weight or self.aux_weight or self.answer_weight):
            self.refuse("lm_weight", "above zero when the other two losses have no weight")

    @property
    def shape(self) -> BatchShape:
        """What makes up a step."""
        names = (field.name for field in dataclasses.fields(BatchShape))
        return BatchShape(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookStage(BaseStage):
    """A stage of the second look: of a list of documents, which one answers the question?

    Trains a low-rank update of all linear layers but the routers, and a head; the model's own
    parameters stay as they are.

    Attributes:
        kind: "look".
        groups: parts that the lists of a step are cut into for the devices to share.
        queries_per_group: questions of a group, each with a list of its own.
        candidates: documents of a list: the right one, given negatives, and random documents where
            these are too few.
        row_tokens: tokens of a document with its question. Rows are sorted by length and cut into
            as many equal blocks as there are numbers; documents that are longer than their block
            allows lose their end.
        none_fraction: share of the lists without the right document, which teach that none is.
        held_out: sources whose questions are not trained on: lists of them are measured before
            every checkpoint, and decide which one is the best.
        held_out_lists: how many of them, at least, from all these sources alike.
        lora_rank: rank of the update.
    """

    kind: Annotated[str, OneOf(("look",))] = "look"
    row_tokens: tuple[Count, ...]
    held_out: tuple[str, ...]
    candidates: Count = 16
    none_fraction: Annotated[float, Within(low=0, below=1)] = 0.1
    held_out_lists: Count = 512
    lora_rank: Count = 32

    def __post_init__(self):
        super().__post_init__()
        if not self.held_out:
            self.refuse("held_out", "a tuple of names of data.sources, one at the least")
        if both := sorted({*self.held_out} & {*(self.mixture or ())}):
            self.refuse("mixture", f"without {', '.join(both)}, which held_out measures")
        lengths = self.row_tokens
        if not lengths or list(lengths) != sorted(lengths):
            self.refuse("row_tokens", "a tuple of positive whole numbers in ascending order")
        if (num_rows := self.queries_per_group * self.candidates) % len(lengths):
            rule = f"as many numbers as divide queries_per_group x candidates ({num_rows})"
            self.refuse("row_tokens", rule)

    @property
    def shape(self) -> ListShape:
        """What makes up a step."""
        names = (field.name for field in dataclasses.fields(ListShape))
        return ListShape(**{name: getattr(self, name) for name in names})


_KINDS: dict[str, type[BaseStage]] = {"memory": StageConfig, "look": LookStage}


def stage_type(values: Mapping[str, Any], where: str) -> type[BaseStage]:
    """The class of a stage that a mapping describes.

    Raises:
        ConfigError: for a `kind` that there is not.
    """
    kind = values.get("kind", "memory")
    if kind not in _KINDS:
        raise ConfigError(f"{where}.kind must be one of {', '.join(_KINDS)}, not {kind!r}.")
    return _KINDS[kind]


def stages_from_config(config: Mapping[str, Any]) -> tuple[BaseStage, ...]:
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
    return tuple(_stage(name, described[name], f"config.stages.{name}") for name in curriculum)


def _stage(name: str, values: Mapping[str, Any], where: str) -> BaseStage:
    return from_mapping(stage_type(values, where), {"name": name, **values}, where)
