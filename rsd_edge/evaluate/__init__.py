"""Image quality on test sets: PSNR, SSIM, LPIPS, lattice, NIQE and power spectrum without torch, others by pyiqa."""
