"""The networks a stage plays with: which architecture each role has, and where its weights come from."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from rsd_edge.bundle import WEIGHTS_FILE
from rsd_edge.distill.config import DistillConfig, RoleConfig
from rsd_edge.distill.latent_space import EdgeLatentSpace, LatentSpace, VqLatentSpace
from rsd_edge.errors import InputError, ModelError
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, state_of
from rsd_edge.models.edge import EdgeDecoder, EdgeEncoder, EdgeGenerator, EdgeStem, student_from_teacher
from rsd_edge.models.published import AUTOENCODER, GENERATOR, Encoder
from rsd_edge.models.swin_unet import SwinUNet, widen_for_noise
from rsd_edge.models.vq import VqAutoencoder
from rsd_edge.specs import EDGE_FAMILY, EdgeArchitecture, ModelSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)

log = logging.getLogger(__name__)

NETWORKS = {"encoder": EdgeEncoder, "stem": EdgeStem, "decoder": EdgeDecoder}
EDGE_LATENT = ("encoder", "stem", "decoder")
_GENERATOR_SIZES = ("generator_widths", "generator_blocks", "time_width")


@dataclass
class Roles:
    """The networks of a student stage, frozen but for the student."""

    latent: LatentSpace
    teacher: nn.Module
    """An empty module in a fine-tune that begins with `finetune_from`."""
    student: nn.Module
    parts: dict[str, nn.Module]
    """What goes into the stage's checkpoint beside the student, by part name."""
    given: dict[str, str] = field(default_factory=dict)
    """Digests of the weights that they came from, by role."""


def stage_weights(config: DistillConfig, stage: str) -> Path:
    return config.stage_dir(stage) / WEIGHTS_FILE


def teacher_part(model: ModelSpec) -> str:
    """The name of a teacher's part in its checkpoint."""
    return "teacher" if model.family == EDGE_FAMILY else GENERATOR


def student_part(model: ModelSpec) -> str:
    """The name of the student's part in a checkpoint: that under which it is run."""
    return "student" if model.family == EDGE_FAMILY else GENERATOR


def load_part(checkpoint: Checkpoint, part: str) -> nn.Module:
    """One frozen network of a checkpoint, in evaluation mode."""
    network = channels_last(_network(checkpoint.spec, part))
    checkpoint.load_into(part, network)
    return network.requires_grad_(False).eval()


def load_stage(config: DistillConfig, stage: str) -> Checkpoint:
    """The finished weights of an earlier stage of a run of compact networks.

    Raises ModelError, with the command that makes them, if they are missing or of networks of other sizes or schedule.
    """
    path = stage_weights(config, stage)
    if not path.is_file():
        other = "fine-tune other weights with finetune_from" if stage == "student" else f"set roles.{stage}.weights"
        raise ModelError(
            f"stage {stage} has no weights yet ({path}); run 'rsd-edge distill {stage} --config ...' first, with the "
            f"same configuration, or {other}"
        )
    checkpoint = load_checkpoint(path)
    check_model(checkpoint, config, path, "restore that, or train all stages in another run_dir")
    return checkpoint


def check_model(checkpoint: Checkpoint, config: DistillConfig, source: object, cure: str) -> None:
    """Raise ModelError unless the weights are of the network and the schedule that the configuration describes."""
    for name in ("architecture", "schedule"):
        if getattr(checkpoint.spec, name) != getattr(config.model, name):
            raise ModelError(f"{source} was trained with another model.{name}; {cure}")


def teacher_checkpoint(config: DistillConfig) -> Checkpoint:
    """The teacher's weights: the file of its role, or what the run's own teacher stage left."""
    role = config.roles.teacher
    if not role.weights:
        return load_stage(config, "teacher")
    return _load_role("teacher", role)


def autoencoder_checkpoint(config: DistillConfig) -> Checkpoint:
    """The latent space's weights: the file of its role, or what the run's own autoencoder stage left."""
    role = config.roles.autoencoder
    if not role.weights:
        return load_stage(config, "autoencoder")
    checkpoint = _load_role("autoencoder", role)
    _check_latent(config.model, checkpoint, role.weights)
    return checkpoint


def random_teacher(config: DistillConfig) -> Checkpoint:
    """A teacher with its latent space as `model` or the teacher's role describes it, with random weights."""
    model = config.teacher_model
    names = ("teacher", *EDGE_LATENT) if model.family == EDGE_FAMILY else (GENERATOR, AUTOENCODER)
    return Checkpoint(model, {name: state_of(_network(model, name)) for name in names})


