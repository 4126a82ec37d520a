"""The residual-shift steps as operators: forward noising, prior into the network's input, posterior step.

Tensors are float32, float16 or bfloat16 (n, c, h, w) on one device. Kernels work on contiguous memory; anything else is
copied first. Timesteps t are int64 (n,), 0-based, below T. On the CPU others raise InputError; on a GPU values are not
read on the way, since that would wait for the device, and what an index beyond the tables gives is undefined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsd_edge.errors import InputError
from rsd_edge.kernels import reference
from rsd_edge.kernels.implementation import check_images, check_implementation, launch, runs_reference
from rsd_edge.kernels.noise_field import BLOCK, MAX_SAMPLES, check_field, reference_field, table_tensor
from rsd_edge.kernels.tables import StepTables, check_values

RGB = 3


def forward_noise(
    x0: Tensor, y: Tensor, eps: Tensor, t: Tensor, tables: StepTables, *, scaled: bool = False, implementation: str
) -> Tensor:
    """x_t = x0 + eta_t (y - x0) + kappa sqrt(eta_t) eps (ResShift Eq. 4), times the input scale if `scaled`.

    Gradients flow to x0 and y. Raises InputError for tensors that do not fit or if eps requires a gradient, and what
    `check_implementation` raises.
    """
    check_images(x0=x0, y=y, eps=eps)
    if eps.requires_grad:
        raise InputError("eps requires a gradient, which noise has none of; pass eps.detach()")
    _check(x0, t, tables, implementation)
    scale = tables.input_scale if scaled else None
    x_t: Tensor = torch.ops.rsd_edge.forward_noise(
        x0, y, eps, None, None, t, tables.eta, tables.sigma, scale, implementation
    )
    return x_t


def forward_noise_drawn(
    x0: Tensor,
    y: Tensor,
    field: tuple[Tensor, Tensor],
    t: Tensor,
    tables: StepTables,
    *,
    scaled: bool = False,
    implementation: str,
) -> Tensor:
    """The same with eps drawn from the noise field on the way, so that it is never in memory.

    field: seeds and origins of the samples, as for `noise_field`; channels 0 to c - 1 are drawn.
    """
    check_images(x0=x0, y=y)
    check_field(*field, len(x0), x0.device)
    _check(x0, t, tables, implementation)
    scale = tables.input_scale if scaled else None
    x_t: Tensor = torch.ops.rsd_edge.forward_noise(
        x0, y, None, *field, t, tables.eta, tables.sigma, scale, implementation
    )
    return x_t


def prior_input(
    z_y: Tensor, lq: Tensor, noise: Tensor, *, mean_scale: float, noise_scale: float, implementation: str
) -> Tensor:
    """[x_T scaled, lq, eps] (n, zc + 4, h, w) for the student, where x_T = z_y + kappa sqrt(eta_T) noise[:, :zc].

    noise: (n, zc + 1, h, w). mean_scale: the input scale of T; noise_scale: the same times kappa sqrt(eta_T). Gradients
    flow to z_y and lq. Raises as `forward_noise` does.
    """
    check_images(z_y=z_y)
    zc = z_y.shape[1]
    for name, tensor, channels in (("lq", lq, RGB), ("noise", noise, zc + 1)):
        if tensor.ndim != 4 or tensor.shape[1] != channels:
            raise InputError(f"{name} is {tuple(tensor.shape)}; it must have {channels} channels beside zc = {zc}")
        check_images(**{"z_y": z_y[:, :1], name: tensor[:, :1]})
    if noise.requires_grad:
        raise InputError("noise requires a gradient, which it has none of; pass noise.detach()")
    _check_launch(z_y, implementation)
    network_input: Tensor = torch.ops.rsd_edge.prior_input(z_y, lq, noise, mean_scale, noise_scale, implementation)
    return network_input


def posterior_step(
    x_t: Tensor,
    x0_hat: Tensor,
    eps: Tensor,
    t: Tensor,
    tables: StepTables,
    network_input: Tensor,
    *,
    implementation: str,
) -> Tensor:
    """x_{t-1} ~ q(x_{t-1} | x_t, x0_hat) (ResShift Eq. 3); no noise where t = 0. For sampling: no gradients.

    network_input: contiguous (n, at least zc channels, h, w); its first zc channels become x_{t-1} times the input
    scale of t - 1 (unscaled where t = 0), the others stay. Raises as `forward_noise` does.
    """
    check_images(x_t=x_t, x0_hat=x0_hat, eps=eps)
    _check_network_input(network_input, x_t.shape[1])
    check_images(x_t=x_t, network_input=network_input[:, : x_t.shape[1]])
    _check(x_t, t, tables, implementation)
    x_prev: Tensor = torch.ops.rsd_edge.posterior_step(
        x_t,
        x0_hat,
        eps,
        t,
        tables.posterior_xt,
        tables.posterior_x0,
        tables.posterior_std,
        tables.next_scale,
        network_input,
        implementation,
    )
    return x_prev


def _check(x: Tensor, t: Tensor, tables: StepTables, implementation: str) -> None:
    tables.check_steps(t, len(x))
    if tables.eta.dtype != torch.float32 or tables.eta.device != x.device:
        raise InputError(f"tables are {tables.eta.dtype} on {tables.eta.device}; they must be float32 on {x.device}")
    _check_launch(x, implementation)


def _check_launch(x: Tensor, implementation: str) -> None:
    if len(x) > MAX_SAMPLES:
        raise InputError(f"{len(x)} samples do not fit one launch; use at most {MAX_SAMPLES}")
    check_implementation(implementation, x.device)


def _check_network_input(network_input: Tensor, channels: int) -> None:
    """It is written to, so a copy would not do."""
    room = network_input.shape[1] if network_input.ndim == 4 else 0
    if room < channels or not network_input.is_contiguous():
        raise InputError(
            f"network_input is {tuple(network_input.shape)}; it must be contiguous (n, {channels} or more, h, w)"
        )


def _grid(x: Tensor) -> tuple[int, int]:
    return -(-x[0, 0].numel() // BLOCK), len(x)


@torch.library.custom_op("rsd_edge::forward_noise", mutates_args=())
def _forward_noise(
    x0: Tensor,
    y: Tensor,
    eps: Tensor | None,
    seeds: Tensor | None,
    origins: Tensor | None,
    t: Tensor,
    eta: Tensor,
    sigma: Tensor,
    scale: Tensor | None,
    implementation: str,
) -> Tensor:
    check_values(t, len(eta))
    _, channels, height, width = x0.shape
    if runs_reference(implementation, x0.device):
        if eps is None:
            assert seeds is not None
            assert origins is not None
            eps = reference_field(seeds, origins, channels, height, width)
        scale_t = torch.ones_like(eta[t]) if scale is None else scale[t]
        return reference.forward_noise(x0, y, eps, eta[t], sigma[t], scale_t).contiguous()
    out = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
    table = table_tensor(x0.device) if eps is None else None
    launch(
        "noising", "forward_noise", _grid(x0),
        x0, y, eps, out, t, eta, sigma, scale, seeds, origins, table, height * width, width,
        CHANNELS=channels, SCALED=scale is not None, DRAW=eps is None, BLOCK=BLOCK,
    )  # fmt: skip
    return out


@_forward_noise.register_fake
def _(x0: Tensor, *_: Any) -> Tensor:
    return x0.new_empty(x0.shape)


@torch.library.custom_op("rsd_edge::forward_noise_backward", mutates_args=())
def _forward_noise_backward(
    grad: Tensor, t: Tensor, eta: Tensor, scale: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor]:
    if runs_reference(implementation, grad.device):
        eta_t = eta[t][:, None, None, None]
        scaled = grad.float() if scale is None else grad.float() * scale[t][:, None, None, None]
        return (scaled - eta_t * scaled).to(grad.dtype).contiguous(), (eta_t * scaled).to(grad.dtype).contiguous()
    grad = grad.contiguous()
    grad_x0, grad_y = torch.empty_like(grad), torch.empty_like(grad)
    launch(
        "noising", "forward_noise_backward", _grid(grad),
        grad, grad_x0, grad_y, t, eta, scale, grad[0, 0].numel(),
        CHANNELS=grad.shape[1], SCALED=scale is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return grad_x0, grad_y


@_forward_noise_backward.register_fake
def _(grad: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape)


def _keep_for_forward_noise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *_, t, eta, _, scale, implementation = inputs
    ctx.save_for_backward(t, eta, scale)
    ctx.implementation = implementation


def _differentiate_forward_noise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    t, eta, scale = ctx.saved_tensors
    grad_x0, grad_y = torch.ops.rsd_edge.forward_noise_backward(grad, t, eta, scale, ctx.implementation)
    return grad_x0, grad_y, *[None] * 8


_forward_noise.register_autograd(_differentiate_forward_noise, setup_context=_keep_for_forward_noise)


@torch.library.custom_op("rsd_edge::prior_input", mutates_args=())
def _prior_input(
    z_y: Tensor, lq: Tensor, noise: Tensor, mean_scale: float, noise_scale: float, implementation: str
) -> Tensor:
    if runs_reference(implementation, z_y.device):
        return reference.prior_input(z_y, lq, noise, mean_scale, noise_scale).contiguous()
    n, zc, height, width = z_y.shape
    out = torch.empty((n, zc + RGB + 1, height, width), dtype=z_y.dtype, device=z_y.device)
    launch(
        "noising", "prior_input", _grid(z_y),
        z_y, lq, noise, out, mean_scale, noise_scale, height * width,
        CHANNELS=zc, BLOCK=BLOCK,
    )  # fmt: skip
    return out


@_prior_input.register_fake
def _(z_y: Tensor, *_: Any) -> Tensor:
    n, zc, height, width = z_y.shape
    return z_y.new_empty((n, zc + RGB + 1, height, width))


def _keep_for_prior_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mean_scale, ctx.channels = inputs[3], inputs[0].shape[1]


def _differentiate_prior_input(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    zc = ctx.channels
    return grad[:, :zc] * ctx.mean_scale, grad[:, zc : zc + RGB].clone(), *[None] * 4


_prior_input.register_autograd(_differentiate_prior_input, setup_context=_keep_for_prior_input)


@torch.library.custom_op("rsd_edge::posterior_step", mutates_args={"network_input"})
def _posterior_step(
    x_t: Tensor,
    x0_hat: Tensor,
    eps: Tensor,
    t: Tensor,
    xt_coef: Tensor,
    x0_coef: Tensor,
    std: Tensor,
    next_scale: Tensor,
    network_input: Tensor,
    implementation: str,
) -> Tensor:
    check_values(t, len(std))
    channels = x_t.shape[1]
    _check_network_input(network_input, channels)
    if runs_reference(implementation, x_t.device):
        x_prev, scaled = reference.posterior_step(x_t, x0_hat, eps, xt_coef[t], x0_coef[t], std[t], next_scale[t])
        network_input[:, :channels] = scaled
        return x_prev.contiguous()
    x_t = x_t.contiguous()
    x_prev = torch.empty_like(x_t)
    launch(
        "noising", "posterior_step", _grid(x_t),
        x_t, x0_hat, eps, x_prev, network_input, t, xt_coef, x0_coef, std, next_scale,
        x_t[0, 0].numel(), network_input.shape[1], CHANNELS=channels, BLOCK=BLOCK,
    )  # fmt: skip
    return x_prev


@_posterior_step.register_fake
def _(x_t: Tensor, *_: Any) -> Tensor:
    return x_t.new_empty(x_t.shape)
