"""Image quality measured from the wheel, without torch: PSNR, SSIM, LPIPS, lattice, NIQE and power spectrum."""
