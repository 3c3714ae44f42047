"""Single faults, one at a time put into a copy of the oracle, of a wheel's Python and of its index kernel.

Each is a short piece of text and what stands in its place. Upstream's own lines are quoted no further than it takes to
find the place. They are written for the wheel that all tests share; nearly all fit the fork's as well.
No fault may write outside of its tensors or run for ever, because all of them run in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# What a fault is put into: a file of the oracle's folder, or one of these.
KERNEL = "csrc/attention/vertical_slash_index.cu"
BACKEND = "vllm/attention/backends/dual_chunk_flash_attn.py"
ROTARY = "the wheel's module of the rotary embedding"


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: short and unique.
        fault: what is wrong.
        file: what it is put into.
        old: a piece of its text.
        new: what stands in its place.
        times: how often `old` occurs.
        which: which of these occurrences is replaced; all if not given.
    """

    name: str
    fault: str
    file: str
    old: str
    new: str
    times: int = 1
    which: int | None = None

    @property
    def kind(self) -> str:
        """Where the fault is: "kernel", "wheel" or "oracle"."""
        return {KERNEL: "kernel", BACKEND: "wheel", ROTARY: "wheel"}.get(self.file, "oracle")

    def apply(self, text: str) -> str:
        """The text with the fault in it.

        Raises:
            ValueError: the text is not what the fault was written for.
        """
        parts = text.split(self.old)
        if len(parts) != self.times + 1:
            raise ValueError(f"{self.name}: {self.old!r} occurs {len(parts) - 1} times, not {self.times}")
        if self.which is None:
            return self.new.join(parts)
        at = self.which + 1
        return self.old.join(parts[:at]) + self.new + self.old.join(parts[at:])


def kernel(name: str, fault: str, old: str, new: str, times: int = 2, which: int | None = None) -> Mutant:
    """A fault of the index kernel; most of its text stands twice, once for each of its two ops."""
    return Mutant(name, fault, KERNEL, old, new, times, which)


def backend(name: str, fault: str, old: str, new: str, times: int = 1, which: int | None = None) -> Mutant:
    """A fault of the attention backend."""
    return Mutant(name, fault, BACKEND, old, new, times, which)


def rotary(name: str, fault: str, old: str, new: str, times: int = 1, which: int | None = None) -> Mutant:
    """A fault of the rotary embedding."""
    return Mutant(name, fault, ROTARY, old, new, times, which)


