// Packed linears with AVX-512: vpdpbusd for uint8 activations; vdpbf16ps, where the processor has it, for bfloat16.
#include "linear.h"

// GCC 12 warns of its own headers' undefined registers.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define TOKENMILL_BF16 1
#endif

#include <immintrin.h>

#include <array>
#include <utility>

namespace tokenmill_linear {
namespace {

// 32 registers: two columns' worth of sums a row, two of weights, one of activations.
constexpr int64_t kMaxRows = 14;

inline __mmask16 columns_mask(int64_t width, int64_t first) {
  int64_t left = width - first;
  return left >= 16 ? __mmask16{0xffff} : left <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << left) - 1);
}

// To nearest, ties to even.
inline __m256i to_bfloat16(__m512 x) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(bits, 16), is_nan, _mm512_set1_epi32(0x7fc0)));
}

inline void store(const Block& block, int64_t row, int64_t first, __mmask16 mask, __m512 values) {
  int64_t place = row * block.output_stride + first;
  if (block.is_float) {
    _mm512_mask_storeu_ps(static_cast<float*>(block.output) + place, mask, values);
  } else {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(block.output) + place, mask, to_bfloat16(values));
  }
}

struct Columns {
  __mmask16 mask;
  __m512 scales, sums, bias;

  Columns(const Panel& panel, int64_t first) : mask(columns_mask(panel.width, first)) {
    scales = load_or(panel.scales, first, 1);
    sums = load_or(panel.sums, first, 0);
    bias = load_or(panel.bias, first, 0);
  }

  __m512 load_or(const float* values, int64_t first, float otherwise) const {
    return values ? _mm512_maskz_loadu_ps(mask, values + first) : _mm512_set1_ps(otherwise);
  }
};

inline __m512 scaled(__m512 sum, const RowScale& row, const Columns& columns) {
  __m512 centred = _mm512_fnmadd_ps(_mm512_set1_ps(row.zero_point), columns.sums, sum);
  __m512 scale = _mm512_mul_ps(_mm512_set1_ps(row.scale), columns.scales);
  return _mm512_fmadd_ps(scale, centred, columns.bias);
}

// GCC 12 copies and spills the sums around its intrinsics of these two; told so, it keeps them where they are.
inline void add_products(__m512i& sums, __m512i activations, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(activations), "v"(weights));
}

#if TOKENMILL_BF16
inline void add_products(__m512& sums, __m512i activations, __m512i weights) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(activations), "v"(weights));
}
#endif

inline __m512 as_float(__m512i sums) { return _mm512_cvtepi32_ps(sums); }
inline __m512 as_float(__m512 sums) { return sums; }

// From memory no nearer than the second-level cache: a core waits for more lines there than in the first level, where
// they would also drive out what is being multiplied. At most 128 bytes are asked for with one unit, so these are all
// the lines there are.
inline void fetch(Ahead& ahead) {
  _mm_prefetch(ahead.from, _MM_HINT_T1);
  _mm_prefetch(ahead.from + ahead.step - 64, _MM_HINT_T1);
  ahead.from += ahead.step;
}

// What has come that far, on its last way into the first level.
constexpr int64_t kNearby = 512;  // bytes

template <int UnitBytes>
inline void fetch_nearby(const uint8_t* weights) {
#pragma GCC unroll 2
  for (int line = 0; line < UnitBytes; line += 64) _mm_prefetch(weights + kNearby + line, _MM_HINT_T0);
}

template <int Rows, typename Sums>
inline void finish(const Block& block, const Panel& panel, Sums (&sums)[Rows][2]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Columns columns(panel, 16 * half);
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      __m512 values = scaled(as_float(sums[row][half]), block.rows[row], columns);
      store(block, row, 16 * half, columns.mask, values);
    }
  }
}

template <int Rows, typename Sums>
inline void add_unit(Sums (&sums)[Rows][2], const uint32_t* units, __m512i left, __m512i right) {
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
    __m512i activations = _mm512_set1_epi32(static_cast<int>(units[row]));
    add_products(sums[row][0], activations, left);
    add_products(sums[row][1], activations, right);
  }
}

