// What the ops call and the kernels are: plain pointers and sizes, so that no kernel waits for torch's headers.
#pragma once

#include <cstdint>

#include "team.h"
#include "vec.h"

namespace tokenmill {

inline constexpr int64_t PAGE_SIZE = 32;  // tokens, as in engine/batch.py
inline constexpr int64_t MAX_KEY_DIM = 1024;

// engine/batch.py's PackedBatch: row r owns tokens [row_starts[r], row_starts[r + 1]) and its pages.
struct Step {
  int64_t num_rows;
  int64_t num_tokens;
  const int32_t* row_starts;
  const int32_t* context_lens;
  const int32_t* page_ids;
  const int32_t* page_starts;
  const int32_t* slots;
};

// Tokens x heads x dim, the last dimension dense; strides in elements.
template <class T>
struct Heads {
  T* data;
  int64_t token_stride;
  int64_t head_stride;
  T* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct Layer {
  int64_t heads;
  int64_t kv_heads;
  int64_t key_dim;
  int64_t value_dim;
  float scale;
  int64_t window;      // a token sees itself and the window - 1 before it; INT64_MAX: all
  float softcap;       // 0: none
  const float* sinks;  // [heads] or nullptr
};

// A page holds, per KV head, PAGE_SIZE keys and values in the order in which attend() multiplies them, not as [32, D]:
//   keys    [key_dim / W][32][W]    values  [32 / W][value_dim][W]    with W elements to a 32-bit word.
// So a vector holds one word of 16 keys, or one of 16 value dimensions, and no sum over lanes is ever needed.
template <class T>
struct Pages {
  T* keys;
  T* values;
};

// Half-split rotary embedding of the first `rotary` dimensions of queries and keys; 0: of none.
struct Rope {
  const void* cos;  // [tokens][rotary]
  const void* sin;
  int64_t rotary;
  bool is_float;  // else of the tokens' own type
};

// Stores the step's keys and values, then attends. result [tokens][heads][value_dim]
template <class T>
void attend(Heads<const T> query, Heads<const T> key, Heads<const T> value, const Rope& rope, Pages<T> pages,
            const Step& step, const Layer& layer, T* result);

template <class T>
void rms_norm(T* residual, const T* x, const T* weight, float eps, float offset, int64_t rows, int64_t width, T* out);

enum class Activation { silu, gelu_tanh };
template <class T>
void act_mul(const T* gate_up, Activation activation, int64_t rows, int64_t width, T* out);

// -1 for a row that holds a NaN, else the lowest index of its maximum.
template <class T>
void argmax(const T* logits, int64_t rows, int64_t width, int64_t* out);

}  // namespace tokenmill
