// The packed linears' kernels in plain C++: right on every processor; the fast ones are held to them by tests.
#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace tokenmill_linear {
namespace {

constexpr int64_t kMaxRows = 8;

float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float value_at(const Row& row, int64_t index) {
  float value = row.is_float ? static_cast<const float*>(row.values)[index]
                             : from_bfloat16(static_cast<const uint16_t*>(row.values)[index]);
  return row.factors ? value * row.factors[index] : value;
}

RowScale quantize(const Row& row, uint32_t* units) {
  float low = 0, high = 0;
  bool is_finite = true;
  for (int64_t k = 0; k < row.width; ++k) {
    float value = value_at(row, k);
    low = std::min(low, value), high = std::max(high, value);
    is_finite &= std::isfinite(value);
  }
  RowScale levels = row_scale(low, high, is_finite);
  float inverse = levels.scale > 0 ? 1 / levels.scale : 0;
  for (int64_t unit = 0; unit * 4 < row.width; ++unit) {
    uint32_t packed = 0;
    for (int64_t k = 4 * unit; k < std::min(row.width, 4 * unit + 4); ++k) {
      float level = std::nearbyint(std::fma(value_at(row, k), inverse, levels.zero_point));
      packed |= uint32_t(is_finite ? std::clamp(level, 0.0f, 255.0f) : 0.0f) << (8 * (k % 4));
    }
    units[unit] = packed;
  }
  return levels;
}

RowScale round_to_bfloat16(const Row& row, uint32_t* units) {
  for (int64_t unit = 0; unit * 2 < row.width; ++unit) {
    uint32_t packed = to_bfloat16(value_at(row, 2 * unit));
    if (2 * unit + 1 < row.width) packed |= uint32_t(to_bfloat16(value_at(row, 2 * unit + 1))) << 16;
    units[unit] = packed;
  }
  return {1, 0};
}

void interleave(const Rows& rows, uint32_t* units) {
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const char* from = rows.first + row * rows.stride;
    for (int64_t unit = 0; unit < rows.num_units; ++unit)
      std::memcpy(units + unit * rows.num_rows + row, from + 4 * unit, 4);
  }
}

void store(const Block& block, const Panel& panel, int64_t row, int64_t column, float sum) {
  const RowScale& own = block.rows[row];
  float centred = std::fma(-own.zero_point, panel.sums ? panel.sums[column] : 0, sum);
  float scale = own.scale * (panel.scales ? panel.scales[column] : 1);
  float value = std::fma(scale, centred, panel.bias ? panel.bias[column] : 0);
  int64_t place = row * block.output_stride + column;
  if (block.is_float) {
    static_cast<float*>(block.output)[place] = value;
  } else {
    static_cast<uint16_t*>(block.output)[place] = to_bfloat16(value);
  }
}

void w8a8(const Block& block, const Panel& panel, Ahead) {
  for (int64_t row = 0; row < block.num_rows; ++row) {
    int32_t sums[kColumns] = {};
    for (int64_t unit = 0; unit < block.num_units; ++unit) {
      uint32_t packed = block.units[unit * block.num_rows + row];
      auto weights = reinterpret_cast<const int8_t*>(panel.weights) + unit * 4 * kColumns;
      for (int64_t column = 0; column < kColumns; ++column)
        for (int64_t k = 0; k < 4; ++k) sums[column] += int32_t((packed >> (8 * k)) & 255) * weights[4 * column + k];
    }
    for (int64_t column = 0; column < panel.width; ++column)
      store(block, panel, row, column, static_cast<float>(sums[column]));
  }
}

// Where in a unit of 64 bytes the two weights of a column lie: as the fast kernel's unpacking wants them.
int64_t pair_of(int64_t column) {
  int64_t half = column / 16, lane = column % 16 / 4, place = column % 4;
  return 16 * lane + 8 * half + 2 * place;
}

float magnitude_and_sign(uint8_t weight) { return weight & 128 ? -float(weight & 127) : float(weight & 127); }

// `weight(k, column)` of the two in a unit.
template <typename Weight>
void multiply_bfloat16(const Block& block, const Panel& panel, int64_t unit_bytes, Weight weight) {
  for (int64_t row = 0; row < block.num_rows; ++row) {
    float sums[kColumns] = {};
    for (int64_t unit = 0; unit < block.num_units; ++unit) {
      uint32_t packed = block.units[unit * block.num_rows + row];
      float even = from_bfloat16(static_cast<uint16_t>(packed)), odd = from_bfloat16(static_cast<uint16_t>(packed >> 16));
      const uint8_t* weights = panel.weights + unit * unit_bytes;
      for (int64_t column = 0; column < kColumns; ++column)
        sums[column] += even * weight(weights, column, 0) + odd * weight(weights, column, 1);
    }
    for (int64_t column = 0; column < panel.width; ++column) store(block, panel, row, column, sums[column]);
  }
}

void w8a16(const Block& block, const Panel& panel, Ahead) {
  multiply_bfloat16(block, panel, 2 * kColumns, [](const uint8_t* weights, int64_t column, int64_t k) {
    return magnitude_and_sign(weights[pair_of(column) + k]);
  });
}

void bf16(const Block& block, const Panel& panel, Ahead) {
  multiply_bfloat16(block, panel, 4 * kColumns, [](const uint8_t* weights, int64_t column, int64_t k) {
    return from_bfloat16(reinterpret_cast<const uint16_t*>(weights)[2 * column + k]);
  });
}

}  // namespace

RowScale row_scale(float low, float high, bool is_finite) {
  constexpr float kSmallest = 1e-30f;  // below it the row is zero; its inverse must stay finite
  if (!is_finite || !std::isfinite(high - low)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  float scale = (high - low) / 255;
  if (scale < kSmallest) return {0, 0};
  return {scale, std::nearbyint(-low / scale)};
}

Kernels portable_kernels() { return {kMaxRows, quantize, round_to_bfloat16, interleave, w8a8, w8a16, bf16, false, false}; }

}  // namespace tokenmill_linear
