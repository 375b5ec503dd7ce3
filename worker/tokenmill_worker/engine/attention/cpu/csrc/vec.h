// Vectors of floats, written once for every instruction set: the compiler's own vector types, and intrinsics only where
// they do not reach. Knows no torch.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tokenmill {

#if defined(__AVX512F__)
inline constexpr int LANES = 16;
#elif defined(__AVX2__)
inline constexpr int LANES = 8;
#else
inline constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

inline Floats all(float value) { return Floats{} + value; }
inline Words all(uint32_t value) { return Words{} + value; }

// Any vector, from any address.
template <class V>
inline V load(const void* from) {
  V vector;
  std::memcpy(&vector, from, sizeof(V));
  return vector;
}

// The first `count` elements; zeros behind them. Nothing beyond them is read.
template <class V>
inline V load(const void* from, int count) {
  V vector{};
  std::memcpy(&vector, from, count * (sizeof(V) / LANES));
  return vector;
}

inline Floats widened(Halves bits) { return (Floats)(__builtin_convertvector(bits, Words) << 16); }

inline Floats load_floats(const float* from) { return load<Floats>(from); }
inline Floats load_floats(const bf16* from) { return widened(load<Halves>(from)); }
inline Floats load_floats(const float* from, int count) { return load<Floats>(from, count); }
inline Floats load_floats(const bf16* from, int count) { return widened(load<Halves>(from, count)); }

// To the nearest bfloat16, ties to even; a NaN stays one.
inline Halves narrowed(Floats values) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
  const Words bits = (Words)values;
  const Words rounded = (bits + (((bits >> 16) & 1) + 0x7fffu)) >> 16;
  const Words quiet_nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(values == values ? rounded : quiet_nan, Halves);
#endif
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline void store(bf16* to, Floats values) {
  const Halves halves = narrowed(values);
  std::memcpy(to, &halves, sizeof halves);
}
inline void store(float* to, Floats values, int count) { std::memcpy(to, &values, count * sizeof(float)); }
inline void store(bf16* to, Floats values, int count) {
  const Halves halves = narrowed(values);
  std::memcpy(to, &halves, count * sizeof(bf16));
}

// As it would come back after being stored.
template <class T>
inline Floats rounded(Floats values);
template <>
inline Floats rounded<float>(Floats values) { return values; }
template <>
inline Floats rounded<bf16>(Floats values) { return widened(narrowed(values)); }

// 0, 1, 2 ... in the lanes.
inline Ints lane_numbers() {
  Ints numbers;
  for (int i = 0; i < LANES; ++i) numbers[i] = i;
  return numbers;
}

// A vector at a time over [0, count): body(index, number of elements).
template <class F>
inline void for_vectors(int64_t count, F&& body) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) body(i, LANES);
  if (i < count) body(i, static_cast<int>(count - i));
}

inline float sum(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);
#else
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += values[i];
  return total;
#endif
}

inline float max(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)values);
#else
  float largest = values[0];
  for (int i = 1; i < LANES; ++i) largest = values[i] > largest ? values[i] : largest;
  return largest;
#endif
}

inline bool any(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int32_t either = 0;
  for (int i = 0; i < LANES; ++i) either |= mask[i];
  return either != 0;
#endif
}

inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

inline bool is_any_above(Floats values, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)values, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#else
  return any(values > bound);
#endif
}

// Lane i of `values` where bit i is set, else of `others`.
inline Floats chosen(uint32_t bits, Floats values, Floats others) {
#if defined(__AVX512F__)
  return (Floats)_mm512_mask_blend_ps(static_cast<__mmask16>(bits), (__m512)others, (__m512)values);
#else
  return ((static_cast<int32_t>(bits) >> lane_numbers()) & 1) != 0 ? values : others;
#endif
}

// x - round(x) and round(x).
struct Split {
  Floats fraction, whole;
};

inline Split split(Floats x) {
#if defined(__AVX512DQ__)
  const auto fraction = (Floats)_mm512_reduce_ps((__m512)x, 0);
  return {fraction, x - fraction};
#else
  const float magic = 0x1.8p23f;  // pushes the fraction out of the mantissa
  const Floats whole = (x + magic) - magic;
  return {x - whole, whole};
#endif
}

// x times 2^whole.
inline Floats scaled(Floats x, Floats whole) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)x, (__m512)whole);
#else
  return x * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
#endif
}

// 2^x, a minimax polynomial over [-1/2, 1/2]. Below 2^-126 it is 0 or next to it; a NaN stays one.
inline Floats exp2(Floats x) {
#if !defined(__AVX512F__)
  x = x < -127.0f ? all(-127.0f) : x;
  x = x > 128.0f ? all(128.0f) : x;
#endif
  const auto [f, whole] = split(x);
  Floats p = f * 0.00132779389f + 0.009675757641f;
  p = p * f + 0.05550709598f;
  p = p * f + 0.2402211434f;
  p = p * f + 0.6931469682f;
  p = p * f + 1.000000073f;  // to 8e-8
  return scaled(p, whole);
}

// The same to 3e-6: enough for what is rounded to bfloat16.
inline Floats exp2_roughly(Floats x) {
#if defined(__AVX512F__)
  const auto [f, whole] = split(x);
  Floats p = f * 0.009570102f + 0.05591786f;
  p = p * f + 0.240247448f;
  p = p * f + 0.693121815f;
  p = p * f + 0.999999261f;
  return scaled(p, whole);
#else
  return exp2(x);
#endif
}

inline constexpr float LOG2_E = 1.44269504f;

inline Floats exp(Floats x) { return exp2(x * LOG2_E); }
inline Floats tanh(Floats x) { return 1.0f - 2.0f / (exp(x + x) + 1.0f); }

}  // namespace tokenmill
