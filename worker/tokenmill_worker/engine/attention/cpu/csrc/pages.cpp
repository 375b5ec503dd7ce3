// Writes a step's keys and values into their pages, in the order that kernels.h describes; rotates them first if asked.
#include <cstring>

#include "kernels.h"

namespace tokenmill {
namespace {

constexpr int64_t GRAIN = 8;  // tokens

template <class T>
constexpr int64_t PER_WORD = 4 / sizeof(T);

template <class T>
T* tile(T* pages, int64_t slot, int64_t head, int64_t kv_heads, int64_t dim) {
  return pages + ((slot / PAGE_SIZE) * kv_heads + head) * PAGE_SIZE * dim;
}

template <class T>
void write_key(T* tile, int64_t offset, const T* key, int64_t dim) {
  char* to = reinterpret_cast<char*>(tile) + 4 * offset;
  for (int64_t word = 0; word < dim / PER_WORD<T>; ++word) {
    std::memcpy(to + word * 4 * PAGE_SIZE, key + word * PER_WORD<T>, 4);
  }
}

template <class T>
void write_value(T* tile, int64_t offset, const T* value, int64_t dim) {
  T* to = tile + offset / PER_WORD<T> * dim * PER_WORD<T> + offset % PER_WORD<T>;
  for (int64_t i = 0; i < dim; ++i) to[i * PER_WORD<T>] = value[i];
}

template <class T, class C>
void rotate(const T* x, const C* cos, const C* sin, int64_t rotary, int64_t dim, T* out) {
  const int64_t half = rotary / 2;
  for_vectors(half, [&](int64_t i, int n) {
    const Floats left = load_floats(x + i, n), right = load_floats(x + half + i, n);
    const Floats turned_left = left * load_floats(cos + i, n) - right * load_floats(sin + i, n);
    const Floats turned_right = right * load_floats(cos + half + i, n) + left * load_floats(sin + half + i, n);
    store(out + i, turned_left, n);
    store(out + half + i, turned_right, n);
  });
  std::memcpy(out + rotary, x + rotary, (dim - rotary) * sizeof(T));
}

}  // namespace

template <class T>
void store_pages(Heads<const T> key, Heads<const T> value, Pages<T> pages, const Step& step, const Layer& layer) {
  parallel_for(step.num_tokens, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t slot = step.slots[token], offset = slot % PAGE_SIZE;
      for (int64_t head = 0; head < layer.kv_heads; ++head) {
        T* keys = tile(pages.keys, slot, head, layer.kv_heads, layer.key_dim);
        T* values = tile(pages.values, slot, head, layer.kv_heads, layer.value_dim);
        write_key(keys, offset, key.at(token, head), layer.key_dim);
        write_value(values, offset, value.at(token, head), layer.value_dim);
      }
    }
  });
}

template <class T, class C>
void rope_store(Heads<const T> query, Heads<const T> key, Heads<const T> value, const C* cos, const C* sin,
                int64_t rotary, Heads<T> rotated_query, Pages<T> pages, const Step& step, const Layer& layer) {
  const int64_t dim = layer.key_dim;
  parallel_for(step.num_tokens, GRAIN, [&](int64_t begin, int64_t end) {
    T rotated[MAX_KEY_DIM];
    for (int64_t token = begin; token < end; ++token) {
      const C *own_cos = cos + token * rotary, *own_sin = sin + token * rotary;
      const int64_t slot = step.slots[token], offset = slot % PAGE_SIZE;
      for (int64_t head = 0; head < layer.heads; ++head) {
        rotate(query.at(token, head), own_cos, own_sin, rotary, dim, rotated_query.at(token, head));
      }
      for (int64_t head = 0; head < layer.kv_heads; ++head) {
        rotate(key.at(token, head), own_cos, own_sin, rotary, dim, rotated);
        write_key(tile(pages.keys, slot, head, layer.kv_heads, dim), offset, rotated, dim);
        T* values = tile(pages.values, slot, head, layer.kv_heads, layer.value_dim);
        write_value(values, offset, value.at(token, head), layer.value_dim);
      }
    }
  });
}

template void store_pages(Heads<const float>, Heads<const float>, Pages<float>, const Step&, const Layer&);
template void store_pages(Heads<const bf16>, Heads<const bf16>, Pages<bf16>, const Step&, const Layer&);
template void rope_store(Heads<const float>, Heads<const float>, Heads<const float>, const float*, const float*,
                         int64_t, Heads<float>, Pages<float>, const Step&, const Layer&);
template void rope_store(Heads<const bf16>, Heads<const bf16>, Heads<const bf16>, const float*, const float*, int64_t,
                         Heads<bf16>, Pages<bf16>, const Step&, const Layer&);
template void rope_store(Heads<const bf16>, Heads<const bf16>, Heads<const bf16>, const bf16*, const bf16*, int64_t,
                         Heads<bf16>, Pages<bf16>, const Step&, const Layer&);

}  // namespace tokenmill
