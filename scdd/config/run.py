"""The whole configuration of one `scdd distill` run."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from scdd.config.condense import CondenseConfig
from scdd.config.condense_pairs import CondensePairsConfig, PretrainConfig
from scdd.config.dataset import DatasetConfig
from scdd.config.methods import (
    IMAGES_OF,
    OWN_SECTIONS,
    WITHOUT_CLASSES,
    Method,
    concerns,
    supervised_like,
    with_own_sections,
)
from scdd.config.posttrain import PosttrainConfig
from scdd.config.probe import ProbeConfig
from scdd.config.recover import RecoverConfig, RecoverRealConfig
from scdd.config.relabel import RelabelConfig
from scdd.config.represent import RepresentConfig
from scdd.config.section import Section
from scdd.config.select import SelectConfig
from scdd.config.squeeze import SqueezeConfig


class RunConfig(Section):
    """What is distilled, by which method, with which settings per step."""

    summary: str = ""
    """One line for `scdd presets`."""
    method: Method = "scdd"
    recipe: Literal["paper", "best", "custom"] = "custom"
    """paper: SC-DD as published; best: what the field has learnt since; custom: neither, as is any
    preset of which `--set` changes more than where and how often it is run."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    ipc: PositiveInt = 10
    """Images per class."""
    checkpoint_minutes: NonNegativeFloat = 5.0
    """Longest work lost to a kill; 0: a checkpoint after every step of training (slow)."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; not given: as many as torch takes. Part of what makes a run repeatable."""
    dataset: DatasetConfig = DatasetConfig()
    squeeze_dataset: DatasetConfig | None = None
    """Other images for squeeze alone (Table 7): the backbone learns on them, the teacher and all
    that follows see `dataset`, normalised as the backbone knows it. Not given: `dataset`."""
    squeeze: SqueezeConfig = SqueezeConfig()
    squeeze_labellers: tuple[SqueezeConfig, ...] = ()
    """More networks, pre-trained beside the backbone; one of each architecture. Each becomes a
    classifier, by its own head where it has one, else as `probe` says, and so does each of its
    `keep_epochs`; `recover.teachers` and `relabel.teachers` use them."""
    probe: ProbeConfig = ProbeConfig()
    recover: RecoverConfig | None = None
    """Of the methods that make images from networks."""
    select: SelectConfig | None = None
    """Of the methods that choose real images."""
    condense: CondenseConfig | None = None
    """Of dm."""
    condense_pairs: CondensePairsConfig | None = None
    """Of krr_st and boost, also where their images are labelled."""
    represent: RepresentConfig | None = None
    """Of scdd_pairs."""
    pretrain: PretrainConfig | None = None
    """Of the methods that end in pairs of images and representations."""
    squeeze_scorer: SqueezeConfig | None = None
    """Of forgetting alone: the training with labels that counts what is forgotten. Not given:
    squeeze itself where it learns from labels, else its settings with the supervised objective."""
    relabel: RelabelConfig = RelabelConfig()
    recover_real: RecoverRealConfig | None = None
    """A second arm whose images start from real ones; not given: no such arm."""
    posttrain: PosttrainConfig = PosttrainConfig()

    @property
    def squeezes(self) -> dict[str, SqueezeConfig]:
        """The sections of all networks that are pre-trained, by where they stand."""
        return {"squeeze": self.squeeze} | {
            f"squeeze_labellers.{number}": section
            for number, section in enumerate(self.squeeze_labellers)
        }

    @property
    def recoveries(self) -> dict[str, RecoverConfig]:
        """The sections of the steps that recover images, by their names."""
        found = {"recover": self.recover, "recover_real": self.recover_real}
        return {name: section for name, section in found.items() if section is not None}

    @property
    def images_from(self) -> str:
        """The step that makes the images, as pixels if these are labelled."""
        return "decode" if self.method in WITHOUT_CLASSES else OWN_SECTIONS[self.method][0]

    @property
    def pairs_from(self) -> str | None:
        """The step that makes pairs of images and representations, if one does."""
        if self.represent is not None:
            return "represent"
        return None if self.condense_pairs is None else "condense_pairs"

    @property
    def transfer(self) -> dict[str, DatasetConfig]:
        """More images on which pre-trained networks are tried, by where their sections stand."""
        sections = () if self.pretrain is None else self.pretrain.transfer
        return {f"pretrain.transfer.{n}": section for n, section in enumerate(sections)}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the images on which pre-trained networks are tried, all different."""
        titles = [section.title for section in (self.dataset, *self.transfer.values())]
        before = [titles[:number].count(title) for number, title in enumerate(titles)]
        return tuple(f"{t} ({n + 1})" if n else t for t, n in zip(titles, before, strict=True))

    @property
    def scorer(self) -> SqueezeConfig | None:
        """The training of its own that counts what is forgotten, if the method needs one."""
        learns_from_labels = self.squeeze.objective.name == "supervised"
        if self.method != "forgetting" or self.squeeze_scorer is not None:
            return self.squeeze_scorer
        # Its counts are those of the images that are chosen from.
        if learns_from_labels and self.squeeze.checkpoint is None and self.squeeze_dataset is None:
            return None
        settings = self.squeeze.model_dump(exclude={"checkpoint", "keep_epochs"})
        return SqueezeConfig.model_validate(supervised_like(settings))

    @property
    def has_baseline(self) -> bool:
        """Whether random real images are a second arm; under `random` they are the first."""
        return self.method != "random"

    @property
    def choices_of_teachers(self) -> dict[str, RecoverConfig | RelabelConfig]:
        """The sections that say which networks they use, by where they stand."""
        return {**self.recoveries, "relabel": self.relabel}

    def teachers_of(self, step: str) -> dict[str, SqueezeConfig]:
        """The networks that a step recovers images from, or labels them with, in their order."""
        wanted = self.recoveries.get(step, self.relabel).teachers
        return {
            name: network
            for name, network in self.squeezes.items()
            if wanted in ("all", "teacher" if name == "squeeze" else "labellers")
        }

    @model_validator(mode="before")
    @classmethod
    def _has_the_sections_of_its_method(cls, settings: Any) -> Any:
        return with_own_sections(settings) if isinstance(settings, dict) else settings

    @model_serializer(mode="wrap")
    def _leaves_out_sections_of_other_methods(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if concerns(self.method, name)}

    @model_validator(mode="after")
    def _the_teacher_of_sre2l_learns_from_labels(self) -> Self:
        if self.method != "sre2l":
            return self
        objective = self.squeeze.objective.name
        if objective != "supervised" and self.squeeze.checkpoint is None:
            raise ValueError(
                f"method is sre2l, whose squeeze learns from labels, but squeeze.objective is "
                f"{objective}; set squeeze.objective={{name: supervised}}, or choose method scdd"
            )
        if self.probe.solver != "given":
            raise ValueError(
                "method is sre2l, whose teacher keeps the classifier of squeeze, but probe.solver "
                f"is {self.probe.solver}; set it to given"
            )
        return self

    @model_validator(mode="after")
    def _a_training_counts_what_is_forgotten(self) -> Self:
        scorer = self.squeeze_scorer
        if scorer is None:
            if self.method == "forgetting" and self.squeeze.checkpoint is not None:
                raise ValueError(
                    "method is forgetting, which counts what a training forgets, but squeeze takes "
                    "the weights of a checkpoint; describe that training in squeeze_scorer"
                )
        elif scorer.checkpoint is not None or scorer.objective.name != "supervised":
            raise ValueError(
                "squeeze_scorer: is the training with labels that counts what is forgotten; set "
                "its objective to {name: supervised}, with views [{count: 1}] and no checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _raw_pairs_are_those_of_krr_st(self) -> Self:
        section, raw = self.condense_pairs, IMAGES_OF.get(self.method, self.method) == "krr_st"
        if raw and section is not None and section.parameterisation != "raw":
            raise ValueError(
                f"method is {self.method}, which learns pixels as they are, but "
                "condense_pairs.parameterisation is bases; choose method "
                + self.method.replace("krr_st", "boost")
            )
        return self

    @model_validator(mode="after")
    def _images_of_no_class_teach_by_soft_labels(self) -> Self:
        if self.method not in WITHOUT_CLASSES:
            return self
        found = None
        if "hard" in self.posttrain.labels:
            found = "posttrain.labels asks for hard labels; set it to [soft]"
        elif self.posttrain.hard_weight:
            found = "posttrain.hard_weight asks for class labels; set it to 0"
        elif self.relabel.codec == "hard":
            found = "relabel.codec is hard, which stores no other labels; choose another"
        if found is not None:
            raise ValueError(f"method is {self.method}, whose images have no class, but {found}")
        return self

    @model_validator(mode="after")
    def _labellers_differ(self) -> Self:
        archs = [labeller.arch for labeller in self.squeeze_labellers]
        twice = [arch for arch in archs if archs.count(arch) > 1]
        if twice:
            raise ValueError(f"squeeze_labellers: {twice[0]} stands there twice; name it once")
        return self

    @model_validator(mode="after")
    def _a_backbone_sees_one_image_size(self) -> Self:
        other = self.squeeze_dataset
        if other is not None and other.image_size != self.dataset.image_size:
            raise ValueError(
                f"squeeze_dataset.image_size is {other.image_size}, but dataset.image_size is "
                f"{self.dataset.image_size}, and a backbone works at one size; give both the same"
            )
        return self

    @model_validator(mode="after")
    def _pretrained_networks_see_one_image_size(self) -> Self:
        size, tuned = self.dataset.image_size, self.pretrain.finetune if self.pretrain else None
        for key, other in self.transfer.items():
            if other.image_size != size:
                raise ValueError(
                    f"{key}.image_size is {other.image_size}, but dataset.image_size is {size}, "
                    "and a network works at one size; give both the same"
                )
            if other.mean is not None or other.std is not None:
                raise ValueError(
                    f"{key}: has a mean or std of its own, but networks see all images normalised "
                    "as the backbone knows them; leave both out"
                )
        if tuned is not None and tuned.crop_padding >= size:
            raise ValueError(
                f"pretrain.finetune.crop_padding is {tuned.crop_padding}, but an image has {size} "
                "px, so that crops would see none of it; lower it"
            )
        return self

    @model_validator(mode="after")
    def _what_the_probe_is_given_exists(self) -> Self:
        for name, section in self.squeezes.items():
            objective = section.objective.name
            trained = section.checkpoint is None and objective != "supervised"
            if self.probe.solver == "given" and trained:
                raise ValueError(
                    f"probe.solver is given, but {name}.objective is {objective}, which trains no "
                    "classifier; choose lbfgs or sgd"
                )
        return self

    @model_validator(mode="after")
    def _students_learn_from_labels_that_are_stored(self) -> Self:
        if self.relabel.codec == "hard" and "soft" in self.posttrain.labels:
            raise ValueError(
                "relabel.codec is hard, which stores no soft labels, but posttrain.labels asks for "
                "them; set posttrain.labels=[hard], or another codec"
            )
        return self

    @model_validator(mode="after")
    def _teachers_exist_and_see_the_same_pixels(self) -> Self:
        ours, other = self.dataset, self.squeeze_dataset
        alike = other is None or (
            ours.mean is not None
            and ours.std is not None
            and (ours.mean, ours.std) == (other.mean, other.std)
        )
        for name, recovery in self.recoveries.items():
            turns = len(self.teachers_of(name))
            if recovery.iterations < turns:
                raise ValueError(
                    f"{name}.iterations is {recovery.iterations}, so not all of the {turns} "
                    "teachers that take turns would have one; raise it"
                )
        for name, section in self.choices_of_teachers.items():
            if section.teachers != "teacher" and not self.squeeze_labellers:
                raise ValueError(
                    f"{name}.teachers is {section.teachers}, but squeeze_labellers lists no "
                    "network; list some there, or choose teacher"
                )
            if section.teachers == "all" and not alike:
                raise ValueError(
                    f"{name}.teachers is {section.teachers}, but the backbone knows the pixel "
                    "statistics of squeeze_dataset and the labellers those of dataset; give both "
                    "the same mean and std, or choose teacher or labellers"
                )
        return self

    @model_validator(mode="after")
    def _epochs_that_label_are_kept(self) -> Self:
        chosen = self.teachers_of("relabel")
        labelling = {network.arch: network for name, network in chosen.items() if name != "squeeze"}
        for arch, epoch in self.relabel.epochs.items():
            if arch not in labelling:
                known = ", ".join(labelling) or "none, as relabel.teachers is teacher"
                raise ValueError(f"relabel.epochs: no labeller is a {arch}; labellers: {known}")
            if epoch not in labelling[arch].keep_epochs:
                raise ValueError(
                    f"relabel.epochs: epoch {epoch} of {arch} is not kept; add it to keep_epochs "
                    "of its section in squeeze_labellers"
                )
        return self

    @model_validator(mode="after")
    def _crops_do_not_leave_the_image(self) -> Self:
        size, padding = self.dataset.image_size, self.relabel.padding
        if self.relabel.crop == "padded" and padding > size:
            raise ValueError(
                f"relabel.padding is {padding}, more than an image of {size} px has; lower it"
            )
        return self

    @model_validator(mode="after")
    def _one_teacher_lies_beside_the_file(self) -> Self:
        if self.relabel.codec == "teacher" and self.relabel.teachers != "teacher":
            raise ValueError(
                "relabel.codec is teacher, for which the weights of the probed teacher lie beside "
                f"the file, but relabel.teachers is {self.relabel.teachers}; choose teacher, or "
                "another codec"
            )
        return self

    @model_validator(mode="after")
    def _views_are_no_larger_than_the_images(self) -> Self:
        trained = self.squeezes
        if self.squeeze_scorer is not None:
            trained["squeeze_scorer"] = self.squeeze_scorer
        for name, section in trained.items():
            largest = max(size or 0 for size in section.view_sizes)
            if largest > self.dataset.image_size:
                raise ValueError(
                    f"{name}.views: a view of {largest} px cannot be cut from images of "
                    f"{self.dataset.image_size} px; lower its size or raise dataset.image_size"
                )
        return self
