"""Image quality measured from the wheel: PSNR-Y, SSIM-Y, LPIPS-squeeze and the lattice metric, without torch."""