// Weights that the instruction takes as they lie: int8 with Sums = __m512i, bfloat16 with Sums = __m512.
template <int Rows, typename Sums>
void multiply_plain(const Block& block, const Panel& panel, Ahead ahead) {
  Sums sums[Rows][2] = {};
  const uint8_t* weights = panel.weights;
  const uint32_t* units = block.units;
  for (int64_t unit = 0; unit < block.num_units; ++unit, units += Rows, weights += 128) {
    fetch(ahead);
    fetch_nearby<128>(weights);
    add_unit<Rows>(sums, units, _mm512_loadu_si512(weights), _mm512_loadu_si512(weights + 64));
  }
  finish<Rows>(block, panel, sums);
}

#if TOKENMILL_BF16

// The bytes of the bfloat16 of 0 ... 127; a weight is a sign and such a magnitude.
struct Magnitudes {
  __m512i high[2], low[2];

  Magnitudes() {
    alignas(64) uint8_t bytes[2][128];
    for (int value = 0; value < 128; ++value) {
      uint32_t bits = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(static_cast<float>(value)))));
      bytes[0][value] = static_cast<uint8_t>(bits >> 24);
      bytes[1][value] = static_cast<uint8_t>(bits >> 16);
    }
    for (int half = 0; half < 2; ++half) {
      high[half] = _mm512_load_si512(bytes[0] + 64 * half);
      low[half] = _mm512_load_si512(bytes[1] + 64 * half);
    }
  }
};

// Weights as signs and magnitudes, made bfloat16 by looking their two bytes up.
template <int Rows>
void multiply_w8a16(const Block& block, const Panel& panel, Ahead ahead) {
  static const Magnitudes magnitudes;
  const __m512i high0 = magnitudes.high[0], high1 = magnitudes.high[1];
  const __m512i low0 = magnitudes.low[0], low1 = magnitudes.low[1];
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512 sums[Rows][2] = {};
  const uint8_t* weights = panel.weights;
  const uint32_t* units = block.units;
  for (int64_t unit = 0; unit < block.num_units; ++unit, units += Rows, weights += 64) {
    __m512i packed = _mm512_loadu_si512(weights);
    fetch(ahead);
    fetch_nearby<64>(weights);
    __m512i high = _mm512_permutex2var_epi8(high0, packed, high1);
    high = _mm512_ternarylogic_epi64(high, packed, sign, 0xf8);  // high | (packed & sign)
    __m512i low = _mm512_permutex2var_epi8(low0, packed, low1);
    add_unit<Rows>(sums, units, _mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
  }
  finish<Rows>(block, panel, sums);
}

#endif

// 16 values; beyond the row's end zeros.
inline __m512 load(const Row& row, int64_t first) {
  __mmask16 mask = columns_mask(row.width, first);
  __m512 values;
  if (row.is_float) {
    values = _mm512_maskz_loadu_ps(mask, static_cast<const float*>(row.values) + first);
  } else {
    __m256i halves = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(row.values) + first);
    values = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  return row.factors ? _mm512_mul_ps(values, _mm512_maskz_loadu_ps(mask, row.factors + first)) : values;
}

RowScale quantize(const Row& row, uint32_t* units) {
  __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
  __mmask16 strange = 0;  // infinity or NaN: 0 times it is not 0
  for (int64_t k = 0; k < row.width; k += 16) {
    __m512 x = load(row, k);
    low = _mm512_min_ps(low, x), high = _mm512_max_ps(high, x);
    strange |= _mm512_cmp_ps_mask(_mm512_mul_ps(x, _mm512_setzero_ps()), _mm512_setzero_ps(), _CMP_NEQ_UQ);
  }
  RowScale levels = row_scale(_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), strange == 0);
  __m512 inverse = _mm512_set1_ps(levels.scale > 0 ? 1 / levels.scale : 0);
  __m512 zero_point = _mm512_set1_ps(levels.zero_point);
  int64_t num_units = (row.width + 3) / 4;
  for (int64_t unit = 0; unit < num_units; unit += 4) {
    __m512 x = load(row, 4 * unit);
    __m512i values = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, inverse, zero_point));
    values = _mm512_max_epi32(values, _mm512_setzero_si512());
    _mm_mask_storeu_epi32(units + unit, columns_mask(num_units, unit), _mm512_cvtusepi32_epi8(values));
  }
  return levels;
}

RowScale round_to_bfloat16(const Row& row, uint32_t* units) {
  int64_t num_units = (row.width + 1) / 2;
  for (int64_t unit = 0; unit < num_units; unit += 8) {
    __m256i pairs = to_bfloat16(load(row, 2 * unit));
    _mm256_mask_storeu_epi32(units + unit, columns_mask(num_units, unit), pairs);
  }
  return {1, 0};
}

