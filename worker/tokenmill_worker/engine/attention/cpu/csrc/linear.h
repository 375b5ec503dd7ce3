// Packed linears: what the operations (linear.cpp) and the kernels agree on.
//
// A weight [N, K] lies in panels of 32 columns (of the product), each one run of memory: for every unit of K, 32
// columns of one unit each. A unit is 32 bits of activations: 2 bfloat16, or 4 uint8 (w8a8). Activations lie in blocks
// of up to `max_rows` rows, unit by unit, so that a kernel reads both from one pointer each.
#pragma once

#include <cstdint>

namespace tokenmill_linear {

constexpr int64_t kColumns = 32;

// y = row.scale * column.scale * (sum - row.zero_point * column.sum) + column.bias; w8a16 has no zero points, and
// bfloat16 weights have neither those nor scales.
struct RowScale {
  float scale;
  float zero_point;
};

// One panel of a weight. What its format lacks is null. `width`: how many of the 32 columns exist.
struct Panel {
  const uint8_t* weights;
  const float* scales;
  const float* sums;
  const float* bias;
  int64_t width;
};

// One block of activations; `output` points to its first row in the panel's first column.
struct Block {
  const uint32_t* units;
  const RowScale* rows;
  int64_t num_rows;
  int64_t num_units;
  void* output;
  int64_t output_stride;  // elements
  bool is_float;          // else bfloat16
};

// `low` <= 0 <= `high` are a row's bounds. A row that holds an infinity or a NaN becomes NaN as a whole.
RowScale row_scale(float low, float high, bool is_finite);

// Weights to fetch from memory meanwhile, for whoever comes next: so many bytes with each unit, from there on.
struct Ahead {
  const uint8_t* from;
  int64_t step;
};

// How many bytes of weights ahead of a panel that is read once. With 2048 a line comes too late as soon as there are
// rows to multiply: 20.6 ms at 8 rows instead of 15.8; one or two rows, which only wait for memory, lose by 8192.
constexpr int64_t fetch_distance(int64_t num_rows) { return num_rows <= 2 ? 4096 : 8192; }

// One panel after another, each multiplied with all blocks in turn.
struct Turns {
  int64_t num_rows, num_blocks;      // of the activations
  int64_t panel_bytes, num_units;    // of the weight

  // With one block the panel itself is read from memory, so it is fetched; with several it lies in the caches after the
  // first, and the next one is on its way meanwhile, each block's share of it.
  Ahead ahead(const uint8_t* panel, const uint8_t* next, int64_t block) const {
    if (num_blocks == 1) return {panel + fetch_distance(num_rows), panel_bytes / num_units};
    int64_t share = panel_bytes / num_blocks;
    return {next + block * share, share / num_units + 1};
  }
};

// The product of one block with one panel.
using Multiply = void (*)(const Block&, const Panel&, Ahead);

// One row of x: `width` values, each to be multiplied by its factor unless `factors` is null.
struct Row {
  const void* values;
  bool is_float;  // else bfloat16
  int64_t width;
  const float* factors;
};

// Writes a row's units one after the other.
using Prepare = RowScale (*)(const Row&, uint32_t* units);

// Up to `max_rows` rows of units, `stride` bytes apart, to be made a block's units: [num_units, num_rows].
struct Rows {
  const char* first;
  int64_t stride;
  int64_t num_rows;
  int64_t num_units;
};

using Interleave = void (*)(const Rows&, uint32_t* units);

struct Kernels {
  int64_t max_rows;  // of a block
  Prepare quantize;  // to uint8, four a unit
  Prepare round;     // to bfloat16, two a unit
  Interleave interleave;
  Multiply w8a8;
  Multiply w8a16;
  Multiply bf16;
  bool has_fast_int8;
  bool has_fast_bfloat16;
};

Kernels portable_kernels();
Kernels fast_kernels();  // as far as the instruction set of this build has them; else the portable ones

}  // namespace tokenmill_linear
