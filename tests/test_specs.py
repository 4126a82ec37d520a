from __future__ import annotations

import json
from functools import partial

import pytest

from rsd_edge.errors import InputError, ModelError
from rsd_edge.plain import from_dict, to_dict
from rsd_edge.specs import (
    EdgeArchitecture,
    EngineSpec,
    ModelSpec,
    PublishedArchitecture,
    SwinUNetArchitecture,
    TileSpec,
    VqArchitecture,
)

UNET = SwinUNetArchitecture(model_channels=32, num_res_blocks=(1, 1, 1, 1))
SMALL = PublishedArchitecture(UNET, VqArchitecture(ch=32))
RSD = ModelSpec("x", family="rsd", multiple_of=64, architecture=SMALL)


@pytest.mark.parametrize("model", [RSD, ModelSpec("y", architecture=EdgeArchitecture(stem_blocks=5))])
def test_a_family_brings_its_architecture_back(model: ModelSpec) -> None:
    spec = EngineSpec(model)
    assert from_dict(EngineSpec, json.loads(json.dumps(to_dict(spec)))) == spec


def test_a_family_alone_has_its_default_sizes() -> None:
    assert from_dict(ModelSpec, {"name": "x", "family": "sinsr"}).architecture == PublishedArchitecture()
    assert from_dict(ModelSpec, {"name": "x"}).architecture == EdgeArchitecture()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"name": "x", "family": "swinir"},
            "model family 'swinir' is unknown; it must be one of edge, resshift, sinsr",
        ),
        ({"name": "x", "family": "rsd", "architecture": {"stem_width": 3}}, "unknown key 'architecture.stem_width'"),
        ({"name": "x", "architecture": {"unet": {}}}, "unknown key 'architecture.unet'"),
        (
            {"name": "x", "family": "rsd", "architecture": {"unet": {"window": 8}}},
            "unknown key 'architecture.unet.window'",
        ),
    ],
)
def test_an_architecture_of_another_family_is_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_dict(ModelSpec, data)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"batch": 0}, "tile batch is 0; it must be at least 1"), ({"size": 0}, "tile size 0 is too small for a halo of")],
)
def test_tiles_that_hold_nothing_are_refused(sizes: dict[str, int], message: str) -> None:
    for make in (TileSpec, partial(TileSpec.of, ModelSpec("x")), partial(TileSpec.of, RSD)):
        with pytest.raises(InputError, match=message):
            make(**sizes)


@pytest.mark.parametrize("name", ["", ".", "..", "../../x", "a/b", "a\\b", "/x", ".x", "-x", "a\nb", "a\0"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    """Bundles are called by it."""
    with pytest.raises(InputError, match=r"model name is '.*'; it must be a plain file name: not empty, printable"):
        ModelSpec(name)


@pytest.mark.parametrize("name", ["edge-s", "resshift_realsrx4_s15_v1", "mein Netz 2", "größer", "a..b"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert ModelSpec(name).name == name


def test_an_architecture_must_be_of_the_family() -> None:
    with pytest.raises(ModelError, match="of family rsd, which has a PublishedArchitecture, not a EdgeArchitecture"):
        ModelSpec("x", family="rsd")
    assert RSD.published is SMALL
    with pytest.raises(ModelError, match="model 'x' is of family 'rsd'; this needs one of family edge"):
        _ = RSD.edge
    with pytest.raises(ModelError, match="model 'y' is of family 'edge'; this needs one of resshift, sinsr, rsd"):
        _ = ModelSpec("y").published


def test_noise_is_a_latent_for_each_step_and_one_channel() -> None:
    assert RSD.noise_channels == 4
    assert ModelSpec("x", family="resshift", steps=15, architecture=SMALL).noise_channels == 46


def test_tiles_of_published_models_keep_their_small_halo() -> None:
    assert TileSpec.of(RSD) == TileSpec(size=128, halo=16, multiple_of=2)
    assert TileSpec.of(RSD, 64, 2) == TileSpec(size=64, halo=16, multiple_of=2, batch=2)
    assert TileSpec.of(ModelSpec("y", halo=12, multiple_of=4)) == TileSpec(size=208, halo=12, multiple_of=4)
