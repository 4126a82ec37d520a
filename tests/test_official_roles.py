"""Students of either architecture against a published teacher, at a small size with random weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig, RoleConfig, RolesConfig
from rsd_edge.distill.data import Batch, validation_batch
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.discriminators import FakeModel, FeatureHead
from rsd_edge.distill.loop import draws
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.roles import build_roles, random_teacher, stage_weights, takes_noise
from rsd_edge.distill.snapshot import STATE_FILE
from rsd_edge.distill.stage_config import StageConfig, StudentConfig
from rsd_edge.distill.stages import run_stage
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.errors import InputError, ModelError
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, state_of
from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem
from rsd_edge.models.edge_tile import edge_tile
from rsd_edge.models.published import bicubic_up, published_model
from rsd_edge.models.swin_unet import SwinUNet
from rsd_edge.specs import (
    EdgeArchitecture,
    ModelSpec,
    PublishedArchitecture,
    ScheduleSpec,
    SwinUNetArchitecture,
    VqArchitecture,
)

MakeConfig = Callable[..., DistillConfig]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

UNET = SwinUNetArchitecture(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    attention_resolutions=(64, 32),
    num_head_channels=16,
    swin_embed_dim=32,
)
VQ = VqArchitecture(ch=32, num_res_blocks=1, n_embed=64)
TEACHER = ModelSpec("teacher", "resshift", steps=15, multiple_of=16, architecture=PublishedArchitecture(UNET, VQ))


def student_of(family: str) -> ModelSpec:
    if family == "edge":
        architecture = EdgeArchitecture(3, 8, 1, (8, 12), (1, 1, 1), 8, 8, 1, 4, 4)
        return ModelSpec("small", architecture=architecture)
    unet = replace(UNET, noise_channels=1 if family == "rsd" else 0)
    return ModelSpec("small", family, multiple_of=16, architecture=PublishedArchitecture(unet, VQ))


@pytest.fixture
def make(hr_photos: Path, tmp_path: Path) -> MakeConfig:
    """Runs of one iteration against a teacher in a file."""

    def config(family: str = "rsd", **settings: object) -> DistillConfig:
        path = tmp_path / "teacher.safetensors"
        common = {"iterations": 1, "batch": 2, "fake_steps": 1, "log_every": 1, "lr": 1e-3, **settings}
        made = DistillConfig(
            student_of(family),
            str(tmp_path / "run"),
            roles=RolesConfig(teacher=RoleConfig(str(path), TEACHER), head_width=8),
            data=DataConfig(str(hr_photos), str(hr_photos), crop=64, workers=0, val_crops=1),
            student=StudentConfig(**common),
        )
        if not path.is_file():
            torch.manual_seed(3)
            save_checkpoint(path, random_teacher(made))
        latent = stage_weights(made, "autoencoder")
        if family == "edge" and not latent.is_file():
            networks = {"stem": EdgeStem(made.model.edge), "decoder": EdgeDecoder(made.model.edge)}
            parts = {part: state_of(network) for part, network in networks.items()}
            save_checkpoint(latent, Checkpoint(made.model, parts))
        return made

    return config


def pair(stage: StudentStage) -> Batch:
    return validation_batch(replace(stage.config.data, val_crops=2), 64, 0)


def moved(before: dict[str, Tensor], network: nn.Module) -> bool:
    return any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_student_at_birth_is_its_teacher(make: MakeConfig) -> None:
    """The noise channel's slice is zero: whatever the noise, the output is the teacher's."""
    config = make()
    roles = build_roles(config, load_checkpoint(Path(config.roles.teacher.weights)), 64)
    assert isinstance(roles.student, SwinUNet)
    assert takes_noise(roles.student)
    assert not takes_noise(roles.teacher)
    x, lq, eps = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.randn(2, 1, 16, 16)
    t = torch.tensor([14, 3])
    with torch.no_grad():
        torch.testing.assert_close(roles.student(x, t, lq, eps), roles.teacher(x, t, lq), rtol=0, atol=1e-5)  # float32
    first = roles.student.input_blocks[0][0].weight
    assert first.shape[1] == 7
    assert not first[:, 6].any()


@pytest.mark.parametrize("objective", ["rsd", "vsd", "sinsr"])
@pytest.mark.parametrize("family", ["rsd", "edge"])
def test_a_student_of_any_architecture_is_trained(make: MakeConfig, family: str, objective: str) -> None:
    stage = StudentStage(make(family, objective=objective))
    assert isinstance(stage.student, SwinUNet if family == "rsd" else EdgeGenerator)
    assert isinstance(stage.fake.denoiser, SwinUNet)
    networks = {"student": stage.student, "fake": stage.fake, "teacher": stage.teacher, "latent": stage.latent}
    before = {name: state_of(network) for name, network in networks.items()}
    scalars = stage.step(0, draws(stage, itertools.repeat(pair(stage)), 0))
    assert scalars.keys() == {"fake", "discriminator", "lpips", "distill", "gan", "gradient"}
    assert {name for name, network in networks.items() if moved(before[name], network)} == {"student", "fake"}
    assert all(torch.isfinite(value) for value in scalars.values())


def test_a_run_leaves_a_model_that_runs(make: MakeConfig) -> None:
    path = run_stage("student", make())
    checkpoint = load_checkpoint(path)
    assert set(checkpoint.parts) == {"generator", "autoencoder"}
    model = published_model(checkpoint)
    lq = torch.rand(1, 3, 16, 16)
    image = model(lq, torch.randn(1, 4, 16, 16))
    assert image.shape == (1, 3, 64, 64)
    assert torch.isfinite(image).all()
    assert (path.parent / "strips" / "000001.png").is_file()


def test_an_edge_student_of_a_published_teacher_needs_a_stem_and_a_decoder(make: MakeConfig, tmp_path: Path) -> None:
    """With the teacher's own autoencoder it could be trained, and not be run."""
    config = replace(make("edge"), run_dir=str(tmp_path / "another"))
    with pytest.raises(
        ModelError, match=r"run 'rsd-edge distill autoencoder --config .*, or set roles\.autoencoder\.weights$"
    ):
        run_stage("student", config)


