// The operations behind the ops, for whoever calls several of them at once (layer.cpp). Shapes as in ops.cpp's schemas;
// what comes of it goes to `out`.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace tokenmill {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void rope_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& key_pages,
                    const Tensor& value_pages, const Tensor& row_starts, const Tensor& context_lens,
                    const Tensor& page_ids, const Tensor& page_starts, const Tensor& slots, int64_t num_heads,
                    int64_t num_kv_heads, double scale, std::optional<int64_t> window, std::optional<double> softcap,
                    OptionalTensor sinks, Tensor& out);
void add_rms_norm(const Tensor& residual, const Tensor& x, const Tensor& weight, double eps, double offset,
                  Tensor& out);
void act_mul(const Tensor& gate_up, std::string_view act, Tensor& out);

}  // namespace tokenmill

namespace tokenmill_linear {

// A packed weight with what its format has, as linear.cpp's ops take it one by one.
struct Linear : torch::CustomClassHolder {
  Linear(at::Tensor packed, int64_t num_columns, std::optional<at::Tensor> scales, std::optional<at::Tensor> sums,
         std::optional<at::Tensor> bias, std::optional<at::Tensor> factors, std::string format)
      : packed(std::move(packed)),
        num_columns(num_columns),
        scales(std::move(scales)),
        sums(std::move(sums)),
        bias(std::move(bias)),
        factors(std::move(factors)),
        format(std::move(format)) {}

  // output [T, num_columns]
  void operator()(const at::Tensor& x, at::Tensor& output) const;

  const at::Tensor packed;
  const int64_t num_columns;
  const std::optional<at::Tensor> scales, sums, bias, factors;
  const std::string format;
};

}  // namespace tokenmill_linear
