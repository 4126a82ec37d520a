"""Files in the wrappings of the published checkpoints, made of the parity weights."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rsd_edge.cli import main
from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import load_checkpoint
from rsd_edge.models.import_weights import Request, import_weights
from rsd_edge.models.official import for_family, read_parts
from rsd_edge.models.official_config import read_official_config
from rsd_edge.models.published import published_model
from rsd_edge.models.swin_unet import recomputed
from rsd_edge.specs import PublishedArchitecture, ScheduleSpec

States = dict[str, dict[str, Tensor]]

CONFIG = Path(__file__).parent / "fixtures" / "parity" / "rsd_small.yaml"
MARK = "input_blocks.0.0.weight"
"""What only generators have."""


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not recomputed(name)}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture
def files(published_states: States, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "ema_model_2800.pth", tmp_path / "autoencoder_vq_f4.pth"]
    torch.save(published_states["student"], paths[0])
    torch.save(published_states["autoencoder"], paths[1])
    return paths


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """The official layout with one value replaced, by dotted name; None as a value removes it."""

    def make(**changes: Any) -> Path:
        document = yaml.safe_load(CONFIG.read_text())
        for dotted, value in changes.items():
            *above, last = dotted.split("__")
            section = document
            for name in above:
                section = section[name]
            section[last] = value
        path = tmp_path / "official.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return make


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        weights,
        lambda state: {"state_dict": state},
        lambda state: {"state_dict": prefixed(state, "module.")},
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: prefixed(state, "_orig_mod.module."),
        lambda state: {"params": {name: 0 * item for name, item in state.items()}, "params_ema": state, "step": 3},
        lambda state: {"ema": prefixed(state, "module."), "optimizer": {"state": {}, "param_groups": []}, "epoch": 1},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
        lambda state: {**state, "step": 3},
        lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)},
        lambda state: {("module." if i % 2 else "") + name: item for i, (name, item) in enumerate(state.items())},
        lambda state: {name.replace(".1.1.", ".1._orig_mod.1."): item for name, item in state.items()},
        lambda state: {"decay": 0.999, "num_updates": 7, "shadow_params": state},
        lambda state: {name: item.half() if item.is_floating_point() else item for name, item in state.items()},
    ],
)
def test_every_wrapping_is_read(
    wrap: Callable[..., object], published_states: States, small_published: PublishedArchitecture, files: list[Path]
) -> None:
    torch.save(wrap(published_states["teacher"]), files[0])
    found, expected = read_parts(files, small_published)["generator"], weights(published_states["teacher"])
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name])


class Payload:
    """What a malicious file would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return sys.exit, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": Payload()}, "is no PyTorch checkpoint, or holds more than weights, which is not read; down"),
        (b"<html>quota exceeded</html>", "is no PyTorch checkpoint, or holds more than weights"),
        (b"", "cannot be read as a PyTorch checkpoint"),
        (b"\x80\x02.", "cannot be read as a PyTorch checkpoint"),  # IndexError of torch's unpickler
        (b"\x80\x02j\x01\x01\x01\x01.", r"cannot be read as a PyTorch checkpoint \(KeyError\)"),
        (b"\x80\x02M", "cannot be read as a PyTorch checkpoint"),  # struct.error
        ({"step": 3, "config": {"a": 1}}, r"holds no state dict \(it holds step, config\)"),
        ({"decay": 0.9, "shadow_params": [torch.zeros(1)]}, "its shadow_params are averages without names, which only"),
        ({"a.b": torch.zeros(1), "module.a.b": torch.zeros(1)}, r"holds a\.b twice, with and without a prefix"),
        ({MARK: torch.zeros(1), "b": torch.zeros(1, dtype=torch.int8)}, "are no plain floats: b is int8; give the "),
        ({MARK: torch.zeros(1, dtype=torch.complex64)}, rf"are no plain floats: {MARK} is complex64; give"),
        ({MARK: torch.zeros(2, 2).to_sparse()}, rf"are no plain floats: {MARK} is sparse_coo; give"),
        ([torch.zeros(1)], r"holds no state dict \(it holds list\)"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        read_parts([path], PublishedArchitecture())
    with pytest.raises(ModelError, match=r"none\.pth does not exist; download it with 'rsd-edge fetch'"):
        read_parts([tmp_path / "none.pth"], PublishedArchitecture())


def test_every_key_that_does_not_fit_is_named(
    published_states: States, small_published: PublishedArchitecture, tmp_path: Path
) -> None:
    state = dict(published_states["teacher"])
    del state["out.2.bias"], state["time_embed.0.weight"]
    state |= {"extra.weight": torch.zeros(1), "out.0.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError) as caught:
        read_parts([tmp_path / "a.pth"], small_published)
    message = str(caught.value)
    assert "missing: time_embed.0.weight, out.2.bias; unknown: extra.weight; " in message
    assert "misshapen: out.0.weight is 3 instead of 32)" in message


def test_a_truncated_file_is_told_in_one_sentence(files: list[Path]) -> None:
    files[0].write_bytes(files[0].read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"checkpoint \([^.]*central directory\); download it again$"):
        read_parts(files, PublishedArchitecture())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    value: float, files: list[Path], published_states: States, tmp_path: Path
) -> None:
    state = {name: tensor.clone() for name, tensor in published_states["student"].items()}
    state["out.2.bias"][1] = value
    torch.save(state, files[0])
    with pytest.raises(ModelError, match=r"has values that are not finite, or not in fp32, in out\.2\.bias; it was"):
        import_weights(Request(files, "rsd", CONFIG), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_buffers_may_be_missing_but_not_of_another_size(
    published_states: States, small_published: PublishedArchitecture, files: list[Path]
) -> None:
    arch, state = for_family(small_published, "rsd"), dict(published_states["student"])
    mask = "input_blocks.3.1.blocks.1.attn_mask"
    del state[mask]
    torch.save(state, files[0])
    assert set(read_parts(files, arch)["generator"]) == set(weights(state))
    torch.save({**state, mask: torch.zeros(4, 64, 64), "out.attn_mask": torch.zeros(1)}, files[0])
    with pytest.raises(ModelError) as caught:
        read_parts(files, arch)
    assert "unknown: out.attn_mask; misshapen: " in str(caught.value)
    assert f"{mask} is 4x64x64 instead of 16x64x64)" in str(caught.value)


def test_long_lists_are_counted(
    published_states: States, small_published: PublishedArchitecture, files: list[Path]
) -> None:
    extra = [f"extra.{letter}" for letter in "abcdefghijkl"]
    torch.save({**published_states["student"], **{name: torch.zeros(1) for name in extra}}, files[0])
    shortened = f"unknown: {', '.join(extra[:10])} and 2 more of 12 (--verbose names all))"
    for named, shown in ((10, shortened), (None, f"unknown: {', '.join(extra)})")):
        with pytest.raises(ModelError) as caught:
            read_parts(files, for_family(small_published, "rsd"), named)
        assert shown in str(caught.value)


def test_parts_are_told_apart(files: list[Path], small_published: PublishedArchitecture, tmp_path: Path) -> None:
    arch = for_family(small_published, "rsd")
    assert set(read_parts(files[::-1], arch)) == {"generator", "autoencoder"}
    with pytest.raises(ModelError, match="no file holds the autoencoder; give its file as well"):
        read_parts(files[:1], arch)
    with pytest.raises(ModelError, match="is a second generator"):
        read_parts([files[0], files[0]], arch)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="is neither a generator nor an autoencoder"):
        read_parts([tmp_path / "other.pth"], arch)


def test_a_teacher_is_not_taken_for_a_student(files: list[Path], small_published: PublishedArchitecture) -> None:
    with pytest.raises(ModelError, match=r"misshapen: input_blocks\.0\.0\.weight is 32x7x3x3 instead of 32x6x3x3"):
        read_parts(files, small_published)


def test_the_official_configuration_is_understood(small_published: PublishedArchitecture) -> None:
    assert read_official_config(CONFIG) == (for_family(small_published, "rsd"), ScheduleSpec())


def test_settings_reach_the_specs(config: Callable[..., Path]) -> None:
    arch, schedule = read_official_config(
        config(
            diffusion__params__steps=4,
            diffusion__params__schedule_kwargs__power=0.8,
            diffusion__params__kappa=1,
            model__params__num_res_blocks=2,
            model__params__swin_depth=6,
            model__params__lq_size=64,
            model__params__in_channels=3,
            model__params__out_channels="${autoencoder.params.embed_dim}",
            model__teacher_ckpt_path="weights/teacher.pth",
            model__gan_loss=True,
            diffusion__params__num_steps=4,
            model__add_noise=False,
            autoencoder__params__n_embed=99,
            autoencoder__params__ddconfig__num_res_blocks=3,
            trainer={"anything": 1},
        )
    )
    assert (schedule.steps, schedule.power, schedule.kappa) == (4, 0.8, 1.0)
    assert (arch.unet.num_res_blocks, arch.unet.swin_depth, arch.unet.noise_channels) == ((2, 2, 2, 2), 6, 0)
    # Files that give lq_size count the channels of the LR image apart.
    assert (arch.unet.in_channels, arch.unet.out_channels) == (6, 3)
    assert (arch.vq.n_embed, arch.vq.num_res_blocks) == (99, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__target": "models.unet.UNetModel"}, r"'model\.target' is 'models\.unet\.UNetModel', and only UNetM"),
        ({"model__params__new_trick": 1}, r"unknown field 'model\.params\.new_trick'"),
        ({"model__params__cond_lq": False}, r"'model\.params\.cond_lq' is False, and only True is known"),
        ({"model__params__lq_size": 128}, r"'model\.params\.lq_size' is 128, and only 64 \(x4\)"),
        ({"model__params__swin_depth": "two"}, r"'model\.params\.swin_depth' must be of type int"),
        ({"diffusion__params__sf": 2}, r"'diffusion\.params\.sf' is 2, and only 4"),
        ({"diffusion__params__schedule_name": "linear"}, r"'diffusion\.params\.schedule_name' is 'linear'"),
        ({"diffusion__params__schedule_kwargs__bend": 2}, r"unknown field 'diffusion\.params\.schedule_kwargs\.bend'"),
        ({"autoencoder__params__ddconfig__attn_resolutions": [64]}, r"ddconfig\.attn_resolutions' is \[64\]"),
        ({"autoencoder__lora": {}}, r"unknown field 'autoencoder\.lora'"),
        ({"diffusion": 3}, "'diffusion' must be a mapping, not int"),
        ({"model__condition_student_timesteps": True}, "'model.condition_student_timesteps' is True, and only False"),
        ({"model__params__out_channels": "${model.none}"}, "refers to nothing in the configuration"),
        ({"model__params__num_res_blocks": [2, 2]}, r"'model\.params', num_res_blocks has 2 values and channel_mult 4"),
        (
            {"model__params__num_res_blocks": 2, "model__params__channel_mult": 4},
            r"'model\.params\.channel_mult' must be",
        ),
        ({"model__params__channel_mult": []}, r"in 'model\.params', channel_mult is \[\]; sizes and numbers must be"),
        ({"model__params__model_channels": 33}, r"in 'model\.params', model_channels is 33; .* multiple of 32"),
        ({"model__params__num_head_channels": 50}, r"swin_embed_dim is 32; .* multiple of 50 \(num_head_channels\)"),
        (
            {"model__params__window_size": 0},
            r"in 'model\.params', window_size is 0; sizes and numbers must be at least",
        ),
        ({"model__params__image_size": 60}, r"image_size is 60; it must be a multiple of 64 \(window_size"),
        ({"model__params__in_channels": 7}, r"in_channels is 7; latents of embed_dim 3 need 6"),
        ({"model__params__mlp_ratio": 0.0}, r"in 'model\.params', mlp_ratio is 0\.0"),
        ({"model__noise_channels": 2}, r"in 'model', noise_channels is 2; it must be 0 or 1"),
        ({"autoencoder__params__ddconfig__ch": 40}, r"in 'autoencoder\.params', ch is 40; .* multiple of 32"),
        ({"autoencoder__params__ddconfig__ch_mult": [1, 2]}, r"ch_mult has 2 values; x4 needs 3"),
        ({"diffusion__params__etas_end": 1.5}, r"official\.yaml: in 'diffusion\.params', schedule etas_end is 1\.5"),
        ({"diffusion__params__kappa": 0}, r"official\.yaml: in 'diffusion\.params', schedule kappa is 0\.0"),
        ({"diffusion__params__steps": 0}, r"official\.yaml: in 'diffusion\.params', schedule steps is 0"),
        ({"model__noise_channels": "one"}, "'model.noise_channels' must be a whole number"),
    ],
)
def test_what_would_change_the_network_is_refused(
    change: dict[str, Any], message: str, config: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=message):
        read_official_config(config(**change))


