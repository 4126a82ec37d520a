"""The ranges that degradations are drawn from: one frozen dataclass a preset, its defaults the published settings.

Ranges are (lowest, highest), both reached; shares are probabilities. `real` holds what ResShift and RSD train with:
Real-ESRGAN's options with a second pass half of the time. Their own loader never draws the largest kernels (21 and 15)
and takes the final sinc from 3 to 13; here the largest are drawn, as in the options, and the sinc as in Real-ESRGAN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from rsd_edge.errors import InputError

Range = tuple[float, float]

LARGEST_KERNEL = 51


@dataclass(frozen=True)
class Blur:
    """A blur by a kernel of random kind, size and shape."""

    share: float = 1.0
    """Of the images that are blurred at all."""
    sizes: tuple[int, int] = (3, 21)
    """Sides, odd."""
    kinds: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Shares of iso, aniso, generalised iso and aniso, plateau iso and aniso among the kernels that are no sinc."""
    sigma: Range = (0.2, 3.0)
    generalised_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    sinc: float = 0.1

    def __post_init__(self) -> None:
        check_shares("blur", self.share, self.sinc)
        check_sum("blur kinds", self.kinds)
        check_range("blur sizes", self.sizes, 3, LARGEST_KERNEL)
        check_range("blur sigma", self.sigma, 0.05, 50)
        check_range("blur generalised_beta", self.generalised_beta, 0.1, 20)
        check_range("blur plateau_beta", self.plateau_beta, 0.1, 20)
        if any(size % 2 == 0 for size in self.sizes):
            raise InputError(f"blur sizes are {list(self.sizes)}; kernels have odd sides")


@dataclass(frozen=True)
class Noise:
    """Gaussian or Poisson noise."""

    share: float = 1.0
    """Of the images that get noise at all."""
    gaussian_share: float = 0.5
    """The others get Poisson noise."""
    gaussian: Range = (1, 30)
    """Standard deviation in grey levels of 255."""
    poisson: Range = (0.05, 3.0)
    """Factor on the deviation of photon counts."""
    gray_share: float = 0.4

    def __post_init__(self) -> None:
        check_shares("noise", self.share, self.gaussian_share, self.gray_share)
        check_range("noise gaussian", self.gaussian, 0, 255)
        check_range("noise poisson", self.poisson, 0, 100)


@dataclass(frozen=True)
class Resize:
    """A resize up, down or not at all, by a random factor."""

    up_down_keep: tuple[float, float, float] = (0.2, 0.7, 0.1)
    factor: Range = (0.15, 1.5)
    """Smallest factor down and largest up."""

    def __post_init__(self) -> None:
        check_sum("resize up_down_keep", self.up_down_keep)
        check_range("resize factor", self.factor, 0.05, 4)
        if not self.factor[0] <= 1 <= self.factor[1]:
            raise InputError(f"resize factor is {list(self.factor)}; it must reach from 1 or less to 1 or more")


@dataclass(frozen=True)
class Pass:
    """Blur, resize, noise, in this order."""

    blur: Blur = field(default_factory=Blur)
    resize: Resize = field(default_factory=Resize)
    noise: Noise = field(default_factory=Noise)


def _second_pass() -> Pass:
    return Pass(
        Blur(share=0.8, sizes=(3, 15), sigma=(0.2, 1.5)),
        Resize((0.3, 0.4, 0.3), (0.3, 1.2)),
        Noise(gaussian=(1, 25), poisson=(0.05, 2.5)),
    )


@dataclass(frozen=True)
class Sinc:
    """The last filter: ringing."""

    share: float = 0.8
    sizes: tuple[int, int] = (7, 21)
    cutoff: Range = (1 / 3, 1.0)
    """Angular frequency in units of pi."""

    def __post_init__(self) -> None:
        check_shares("final_sinc", self.share)
        check_range("final_sinc sizes", self.sizes, 3, LARGEST_KERNEL)
        check_range("final_sinc cutoff", self.cutoff, 0.05, 1)
        if any(size % 2 == 0 for size in self.sizes):
            raise InputError(f"final_sinc sizes are {list(self.sizes)}; kernels have odd sides")


@dataclass(frozen=True)
class SecondOrder:
    """Real-ESRGAN: a pass, JPEG, perhaps a second pass; then JPEG and the resize to LR with a sinc, in either order."""

    first: Pass = field(default_factory=Pass)
    first_jpeg: tuple[int, int] = (30, 95)
    second_share: float = 0.5
    second: Pass = field(default_factory=_second_pass)
    final_sinc: Sinc = field(default_factory=Sinc)
    jpeg: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        check_shares("second_share", self.second_share)
        check_quality(self.first_jpeg, self.jpeg)


