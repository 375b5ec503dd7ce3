// What works on one token's features at a time: norms, gated activations, arg-max.
#include <cmath>

#include "kernels.h"

namespace tokenmill {
namespace {

constexpr int64_t GRAIN = 2048;  // elements worth waking another thread for

int64_t rows_of_grain(int64_t width) { return GRAIN / width + 1; }

// residual += x, rounded as it is stored; returns the sum of squares of what is stored.
template <class T>
float add_and_square(T* residual, const T* x, int64_t width) {
  Floats squares{};
  for_vectors(width, [&](int64_t i, int n) {
    const Floats total = rounded<T>(load_floats(residual + i, n) + load_floats(x + i, n));
    store(residual + i, total, n);
    squares += total * total;
  });
  return sum(squares);
}

template <class T>
float square(const T* x, int64_t width) {
  Floats squares{};
  for_vectors(width, [&](int64_t i, int n) {
    const Floats value = load_floats(x + i, n);
    squares += value * value;
  });
  return sum(squares);
}

// transformers rounds between the two products where the weight stands for itself (Llama), and not where it stands
// for its distance from one (Gemma).
template <class T>
void scale_by_weight(const T* x, const T* weight, float factor, float offset, int64_t width, T* out) {
  for_vectors(width, [&](int64_t i, int n) {
    const Floats normed = load_floats(x + i, n) * factor;
    const Floats by = load_floats(weight + i, n);
    store(out + i, offset == 0.0f ? rounded<T>(normed) * by : normed * (by + offset), n);
  });
}

Floats silu(Floats x) { return x / (1.0f + exp(-x)); }

Floats gelu_tanh(Floats x) { return 0.5f * x * (1.0f + tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }

template <class T, class F>
void gate(const T* gate_up, int64_t rows, int64_t width, T* out, F&& activate) {
  parallel_for(rows, rows_of_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = gate_up + row * 2 * width;
      for_vectors(width, [&](int64_t i, int n) {
        const Floats open = rounded<T>(activate(load_floats(gate + i, n)));
        store(out + row * width + i, open * load_floats(gate + width + i, n), n);
      });
    }
  });
}

template <class T>
int64_t argmax_row(const T* logits, int64_t width) {
  Floats largest = all(-INFINITY);
  Ints is_nan{};
  for_vectors(width, [&](int64_t i, int n) {
    const Floats values = lane_numbers() < n ? load_floats(logits + i, n) : all(-INFINITY);
    is_nan |= values != values;
    largest = values > largest ? values : largest;
  });
  if (any(is_nan)) return -1;
  const float top = max(largest);
  for (int64_t i = 0;; i += LANES) {
    const int n = width - i < LANES ? static_cast<int>(width - i) : LANES;
    const Floats values = load_floats(logits + i, n);
    if (!any(values == top)) continue;
    for (int lane = 0; lane < n; ++lane) {
      if (values[lane] == top) return i + lane;
    }
  }
}

}  // namespace

template <class T>
void rms_norm(T* residual, const T* x, const T* weight, float eps, float offset, int64_t rows, int64_t width, T* out) {
  parallel_for(rows, rows_of_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* own = x + row * width;
      T* stream = residual == nullptr ? nullptr : residual + row * width;
      const float squares = stream == nullptr ? square(own, width) : add_and_square(stream, own, width);
      const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
      scale_by_weight(stream == nullptr ? own : stream, weight, factor, offset, width, out + row * width);
    }
  });
}

template <class T>
void act_mul(const T* gate_up, Activation activation, int64_t rows, int64_t width, T* out) {
  switch (activation) {
    case Activation::silu: return gate(gate_up, rows, width, out, silu);
    case Activation::gelu_tanh: return gate(gate_up, rows, width, out, gelu_tanh);
  }
}

template <class T>
void argmax(const T* logits, int64_t rows, int64_t width, int64_t* out) {
  parallel_for(rows, rows_of_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) out[row] = argmax_row(logits + row * width, width);
  });
}

template void rms_norm(float*, const float*, const float*, float, float, int64_t, int64_t, float*);
template void rms_norm(bf16*, const bf16*, const bf16*, float, float, int64_t, int64_t, bf16*);
template void act_mul(const float*, Activation, int64_t, int64_t, float*);
template void act_mul(const bf16*, Activation, int64_t, int64_t, bf16*);
template void argmax(const float*, int64_t, int64_t, int64_t*);
template void argmax(const bf16*, int64_t, int64_t, int64_t*);

}  // namespace tokenmill
