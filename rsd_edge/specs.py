"""Frozen descriptions that travel: in checkpoints, in bundle manifests, between the pipeline and the engines.

Only the standard library is imported here, so that every layer may depend on it. `h` and `w` are low-resolution (LR)
pixels everywhere unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rsd_edge.errors import InputError, ModelError

_NORM_GROUPS = 32
"""Of the published networks' normalisation, among which channels are shared out evenly."""
_IMAGE_CHANNELS = 3
_VQ_LEVELS = 3
"""Two halvings between them: f4."""
_SQRT_ETA_FIRST_LIMIT = math.sqrt(0.001)
"""Of ResShift's schedule."""
_EDGE_REDUCTION = 2
"""Of the compact generator."""
_PLAIN_NAME = re.compile(r"[^/\\.\-][^/\\]*")

EDGE_FAMILY = "edge"
PUBLISHED_FAMILIES = ("resshift", "sinsr", "rsd")
PUBLISHED_TILE = 128
"""Two windows of the coarsest level on each side; at 256, the decoder alone takes 3 GB."""


class Precision(str, Enum):
    """Arithmetic of an engine's graph."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Backend(str, Enum):
    """Runtime that executes an engine."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TORCH = "torch"


class FramePathKind(str, Enum):
    """What cuts frames into tiles and merges them again, for a checkpoint on torch."""

    TRITON = "triton"
    """On the device, with kernels."""
    REFERENCE = "reference"
    """On the device, with what defines the kernels, in plain torch."""
    NUMPY = "numpy"
    """On the CPU, batch by batch."""


@dataclass(frozen=True)
class ScheduleSpec:
    """Constants of the residual-shift schedule (ResShift, Eq. 4 and its `exponential` rule)."""

    steps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    min_noise_level: float = 0.04
    etas_end: float = 0.99

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"schedule steps is {self.steps}; it must be at least 1")
        for name, share in (("min_noise_level", self.min_noise_level), ("etas_end", self.etas_end)):
            if not 0 < share < 1:
                raise InputError(f"schedule {name} is {share}; it must lie between 0 and 1")
        for name, number in (("kappa", self.kappa), ("power", self.power)):
            if not 0 < number < math.inf:
                raise InputError(f"schedule {name} is {number}; it must be positive")
        if self.steps > 1 and self.etas_end <= self.sqrt_eta_first:
            raise InputError(
                f"schedule etas_end is {self.etas_end}; it must be more than what the schedule grows from, "
                f"{self.sqrt_eta_first:.4g} with this min_noise_level and kappa"
            )

    @property
    def sqrt_eta_first(self) -> float:
        """Square root of eta at the first of several steps; `etas_end` is that at the last."""
        return min(self.min_noise_level / self.kappa, self.min_noise_level, _SQRT_ETA_FIRST_LIMIT)


