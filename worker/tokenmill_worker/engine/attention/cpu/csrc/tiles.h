// The two products with a page's tiles (kernels.h): queries with keys, weights with values. Sums stay in registers.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace tokenmill {

inline constexpr int SCORE_VECTORS = PAGE_SIZE / LANES;
// As many sums as fit the registers beside the operands: rows times SCORE_VECTORS, rows times VALUE_VECTORS.
inline constexpr int SCORE_ROWS = LANES == 16 ? 8 : 2;
inline constexpr int VALUE_VECTORS = LANES == 16 ? 4 : 2;
inline constexpr int VALUE_ROWS = LANES == 16 ? 6 : 2;

// How elements lie in 32-bit words, and the product of two vectors of words added to float32 sums.
template <class T>
struct Packed;

template <>
struct Packed<float> {
  using Word = float;
  using Vector = Floats;
  static constexpr int PER_WORD = 1;
  static Floats dot(Floats total, Floats a, Floats b) { return total + a * b; }
  static Floats keep(Floats words, uint32_t) { return words; }
  static Floats exp2(Floats x) { return tokenmill::exp2(x); }
};

template <>
struct Packed<bf16> {
  using Word = uint32_t;
  using Vector = Words;
  static constexpr int PER_WORD = 2;
  static Floats dot(Floats total, Words a, Words b) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
    total += (Floats)(a << 16) * (Floats)(b << 16);
    return total + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#endif
  }
  static Words keep(Words words, uint32_t bits) { return words & bits; }
  static Floats exp2(Floats x) { return exp2_roughly(x); }
};

// Fetches what lies `distance` bytes from here. Pages lie anywhere, so the processor cannot guess which comes next; and
// a line with each few products, not a page at once, because a core can only wait for so many. Into the second level:
// the first has too few misses in flight for a core to reach the memory's speed.
inline void fetch(const char* here, ptrdiff_t distance) { __builtin_prefetch(here + distance, 0, 2); }

// `Fetches`: the tile that lies `distance` bytes from this one is on its way meanwhile.
template <class T, int M, bool Fetches>
void score_rows(const typename Packed<T>::Word* queries, int64_t query_stride, const T* tile, int64_t num_words,
                ptrdiff_t distance, float* scores) {
  using P = Packed<T>;
  const auto* keys = reinterpret_cast<const char*>(tile);
  Floats sums[M][SCORE_VECTORS] = {};
  for (int64_t word = 0; word < num_words; ++word, keys += PAGE_SIZE * 4, queries += query_stride) {
    typename P::Vector key[SCORE_VECTORS];
    for (int v = 0; v < SCORE_VECTORS; ++v) key[v] = load<typename P::Vector>(keys + v * LANES * 4);
    if constexpr (Fetches) {
      for (int64_t line = 0; line < PAGE_SIZE * 4; line += 64) fetch(keys + line, distance);
    }
    for (int m = 0; m < M; ++m) {
      const auto query = all(queries[m]);
      for (int v = 0; v < SCORE_VECTORS; ++v) sums[m][v] = P::dot(sums[m][v], key[v], query);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < SCORE_VECTORS; ++v) store(scores + m * PAGE_SIZE + v * LANES, sums[m][v]);
  }
}

// V vectors of value dimensions. `words` [first, last) of weights.
template <class T, int M, int V, bool Fetches>
void add_values(const typename Packed<T>::Word* weights, const T* tile, int64_t value_dim, int64_t first, int64_t last,
                ptrdiff_t distance, float* sums, int64_t stride) {
  using P = Packed<T>;
  const auto* values = reinterpret_cast<const char*>(tile) + first * value_dim * 4;
  Floats sum[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) sum[m][v] = load_floats(sums + m * stride + v * LANES);
  }
  for (int64_t word = first; word < last; ++word, values += value_dim * 4) {
    typename P::Vector value[V];
    for (int v = 0; v < V; ++v) value[v] = load<typename P::Vector>(values + v * LANES * 4);
    if constexpr (Fetches) {
      for (int64_t line = 0; line < V * LANES * 4; line += 64) fetch(values + line, distance);
    }
    for (int m = 0; m < M; ++m) {
      const auto weight = all(weights[m * (PAGE_SIZE / P::PER_WORD) + word]);
      for (int v = 0; v < V; ++v) sum[m][v] = P::dot(sum[m][v], value[v], weight);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) store(sums + m * stride + v * LANES, sum[m][v]);
  }
}

// One vector, of which `count` elements are value dimensions; of each word only the `kept` bits.
template <class T>
void add_some_values(const typename Packed<T>::Word* weights, const T* tile, int64_t value_dim, int64_t first,
                     int64_t last, uint32_t kept, int count, float* sums) {
  using P = Packed<T>;
  const auto* values = reinterpret_cast<const char*>(tile);
  Floats sum = load_floats(sums);
  for (int64_t word = first; word < last; ++word) {
    const auto value = load<typename P::Vector>(values + word * value_dim * 4, count);
    sum = P::dot(sum, P::keep(value, kept), all(weights[word]));
  }
  store(sums, sum);
}

// body.template operator()<M>(first row) over all rows, M at a time, the remainder in one piece.
template <int M, class F>
void for_rows(int64_t begin, int64_t end, F&& body) {
  if constexpr (M > 0) {
    for (; begin + M <= end; begin += M) body.template operator()<M>(begin);
    for_rows<M - 1>(begin, end, body);
  }
}

}  // namespace tokenmill
