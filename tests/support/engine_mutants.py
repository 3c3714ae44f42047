"""Single faults of what lies between an engine's scheduler and its attention, one at a time put into a wheel's Python.

They are in the builder of the metadata, block tables, lengths, slots of the cache and positions. Each layer computes
what it is asked for, so that only an engine shows them. They are written for the wheel that all tests share. No fault
may write outside of the cache.
"""

from __future__ import annotations

from tests.support.mutants import BACKEND, Mutant

FLASH = "vllm/attention/backends/flash_attn.py"
SLOTS = "vllm/attention/backends/utils.py"
RUNNER = "vllm/worker/model_runner.py"
MANAGER = "vllm/core/block_manager.py"
ENGINE = "vllm/engine/llm_engine.py"

# Faults by the case that shows them.
BY_CASE = {
    "engine/chunks": (
        Mutant("table-turned", "the first page of a request stands last", FLASH,
               "self.block_tables.append(block_table)", "self.block_tables.append(block_table[1:] + block_table[:1])"),
        Mutant("table-of-first", "every request has the pages of the first", FLASH,
               "self.block_tables.append(block_table)",
               "self.block_tables.append(self.block_tables[0] if self.block_tables else block_table)"),
        Mutant("table-one-page", "a request has its first page only", FLASH,
               "self.block_tables.append(block_table)", "self.block_tables.append(block_table[:1] * len(block_table))"),
        Mutant("key-starts", "keys of earlier steps are not counted", FLASH,
               "seq_start_loc = list(accumulate(seq_lens,", "seq_start_loc = list(accumulate(query_lens,"),
        Mutant("decode-table", "answers read the pages of prompts in the same step", FLASH,
               "self.block_tables[self.num_prefills:]",
               "self.block_tables[:len(self.block_tables) - self.num_prefills]"),
        Mutant("prefill-table", "prompts read the pages of answers in the same step", FLASH,
               "self.block_tables[:self.num_prefills]", "self.block_tables[-self.num_prefills:]"),
        Mutant("slot-page", "keys are written to the page before theirs", SLOTS,
               "block_number = block_table[i // block_size]", "block_number = block_table[i // block_size - 1]"),
        Mutant("slot-offset", "keys are written to their page in reverse", SLOTS,
               "block_offset = i % block_size", "block_offset = block_size - 1 - i % block_size", times=1),
        Mutant("slot-start", "the first key of a step is written to the slot before its own", SLOTS,
               "range_start = max(start_idx, context_len)", "range_start = max(start_idx, context_len - 1)"),
        Mutant("slot-end", "the last key of a step is not written", SLOTS,
               "range_end = seq_len", "range_end = max(range_start, seq_len - 1)"),
        Mutant("slot-size", "pages overlap", SLOTS,
               "slot = block_number * block_size + block_offset",
               "slot = block_number * (block_size // 2) + block_offset"),
        Mutant("positions-anew", "positions begin with 0 in each step", RUNNER,
               "extend(range(context_len, seq_len))", "extend(range(seq_len - context_len))"),
        Mutant("positions-late", "positions are one too high", RUNNER,
               "extend(range(context_len, seq_len))", "extend(range(context_len + 1, seq_len + 1))"),
        Mutant("no-context", "a step forgets those before it", RUNNER,
               "context_len = seq_data.get_num_computed_tokens()", "context_len = 0", times=2, which=0),
        Mutant("tokens-anew", "each step computes the first tokens again", RUNNER,
               "seq_data.get_token_ids()[context_len:seq_len]", "seq_data.get_token_ids()[:seq_len - context_len]"),
        Mutant("slots-late", "slots are those of one token further on", RUNNER,
               "inter_data.orig_seq_lens[seq_idx] = seq_len",
               "inter_data.orig_seq_lens[seq_idx] = seq_len if inter_data.is_prompt else seq_len + 1"),
        Mutant("answer-lengths", "answers attend no token after the prompt", BACKEND,
               "self.orig_seq_lens.append(max(prompt_len, seq_len))", "self.orig_seq_lens.append(prompt_len)"),
        Mutant("decode-lengths", "answers have the lengths of prompts in the same step", BACKEND,
               "self.orig_seq_lens_tensor[self.num_prefills:]", "self.orig_seq_lens_tensor[:self.num_decode_tokens]"),
        Mutant("last-page", "the last page of a request is its first", MANAGER,
               "        return block_ids  # type: ignore", "        return block_ids[:-1] + block_ids[:1]",
               times=2, which=0),
        Mutant("skipped-token", "one token is passed over at each step of a prompt", ENGINE,
               "seq_group_meta.token_chunk_size or 0)",
               "(seq_group_meta.token_chunk_size or 0) + seq_group.is_prefill())"),
    ),
    "engine/length-factor": (
        Mutant("factor-of-piece", "the factor is that of the tokens so far, not of the prompt", BACKEND,
               "self.orig_seq_lens.append(max(prompt_len, seq_len))", "self.orig_seq_lens.append(seq_len)"),
        Mutant("factor-of-others", "prompts have the factor of answers in the same step", BACKEND,
               "self.orig_seq_lens_tensor[:self.num_prefills]", "self.orig_seq_lens_tensor[-self.num_prefills:]"),
        Mutant("prompt-lengths", "a prompt is as long as what of it was scheduled", RUNNER,
               "inter_data.prompt_lens[seq_idx] = seq_data.get_prompt_len()",
               "inter_data.prompt_lens[seq_idx] = seq_len"),
    ),
}  # fmt: skip