@dataclass(frozen=True)
class EdgeArchitecture:
    """Sizes of the compact networks of `rsd_edge.models.edge`.

    The encoder runs in training only; stem, generator and decoder run at inference.
    """

    latent_channels: int = 4
    stem_width: int = 24
    stem_blocks: int = 2
    generator_widths: tuple[int, int] = (40, 80)
    generator_blocks: tuple[int, int, int] = (2, 4, 2)
    """Residual blocks before the downsampling, at half resolution, and after the upsampling."""
    time_width: int = 64
    decoder_width: int = 40
    decoder_blocks: int = 3
    decoder_half_width: int = 24
    """Channels at twice the LR resolution, from which the last convolution makes the four phases of each pixel."""
    encoder_width: int = 32

    def __post_init__(self) -> None:
        widths = (self.latent_channels, self.stem_width, *self.generator_widths, self.time_width, self.decoder_width)
        if min(*widths, self.decoder_half_width, self.encoder_width // 2) < 1:
            raise InputError("architecture widths must be at least 1, encoder_width at least 2")
        if min(self.stem_blocks, *self.generator_blocks, self.decoder_blocks) < 0:
            raise InputError("architecture numbers of blocks must not be negative")
        if self.time_width % 2:
            raise InputError(f"architecture time_width is {self.time_width}; it must be even")


def _check_positive(arch: Any, but: tuple[str, ...] = ()) -> None:
    """Raises InputError that names a size, or a list of sizes, that is empty or below 1."""
    for spec_field in dataclasses.fields(arch):
        value = getattr(arch, spec_field.name)
        if spec_field.name not in but and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            shown = list(value) if isinstance(value, tuple) else value
            raise InputError(f"{spec_field.name} is {shown}; sizes and numbers must be at least 1")


def _check_multiple(name: str, value: int, unit: int, why: str = "groups of its norms") -> None:
    if value % unit:
        raise InputError(f"{name} is {value}; it must be a multiple of {unit} ({why})")


@dataclass(frozen=True)
class SwinUNetArchitecture:
    """Sizes of the published generator (`rsd_edge.models.swin_unet`), named as in its configuration files."""

    image_size: int = 64
    """Side of the latent that the windows were laid out for."""
    in_channels: int = 6
    """Latent and LR image together."""
    noise_channels: int = 0
    """One for a student of RSD."""
    model_channels: int = 160
    out_channels: int = 3
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    num_head_channels: int = 32
    swin_depth: int = 2
    swin_embed_dim: int = 192
    window_size: int = 8
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _check_positive(self, but=("noise_channels", "mlp_ratio"))
        if self.noise_channels not in (0, 1):
            raise InputError(f"noise_channels is {self.noise_channels}; it must be 0 or 1")
        if not 0 < self.mlp_ratio * self.swin_embed_dim < math.inf or int(self.mlp_ratio * self.swin_embed_dim) < 1:
            raise InputError(f"mlp_ratio is {self.mlp_ratio}; it must be positive")
        if len(self.num_res_blocks) != len(self.channel_mult):
            raise InputError(
                f"num_res_blocks has {len(self.num_res_blocks)} values and channel_mult {len(self.channel_mult)}; "
                "give one for each level"
            )
        _check_multiple("model_channels", self.model_channels, _NORM_GROUPS)
        _check_multiple("swin_embed_dim", self.swin_embed_dim, _NORM_GROUPS)
        _check_multiple("swin_embed_dim", self.swin_embed_dim, self.num_head_channels, "num_head_channels")
        _check_multiple("image_size", self.image_size, self.multiple_of, "window_size at the lowest resolution")

    @property
    def multiple_of(self) -> int:
        """Sides of a latent are multiples of this: windows at the lowest resolution, in pixels of the latent."""
        return self.window_size << (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class VqArchitecture:
    """Sizes of the published autoencoder (`rsd_edge.models.vq`), named as in its configuration files."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_multiple("ch", self.ch, _NORM_GROUPS)
        if len(self.ch_mult) != _VQ_LEVELS:
            raise InputError(f"ch_mult has {len(self.ch_mult)} values; x4 needs {_VQ_LEVELS}")
        for name, channels in (("in_channels", self.in_channels), ("out_ch", self.out_ch)):
            if channels != _IMAGE_CHANNELS:
                raise InputError(f"{name} is {channels}; images have {_IMAGE_CHANNELS} channels")


@dataclass(frozen=True)
class PublishedArchitecture:
    """Generator and autoencoder of ResShift, SinSR and RSD."""

    unet: SwinUNetArchitecture = field(default_factory=SwinUNetArchitecture)
    vq: VqArchitecture = field(default_factory=VqArchitecture)

    def __post_init__(self) -> None:
        latent = self.vq.embed_dim
        for name, channels, needed in (
            ("in_channels", self.unet.in_channels, latent + _IMAGE_CHANNELS),
            ("out_channels", self.unet.out_channels, latent),
        ):
            if channels != needed:
                raise InputError(f"the generator's {name} is {channels}; latents of embed_dim {latent} need {needed}")

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.vq.embed_dim


def architecture_of(family: str) -> type[EdgeArchitecture] | type[PublishedArchitecture]:
    """The kind of architecture that a family has. Raises ModelError for an unknown family."""
    if family == EDGE_FAMILY:
        return EdgeArchitecture
    if family in PUBLISHED_FAMILIES:
        return PublishedArchitecture
    known = ", ".join((EDGE_FAMILY, *PUBLISHED_FAMILIES))
    raise ModelError(f"model family '{family}' is unknown; it must be one of {known}")


@dataclass(frozen=True)
class ModelSpec:
    """What a model is, whatever engine runs it."""

    name: str
    """Folders and files are called by it, so it must be the plain name of one."""
    family: str = "edge"
    scale: int = 4
    steps: int = 1
    """Generator evaluations per tile: 1 for a distilled student."""
    halo: int = 16
    """LR pixels of real neighbourhood that a tile needs on each side."""
    multiple_of: int = 2
    """Tile sides and origins are multiples of this (the generator's downsampling)."""
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    architecture: EdgeArchitecture | PublishedArchitecture = field(default_factory=EdgeArchitecture)
    """Of the family: a PublishedArchitecture for resshift, sinsr and rsd."""

    def __post_init__(self) -> None:
        if not (_PLAIN_NAME.fullmatch(self.name) and self.name.isprintable()):
            raise InputError(
                f"model name is {self.name!r}; it must be a plain file name: not empty, printable, without / and \\, "
                "and not beginning with . or -"
            )
        expected = architecture_of(self.family)
        if not isinstance(self.architecture, expected):
            raise ModelError(
                f"model '{self.name}' is of family {self.family}, which has a {expected.__name__}, "
                f"not a {type(self.architecture).__name__}"
            )
        if self.scale != ModelSpec.scale:
            raise InputError(f"model scale is {self.scale}; every family enlarges by {ModelSpec.scale}")
        for name, number, least in (
            ("steps", self.steps, 1),
            ("multiple_of", self.multiple_of, 1),
            ("halo", self.halo, 0),
        ):
            if number < least:
                raise InputError(f"model {name} is {number}; it must be at least {least}")
        if self.family == EDGE_FAMILY:
            _check_multiple("model multiple_of", self.multiple_of, _EDGE_REDUCTION, "the generator's downsampling")
            _check_multiple("model halo", self.halo, self.multiple_of, "multiple_of")

    @property
    def edge(self) -> EdgeArchitecture:
        """The architecture of an edge model. Raises ModelError for a published one."""
        if not isinstance(self.architecture, EdgeArchitecture):
            raise ModelError(f"model '{self.name}' is of family '{self.family}'; this needs one of family edge")
        return self.architecture

    @property
    def published(self) -> PublishedArchitecture:
        """The architecture of a published model. Raises ModelError for an edge one."""
        if not isinstance(self.architecture, PublishedArchitecture):
            raise ModelError(
                f"model '{self.name}' is of family '{self.family}'; this needs one of {', '.join(PUBLISHED_FAMILIES)}"
            )
        return self.architecture

    @property
    def noise_channels(self) -> int:
        """Gaussian channels a tile consumes: one latent for each step, plus the student's eps channel."""
        return self.steps * self.architecture.latent_channels + 1


@dataclass(frozen=True)
class TileSpec:
    """How a frame is cut for an engine. All lengths are LR pixels; `size` includes the halo on both sides."""

    size: int = 208
    """A halo of 12 then adds 28 % of arithmetic, and 1080, 720, 540 and 360 lines share out evenly."""
    halo: int = 16
    feather: int = 4
    """Neighbouring tiles are cross-faded over 2 * feather pixels around their common border."""
    multiple_of: int = 2
    batch: int = 1
    fixed: bool = False
    """True if the engine accepts `size` x `size` only; otherwise tiles shrink to share a frame evenly."""

    @classmethod
    def of(cls, model: ModelSpec, size: int | None = None, batch: int = 1) -> TileSpec:
        """The tiles for a model. Published ones are padded by their engines, so tiles need not be multiples there."""
        if model.family == EDGE_FAMILY:
            return cls(cls.size if size is None else size, model.halo, multiple_of=model.multiple_of, batch=batch)
        return cls(PUBLISHED_TILE if size is None else size, model.halo, batch=batch)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"tile batch is {self.batch}; it must be at least 1")
        if not 0 <= self.feather <= self.halo:
            raise InputError(f"tile feather {self.feather} must lie between 0 and the halo {self.halo}")
        for name, length in (("size", self.size), ("halo", self.halo)):
            if length % self.multiple_of:
                raise InputError(f"tile {name} {length} must be a multiple of {self.multiple_of}")
        smallest = 2 * self.halo + max(2 * self.feather, self.multiple_of)
        if self.size < smallest:
            raise InputError(f"tile size {self.size} is too small for a halo of {self.halo}; use at least {smallest}")


@dataclass(frozen=True)
class EngineSpec:
    """One model, compiled one way."""

    model: ModelSpec
    backend: Backend = Backend.ONNXRUNTIME
    precision: Precision = Precision.FP32
    weight_bits: int | None = None
    """Of an INT8 engine: 8, or 7 for CPUs that add U8 x S8 products in 16 bits, where 8 would saturate."""
