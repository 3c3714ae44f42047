// SPDX-License-Identifier: Apache-2.0
// From vertical and slash lines to the blocks and columns of keys that each row of 64 queries attends.
// Its PTX lies beside the code that launches it, `vllm_dca/lines.ptx`, and is made from this file by
// `nvcc --ptx -arch=compute_80 -std=c++17 csrc/lines.cu`.
constexpr int kRow = 64;

// One thread a row of queries; the grid is heads, sequences, and blocks of kRow rows. Integers alone, so the result is
// exact. Lines are those that the counts leave: verticals ascending, slashes (distances) descending.
//
// A causal row's queries are the last ones of the keys' sequence, the others come after all keys. A slash is the kRow
// keys that end where the row's last query meets it. Blocks that touch become one stretch, which grows by whole blocks;
// a vertical inside a stretch is not a column too, since attention would count its key twice.
extern "C" __global__ void convert_lines(
    const int *query_lengths, const int *key_lengths, const int *verticals, const int *slashes,
    const int *vertical_counts, const int *slash_counts, int *block_count, int *block_offset, int *column_count,
    int *column_index, long long heads, long long rows, long long most_verticals, long long most_slashes, bool causal) {
  const long long head = blockIdx.x, sequence = blockIdx.y;
  const long long row = blockIdx.z * static_cast<long long>(blockDim.x) + threadIdx.x;
  const int queries = query_lengths[sequence], keys = key_lengths[sequence];
  if (row >= rows || row * kRow >= queries) return;
  const int first = static_cast<int>(row) * kRow;
  // Counted in keys: the place behind the row's last query.
  const int after = first + kRow + (causal ? keys - queries : keys);

  const long long at = sequence * heads + head, place = at * rows + row;
  const int *vertical = verticals + at * most_verticals, *slash = slashes + at * most_slashes;
  const int vertical_end = vertical_counts[head], slash_end = slash_counts[head];
  int *offsets = block_offset + place * most_slashes, *columns = column_index + place * most_verticals;
  int v = 0, s = 0, block = 0, column = 0;

  // Distances that do not reach the first key; a last one that just misses it still gives the first block.
  while (s < slash_end && slash[s] >= after) s++;
  if (s == slash_end && s > 0 && slash[s - 1] == after) s--;
  int start = causal ? after : keys, end = start + kRow;
  if (s < slash_end) {
    end = max(after - slash[s++], kRow);
    start = end - kRow;
  }
  while (true) {
    for (; v < vertical_end && vertical[v] < end; v++)
      if (vertical[v] < start) columns[column++] = vertical[v];
    // Not causal: distances below the row's first query end behind all keys.
    const bool more = s < slash_end && (causal || slash[s] >= first);
    const int next = more ? max(after - slash[s++], kRow) : 0;
    if (more && next <= end) continue;
    if (more && next <= end + kRow) {
      end += kRow;
      continue;
    }
    for (const int last = min(end, keys); start < last; start += kRow) offsets[block++] = start;
    if (!more) break;
    start = next - kRow;
    end = next;
  }
  // Not causal: nothing hides the keys behind the last stretch.
  for (; !causal && v < vertical_end && vertical[v] < keys; v++) columns[column++] = vertical[v];
  block_count[place] = block;
  column_count[place] = column;
}