MUTANTS = [
    kernel("kernel-skip", "a distance that just misses the first key is not passed over",
           "s_idx >= end_m + (kv_seqlen", "s_idx > end_m + (kv_seqlen"),
    kernel("kernel-skip-shift", "distances are passed over as if queries did not come after the keys",
           "s_idx >= end_m + kv_seqlen", "s_idx >= end_m"),
    kernel("kernel-first-clamp", "the first block is not kept from beginning before the first key",
           "end_m - s_idx, BLOCK_SIZE_M", "end_m - s_idx, int64_t(0)", 4),
    kernel("kernel-quirk", "a last distance that just misses the first key gives no block",
           "if (s_idx > end_m + (", "if (s_idx >= end_m + ("),
    kernel("kernel-column-in-block", "a column at the first key of a block is attended twice",
           "v_idx < range_start", "v_idx <= range_start"),
    kernel("kernel-extend", "a stretch grows to the band and not by a block",
           "range_end += BLOCK_SIZE_M", "range_end = s_idx"),
    kernel("kernel-no-merge", "blocks that touch do not become one stretch",
           "s_idx > range_end + BLOCK_SIZE_M", "s_idx > range_end"),
    kernel("kernel-last-block", "the last block of a stretch is dropped",
           "idx < range_end;", "idx + block_size < range_end;", 1),
    kernel("kernel-past-keys", "blocks are written past the last key",
           "if (range_end > kv_seqlen)", "if (false)", 1),
    kernel("kernel-one-block", "of a stretch only the first block is written",
           "idx < range_end; idx += block_size", "idx < range_end && idx == range_start; idx += block_size", 1),
    kernel("kernel-near-slash", "distances that end within the row's own block are left out towards older chunks",
           "slash_indexes[s] >= start_m", "slash_indexes[s] >= end_m"),
    kernel("kernel-last-column", "the last column behind all blocks is dropped",
           "!causal && v_idx < kv_seqlen", "false"),
    kernel("kernel-last-key", "the last key of all is never a column",
           "!causal && v_idx < kv_seqlen", "!causal && v_idx + 1 < kv_seqlen"),
    kernel("kernel-columns-behind", "columns behind the last block are dropped, causal or not",
           "v_idx > range_start && causal", "v_idx > range_start"),
    kernel("kernel-slash-count", "no head takes more distances than the first",
           "per_head_slash_topkv[head_idx]",
           "min(per_head_slash_topkv[head_idx], per_head_slash_topkv[0])", 1),
    kernel("kernel-vertical-count", "no head takes more columns than the first",
           "per_head_vertical_topkv[head_idx]",
           "min(per_head_vertical_topkv[head_idx], per_head_vertical_topkv[0])", 1),
    kernel("kernel-long", "rows are misplaced behind the first 64 row blocks",
           "group_idx * blockDim.x", "group_idx * (blockDim.x - 1)"),
    kernel("kernel-batch", "one of the two ops reads the distances of a batch's first sequence for all",
           "(batch_idx * N_HEADS + head_idx) * NNZ_S", "head_idx * NNZ_S", which=0),
    kernel("kernel-prefix", "one of the two ops forgets the keys before the queries at later distances",
           "(kv_seqlen - q_seqlen) + end_m - slash_indexes", "end_m - slash_indexes", which=1),
    kernel("kernel-rows", "the number of row blocks is rounded down",
           "(context_size + block_size_M - 1)", "context_size"),
    kernel("launch-rounded-down", "row blocks behind the last full thread block are forgotten, past the first",
           "(N_ROWS + N_THREADS - 1) / N_THREADS", "N_ROWS / N_THREADS + (N_ROWS < N_THREADS)", which=1),
    kernel("launch-rounded-down-plain", "the same in the op with one number of lines for all heads",
           "(N_ROWS + N_THREADS - 1) / N_THREADS", "max(int64_t(1), N_ROWS / N_THREADS)", which=0),
    kernel("launch-half-full", "row blocks behind a thread block that is not half full are forgotten",
           "(N_ROWS + N_THREADS - 1) / N_THREADS",
           "(N_ROWS + N_THREADS / 2 - 1) / N_THREADS + (N_ROWS < N_THREADS / 2)", which=1),
    kernel("launch-one-row", "a single row block behind full thread blocks is forgotten",
           "(N_ROWS + N_THREADS - 1) / N_THREADS",
           "(N_ROWS + N_THREADS - 2) / N_THREADS + (N_ROWS < 2)", which=1),
    kernel("launch-threads", "thread blocks have fewer threads than the grid was made for",
           "dimBlock(N_THREADS)", "dimBlock(N_ROWS > 64 ? N_THREADS - 1 : N_THREADS)", which=1),
    kernel("launch-most", "no more than 32 thread blocks are launched",
           "(N_ROWS + N_THREADS - 1) / N_THREADS",
           "min(int64_t(32), (N_ROWS + N_THREADS - 1) / N_THREADS)", which=0),
    kernel("launch-odd", "the last thread block is forgotten where their number is odd, past the first",
           "(N_ROWS + N_THREADS - 1) / N_THREADS",
           "(N_ROWS > N_THREADS ? (N_ROWS + N_THREADS - 1) / N_THREADS / 2 * 2 : 1)", which=1),
    kernel("rows-rounded", "the rest of the queries behind a multiple of 4,096 has no rows, in long prompts",
           "if (start_m >= q_seqlen) {", "if (start_m >= (q_seqlen > 4096 ? q_seqlen / 4096 * 4096 : q_seqlen)) {",
           which=1),
    kernel("rows-last", "the last row block is left out where it is not full, in long prompts",
           "if (start_m >= q_seqlen) {",
           "if (start_m >= (q_seqlen > 8192 ? q_seqlen / BLOCK_SIZE_M * BLOCK_SIZE_M : q_seqlen)) {", which=0),
    kernel("rows-short", "positions of rows are counted in 16 bits",
           "int64_t start_m = block_idx_m * BLOCK_SIZE_M;",
           "int64_t start_m = static_cast<uint16_t>(block_idx_m * BLOCK_SIZE_M);", which=1),
    kernel("outside", "a row of its own is written behind the last output",
           "column_count[0] = tmp_col_cnt;",
           "column_count[0] = tmp_col_cnt;\n  if (start_m + BLOCK_SIZE_M >= q_seqlen && head_idx == N_HEADS - 1 && "
           "batch_idx == int(gridDim.y) - 1) column_count[1] = 0;", which=1),

    backend("decode-d1", "decode sees one key of the previous chunk, or a negative number of them (defect D1)",
            ".clip(min=0)) * chunk_len", ".clip(min=0) * chunk_len)"),
    backend("sparse-not-causal", "sparse attention is not causal (as in defect D9)",
            "column_index,\n        causal=causal", "column_index,\n        causal=False"),
    backend("dense-not-causal", "dense attention to the own chunk is not causal",
            'True,\n                    stage="intra"', 'False,\n                    stage="intra"', 2, 1),
    backend("prefill-factor", "prefill leaves the length factor out",
            "softmax_scale * scaling_factor", "softmax_scale"),
    backend("stage-factor", "the length factor is left out towards the previous chunk, in sparse attention",
            "mergehead_softmax_scale=softmax_scale", "mergehead_softmax_scale=self.scale", 3, 1),
    backend("factor-base", "the length factor grows with the base-2 logarithm",
            "0.1 * torch.log(prefill", "0.1 * torch.log2(prefill"),
    backend("prefill-factor-clip", "the length factor of a short prompt is below 1",
            "1.0).clip(min=1)", "1.0)", 2, 0),
    backend("decode-factor-clip", "the length factor is below 1 in decode of a short sequence",
            "1.0).clip(min=1)", "1.0)", 2, 1),
    backend("decode-factor", "decode leaves the length factor out towards older chunks",
            "query_inter * scaling_factor.view(-1, 1, 1, 1)", "query_inter"),
    backend("decode-key-factor", "the key of a new token is cached without its length factor",
            "key[attn_metadata.num_prefill_tokens:].mul_", "key[attn_metadata.num_prefill_tokens:].mul"),
    backend("key-factor-of-first", "keys of a batch take the first prompt's length factor",
            "prefill_meta.scaling_factor[i])", "prefill_meta.scaling_factor[0])"),
    backend("factor-of-first", "the logits of a batch take the first prompt's length factor",
            "scaling_factor[i].item()", "scaling_factor[0].item()", 2),
    backend("merge-base-2", "prefill merges log-sum-exps as if they were base 2",
            "torch.exp(stable_logits)", "torch.exp2(stable_logits)", 2, 0),
    backend("decode-merge-base-2", "decode merges log-sum-exps as if they were base 2",
            "torch.exp(stable_logits)", "torch.exp2(stable_logits)", 2, 1),
    backend("merge-sum", "the weights of merged parts do not sum to 1",
            "lse_s /= lse_sum", "lse_s /= 1", 2, 0),
    backend("empty-part", "a part without keys takes part in the merge of decode",
            '-float("inf")', "0.0"),
    backend("first-keys", "one of the first keys is not always attended",
            "vertical[..., :30]", "vertical[..., :29]"),
    backend("nearest", "one of the nearest distances is not always attended",
            "slash_scores[..., -100:]", "slash_scores[..., -99:]"),
    backend("raised", "a vertical size of 30 is raised by one too few",
            "vertical_size += 100", "vertical_size += 99"),
    backend("voters-mask", "queries vote for keys behind themselves",
            "qk[:, :, -last_q_size:], -torch.inf", "qk[:, :, -last_q_size:], qk[:, :, -last_q_size:]"),
    backend("vote-successive", "queries vote in the previous chunk with the clamp",
            "q_succ_critical[qbegin:qend]", "q_succ[qbegin:qend]"),
    backend("vote-inter", "queries vote in older chunks from one place",
            "q_inter_critical[qbegin:qend]", "q_inter[qbegin:qend]"),
    backend("diagonals", "diagonals are summed one beside their place",
            "sum_diags[:, 1:]", "sum_diags[:, :-1]"),
    backend("corner", "the last diagonal is cut off with the corner",
            ":-last_q_size + 1]", ":-last_q_size]"),
    backend("intra-distance", "distances in the own chunk are one too long",
            "(qk.size(-1) - 1) -", "qk.size(-1) -"),
    backend("successive-distance", "distances towards the previous chunk are one too long",
            "(prev_chunk_end_pos + (qend - qbegin) - 1)", "(prev_chunk_end_pos + (qend - qbegin))"),
    backend("successive-crossing", "a diagonal that crosses into the previous chunk is dropped there",
            "(slash_topk < (prev_chunk_end_pos +", "(slash_topk < (prev_chunk_end_pos + 0 *"),
    backend("intra-vertical", "columns of the own chunk are not counted from its first key",
            "prev_chunk_end_pos] - prev_chunk_end_pos", "prev_chunk_end_pos]"),
    backend("successive-vertical", "the first key of the previous chunk is never a column",
            "(vertical_topk >= prev_chunk_end_pos", "(vertical_topk > prev_chunk_end_pos"),
    backend("intra-few", "a stage without columns takes other keys in the own chunk",
            "k_states_intra.size(0) / 5", "k_states_intra.size(0) / 4"),
    backend("inter-few", "a stage without columns or distances takes others in older chunks",
            "k_states_inter.size(0) / 5", "k_states_inter.size(0) / 4", 2),
    backend("clipped", "sizes are not clipped to the keys of a span",
            "max_vertical_topk)\n\n", "max_vertical_topk + 1)\n\n"),
    backend("third-chunk", "the third chunk does not see the first",
            "chunk_len * 2 >= 0", "chunk_len * 2 > 0", 2),
    backend("last-page", "the last page of a span is not read where it is not full",
            "(end - 1) // block_size + 1\n    return", "end // block_size\n    return"),
    backend("page-rest", "the rest of the last page is attended",
            "[:(end - prev_chunk_end_pos)]", "[:]", 2),
    backend("values", "values of the previous chunk are its keys",
            "v_states_succ = v[block_tables_succ", "v_states_succ = k[block_tables_succ"),
    backend("dense-heads", "query heads read the wrong key head",
            "current_k[..., head_id //", "current_k[..., head_id %"),
    backend("sparse-heads", "key heads are repeated in the wrong order",
            "k_states_intra.unsqueeze(2)", "k_states_intra.unsqueeze(1)"),
    backend("rank", "every GPU takes the first one's lines",
            "self.num_heads * get_tensor_model_parallel_rank()", "0"),
    backend("threshold", "a prompt at the threshold is sparse",
            "> self.sparse_attention_threshold", ">= self.sparse_attention_threshold"),
    backend("decode-border", "decode begins a new chunk one token early",
            "(cache_seq_lens - 1) // chunk_len", "cache_seq_lens // chunk_len"),
    backend("decode-inter-length", "decode attends the previous chunk twice",
            "seq_lens_inter = (chunk_num_curr - 1)", "seq_lens_inter = chunk_num_curr"),
    backend("decode-pages-of-first", "decode reads pages at the first sequence's chunk for all",
            "st = chunk_num_curr[i] * chunk_len", "st = chunk_num_curr[0] * chunk_len"),
    backend("decode-previous-pages", "decode reads the pages of an older chunk for the previous one's",
            "(chunk_num_curr[i] - 1)", "(chunk_num_curr[i] - 2)"),
    backend("decode-query", "decode rotates queries towards the previous chunk as towards older ones",
            "query_succ,\n                    key_cache", "query_inter,\n                    key_cache"),

    backend("layer", "every layer takes the first one's lines",
            "self.layer_idx].items()", "0].items()"),
    backend("threshold-default", "prompts are sparse from another length on where the config names none",
            '"sparse_attention_threshold", 32768', '"sparse_attention_threshold", 8192'),
    backend("enabled-default", "a table of lines does not turn sparse attention on",
            '"sparse_attention_enabled", self.sparse_attention_config\n            is not None',
            '"sparse_attention_enabled", False'),
    backend("voters-default", "one query too few votes",
            '"sparse_attention_last_q", 64', '"sparse_attention_last_q", 63'),
    backend("softmax-dtype", "the choice of lines is a softmax in the dtype of the model",
            "F.softmax(qk, dim=-1, dtype=torch.float32)", "F.softmax(qk, dim=-1)"),
    backend("softmax-rounded", "the softmax of the choice is rounded to the dtype of the model",
            "F.softmax(qk, dim=-1, dtype=torch.float32)", "F.softmax(qk, dim=-1, dtype=torch.float32).to(q.dtype)"),
    backend("softmax-half", "the softmax of the choice is rounded to float16",
            "F.softmax(qk, dim=-1, dtype=torch.float32)", "F.softmax(qk, dim=-1, dtype=torch.float32).half().float()"),
    backend("softmax-bfloat16", "the softmax of the choice is rounded to bfloat16",
            "F.softmax(qk, dim=-1, dtype=torch.float32)",
            "F.softmax(qk, dim=-1, dtype=torch.float32).bfloat16().float()"),
    backend("columns-dtype", "the scores of columns are rounded to the dtype of the model",
            "vertical = qk.sum(-2, keepdim=True)", "vertical = qk.sum(-2, keepdim=True).to(q.dtype).float()"),
    backend("diagonals-dtype", "the scores of diagonals are summed in the dtype of the model",
            "_sum_all_diagonal_matrix(head_score)", "_sum_all_diagonal_matrix(head_score.to(q.dtype)).float()"),
    backend("piece-threshold", "a piece of a prompt is dense where the piece is below the threshold",
            "and current_orig_seq_len\n", "and (qe - qs)\n"),
    backend("cached-threshold", "a piece of a prompt is dense where what is there of it is below the threshold",
            "and current_orig_seq_len\n", "and (ke - ks)\n"),
    backend("piece-voters", "more queries vote than a piece has",
            "min(qend - qbegin, self.sparse_attention_last_q)",
            "min(max(qend - qbegin, 2), self.sparse_attention_last_q)"),
    backend("piece-successive", "diagonals towards the previous chunk are counted from the chunk's first query",
            "(prev_chunk_end_pos + (qend - qbegin) - 1)", "(prev_chunk_end_pos + (end - prev_chunk_end_pos) - 1)"),
    backend("piece-inter", "diagonals towards older chunks are counted from the chunk's first query",
            "(prev_chunk_end_pos - chunk_len +\n                             (qend - qbegin) - 1)",
            "(prev_chunk_end_pos - chunk_len +\n                             (end - prev_chunk_end_pos) - 1)"),
    backend("piece-single", "a piece of one token has its diagonals cut off at both ends",
            "head_score.size(1) != 1", "head_score.size(1) != 0"),
    backend("whole-not-causal", "a whole prompt that comes without blocks is not causal",
            "softmax_scale=self.scale,\n                    causal=True", "softmax_scale=self.scale,\n"
            "                    causal=False", 2, 0),
    backend("whole-scale", "a whole prompt that comes without blocks takes another scale",
            "softmax_scale=self.scale,\n                    causal=True", "softmax_scale=self.scale * 1.01,\n"
            "                    causal=True", 2, 0),
    backend("metadata-page", "pages are taken to have 16 tokens, whatever they have",
            "block_size = self.runner.block_size", "block_size = 16"),
    backend("metadata-length", "a prompt in pieces takes the length factor of what is there of it",
            "max(prompt_len, seq_len)", "seq_len"),
    backend("metadata-original", "the original length does not reach the length factor",
            'get("original_max_position_embeddings", 0)\n        attn', 'get("original", 0)\n        attn'),

    rotary("clamp", "distances towards the previous chunk are clamped one too early",
           "clamp(max=self.chunk_size)", "clamp(max=self.chunk_size - 1)"),
    rotary("no-clamp", "distances towards the previous chunk are not clamped",
           ".clamp(max=self.chunk_size)", ""),
    rotary("key-chunks", "keys are rotated by their place in the sequence",
           "dtype=torch.float) % chunk_len", "dtype=torch.float)"),
    rotary("query-place", "queries are rotated by one place too much",
           "q_t = torch.arange(chunk_len, dtype=torch.float)", "q_t = torch.arange(chunk_len, dtype=torch.float) + 1"),
    rotary("inter-place", "queries towards older chunks do not stand at the end of the previous one",
           "qc_cache[chunk_len - 1]", "qc_cache[0]"),
    rotary("voting-successive", "queries that vote in the previous chunk stand too far from it",
           "qc_no_clamp_t = torch.arange(chunk_len, dtype=torch.float) + chunk_len",
           "qc_no_clamp_t = torch.arange(chunk_len, dtype=torch.float) + self.chunk_size"),
    rotary("voting-inter", "queries that vote in older chunks stand too near to them",
           "dtype=torch.float) + self.chunk_size", "dtype=torch.float) + chunk_len"),
    rotary("base", "frequencies fall with another base",
           "_compute_inv_freq(self.base)\n        chunk_len", "_compute_inv_freq(self.base * 1.01)\n        chunk_len"),
    rotary("backwards", "queries and keys are turned backwards",
           "hidden_rot * cos +", "hidden_rot * cos -"),

    Mutant("oracle-stride", "a chunk is as long as chunk_size", "oracle/positions.py",
           "return self.size - self.local", "return self.size"),
    Mutant("oracle-farthest", "older chunks are farther than the previous one can be", "oracle/positions.py",
           "min(2 * self.stride - 1, self.size)", "self.size"),
    Mutant("oracle-clamp", "the rotated query is clamped one too early", "oracle/positions.py",
           "clamp(max=chunking.size)", "clamp(max=chunking.size - 1)", 2, 0),
    Mutant("oracle-distance-clamp", "the distance of a pair is clamped one too early", "oracle/positions.py",
           "clamp(max=chunking.size)", "clamp(max=chunking.size - 1)", 2, 1),
    Mutant("oracle-older", "the distance of a pair in older chunks is one too long", "oracle/positions.py",
           "older = chunking.farthest - inside_j", "older = chunking.farthest - inside_j + 1"),
    Mutant("oracle-factor", "the length factor of a short prompt is below 1", "oracle/positions.py",
           "max(1.0, 0.1 * math.log(length / original) + 1.0)", "0.1 * math.log(length / original) + 1.0"),
    Mutant("oracle-base-2", "log-sum-exps are base 2", "oracle/attention.py",
           "return Partial(torch.einsum(\"ihj,jhd->ihd\", weights, v), lse)",
           "return Partial(torch.einsum(\"ihj,jhd->ihd\", weights, v), lse / 0.6931471805599453)"),
    Mutant("oracle-merge", "the merge weighs every part the same", "oracle/attention.py",
           "weights = torch.exp(lses - total.masked_fill(total == -torch.inf, 0))",
           "weights = torch.exp(lses - lses) / len(lses)"),
    Mutant("oracle-scale", "dense attention leaves the scale out", "oracle/attention.py",
           'k[columns]) * scale', 'k[columns])'),
    Mutant("oracle-causal", "a query does not see its own key in dense attention", "oracle/attention.py",
           "columns[None, :] > last", "columns[None, :] >= last"),
    Mutant("oracle-heads", "key heads are repeated in the wrong order", "oracle/attention.py",
           "repeat_interleave(heads // kv_heads, dim=1)", "repeat(1, heads // kv_heads, 1)"),
    Mutant("oracle-sparse-scale", "sparse attention leaves the scale out", "oracle/sparse.py",
           "k[chosen].to(q.dtype)) * scale", "k[chosen].to(q.dtype))"),
    Mutant("oracle-sparse-causal", "a query does not see its own key in sparse attention", "oracle/sparse.py",
           "chosen[None, :] > last", "chosen[None, :] >= last"),
    Mutant("oracle-no-columns", "sparse attention drops columns", "oracle/sparse.py",
           "torch.cat((blocks, columns))", "blocks"),
    Mutant("oracle-values", "sparse attention takes keys for values", "oracle/sparse.py",
           "v[chosen]", "k[chosen]"),
    Mutant("oracle-block-clamp", "the first block is not kept from beginning before the first key",
           "oracle/conversion.py", "max(after - distance, BLOCK)", "after - distance"),
    Mutant("oracle-column-in-block", "a column at the first key of a block is attended twice", "oracle/conversion.py",
           "if column < start", "if column <= start"),
    Mutant("oracle-extend", "a stretch grows to the band and not by a block", "oracle/conversion.py",
           "end += BLOCK", "end = following"),
    Mutant("oracle-voters", "one query too few votes", "oracle/selection.py", "RAISED = 64,", "RAISED = 63,"),
    Mutant("oracle-crossing", "a diagonal that crosses into an older chunk is dropped there", "oracle/selection.py",
           "slash < after + span", "slash < after"),
    Mutant("oracle-few", "a stage without lines takes others", "oracle/selection.py", "keys // 5", "keys // 4"),
    Mutant("oracle-votes", "queries vote for keys behind themselves", "oracle/selection.py",
           "(logits * scale).masked_fill(j[None, :] > i[:, None], -torch.inf)", "logits * scale"),
    Mutant("oracle-rotation", "queries and keys are turned backwards", "oracle/rotary.py",
           "first * cos - second * sin, second * cos + first * sin",
           "first * cos + second * sin, second * cos - first * sin"),
    Mutant("oracle-pair", "the distance of a pair counts backwards", "oracle/rotary.py",
           "return along + across", "return along - across"),
    Mutant("oracle-inter", "the third chunk does not see the first", "oracle/blockwise.py",
           "if previous > 0:", "if previous > stride:", 2),
    Mutant("oracle-clipped", "a size that one span has clipped is whole again in the next", "oracle/blockwise.py",
           "        sizes = [(min(vertical, after), min(slash, after)) for vertical, slash in sizes]\n", ""),
]  # fmt: skip


