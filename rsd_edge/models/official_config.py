"""The YAML configurations that come with the published checkpoints, read strictly.

What changes the network or its sampling is either understood or refused by name; what only matters in training is
skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rsd_edge.errors import InputError, ModelError
from rsd_edge.plain import from_dict
from rsd_edge.specs import PublishedArchitecture, ScheduleSpec, SwinUNetArchitecture, VqArchitecture

SpecT = TypeVar("SpecT")

_UNET_FIELDS = (
    "image_size",
    "in_channels",
    "model_channels",
    "out_channels",
    "channel_mult",
    "num_res_blocks",
    "attention_resolutions",
    "num_head_channels",
    "swin_depth",
    "swin_embed_dim",
    "window_size",
    "mlp_ratio",
)
_UNET_FIXED = {
    "cond_lq": True,
    "cond_mask": False,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "patch_norm": False,
    "resblock_updown": False,
    "use_scale_shift_norm": True,
}
_UNET_SKIPPED = ("dropout", "lq_size", "use_checkpoint", "use_fp16")
_VQ_FIELDS = ("ch", "ch_mult", "num_res_blocks", "in_channels", "out_ch", "z_channels")
_VQ_FIXED = {"attn_resolutions": [], "double_z": False, "padding_mode": "zeros", "resamp_with_conv": True}
_VQ_SKIPPED = ("dropout", "resolution")
_SCHEDULE_FIELDS = ("steps", "kappa", "min_noise_level", "etas_end")
_SCHEDULE_FIXED = {
    "latent_flag": True,
    "normalize_input": True,
    "predict_type": "xstart",
    "scale_factor": 1.0,
    "schedule_name": "exponential",
    "sf": 4,
    "timestep_respacing": None,
}
_SCHEDULE_SKIPPED = ("num_steps", "schedule_kwargs", "weighted_mse")
_TARGETS = {"model": "UNetModelSwin", "diffusion": "create_gaussian_diffusion", "autoencoder": "VQModelTorch"}
_SECTION_FIXED = {"condition_student_timesteps": False}
_SECTION_SKIPPED = (
    "ckpt_path",
    "ddgan_loss",
    "gan_loss",
    "target_gan",
    "teacher_ckpt_path",
    "tune_decoder",
    "use_fp16",
)
_SECTION_KEYS = ("target", "params", "add_noise", "noise_channels")
_LR_CHANNELS = 3


def read_official_config(path: Path) -> tuple[PublishedArchitecture, ScheduleSpec]:
    """Sizes and schedule of a configuration.

    Raises ModelError that names a missing section, an unknown target or field, or a value that this program has no
    network for.
    """
    document = _load(path)
    try:
        return _understood(_mapping(document, "the document"))
    except ModelError as error:
        raise ModelError(f"configuration {path}: {error}") from error


def _understood(document: Mapping[str, Any]) -> tuple[PublishedArchitecture, ScheduleSpec]:
    config = {name: _resolved(document[name], document) for name in _TARGETS if name in document}
    sections = {name: _section(config, name) for name in _TARGETS}
    unet = _unet(sections["model"])
    model = config["model"]
    vq, schedule = _vq(sections["autoencoder"]), _schedule(sections["diffusion"])
    with _naming("model"):
        if model.get("add_noise", False):
            unet = replace(unet, noise_channels=_number(model.get("noise_channels", 1), "model.noise_channels"))
        return PublishedArchitecture(unet, vq), schedule


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """What a spec says of its own fields, with the section that they came from."""
    try:
        yield
    except InputError as error:
        raise ModelError(f"in '{where}', {error}") from error


def _spec(cls: type[SpecT], values: Mapping[str, Any], where: str) -> SpecT:
    with _naming(where):
        return from_dict(cls, values, f"{where}.")


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"configuration {path} cannot be read ({error.strerror}); give another path") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ModelError(f"configuration {path} is not YAML ({' '.join(str(error).split())})") from error


def _resolved(value: Any, document: Mapping[str, Any]) -> Any:
    """With references of the form ${section.field} replaced by what they name."""
    if isinstance(value, Mapping):
        return {key: _resolved(item, document) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, document) for item in value]
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        found: Any = document
        for name in value[2:-1].split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise ModelError(f"'{value}' refers to nothing in the configuration")
            found = found[name]
        return found
    return value


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in config:
        raise ModelError(f"there is no section '{name}'; give the one that came with the checkpoint")
    section = _mapping(config[name], name)
    _read(section, _SECTION_KEYS, _SECTION_FIXED, _SECTION_SKIPPED, name)
    target = str(section.get("target", ""))
    if target.rpartition(".")[2] != _TARGETS[name]:
        raise ModelError(f"'{name}.target' is '{target}', and only {_TARGETS[name]} is known here")
    return _mapping(section.get("params", {}), f"{name}.params")


def _unet(params: Mapping[str, Any]) -> SwinUNetArchitecture:
    where = "model.params"
    values = _read(params, _UNET_FIELDS, _UNET_FIXED, _UNET_SKIPPED, where)
    levels = values.get("channel_mult", SwinUNetArchitecture.channel_mult)
    if isinstance(values.get("num_res_blocks"), int) and isinstance(levels, (list, tuple)):
        values["num_res_blocks"] = [values["num_res_blocks"]] * len(levels)
    if "lq_size" in params and "in_channels" in values:  # since then, the LR image is counted apart
        values["in_channels"] = _number(values["in_channels"], f"{where}.in_channels") + _LR_CHANNELS
    arch = _spec(SwinUNetArchitecture, values, where)
    if params.get("lq_size", arch.image_size) != arch.image_size:
        raise ModelError(f"'{where}.lq_size' is {params['lq_size']}, and only {arch.image_size} (x4) is known here")
    return arch


def _vq(params: Mapping[str, Any]) -> VqArchitecture:
    where = "autoencoder.params"
    _known(params, ("ddconfig", "embed_dim", "n_embed", "lossconfig", "monitor"), where)
    sizes = _mapping(params.get("ddconfig", {}), f"{where}.ddconfig")
    values = _read(sizes, _VQ_FIELDS, _VQ_FIXED, _VQ_SKIPPED, f"{where}.ddconfig")
    values |= {key: params[key] for key in ("embed_dim", "n_embed") if key in params}
    return _spec(VqArchitecture, values, where)


def _schedule(params: Mapping[str, Any]) -> ScheduleSpec:
    where = "diffusion.params"
    values = _read(params, _SCHEDULE_FIELDS, _SCHEDULE_FIXED, _SCHEDULE_SKIPPED, where)
    kwargs = _mapping(params.get("schedule_kwargs", {}), f"{where}.schedule_kwargs")
    _known(kwargs, ("power",), f"{where}.schedule_kwargs")
    return _spec(ScheduleSpec, values | dict(kwargs), where)


def _read(
    params: Mapping[str, Any], fields: tuple[str, ...], fixed: Mapping[str, Any], skipped: tuple[str, ...], where: str
) -> dict[str, Any]:
    _known(params, (*fields, *fixed, *skipped), where)
    for key, value in fixed.items():
        if params.get(key, value) != value:
            raise ModelError(f"'{where}.{key}' is {params[key]!r}, and only {value!r} is known here")
    return {key: params[key] for key in fields if key in params}


def _known(params: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in params:
        if key not in known:
            raise ModelError(f"unknown field '{where}.{key}', which may change the network; this version cannot run it")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ModelError(f"'{where}' must be a mapping, not {type(value).__name__}")
    return value


def _number(value: Any, where: str) -> int:
    if not isinstance(value, int):
        raise ModelError(f"'{where}' must be a whole number, not {value!r}")
    return value
