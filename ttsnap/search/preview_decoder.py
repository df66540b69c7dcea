"""A small decoder for looks in mid-denoising: an ``AutoencoderTiny`` decodes an estimate at a fraction of the cost.

Finished images are always decoded by the pipeline's own VAE, so the winner stays the stock pipeline's image.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderTiny

from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline
from diffkit.lab.assets import preview_path
from diffkit.library_logging import quietly
from diffkit.locations import is_hub_id, missing_file

__all__ = ["load_preview_vae"]


def load_preview_vae(preview: Autoencoder | str | Path, pipe: Pipeline) -> Autoencoder:
    """The decoder, on the pipeline's device, ready to decode its latents.

    Args:
        preview: an autoencoder, ``lab`` for the lab's own, a folder of one in diffusers' format, or a hub id such as
            ``madebyollin/taesd``; from a folder or the hub it comes in the precision of the pipeline's VAE.

    Raises:
        InputError: there is no such decoder, or it is for latents of another number of channels.
    """
    if preview == "lab":
        preview = preview_path()
    if isinstance(preview, str | Path):
        local = Path(preview).expanduser().is_dir()
        if Path(preview).expanduser().is_file():
            raise InputError(f"The preview decoder {str(preview)!r} is a file; give the folder of an AutoencoderTiny.")
        if not local and not is_hub_id(preview):
            raise missing_file(preview, "preview decoder", "a folder of an AutoencoderTiny, a hub id, or lab")
        try:
            with quietly():
                preview = AutoencoderTiny.from_pretrained(
                    str(Path(preview).expanduser() if local else preview),
                    dtype=pipe.vae.dtype,
                    local_files_only=local,
                )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"Could not load the preview decoder {str(preview)!r}: {reason}") from error
    if not hasattr(preview, "decode") or not hasattr(preview, "config"):
        raise InputError(f"Expected an AutoencoderTiny, a folder or a hub id as preview decoder, got {preview!r}.")
    own, its = (vae.config.get("latent_channels", vae.config.get("z_dim")) for vae in (pipe.vae, preview))
    if own != its:
        raise InputError(
            f"The preview decoder reads latents of {its} channels, the pipeline's have {own}; take the one made for "
            f"this family of models."
        )
    return preview.to(device=pipe._execution_device).eval()
