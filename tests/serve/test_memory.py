"""The formulas: against a closed form, against the published table, and what must be monotone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from dca.serve import gpu_memory
from dca.serve import gpus as cards
from dca.serve.choose import choose, longest_of, ranks
from dca.serve.gpu_memory import Layout
from dca.serve.gpus import GIB, Gpus
from dca.serve.outcome import Settings, exact_blocks, outcome
from dca.serve.server_rules import Asked
from dca.serve.shape import Quantized, Shape, parameters, quantized, shape_of
from tests.support.serving import FOURTEEN, LARGE, MILLION, SEVEN, THIRTY, config, shape

BATCH = 131_072


class Published(NamedTuple):
    """GiB of each GPU with 80, as they were worked out by hand.

    Args:
        name: of the model.
        tp: GPUs.
        weights: of the model.
        cache: KV cache of 1,010,000 tokens.
        profile: peak of the profile run.
        pool: KV cache at a utilisation of 0.90.
        tokens: millions of tokens in the pool.
        sparse: peak of a sparse layer.
        total: all at once at 0.90; None where it does not start.
    """

    name: str
    tp: int
    weights: float
    cache: float
    profile: float
    pool: float
    tokens: float
    sparse: float
    total: float | None


TABLE = [
    Published(SEVEN, 1, 14.2, 53.9, 15.6, 42.2, 0.79, 51.3, 107.7),
    Published(SEVEN, 2, 7.1, 27.0, 8.7, 56.2, 2.1, 26.5, 89.9),
    Published(SEVEN, 4, 3.5, 13.5, 5.2, 63.2, 4.7, 14.1, 80.9),
    Published(FOURTEEN, 2, 13.8, 92.5, 7.8, 50.5, 0.55, 36.6, None),
    Published(FOURTEEN, 4, 6.9, 46.2, 5.1, 60.0, 1.31, 19.6, 86.4),
    Published(FOURTEEN, 8, 3.4, 23.1, 3.8, 64.7, 2.8, 11.0, 79.2),
]


def eighty(count: int) -> Gpus:
    return Gpus(count=count, memory_gib=80.0)


def documented(tp: int, **more: object) -> Settings:
    return Settings.model_validate({"tp": tp, "length": MILLION, "batched": BATCH, **more})


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}-{row.tp}")
def test_the_published_table_comes_out_within_two_percent(row: Published) -> None:
    model, layout = shape(row.name), Layout(tp=row.tp)
    result = outcome(model, eighty(row.tp), documented(row.tp))
    token = gpu_memory.token_bytes(model, layout)
    assert gpu_memory.weight_bytes(model, layout) / GIB == pytest.approx(row.weights, rel=0.02)
    assert token * MILLION / GIB == pytest.approx(row.cache, rel=0.02)
    assert gpu_memory.step_bytes(model, layout, BATCH) / GIB == pytest.approx(row.profile, rel=0.02)
    assert result.term("cache") / GIB == pytest.approx(row.pool, rel=0.02)
    assert result.cache_tokens / 1e6 == pytest.approx(row.tokens, rel=0.02)
    assert gpu_memory.layer_bytes(model, layout, BATCH, MILLION) / GIB == pytest.approx(row.sparse, rel=0.02)
    if row.total is not None:
        # CUDA's own memory is no part of the table.
        assert (result.total - result.term("context")) / GIB == pytest.approx(row.total, rel=0.02)


@pytest.mark.parametrize(
    ("name", "tp", "share", "fits"),
    [
        (SEVEN, 1, 0.90, False),
        (SEVEN, 2, 0.90, False),
        (SEVEN, 4, 0.90, False),
        (SEVEN, 4, 0.85, True),
        (FOURTEEN, 2, 0.90, False),
        (FOURTEEN, 4, 0.90, False),
        (FOURTEEN, 4, 0.85, False),
        (FOURTEEN, 4, 0.80, True),
        (FOURTEEN, 8, 0.90, False),
        (FOURTEEN, 8, 0.85, True),
    ],
)
def test_the_tables_verdicts_come_out(name: str, tp: int, share: float, fits: bool) -> None:
    assert outcome(shape(name), eighty(tp), documented(tp, utilization=share)).fits is fits


@pytest.mark.parametrize(("name", "tp"), [(SEVEN, 2), (FOURTEEN, 4)])
def test_counted_blocks_are_the_remedy(name: str, tp: int) -> None:
    assert exact_blocks(MILLION) == 63_762
    result = outcome(shape(name), eighty(tp), documented(tp, blocks=exact_blocks(MILLION)))
    assert result.fits
    # The documents' 26 GiB for a peak of 19.6 on 14B with four GPUs.
    if name == FOURTEEN:
        left = result.card - result.term("weights") - result.term("cache")
        assert left / GIB == pytest.approx(26.4, rel=0.02)
        assert (result.term("step") + result.term("sparse")) / GIB == pytest.approx(19.6, rel=0.02)


def needed_gb(name: str, tp: int, tokens: int) -> float:
    model, layout = shape(name), Layout(tp=tp)
    held = gpu_memory.weight_bytes(model, layout) + gpu_memory.token_bytes(model, layout) * MILLION
    return (held + gpu_memory.peak_bytes(model, layout, tokens, MILLION)) * tp / 1e9


def test_the_official_minima_come_out() -> None:
    # 134 GB with the documents' step and 110 with a quarter of it, so that 120 wants the smaller one; 312 of 320.
    assert needed_gb(SEVEN, 4, BATCH) == pytest.approx(134, rel=0.02)
    assert needed_gb(SEVEN, 4, BATCH // 4) == pytest.approx(110, rel=0.02)
    assert needed_gb(FOURTEEN, 4, BATCH) == pytest.approx(312, rel=0.02)
    for name, minimum in ((SEVEN, 120), (FOURTEEN, 320)):
        card = minimum / 4 * 1e9 / GIB
        model = shape(name)
        assert model.minimum_gb == minimum
        assert choose(model, Gpus(count=4, memory_gib=card), Asked(), MILLION, 4).fits
        # An eighth less, and it does not, whatever is chosen: the minimum is one.
        assert not choose(model, Gpus(count=4, memory_gib=card * 0.875), Asked(), MILLION, 4).fits
    assert choose(shape(SEVEN), Gpus(count=4, memory_gib=30 * 1e9 / GIB), Asked(), MILLION, 4).settings.batched < BATCH


@pytest.mark.parametrize(("name", "tp", "minimum"), [(THIRTY, 4, 240), (LARGE, 8, 1000)])
def test_what_the_cards_of_mixtures_ask_for_is_enough(name: str, tp: int, minimum: int) -> None:
    model = shape(name)
    assert model.minimum_gb == minimum
    assert needed_gb(name, tp, BATCH) < minimum
    assert needed_gb(name, tp, BATCH) > 0.8 * minimum


@pytest.mark.parametrize(
    ("name", "billions", "each"),
    [(SEVEN, 7.6156, 57_344), (FOURTEEN, 14.770, 196_608), (THIRTY, 30.53, 98_304), (LARGE, 235.09, 192_512)],
)
def test_parameters_and_cache_of_a_token_are_the_published_ones(name: str, billions: float, each: int) -> None:
    model = shape(name)
    assert parameters(model) / 1e9 == pytest.approx(billions, rel=0.001)
    assert gpu_memory.token_bytes(model, Layout()) == each
    # One GPU holds all of them, in 16 bits.
    assert gpu_memory.weight_bytes(model, Layout()) == pytest.approx(2 * parameters(model), rel=1e-4)


def test_activations_of_a_million_tokens_in_one_piece_are_the_published_71_gb() -> None:
    # The documents count the output of the gate and up projection alone: 2 of the 3.
    whole = gpu_memory.mlp_bytes(shape(SEVEN), Layout(), 1_000_000) * 2 / 3
    assert whole / GIB == pytest.approx(71, rel=0.02)
    piece = gpu_memory.mlp_bytes(shape(SEVEN), Layout(), 32_768) * 2 / 3
    assert 1 - piece / whole == pytest.approx(0.967, abs=0.001)


@pytest.mark.proof
def test_a_config_of_any_layers_and_heads_is_counted_as_in_a_closed_form(
    chance: random.Random, scale: Callable[[int], int]
) -> None:
    for _ in range(scale(5_000)):
        keys, size, layers = chance.choice([1, 2, 4, 8]), chance.choice([64, 128]), chance.randrange(1, 100)
        heads, hidden = keys * chance.randrange(1, 9), 64 * chance.randrange(1, 200)
        inner, vocabulary = 128 * chance.randrange(1, 300), chance.randrange(1_000, 200_000)
        dual = {"chunk_size": 4096, "local_size": 512, "original_max_position_embeddings": 4096}
        values = config(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            head_dim=size,
            hidden_size=hidden,
            intermediate_size=inner,
            vocab_size=vocabulary,
            attention_bias=chance.random() < 0.5,
            dual_chunk_attention_config={
                **dual,
                "sparse_attention_config": [
                    {"0": ["vertical_and_slash", 30, 800, 1.0], "1": ["vertical_and_slash", 500, 700, 1.0]}
                ],
            },
        )
        model = shape_of(values, "any", None, values["dual_chunk_attention_config"]["sparse_attention_config"])
        every = heads + 2 * keys
        layer = hidden * every * size + every * size * values["attention_bias"] + heads * size * hidden
        layer += 3 * hidden * inner + 2 * hidden
        assert parameters(model) == 2 * vocabulary * hidden + layers * layer + hidden
        tp = chance.choice([tp for tp in (1, 2, 4, 8) if keys % tp == 0 and heads % tp == 0])
        layout = Layout(tp=tp)
        assert gpu_memory.weight_bytes(model, Layout()) == 2 * parameters(model)
        assert gpu_memory.token_bytes(model, layout) == 2 * layers * (keys // tp) * size * 2
        prompt, tokens = chance.randrange(40_000, 200_000), 64 * chance.randrange(1, 2_000)
        n, h, k, d = min(tokens, prompt), heads // tp, keys // tp, size
        queries = 5 * n * h * d * 2 + n * (h + 2 * k) * d * 2 + 2 * n * hidden * 2
        sparse = 2 * prompt * h * d * 2 + 2 * prompt * k * d * 2 + 64 * prompt * h * 8
        sparse += h * -(-n // 64) * (500 + 800) * 4 + 6 * n * h * d * 2
        assert gpu_memory.layer_bytes(model, layout, tokens, prompt) == pytest.approx(queries + sparse, rel=1e-12)


def test_weights_of_8_and_4_bits_take_as_much_less_as_they_should() -> None:
    model = shape(FOURTEEN)
    ends = 2 * 2 * 152_064 * 5120
    linear = gpu_memory.weight_bytes(model, Layout()) - ends
    assert gpu_memory.weight_bytes(quantized("fp8", model), Layout()) == pytest.approx(ends + linear / 2, rel=0.001)
    # A group of 128 has a scale of 16 bits and a zero of 4.
    share = (4 + 20 / 128) / 16
    assert gpu_memory.weight_bytes(quantized("awq", model), Layout()) == pytest.approx(ends + linear * share, rel=0.001)
    assert gpu_memory.weight_bytes(quantized("awq", model), Layout(), Quantized()) == gpu_memory.weight_bytes(
        model, Layout()
    )


def test_stages_share_layers_and_have_one_end_each() -> None:
    model = shape(FOURTEEN)
    whole, half = gpu_memory.weight_bytes(model, Layout()), gpu_memory.weight_bytes(model, Layout(pp=2))
    assert half == pytest.approx(whole / 2, rel=0.001)
    assert gpu_memory.token_bytes(model, Layout(pp=2)) == gpu_memory.token_bytes(model, Layout()) / 2
    # 48 layers over 5 stages: one has 10.
    assert gpu_memory.token_bytes(model, Layout(pp=5)) == gpu_memory.token_bytes(model, Layout()) * 10 / 48


def test_key_heads_are_on_several_gpus_where_there_are_more_gpus() -> None:
    model = shape(THIRTY)
    assert gpu_memory.token_bytes(model, Layout(tp=4)) == gpu_memory.token_bytes(model, Layout(tp=8))


def test_the_limit_of_the_sparse_lists_is_the_guards_own() -> None:
    # docs/guards.md: 200,064 for 7B on one GPU.
    assert gpu_memory.list_limit(shape(SEVEN), Layout()) == 200_064
    assert gpu_memory.list_limit(shape(SEVEN), Layout(tp=2)) is None


def test_a_prompt_that_is_longer_never_takes_less(chance: random.Random) -> None:
    for name in (SEVEN, FOURTEEN, THIRTY, LARGE):
        model = shape(name)
        for tokens in (2_048, 32_768, BATCH):
            prompts = sorted({1, 32_768, 32_769, MILLION, *(chance.randrange(1, MILLION) for _ in range(40))})
            taken = [gpu_memory.peak_bytes(model, Layout(tp=4), tokens, prompt) for prompt in prompts]
            assert taken == sorted(taken)


# --- the sweep -----------------------------------------------------------------------------------------------------

COUNTS, SIZES, METHODS = range(1, 9), (24, 40, 48, 80, 96, 141), ("", "fp8", "awq")


def longest(model: Shape, count: int, size: float) -> int:
    where = Gpus(count=count, memory_gib=float(size))
    return longest_of(model, where, Asked(), min(model.rows, model.length), ranks(model, where, Asked()))[0]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", [SEVEN, FOURTEEN, THIRTY])
def test_more_memory_never_fits_less_in_the_whole_sweep(name: str) -> None:
    lengths = {
        (count, size, method): longest(shape(name, method), count, size)
        for count in COUNTS
        for size in SIZES
        for method in METHODS
    }
    assert max(lengths.values()) == MILLION
    assert min(lengths.values()) < MILLION
    for (count, size, method), tokens in lengths.items():
        place = (count, size, method, tokens)
        for larger in SIZES:
            assert larger < size or lengths[count, larger, method] >= tokens, place
        # Quantized weights may not be divided as far as others, but a larger number of GPUs is never of fewer ranks.
        for more in COUNTS:
            assert more < count or lengths[more, size, method] >= tokens, place
        # Weights of 4 bits are divided no further than groups allow; with the same ranks fewer bits never fit less.
        same = [
            other
            for other in METHODS
            if ranks(shape(name, other), Gpus(count=count, memory_gib=80.0), Asked())
            == ranks(shape(name, method), Gpus(count=count, memory_gib=80.0), Asked())
        ]
        if method == "" and "awq" in same:
            assert lengths[count, size, "awq"] >= tokens, place
        assert tokens == 0 or tokens == MILLION or tokens % 16 == 0, place


@pytest.mark.slow
@pytest.mark.parametrize("name", [SEVEN, FOURTEEN, THIRTY])
def test_what_is_said_to_fit_fits_and_one_block_more_does_not(name: str) -> None:
    model = shape(name)
    for count in COUNTS:
        for size in SIZES:
            where = Gpus(count=count, memory_gib=float(size))
            tp = ranks(model, where, Asked())
            tokens = longest(model, count, size)
            if tokens:
                assert choose(model, where, Asked(), tokens, tp).fits
            if tokens < MILLION:
                assert not choose(model, where, Asked(), tokens + 16, tp).fits


@pytest.mark.slow
def test_every_outcome_says_where_all_of_the_memory_goes(chance: random.Random) -> None:
    for _ in range(200):
        model = shape(chance.choice([SEVEN, FOURTEEN, THIRTY]), chance.choice(METHODS))
        where = Gpus(count=8, memory_gib=chance.uniform(10, 150))
        settings = Settings(
            tp=chance.choice([1, 2, 4]),
            length=chance.randrange(16, MILLION),
            batched=chance.choice([2_048, BATCH]),
            utilization=chance.uniform(0.5, 0.95),
            blocks=chance.choice([None, exact_blocks(MILLION)]),
        )
        result = outcome(model, where, settings)
        assert result.total == pytest.approx(sum(term.bytes for term in result.terms))
        assert result.fits == (not result.ends)
        assert (result.fails_at is not None) == (result.ends == "prompt")
        if result.fails_at is not None:
            shorter = settings.model_copy(update={"length": max(1, result.fails_at - 1)})
            assert sum(term.bytes for term in outcome(model, where, shorter).terms) <= result.usable
        if result.fits:
            assert result.total <= result.usable
            assert result.cache_tokens >= result.prompt_tokens >= settings.length


def never_allocated(blocks: int, tokens: int, block_size: int) -> bool:
    """What BlockSpaceManager.can_allocate of V0 asks before it ignores a prompt, as it is written there."""
    num_required_blocks = (tokens + block_size - 1) // block_size
    watermark_blocks = int(0.01 * blocks)
    return blocks - num_required_blocks < watermark_blocks


def test_the_blocks_of_a_length_are_the_fewest_that_the_engine_takes(chance: random.Random) -> None:
    lengths = [1, 16, 17, 1_600, 1_584, 158_400, MILLION, *(chance.randrange(1, 3 * MILLION) for _ in range(2_000))]
    for length in lengths:
        for size in (16, 32, 64):
            blocks = exact_blocks(length, size)
            assert not never_allocated(blocks, length, size)
            assert never_allocated(blocks - 1, length, size)
            assert exact_blocks(length, size, 0.0) == -(-length // size)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_blocks_of_another_size_hold_as_many_tokens_more(size: int) -> None:
    model, where = shape(FOURTEEN), eighty(4)
    token = gpu_memory.token_bytes(model, Layout(tp=4))
    result = outcome(model, where, documented(4, blocks=1_000, block_size=size))
    assert result.cache_tokens == 1_000 * size
    assert result.prompt_tokens == 990 * size
    assert result.term("cache") == 1_000 * size * token
    # One request of the whole length takes as much memory in blocks of any size, but for the last ones.
    planned = choose(model, where, Asked(block_size=size), MILLION, 4)
    assert planned.fits
    assert planned.settings.blocks == exact_blocks(MILLION, size)
    assert planned.term("cache") == pytest.approx(1.01 * MILLION * token, rel=0.001)
    # The same memory, whatever it is divided into.
    left = outcome(model, where, documented(4, block_size=size))
    assert left.term("cache") == pytest.approx(outcome(model, where, documented(4)).term("cache"), abs=size * token)
    assert left.cache_tokens % size == 0
    assert longest_of(model, eighty(2), Asked(block_size=size), MILLION, 2)[0] % size == 0


def test_a_gpu_that_is_assumed_has_the_numbers_of_its_file() -> None:
    known = cards.load()
    assert 0 < known.context_gib < 2
    assert {"T4", "A100-80", "H100-80", "H200"} <= {card.name for card in known.cards}


def test_parts_that_the_table_does_not_show() -> None:
    seven, thirty, four = shape(SEVEN), shape(THIRTY), Layout(tp=4)
    # 1,010,000 rows and four tables of a chunk of 253,952, of 128 elements in 16 bits.
    assert gpu_memory.table_bytes(seven) == (1_010_000 + 4 * 253_952) * 128 * 2
    assert gpu_memory.table_bytes(seven) == pytest.approx(0.52e9, rel=0.01)
    # Rows of 32,768 tokens for each of the 8 experts chosen: 3 x 768 inner elements of 4 GPUs, and 2,048; and the sum.
    expected = 32_768 * 8 * (3 * 768 / 4 + 2_048) * 2 + BATCH * 2_048 * 2
    assert gpu_memory.mlp_bytes(thirty, four, BATCH) == expected
    assert gpu_memory.mlp_bytes(thirty, four, 1_000) == 1_000 * 8 * (3 * 768 / 4 + 2_048) * 2 + 1_000 * 2_048 * 2
    # 16-bit logits, the same in 32 bits, and their softmax, on the first of the ranks those of the whole vocabulary.
    assert gpu_memory.logits_bytes(seven, 256) == 256 * 152_064 * 10
    # With so few tokens they are more than the layers' activations.
    assert gpu_memory.step_bytes(seven, four, 256, 256) == 256 * 152_064 * 10 + 256 * 3_584 * 2
    # A short prompt, and one without a table, computes one head at a time.
    gathered = 2 * 32_768 * 1 * 128 * 2
    dense = gpu_memory.transients(seven, four, BATCH, 32_768)
    assert dense.total == gathered + 6 * 32_768 * 128 * 2 + 32_768 * 7 * 128 * 2
    assert gpu_memory.transients(seven, four, BATCH, 32_769).scores > 0
    without = seven.model_copy(update={"vertical": 0, "slash": 0})
    assert gpu_memory.transients(without, four, BATCH, MILLION).scores == 0
    assert gpu_memory.transients(seven.model_copy(update={"dual_chunk": False}), four, BATCH, MILLION).total == 0
    # Two tensors of queries beside one of them, of an ordinary model, and the hidden states.
    plain = seven.model_copy(update={"dual_chunk": False, "inner": 1})
    assert (
        gpu_memory.step_bytes(plain, Layout(), 1_000, 0) == 1_000 * 2 * (3 * 28 + 28 + 2 * 4) * 128 + 4 * 1_000 * 3_584
    )


def test_the_cache_is_what_the_utilisation_leaves_in_whole_blocks() -> None:
    model, where = shape(FOURTEEN), eighty(4)
    result = outcome(model, where, documented(4))
    block = 16 * gpu_memory.token_bytes(model, Layout(tp=4))
    left = 0.9 * 80 * GIB - sum(result.term(name) for name in ("weights", "tables", "step"))
    assert 0 <= left - result.term("cache") < block
    assert result.term("cache") % block == 0
    assert result.cache_tokens % 16 == 0
    assert outcome(model, where, documented(4, blocks=1_000)).cache_tokens == 16_000
    half = outcome(model, where, documented(4, blocks=1_000, cache_width=1))
    assert half.term("cache") == 1_000 * block / 2


@pytest.mark.parametrize(
    ("size", "changed", "ends"),
    [
        (10.0, {}, "loading"),
        (13.9, {"tp": 2}, "loading"),
        (20.0, {"tp": 2}, "weights"),
        (80.0, {"tp": 2}, "cache"),
        (80.0, {"tp": 2, "blocks": 63_762}, "room"),
        (80.0, {}, "prompt"),
        (80.0, {"blocks": 63_762}, ""),
        (53.0, {"blocks": 63_762, "eager": False}, "room"),
        (55.2, {"blocks": 63_762, "eager": False}, "graphs"),
        (58.0, {"blocks": 63_762, "eager": False}, "prompt"),
    ],
)
def test_what_a_server_fails_at(size: float, changed: dict[str, object], ends: str) -> None:
    tp = changed.get("tp", 4 if size > 10 else 1)
    settings = documented(**{"tp": tp, **changed})  # type: ignore[arg-type]
    assert outcome(shape(FOURTEEN), Gpus(count=8, memory_gib=size), settings).ends == ends


def test_the_borders_of_what_fits() -> None:
    model, where = shape(SEVEN), Gpus(count=4, memory_gib=80.0)
    # The fewest blocks that one prompt of the length leaves enough free of, one less, and as many as the length alone.
    assert outcome(model, where, documented(4, blocks=63_762)).fits
    assert outcome(model, where, documented(4, blocks=63_761)).ends == "ignored"
    assert outcome(model, where, documented(4, blocks=63_125)).ends == "ignored"
    assert outcome(model, where, documented(4, blocks=63_124)).ends == "cache"
    # Other engines keep none free.
    assert outcome(model, where, documented(4, blocks=63_125, watermark=0.0)).fits
    # Prompts past 999,904 tokens would be answered with nothing.
    assert outcome(model, where, documented(4, blocks=63_125)).prompt_tokens == 999_904
    assert outcome(model, where, documented(4, blocks=63_757)).prompt_tokens == 1_009_920
    # A length that is no whole number of blocks is found as it is.
    assert longest_of(model, where, Asked(), 1_000_005, 4)[0] == 1_000_005
    assert longest_of(model, where, Asked(), 7, 4)[0] == 7
    # Steps whose lists the sparse kernel cannot count are not chosen, however much memory there is.
    wide = model.model_copy(update={"heads": 64})
    limit = gpu_memory.list_limit(wide, Layout())
    assert limit is not None
    assert limit < BATCH
    assert choose(wide, Gpus(count=1, memory_gib=2_000.0), Asked(), MILLION, 1).settings.batched == 65_536