// 16 rows of 16 units to 16 units of 16 rows: first within their quarters, then the quarters.
inline void transpose(__m512i (&rows)[16]) {
  __m512i pairs[16];
#pragma GCC unroll 8
  for (int row = 0; row < 16; row += 2) {
    pairs[row] = _mm512_unpacklo_epi32(rows[row], rows[row + 1]);
    pairs[row + 1] = _mm512_unpackhi_epi32(rows[row], rows[row + 1]);
  }
#pragma GCC unroll 4
  for (int row = 0; row < 16; row += 4) {
    rows[row] = _mm512_unpacklo_epi64(pairs[row], pairs[row + 2]);
    rows[row + 1] = _mm512_unpackhi_epi64(pairs[row], pairs[row + 2]);
    rows[row + 2] = _mm512_unpacklo_epi64(pairs[row + 1], pairs[row + 3]);
    rows[row + 3] = _mm512_unpackhi_epi64(pairs[row + 1], pairs[row + 3]);
  }
#pragma GCC unroll 4
  for (int unit = 0; unit < 4; ++unit) {
    __m512i even[2], odd[2];
    for (int half = 0; half < 2; ++half) {
      even[half] = _mm512_shuffle_i32x4(rows[8 * half + unit], rows[8 * half + 4 + unit], 0x88);
      odd[half] = _mm512_shuffle_i32x4(rows[8 * half + unit], rows[8 * half + 4 + unit], 0xdd);
    }
    rows[unit] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
    rows[unit + 4] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
    rows[unit + 8] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
    rows[unit + 12] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
  }
}

void interleave(const Rows& rows, uint32_t* units) {
  const __mmask16 is_row = columns_mask(rows.num_rows, 0);
  for (int64_t first = 0; first < rows.num_units; first += 16) {
    const __mmask16 is_unit = columns_mask(rows.num_units, first);
    __m512i square[16] = {};
    for (int64_t row = 0; row < rows.num_rows; ++row)
      square[row] = _mm512_maskz_loadu_epi32(is_unit, rows.first + row * rows.stride + 4 * first);
    transpose(square);
    const int64_t count = rows.num_units - first < 16 ? rows.num_units - first : 16;
    for (int64_t unit = 0; unit < count; ++unit)
      _mm512_mask_storeu_epi32(units + (first + unit) * rows.num_rows, is_row, square[unit]);
  }
}

using Indexes = std::make_index_sequence<kMaxRows>;

template <typename Sums, std::size_t... Index>
constexpr std::array<Multiply, kMaxRows> plain_of_rows(std::index_sequence<Index...>) {
  return {multiply_plain<static_cast<int>(Index) + 1, Sums>...};
}

void w8a8(const Block& block, const Panel& panel, Ahead ahead) {
  static constexpr auto kernels = plain_of_rows<__m512i>(Indexes());
  kernels[block.num_rows - 1](block, panel, ahead);
}

#if TOKENMILL_BF16

template <std::size_t... Index>
constexpr std::array<Multiply, kMaxRows> w8a16_of_rows(std::index_sequence<Index...>) {
  return {multiply_w8a16<static_cast<int>(Index) + 1>...};
}

void w8a16(const Block& block, const Panel& panel, Ahead ahead) {
  static constexpr auto kernels = w8a16_of_rows(Indexes());
  kernels[block.num_rows - 1](block, panel, ahead);
}

void bf16(const Block& block, const Panel& panel, Ahead ahead) {
  static constexpr auto kernels = plain_of_rows<__m512>(Indexes());
  kernels[block.num_rows - 1](block, panel, ahead);
}

#endif

}  // namespace

Kernels fast_kernels() {
  Kernels kernels = portable_kernels();
  kernels.max_rows = kMaxRows;
  kernels.quantize = quantize;
  kernels.round = round_to_bfloat16;
  kernels.interleave = interleave;
  kernels.w8a8 = w8a8;
  kernels.has_fast_int8 = true;
#if TOKENMILL_BF16
  kernels.w8a16 = w8a16;
  kernels.bf16 = bf16;
  kernels.has_fast_bfloat16 = true;
#endif
  return kernels;
}

}  // namespace tokenmill_linear

#else

namespace tokenmill_linear {
Kernels fast_kernels() { return portable_kernels(); }
}  // namespace tokenmill_linear

#endif