def test_configurations_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_official_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ModelError, match="is not YAML"):
        read_official_config(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("a: 1")
    with pytest.raises(ModelError, match="there is no section 'model'"):
        read_official_config(tmp_path / "empty.yaml")


def test_an_imported_model_is_the_published_one(
    files: list[Path], tmp_path: Path, parity: dict[str, Tensor], published_states: States
) -> None:
    output = tmp_path / "rsd.safetensors"
    import_weights(Request(files, "rsd", CONFIG), output)
    checkpoint = load_checkpoint(output)
    assert (checkpoint.spec.name, checkpoint.spec.family, checkpoint.spec.steps) == ("rsd", "rsd", 1)
    assert (checkpoint.spec.scale, checkpoint.spec.multiple_of) == (4, 64)
    assert checkpoint.record["licence"] == "CC BY-NC-SA 4.0 and S-Lab License 1.0"
    licences = checkpoint.record["licences"]
    assert [licences[part]["name"] for part in ("generator", "autoencoder")] == ["CC BY-NC-SA 4.0", "S-Lab License 1.0"]
    assert licences["autoencoder"]["url"].startswith("https://github.com/zsyOAOA/ResShift/")
    assert checkpoint.record["sources"] == [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in files
    ]
    noise = torch.cat([parity["noise"], parity["rsd_eps"]], dim=1)
    with torch.no_grad():
        image = published_model(checkpoint)(parity["unet_lq"], noise).clamp(-1, 1)
    # Codes are looked up in our own latent here: where two are equally near, another one may be taken.
    assert ((image[..., 96:192, 64:160] - parity["rsd_decoded"]).abs() < 2e-4).float().mean() > 0.99


def test_a_number_of_steps_in_a_name_needs_its_configuration(files: list[Path], tmp_path: Path) -> None:
    named = files[0].rename(tmp_path / "resshift_realsrx4_s4_v3.pth")
    with pytest.raises(ModelError, match=r"s4_v3\.pth says 4 steps, and without a configuration 15 are assumed"):
        import_weights(Request([named, files[1]], "resshift"), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "told"), [("resshift.pth", True), ("resshift_s15_v1.pth", False), ("official.yaml", False)]
)
def test_assumed_steps_are_told(
    name: str,
    told: bool,
    published_states: States,
    small_published: PublishedArchitecture,
    config: Callable[..., Path],
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = tmp_path / f"{name}.pth" if name.endswith(".yaml") else tmp_path / name
    torch.save(published_states["teacher"], generator)
    monkeypatch.setattr("rsd_edge.models.import_weights.PublishedArchitecture", lambda: small_published)
    given = ["--config", config(model__add_noise=False)] if name.endswith(".yaml") else []
    output = tmp_path / "resshift.safetensors"
    assert run(generator, files[1], "--family", "resshift", "--accept-license", "-o", output, *given) == 0
    assert ("warning: no configuration and no file name says how many steps" in capsys.readouterr().err) == told
    assert load_checkpoint(output).record["steps_assumed"] == told


def test_families_and_noise_agree(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="1 noise channels, which does not suit the family sinsr"):
        import_weights(Request(files, "sinsr", CONFIG), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"must end in \.safetensors"):
        import_weights(Request(files, "rsd", CONFIG), tmp_path / "a.pth")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["import-weights", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), (None, 2)])