def build_roles(config: DistillConfig, teacher: Checkpoint, crop: int) -> Roles:
    """Teacher, latent space and a student at birth. Raises InputError or ModelError for roles that do not suit."""
    _check_teacher(config, teacher.spec, crop)
    role = config.roles.autoencoder
    own = _own_latent(config, teacher.spec)
    latent_from = own or teacher
    if latent_from.spec.architecture.latent_channels != teacher.spec.architecture.latent_channels:
        raise ModelError(f"{role.weights} has another latent space than the teacher; give the teacher's autoencoder")
    _check_latent(config.model, latent_from, role.weights or "the teacher's checkpoint")
    if role.weights and teacher.spec.family == EDGE_FAMILY and not _same_encoder(teacher, latent_from):
        raise ModelError(f"{role.weights} has another encoder than the teacher was trained with; leave that role out")
    latent, parts = _latent_space(teacher, latent_from)
    network = load_part(teacher, teacher_part(teacher.spec))
    if teacher.spec.family == EDGE_FAMILY and teacher.spec.architecture == config.model.architecture:
        parts["teacher"] = network
    born = _load_role("student", config.roles.student) if config.roles.student.weights else None
    sources = {"teacher": teacher, "autoencoder": own, "student": born}
    given = {name: source.digest() for name, source in sources.items() if source is not None}
    return Roles(latent, network, channels_last(_newborn(config, teacher, network, born)), parts, given)


def _own_latent(config: DistillConfig, teacher: ModelSpec) -> Checkpoint | None:
    """Where the latent space comes from, if not from the teacher's checkpoint."""
    if config.roles.autoencoder.weights:
        return _load_role("autoencoder", config.roles.autoencoder)
    if config.model.family == EDGE_FAMILY != teacher.family:
        return load_stage(config, "autoencoder")  # a compact student runs with stem and decoder of its own only
    return None


def _check_latent(model: ModelSpec, source: Checkpoint, path: str) -> None:
    """Raise ModelError unless encoder, stem and decoder of a compact model are of the sizes that `model` says."""
    if model.family == source.spec.family == EDGE_FAMILY and _space(model.edge) != _space(source.spec.edge):
        raise ModelError(
            f"{path} has an encoder, a stem or a decoder of other sizes than model '{model.name}'; only the sizes "
            f"{', '.join(_GENERATOR_SIZES)} may differ between a teacher and its student"
        )


def _space(arch: EdgeArchitecture) -> dict[str, Any]:
    """The sizes of encoder, stem and decoder."""
    return {name: size for name, size in asdict(arch).items() if name not in _GENERATOR_SIZES}


def _latent_space(teacher: Checkpoint, source: Checkpoint) -> tuple[LatentSpace, dict[str, nn.Module]]:
    """The teacher's latent space, and the parts of it that a checkpoint of the student holds."""
    if teacher.spec.family == EDGE_FAMILY:
        parts = {name: load_part(source, name) for name in EDGE_LATENT}
        return EdgeLatentSpace(*parts.values()), parts
    if source.spec.family == EDGE_FAMILY:
        parts = {name: load_part(source, name) for name in ("stem", "decoder")}
        return EdgeLatentSpace(published_encoder(teacher), *parts.values()), parts
    autoencoder = load_part(source, AUTOENCODER)
    return VqLatentSpace(cast(VqAutoencoder, autoencoder)), {AUTOENCODER: autoencoder}


def published_encoder(teacher: Checkpoint) -> nn.Module:
    """Image (n, 3, 4h, 4w) to latent (n, 3, h, w), frozen."""
    return Encoder(cast(VqAutoencoder, load_part(teacher, AUTOENCODER)))


def fake_of(teacher: nn.Module) -> nn.Module:
    """f_phi at birth: a copy of the teacher, to be trained."""
    return copy.deepcopy(teacher).requires_grad_(True).train()


def takes_noise(network: nn.Module) -> bool:
    """Whether a generator sees the student's noise channel eps."""
    return network.noise_channel if isinstance(network, EdgeGenerator) else bool(network.arch.noise_channels)  # type: ignore[union-attr]


@torch.no_grad()
def silence(student: nn.Module) -> None:
    """Make a student deaf to its noise channel eps, which comes last into its first convolution."""
    first = student.head if isinstance(student, EdgeGenerator) else student.input_blocks[0][0]  # type: ignore[index]
    first.weight[:, -1] = 0  # type: ignore[union-attr]