@pytest.mark.parametrize("stage", ["autoencoder", "teacher"])
def test_stages_of_compact_networks_alone_are_refused_by_family(make: MakeConfig, stage: str) -> None:
    with pytest.raises(InputError, match=f"stage {stage} trains compact networks, and the model is of family rsd; set"):
        run_stage(stage, make())


def test_a_student_of_a_deterministic_map_does_not_hear_eps(make: MakeConfig) -> None:
    """Of other sizes than its teacher, it starts from random weights, and eps is zero while it is trained."""
    settings = {"gan_weight": 0.0, "objective": "sinsr"}
    config = make("edge", **settings)
    config = replace(config, finetune=replace(config.student, train_decoder=True))
    student = run_stage("student", config)
    checkpoint = load_checkpoint(student)
    checkpoint.parts["student"]["head.weight"][:, -1] = 1.0  # of a student that was trained otherwise
    save_checkpoint(student, checkpoint)
    lq, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 16, 16)
    for stage in ("finetune", "student"):
        stage_weights(config, "student").with_name(STATE_FILE).unlink(missing_ok=True)
        tile = edge_tile(load_checkpoint(run_stage(stage, config)))
        assert torch.equal(tile(lq, noise), tile(lq, torch.cat([noise[:, :-1], -noise[:, -1:]], dim=1)))
    regression = StudentStage(make("edge", **{**settings, "distill_weight": 0.0}))
    assert regression.sampler.from_prior(torch.zeros(1, 3, 2, 2), Randomness("0", 0, 1, "cpu")).eps.any()


def test_the_stem_learns_nothing_from_the_inverse_terms_target(make: MakeConfig) -> None:
    gradients = []
    for weight in (0.0, 1.0):
        settings = {"objective": "sinsr", "lpips_weight": 0.0, "gan_weight": 0.0, "inverse_weight": weight}
        stage = StudentStage(make("edge", **settings, train_decoder=True))
        (part,) = draws(stage, itertools.repeat(pair(stage)), 0)()
        loss = stage._student_terms(part, 0, [])[0]
        gradients.append(torch.autograd.grad(loss, list(stage.networks["stem"].parameters())))
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_an_edge_student_of_a_published_teacher_runs_without_its_autoencoder(make: MakeConfig) -> None:
    """Stem and decoder learn the teacher's latents first; the student then is a model like those that ship."""
    losses = {"pixel_weight": 1.0, "lpips_weight": 0.0, "lpips_windows": True}
    config = make("edge", gan_weight=0.0, **losses)
    config = replace(config, autoencoder=StageConfig(iterations=1, batch=2, **losses))
    path = run_stage("autoencoder", config)
    assert set(load_checkpoint(path).parts) == {"stem", "decoder"}
    joint = StudentConfig(**{**vars(config.student), "distill_weight": 0.0, "train_decoder": True})
    config = replace(config, finetune=joint)
    for stage in ("student", "finetune"):
        checkpoint = load_checkpoint(run_stage(stage, config))
        assert set(checkpoint.parts) == {"stem", "decoder", "student"}
        detail = edge_tile(checkpoint)(torch.rand(1, 3, 16, 16), torch.randn(1, 4, 16, 16))
        assert detail.shape == (1, 3, 64, 64)


