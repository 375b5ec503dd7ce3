// A step's tokens as the attention takes them: queries and keys are rotated on the way, keys and values go into pages.
#pragma once

#include "kernels.h"

namespace tokenmill {

template <class T>
class Tokens {
 public:
  Tokens(Heads<const T> query, Heads<const T> key, Heads<const T> value, const Rope& rope, Pages<T> pages,
         const Step& step, const Layer& layer)
      : query_(query), key_(key), value_(value), rope_(rope), pages_(pages), step_(step), layer_(layer) {}

  // The query as it multiplies keys; `space` takes it where it must be rotated.
  const T* query(int64_t token, int64_t head, T* space) const { return turned(query_.at(token, head), token, space); }

  // Puts a token's key and value into its slot, in the order that kernels.h describes.
  void store(int64_t token, int64_t kv_head) const {
    const int64_t slot = step_.slots[token], tile = slot / PAGE_SIZE * layer_.kv_heads + kv_head;
    T space[MAX_KEY_DIM];
    write_key(pages_.keys + tile * PAGE_SIZE * layer_.key_dim, slot % PAGE_SIZE,
              turned(key_.at(token, kv_head), token, space));
    write_value(pages_.values + tile * PAGE_SIZE * layer_.value_dim, slot % PAGE_SIZE, value_.at(token, kv_head));
  }

 private:
  static constexpr int64_t PER_WORD = 4 / sizeof(T);

  const T* turned(const T* x, int64_t token, T* space) const {
    if (rope_.rotary == 0) return x;
    if (rope_.is_float) {
      rotate(x, static_cast<const float*>(rope_.cos), static_cast<const float*>(rope_.sin), token, space);
    } else {
      rotate(x, static_cast<const T*>(rope_.cos), static_cast<const T*>(rope_.sin), token, space);
    }
    return space;
  }

  template <class C>
  void rotate(const T* x, const C* all_cos, const C* all_sin, int64_t token, T* out) const {
    const int64_t rotary = rope_.rotary, half = rotary / 2;
    const C *cos = all_cos + token * rotary, *sin = all_sin + token * rotary;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) turn<C>(x + i, cos + i, sin + i, half, LANES, out + i);
    if (i < half) turn<C>(x + i, cos + i, sin + i, half, static_cast<int>(half - i), out + i);
    std::memcpy(out + rotary, x + rotary, (layer_.key_dim - rotary) * sizeof(T));
  }

  // n values and their partners, `half` further on.
  template <class C>
  static inline __attribute__((always_inline)) void turn(const T* x, const C* cos, const C* sin, int64_t half, int n,
                                                         T* out) {
    const Floats left = load_floats(x, n), right = load_floats(x + half, n);
    tokenmill::store(out, left * load_floats(cos, n) - right * load_floats(sin, n), n);
    tokenmill::store(out + half, right * load_floats(cos + half, n) + left * load_floats(sin + half, n), n);
  }

  void write_key(T* tile, int64_t offset, const T* key) const {
    char* to = reinterpret_cast<char*>(tile) + 4 * offset;
    for (int64_t word = 0; word < layer_.key_dim / PER_WORD; ++word) {
      std::memcpy(to + word * 4 * PAGE_SIZE, key + word * PER_WORD, 4);
    }
  }

  void write_value(T* tile, int64_t offset, const T* value) const {
    T* to = tile + offset / PER_WORD * layer_.value_dim * PER_WORD + offset % PER_WORD;
    for (int64_t i = 0; i < layer_.value_dim; ++i) to[i * PER_WORD] = value[i];
  }

  const Heads<const T> query_, key_, value_;
  const Rope rope_;
  const Pages<T> pages_;
  const Step& step_;
  const Layer& layer_;
};

}  // namespace tokenmill
