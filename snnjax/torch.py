"""PyTorch modules as functions of JAX, and calibrated weights back in PyTorch.

torchax evaluates the module's own ``forward`` on JAX arrays. PyTorch and torchax are
imported only when these functions are called (``pip install "snnjax[torch]"``).
"""

import contextlib
import copy
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._text import Named
from snnjax._version import version_of
from snnjax.network.capture.jaxprs import TORCH_SCOPE

__all__ = ["function", "state_dict"]

# The first torchax that runs with PyTorch 2.13 and later.
_NEEDED_TORCHAX = "0.0.14.dev20261026"
# How much outputs in JAX may differ from PyTorch's, as a part of the largest output.
_TOLERANCE = 1e-3


def function(module: Any, example: Any) -> tuple[Callable, dict[str, Any]]:
    """``fn(params, x)`` that computes what a PyTorch module computes, and its params.

    ``fn`` is pure. It holds a copy of the module without weights, so it does not change
    with the module. It takes batches of any size. Sites have the names of the modules
    that they stand in.

    Args:
        module: a ``torch.nn.Module`` in evaluation mode, on any device.
        example: what the module takes, as arrays or tensors; two images will do. The
            module and ``fn`` both compute it, and must agree.

    Returns:
        ``fn`` takes x as the module does, e.g. images [B, C, H, W], as an array of JAX
        or NumPy. Several inputs are a tuple. ``params`` is a copy of
        ``module.state_dict()``, as arrays of JAX. A tensor of several names is under
        the first one. Under each other name is ``{first: None}``, which has no leaf.

    Raises:
        ImportError: torchax is missing, or too old for this PyTorch.
        TypeError: ``module`` is no module.
        ValueError: the module is in training mode, or the function's outputs for the
            example differ from the module's by more than a thousandth of the largest.

    When ``fn`` is called, PyTorch, torchax or JAX may raise any error: torchax lacks an
    operation, say, or an ``if`` depends on x. A note names the innermost module.

    >>> import jax.numpy as jnp, snnjax, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU()).eval()
    >>> fn, params = snnjax.torch.function(net, jnp.ones((2, 3)))
    >>> print(snnjax.sites(fn, params, jnp.ones((1, 3))))
    site    kind  shape  depth  parameters
    1/relu  relu  8      1      0.weight, 0.bias
    """
    with _torchax() as (torch, environment):
        _check_module(module, torch)
        # PyTorch lists a tensor of several names under the first one alone.
        tensors = dict(module.named_parameters())
        tensors.update(module.named_buffers())
        first_names = {id(tensor): name for name, tensor in tensors.items()}
        sources = _sources(module, first_names)
        # A copy, because JAX may share memory with what it reads.
        copies = {name: t.detach().cpu().clone() for name, t in tensors.items()}
        arrays = environment.t2j_copy(copies)
        # deepcopy takes what its memo holds in place of a copy: here, for each tensor,
        # one without numbers.
        memo = {id(tensor): tensor.detach().to("meta") for tensor in tensors.values()}
        weightless = copy.deepcopy(module, memo)
        tensors_by_all_names = module.state_dict(keep_vars=True)
    for name, submodule in weightless.named_modules():
        submodule.forward = _within(submodule.forward, name, type(submodule).__name__)
    params: dict[str, Any] = {}
    for name, tensor in tensors_by_all_names.items():
        first_name = first_names.get(id(tensor), name)
        params[name] = arrays[name] if name == first_name else {first_name: None}
    # Buffers that are no part of the state_dict, as their module declares.
    constants = {name: array for name, array in arrays.items() if name not in params}

    def fn(params: Mapping[str, Any], x: chex.ArrayTree) -> chex.ArrayTree:
        """The module's outputs for x.

        Args:
            params: name in the state_dict -> array, or ``{first: None}`` for another
                name of the tensor whose first name is ``first``.
            x: what the module takes; several inputs are a tuple.
        """
        # ``{first: None}`` has no leaf and stays as it is. Nothing reads it below,
        # because a source is always a first name.
        named_arrays, x = jax.tree.map(jnp.asarray, ({**constants, **params}, x))
        inputs = x if isinstance(x, tuple) else (x,)
        with _torchax() as (torch, environment):
            named_tensors, inputs = environment.j2t_iso((named_arrays, inputs))
            # Tied weights: several names in the module have one source.
            tensors = {name: named_tensors[source] for name, source in sources.items()}
            with environment, torch.device("jax"), torch.no_grad():
                outputs = torch.func.functional_call(
                    weightless, tensors, inputs, tie_weights=False
                )
            return environment.t2j_iso(outputs)

    _check_equal(module, example, functools.partial(fn, params))
    return Named(fn, f"function({type(module).__name__})"), params