def test_a_student_goes_on_from_a_file(make: MakeConfig) -> None:
    config = make()
    weights = run_stage("student", config)
    again = replace(config, roles=replace(config.roles, student=RoleConfig(str(weights))))
    student = build_roles(again, load_checkpoint(Path(config.roles.teacher.weights)), 64).student
    assert not moved(load_checkpoint(weights).parts["generator"], student)


def test_the_latent_space_is_the_published_one(make: MakeConfig) -> None:
    """Both images encoded at once give what each gives alone; decoding goes through the codes."""
    stage = StudentStage(make())
    x0, y0 = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 16, 16)
    autoencoder = stage.frozen["autoencoder"]
    z0, z_y = stage.latent.encode(x0, y0)
    torch.testing.assert_close(z0, autoencoder.encode(x0), rtol=0, atol=1e-5)
    torch.testing.assert_close(z_y, autoencoder.encode(bicubic_up(y0)), rtol=0, atol=1e-5)
    torch.testing.assert_close(z_y, stage.latent.condition(y0), rtol=0, atol=1e-5)
    z0 = z0.requires_grad_()
    detail = stage.latent.detail(z0, y0)
    torch.testing.assert_close(detail + bicubic_up(y0), autoencoder.decode(z0), rtol=0, atol=1e-5)
    assert torch.autograd.grad(detail.sum(), z0)[0].abs().max() > 0  # straight through the codes


@pytest.mark.parametrize("family", ["swin", "edge"])
def test_one_pass_gives_both_the_denoiser_and_the_heads_features(family: str) -> None:
    torch.manual_seed(0)
    denoiser: nn.Module = (
        SwinUNet(UNET) if family == "swin" else EdgeGenerator(EdgeArchitecture(3), noise_channel=False)
    )
    fake = FakeModel(denoiser, FeatureHead(denoiser.bottleneck_channels, 8))
    x, t, lq = torch.randn(3, 3, 16, 16), torch.tensor([5, 0, 0]), torch.rand(3, 3, 16, 16)
    f_phi, logits = fake(x, t, lq, 1)
    torch.testing.assert_close(f_phi, denoiser(x[:1], t[:1], lq[:1]), rtol=0, atol=1e-5)  # float32
    torch.testing.assert_close(logits, fake(x[1:], t[1:], lq[1:], 0)[1], rtol=0, atol=1e-5)
    assert fake(x, t, lq, 3)[1] is None


def test_roles_that_do_not_suit_are_named(make: MakeConfig, tiny_weights: Checkpoint, tmp_path: Path) -> None:
    config = make("edge")
    teacher = load_checkpoint(Path(config.roles.teacher.weights))
    wide = replace(config.model, architecture=replace(config.model.edge, latent_channels=4))
    with pytest.raises(InputError, match="latents of 4 channels and its teacher of 3"):
        build_roles(replace(config, model=wide), teacher, 64)
    other = replace(config.model, schedule=ScheduleSpec(kappa=1.0))
    with pytest.raises(InputError, match="another schedule than its teacher"):
        build_roles(replace(config, model=other), teacher, 64)
    with pytest.raises(InputError, match="the crop is 96; teacher and student need a multiple of 64"):
        build_roles(config, teacher, 96)
    student = replace(teacher, spec=student_of("rsd"))
    with pytest.raises(InputError, match="of family rsd; a teacher is edge or resshift"):
        build_roles(config, student, 64)
    path = tmp_path / "edge.safetensors"
    save_checkpoint(path, tiny_weights)
    roles = replace(config.roles, teacher=RoleConfig(str(path), TEACHER))
    with pytest.raises(ModelError, match=r"edge.safetensors has another family than roles.teacher.model says"):
        StudentStage(replace(config, roles=roles))
    roles = replace(config.roles, autoencoder=RoleConfig(str(path)))  # of four channels
    with pytest.raises(ModelError, match="another latent space than the teacher"):
        build_roles(replace(config, roles=roles), teacher, 64)
    with pytest.raises(InputError, match="train_decoder needs a model of family edge; leave it out"):
        StudentStage(make("rsd", train_decoder=True))