def channels_last(network: ModuleT) -> ModuleT:
    """The network itself, its weights laid out as a CPU's convolutions like them."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _load_role(name: str, role: RoleConfig) -> Checkpoint:
    checkpoint = load_checkpoint(Path(role.weights))
    for what in ("family", "architecture", "schedule"):
        if role.model is not None and getattr(checkpoint.spec, what) != getattr(role.model, what):
            raise ModelError(f"{role.weights} has another {what} than roles.{name}.model says; correct one of them")
    return checkpoint


def without_teacher(student: Checkpoint) -> Roles:
    """Student, stem and decoder of a compact model, for losses in pixels alone; in place of teacher and encoder, empty
    modules."""
    parts = {name: load_part(student, name) for name in ("stem", "decoder")}
    network = load_part(student, "student").requires_grad_(True).train()
    return Roles(EdgeLatentSpace(nn.Module(), *parts.values()), nn.Module(), network, parts)


def _check_teacher(config: DistillConfig, teacher: ModelSpec, crop: int) -> None:
    model = config.model
    if teacher.family not in (EDGE_FAMILY, "resshift"):
        raise InputError(f"the teacher '{teacher.name}' is of family {teacher.family}; a teacher is edge or resshift")
    if teacher.architecture.latent_channels != model.architecture.latent_channels:
        raise InputError(
            f"model '{model.name}' has latents of {model.architecture.latent_channels} channels and its teacher of "
            f"{teacher.architecture.latent_channels}; the student lives in the teacher's latent space"
        )
    if teacher.schedule != model.schedule:
        raise InputError(f"model '{model.name}' has another schedule than its teacher; copy the teacher's")
    multiple = 4 * max(teacher.multiple_of, model.multiple_of)
    if crop % multiple:
        raise InputError(f"the crop is {crop}; teacher and student need a multiple of {multiple}")


def _network(model: ModelSpec, part: str) -> nn.Module:
    """A new network for a part of a model."""
    if part == GENERATOR:
        return SwinUNet(model.published.unet)
    if part == AUTOENCODER:
        return VqAutoencoder(model.published.vq)
    if part in NETWORKS:
        return NETWORKS[part](model.edge)
    return EdgeGenerator(model.edge, noise_channel=part == "student")


def _newborn(config: DistillConfig, teacher: Checkpoint, network: nn.Module, source: Checkpoint | None) -> nn.Module:
    """The student: from its role's file, or the teacher with a silent noise channel, or, of other sizes, random."""
    part = student_part(config.model)
    student = _network(config.model, part)
    if source is not None:
        _born(source, part, config.model, config.roles.student.weights).load_into(part, student)
    elif isinstance(network, EdgeGenerator) and teacher.spec.architecture == config.model.architecture:
        assert isinstance(config.model.architecture, EdgeArchitecture)
        student = student_from_teacher(network, config.model.architecture)
    elif isinstance(student, SwinUNet) and isinstance(network, SwinUNet) and _same_sizes(student, network):
        channels = student.arch.noise_channels
        student.load_state_dict(widen_for_noise(network.state_dict(), channels) if channels else network.state_dict())
    else:
        log.info("the student has other sizes than its teacher and starts from random weights")
    return student.requires_grad_(True).train()


def _born(source: Checkpoint, part: str, model: ModelSpec, path: str) -> Checkpoint:
    """What a student starts from, as part `part`: the file's student, or its compact teacher with a silent noise
    channel."""
    if part in source.parts or "teacher" not in source.parts:
        return source
    if source.spec.architecture != model.architecture:
        raise ModelError(
            f"the teacher in {path} has other sizes than model '{model.name}'; a student starts from its own"
        )
    teacher = cast(EdgeGenerator, load_part(source, "teacher"))
    return Checkpoint(source.spec, {part: state_of(student_from_teacher(teacher, source.spec.edge))})


def _same_encoder(one: Checkpoint, other: Checkpoint) -> bool:
    encoders = [checkpoint.parts.get("encoder", {}) for checkpoint in (one, other)]
    return encoders[0].keys() == encoders[1].keys() and all(
        torch.equal(tensor, encoders[1][name]) for name, tensor in encoders[0].items()
    )


def _same_sizes(student: SwinUNet, teacher: SwinUNet) -> bool:
    """Whether they differ in the noise channel at most."""
    return replace(student.arch, noise_channels=0) == replace(teacher.arch, noise_channels=0)