def test_the_licence_must_be_accepted(
    answer: str | None,
    code: int,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "rsd.safetensors"
    monkeypatch.setattr("click.confirm", lambda text, err: answer == "y\n")
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None)
    assert run(*files, "--family", "rsd", "--config", CONFIG, "-o", output) == code
    assert output.exists() == (code == 0)
    err = capsys.readouterr().err
    assert "The weights of the generator are under CC BY-NC-SA 4.0: https://creativecommons.org/" in err
    assert "The weights of the autoencoder are under S-Lab License 1.0: https://github.com/zsyOAOA/ResShift/" in err
    if answer is None:
        assert "read it and pass --accept-license" in err
    elif code:
        assert "error: CC BY-NC-SA 4.0 and S-Lab License 1.0 was not accepted; nothing was written" in err


def test_the_flag_accepts_and_errors_take_one_line(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.safetensors"
    assert run(*files, "--family", "rsd", "--config", CONFIG, "--accept-license", "-o", output) == 0
    assert capsys.readouterr().out == f"{output}: rsd, 1 of 15 steps by default\n"
    assert run(files[0], "--family", "resshift", "--accept-license", "-o", tmp_path / "b.safetensors") == 2
    err = capsys.readouterr().err
    assert "S-Lab License 1.0" in err
    assert "error: " in err
    assert "Traceback" not in err