@dataclass(frozen=True)
class Light:
    """What a decent camera or web image suffers: mild blur, the reduction, a little noise, JPEG of good quality."""

    blur: Blur = field(default_factory=lambda: Blur(share=0.8, sizes=(3, 15), sigma=(0.2, 2.2), sinc=0.05))
    noise: Noise = field(default_factory=lambda: Noise(0.75, 2 / 3, (1, 12), (0.05, 1.5)))
    jpeg_share: float = 0.9
    jpeg: tuple[int, int] = (50, 95)

    def __post_init__(self) -> None:
        check_shares("jpeg_share", self.jpeg_share)
        check_quality(self.jpeg)


@dataclass(frozen=True)
class Shuffled:
    """BSRGAN (arXiv 2103.14006) at x4: two blurs, a reduction in two parts, noise and JPEG in random order, then JPEG.

    Its camera sensor noise, applied to a quarter of the images there, needs a model of raw development and is left out.
    """

    half_share: float = 0.25
    """Of the images that are halved before anything else."""
    sizes: tuple[int, int] = (7, 25)
    """Sides of both kernels, odd."""
    variance: Range = (0.0, 8.0)
    """Along each axis of the anisotropic kernel, for a reduction by 4 still to come; 6 parts in 8 of it by 2."""
    sigma: Range = (0.0, 2.8)
    """Of the isotropic kernel, for a reduction by 4; 6 parts in 7 of it by 2."""
    anisotropic_share: float = 0.5
    """Of either kernel."""
    shifted_share: float = 0.25
    """Of the reductions made by a blur and taking every n-th pixel."""
    noise: tuple[int, int] = (2, 25)
    """Standard deviation in grey levels."""
    gray_share: float = 0.4
    correlated_share: float = 0.2
    """Of noise that is correlated between the channels, at the highest deviation."""
    jpeg_share: float = 0.9
    jpeg: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        check_shares("bsrgan shares", self.half_share, self.anisotropic_share, self.shifted_share, self.jpeg_share)
        check_shares("bsrgan noise shares", self.gray_share, self.correlated_share)
        check_shares("bsrgan gray_share and correlated_share together", self.gray_share + self.correlated_share)
        check_range("bsrgan sizes", self.sizes, 3, LARGEST_KERNEL)
        check_range("bsrgan variance", self.variance, 0, 2500)
        check_range("bsrgan sigma", self.sigma, 0, 50)
        check_range("bsrgan noise", self.noise, 0, 255)
        check_quality(self.jpeg)
        if any(size % 2 == 0 for size in self.sizes):
            raise InputError(f"bsrgan sizes are {list(self.sizes)}; kernels have odd sides")


@dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic reduction, the classical benchmark's LR; nothing is drawn."""


Preset = SecondOrder | Light | Shuffled | Bicubic


@dataclass(frozen=True)
class Presets:
    """The presets by name, each with the ranges of a run."""

    real: SecondOrder = field(default_factory=SecondOrder)
    light: Light = field(default_factory=Light)
    bsrgan: Shuffled = field(default_factory=Shuffled)
    bicubic: Bicubic = field(default_factory=Bicubic)

    def named(self, name: str) -> Preset:
        """The preset of that name. Raises InputError if there is none."""
        if name not in PRESET_NAMES:
            raise InputError(f"unknown degradation '{name}'; choose from {', '.join(PRESET_NAMES)}")
        preset: Preset = getattr(self, name)
        return preset


PRESET_NAMES = tuple(preset.name for preset in fields(Presets))


def check_shares(what: str, *shares: float) -> None:
    """Raise InputError unless all are probabilities."""
    for share in shares:
        if not 0 <= share <= 1:
            raise InputError(f"{what} has a share of {share}; shares lie between 0 and 1")


def check_sum(what: str, shares: Sequence[float]) -> None:
    """Raise InputError unless these are probabilities that add up to 1."""
    check_shares(what, *shares)
    if abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"{what} are {list(shares)}; they must add up to 1")


def check_range(what: str, bounds: Range, lowest: float, highest: float) -> None:
    """Raise InputError unless the range is one, and within what makes sense."""
    if not lowest <= bounds[0] <= bounds[1] <= highest:
        raise InputError(f"{what} is {list(bounds)}; it must rise, within {lowest} to {highest}")


def check_quality(*ranges: Range) -> None:
    """Raise InputError unless these are ranges of JPEG qualities."""
    for bounds in ranges:
        check_range("jpeg", bounds, 1, 100)