def state_dict(params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` as tensors on the CPU, for ``module.load_state_dict``; a copy.

    Args:
        params: those of `function`, or ``snn.params`` of its SNN.

    >>> import torch
    >>> net = torch.nn.Linear(3, 8).eval()
    >>> fn, params = function(net, torch.ones(2, 3))
    >>> net.load_state_dict(state_dict(params))
    <All keys matched successfully>
    """
    with _torchax() as (torch, _):
        cpu = jax.local_devices(backend="cpu")[0]
        arrays = jax.device_put(dict(params), cpu)
        tensors = {}
        for name, array in arrays.items():
            if not isinstance(array, Mapping):
                tensors[name] = torch.from_dlpack(array).clone()
        for name, array in arrays.items():
            if isinstance(array, Mapping):
                # Another name of a shared tensor: ``{first: None}``, see `function`.
                (first_name,) = array
                tensors[name] = tensors[first_name]
        return {name: tensors[name] for name in arrays}  # in their order


@contextlib.contextmanager
def _torchax() -> Iterator[tuple[Any, Any]]:
    """Yields PyTorch and an environment of torchax; restores all settings at the end.

    The environment converts tensors into arrays of JAX (``t2j``) and back (``j2t``), by
    a copy or in the memory where they are (``iso``).
    """
    try:
        # The import is by name because a type checker that has no PyTorch would
        # resolve ``import torch`` to this file.
        torch: Any = importlib.import_module("torch")
        is_fast = torch.backends.mha.get_fastpath_enabled()
        torchax: Any = importlib.import_module("torchax")
    except (ImportError, AttributeError) as error:
        # An old torchax may ask PyTorch for names that it lacks: an AttributeError.
        packages = []
        for name in ("torch", "torchax"):
            version = version_of(name)
            packages.append(f"{name} {version}" if version else f"no {name}")
        raise ImportError(
            "modules of PyTorch need torchax, with PyTorch from 2.13 on "
            f"torchax >= {_NEEDED_TORCHAX}; found {', '.join(packages)} ({error}). "
            'Install them by pip install --upgrade "snnjax[torch]"'
        ) from error
    # PyTorch's fast path of attention is one operation, into which torchax cannot see.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            # PyTorch's whole numbers have 64 bits, and JAX warns when it shortens them.
            warnings.filterwarnings("ignore", "Explicitly requested dtype int64")
            # A random key would be a state of the environment. Without one, a module
            # that draws random numbers raises an error.
            environment = torchax.tensor.Environment()
            with environment.override_property(prng=None):
                yield torch, environment
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


def _check_equal(module: Any, example: Any, fn: Callable) -> None:
    """Raise unless ``fn(x)`` is what the module computes: torchax may have faults.

    Args:
        example: x, or a tuple of several inputs, as tensors or arrays.
        fn: takes x as arrays of JAX.
    """
    with _torchax() as (torch, environment):
        # The module may have no parameters; it then computes on the CPU.
        device = next((p.device for p in module.parameters()), None)

        def tensor(x: Any) -> Any:
            x = x if isinstance(x, torch.Tensor) else torch.tensor(np.asarray(x))
            return x.clone().to(device)  # a module may change its input in place

        x = jax.tree.map(tensor, example)
        # Before the module runs, since it may change these tensors.
        arrays = environment.t2j_copy(jax.tree.map(lambda x: x.cpu(), x))
        inputs = x if isinstance(x, tuple) else (x,)
        with torch.no_grad():
            expected = module(*inputs)
        # Outputs may be in containers that only PyTorch knows.
        expected = torch.utils._pytree.tree_map(lambda y: y.cpu(), expected)
        expected = environment.t2j_copy(expected)
    output_leaves = jax.tree.leaves(fn(arrays))
    expected_leaves = jax.tree.leaves(expected)
    for output, expected_output in zip(output_leaves, expected_leaves, strict=True):
        tolerance = _TOLERANCE
        if jnp.issubdtype(expected_output.dtype, jnp.floating):
            # bfloat16 is rounded to 1/128: four roundings may add up.
            rounding = float(jnp.finfo(expected_output.dtype).eps)
            tolerance = max(tolerance, 4 * rounding)
        # In float64, so that the comparison rounds nothing.
        output = np.asarray(output, np.float64)
        expected_output = np.asarray(expected_output, np.float64)
        error = np.abs(output - expected_output).max()
        largest = np.abs(expected_output).max()
        # "not <=", so that a NaN is an error.
        if not error <= tolerance * largest:
            raise ValueError(
                f"the outputs for the example differ by {error:.3g}, and the largest "
                f"one is {largest:.3g}; allowed: {tolerance:.3g} of it. Either torchax "
                "computes an operation in another way: compare the outputs of parts of "
                "the module. Or the module amplifies rounding: compare it with "
                "module.double()"
            )


def _sources(module: Any, first_names: Mapping[int, str]) -> dict[str, str]:
    """Each name of a tensor in the modules that hold it -> the first of its names.

    PyTorch's own way to find shared tensors leaves one of them in the module if a
    module is shared as well.

    Args:
        first_names: id of each tensor -> its first name.
    """
    sources = {}
    for path, submodule in module.named_modules():
        tensors = dict(
            submodule.named_parameters(recurse=False, remove_duplicate=False)
        )
        tensors.update(submodule.named_buffers(recurse=False))
        for name, tensor in tensors.items():
            full_name = f"{path}.{name}" if path else name
            sources[full_name] = first_names[id(tensor)]
    return sources


def _check_module(module: Any, torch: Any) -> None:
    """Raise unless this is a module of PyTorch in evaluation mode."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module is a {type(module).__name__}; allowed: a torch.nn.Module"
        )
    for name, submodule in module.named_modules():
        if submodule.training:
            raise ValueError(
                f"{_module_text(name, type(submodule).__name__)} is in training mode, "
                "in which dropout is random and BatchNorm takes the statistics of each "
                "batch; call module.eval() first"
            )


def _within(forward: Callable, name: str, kind: str) -> Callable:
    """``forward`` in a scope of JAX that names its module, as a note of errors does.

    Args:
        forward: method of a module.
        name, kind: path of the module, "" of the outermost one, and name of its class.
    """
    rule = (
        "may not draw random numbers, decide on values of x, or read tensors that are "
        "no parameters or buffers"
    )

    @functools.wraps(forward)
    def within(*args, **kwargs):
        with jax.named_scope(TORCH_SCOPE + name):
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                # The error passes the innermost module first: it alone is named.
                if rule not in str(getattr(error, "__notes__", "")):
                    error.add_note(f"{_module_text(name, kind)} {rule}")
                raise

    return within


def _module_text(name: str, kind: str) -> str:
    """What messages call a module of this path and class."""
    return f"the module {name} ({kind})" if name else f"the module ({kind})"