@dataclass(frozen=True)
class Elsewhere:
    """A fault that no run on a CPU can find, because what it is in stands still there.

    Attributes:
        fault: what is wrong.
        file: where.
        why: why only a GPU finds it.
    """

    fault: str
    file: str
    why: str


ATTENTION = "flash-attention's own kernel runs on a GPU only; on a CPU the oracle stands in its place"
GPU_ONLY = [
    Elsewhere("columns are read from the first sequence of a batch (defect D8)",
              "csrc/flash_attn/src/flash_fwd_sparse_kernel.h", ATTENTION),
    Elsewhere("a causal call runs without a mask, because its window is left open (defect D9)",
              "csrc/flash_attn/flash_api.cpp", ATTENTION),
    Elsewhere("the log-sum-exp that the kernel writes is base 2", "csrc/flash_attn/src/softmax.h", ATTENTION),
    Elsewhere("only the last block of a row is masked, and not the last two",
              "csrc/flash_attn/src/flash_fwd_sparse_kernel.h", ATTENTION),
    Elsewhere("the kernel refuses the GPU that it was built for (as in defect D10)",
              "csrc/flash_attn/flash_api.cpp", "whether a GPU is accepted shows where there is one"),
    Elsewhere("keys are written to the wrong slot of a page", "csrc/cache_kernels.cu",
              "the writing of the cache runs on a GPU only; on a CPU it is our own"),
]  # fmt: skip


def faulty_oracle(mutant: Mutant, oracle: Path, folder: Path) -> None:
    """A copy of the oracle's folder with the fault in it."""
    folder.mkdir(parents=True)
    for file in oracle.glob("*.py"):
        text = file.read_text()
        (folder / file.name).write_text(mutant.apply(text) if mutant.file == f"oracle/{file.name}" else text)
