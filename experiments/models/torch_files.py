"""Files of PyTorch weights: arrays by name, as safetensors.

Pickles, which torch.save writes, are refused: reading one runs whatever code is in it.
The message shows how to turn one into safetensors where PyTorch is installed.
"""

from pathlib import Path

import ml_dtypes  # noqa: F401  comes with JAX; it adds bfloat16 to NumPy
import numpy as np

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
SUFFIX = ".safetensors"


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a .safetensors file by their names."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path} of weights; give a {SUFFIX} file, or write one by "
            "experiments.train_ann or experiments.sources.pretrained"
        )
    if path.suffix in PICKLES:
        raise ValueError(_refusal(path))
    if path.suffix != SUFFIX:
        raise ValueError(
            f"{path} is no {SUFFIX} file; write the arrays, by their PyTorch names, by "
            "safetensors.numpy.save_file"
        )
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ImportError(
            '.safetensors files need safetensors: pip install "snnjax[experiments]"'
        ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); fetch it again, or write "
            "it by safetensors.torch.save_file"
        ) from None


def _refusal(path: Path) -> str:
    target = path.with_suffix(SUFFIX)
    return f"""{path} is a pickle, and reading one runs whatever code is in it.
Where PyTorch is installed, turn it into safetensors, which holds only arrays:

    import torch
    from safetensors.torch import save_file

    state = torch.load({str(path)!r}, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model", "net"):
        state = state.get(key, state)
    tensors = {{n: w for n, w in state.items() if isinstance(w, torch.Tensor)}}
    tensors = {{n: w.detach().clone().contiguous() for n, w in tensors.items()}}
    save_file(tensors, {str(target)!r})

and give {target} instead."""
