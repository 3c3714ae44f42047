// Calls the ops of vertical_slash_index.cu with plain arrays; int32 all of them, shaped as the ops' own arguments.
#include <torch/all.h>

void convert_vertical_slash_indexes(torch::Tensor&, torch::Tensor&, torch::Tensor&, torch::Tensor&, torch::Tensor,
                                    torch::Tensor, torch::Tensor, torch::Tensor, int64_t, int64_t, int64_t, bool);
void convert_vertical_slash_indexes_mergehead(torch::Tensor&, torch::Tensor&, torch::Tensor&, torch::Tensor&,
                                              torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor,
                                              torch::Tensor, torch::Tensor, int64_t, int64_t, int64_t, bool);

// With counts per head it is the op that merges heads, without (null) the plain one.
extern "C" void convert(int* block_count, int* block_offset, int* column_count, int* column_index, int* query_lengths,
                        int* key_lengths, int* vertical, int* slash, int* vertical_count, int* slash_count,
                        int64_t batch, int64_t heads, int64_t verticals, int64_t slashes, int64_t longest, int causal) {
  const int64_t rows = (longest + 63) / 64;
  torch::Tensor counts{block_count, {batch, heads, rows}}, offsets{block_offset, {batch, heads, rows, slashes}},
      columns{column_count, {batch, heads, rows}}, indices{column_index, {batch, heads, rows, verticals}};
  const torch::Tensor queries{query_lengths, {batch}}, keys{key_lengths, {batch}};
  const torch::Tensor v{vertical, {batch, heads, verticals}}, s{slash, {batch, heads, slashes}};
  if (vertical_count)
    convert_vertical_slash_indexes_mergehead(counts, offsets, columns, indices, queries, keys, v, s,
                                             {vertical_count, {heads}}, {slash_count, {heads}}, longest, 64, 64,
                                             causal);
  else
    convert_vertical_slash_indexes(counts, offsets, columns, indices, queries, keys, v, s, longest, 64, 64, causal);
}
