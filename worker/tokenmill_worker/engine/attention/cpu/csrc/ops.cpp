// The ops of namespace tokenmill_cpu: checks what torch hands over and calls the kernels. The only file that knows torch.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels.h"
#include "ops.h"

namespace tokenmill {

namespace {

template <class T>
T* data(const Tensor& tensor) {
  return reinterpret_cast<T*>(tensor.data_ptr());
}

// Calls body with a value of the element's type.
template <class F>
void for_dtype(const Tensor& tensor, F&& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return body(float{});
    case at::kBFloat16: return body(bf16{});
    default: TORCH_CHECK(false, "tokenmill_cpu takes float32 and bfloat16, not ", tensor.scalar_type());
  }
}

void check_dense(const Tensor& tensor, int64_t dims, const char* name) {
  TORCH_CHECK(tensor.dim() == dims && tensor.is_contiguous(), name, " must be contiguous, of ", dims, " dimensions");
}

void check_alike(const Tensor& tensor, const Tensor& like, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, " is ", tensor.scalar_type(), ", not ",
              like.scalar_type());
}

const int32_t* indices(const Tensor& tensor, int64_t count, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kInt && tensor.is_contiguous() && tensor.numel() >= count, name,
              " must be contiguous int32, at least ", count, " of them");
  return tensor.const_data_ptr<int32_t>();
}

Step step_of(int64_t num_tokens, const Tensor& row_starts, const Tensor& context_lens, const Tensor& page_ids,
             const Tensor& page_starts, const Tensor& slots) {
  const int64_t rows = context_lens.numel();
  Step step{rows,
            num_tokens,
            indices(row_starts, rows + 1, "row_starts"),
            indices(context_lens, rows, "context_lens"),
            indices(page_ids, 0, "page_ids"),
            indices(page_starts, rows + 1, "page_starts"),
            indices(slots, num_tokens, "slots")};
  TORCH_CHECK(step.row_starts[rows] == num_tokens, "the rows own ", step.row_starts[rows], " of ", num_tokens, " tokens");
  return step;
}

// `sinks` becomes float32 and must outlive the layer.
Layer layer_of(int64_t heads, const Tensor& key_pages, const Tensor& value_pages, double scale,
               std::optional<int64_t> window, std::optional<double> softcap, OptionalTensor& sinks) {
  check_dense(key_pages, 4, "key_pages");
  check_dense(value_pages, 4, "value_pages");
  const int64_t kv_heads = key_pages.size(1), key_dim = key_pages.size(3), value_dim = value_pages.size(3);
  TORCH_CHECK(key_pages.size(2) == PAGE_SIZE && value_pages.size(2) == PAGE_SIZE, "a page has ", PAGE_SIZE, " tokens");
  TORCH_CHECK(value_pages.size(1) == kv_heads && heads % kv_heads == 0, heads, " heads over ", kv_heads, " KV heads");
  TORCH_CHECK(key_dim % 2 == 0 && key_dim <= MAX_KEY_DIM, "head dimensions are even, up to ", MAX_KEY_DIM);
  if (sinks) sinks = sinks->to(at::kFloat).contiguous();
  return Layer{heads,
               kv_heads,
               key_dim,
               value_dim,
               static_cast<float>(scale),
               window.value_or(INT64_MAX),
               static_cast<float>(softcap.value_or(0.0)),
               sinks ? sinks->const_data_ptr<float>() : nullptr};
}

template <class T>
Heads<T> heads_of(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

Tensor with_dense_heads(const Tensor& tensor, const Tensor& like, const char* name) {
  TORCH_CHECK(tensor.dim() == 3, name, " must be [tokens, heads, dim]");
  check_alike(tensor, like, name);
  return tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, Tensor key_pages, Tensor value_pages,
                 const Tensor& row_starts, const Tensor& context_lens, const Tensor& page_ids,
                 const Tensor& page_starts, const Tensor& slots, double scale, std::optional<int64_t> window,
                 std::optional<double> softcap, OptionalTensor sinks) {
  const Tensor query = with_dense_heads(q, key_pages, "q");
  const Tensor key = with_dense_heads(k, key_pages, "k"), value = with_dense_heads(v, value_pages, "v");
  check_alike(key_pages, value_pages, "value_pages");
  const Step step = step_of(query.size(0), row_starts, context_lens, page_ids, page_starts, slots);
  const Layer layer = layer_of(query.size(1), key_pages, value_pages, scale, window, softcap, sinks);
  TORCH_CHECK(query.size(2) == layer.key_dim && key.size(2) == layer.key_dim && value.size(2) == layer.value_dim &&
                  key.size(1) == layer.kv_heads && value.size(1) == layer.kv_heads,
              "queries, keys and values do not fit the pages");
  Tensor result = at::empty({step.num_tokens, layer.heads, layer.value_dim}, query.options());
  for_dtype(query, [&](auto element) {
    using T = decltype(element);
    const Pages<T> pages{data<T>(key_pages), data<T>(value_pages)};
    attend<T>(heads_of<const T>(query), heads_of<const T>(key), heads_of<const T>(value), Rope{}, pages, step, layer,
              data<T>(result));
  });
  return result;
}

}  // namespace

void rope_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& key_pages,
                    const Tensor& value_pages, const Tensor& row_starts, const Tensor& context_lens,
                    const Tensor& page_ids, const Tensor& page_starts, const Tensor& slots, int64_t num_heads,
                    int64_t num_kv_heads, double scale, std::optional<int64_t> window, std::optional<double> softcap,
                    OptionalTensor sinks, Tensor& out) {
  check_dense(qkv, 2, "qkv");
  check_dense(cos, 2, "cos");
  check_dense(sin, 2, "sin");
  check_alike(qkv, key_pages, "key_pages");
  check_alike(qkv, value_pages, "value_pages");
  check_alike(cos, sin, "sin");
  const int64_t tokens = qkv.size(0), rotary = cos.size(1);
  const Step step = step_of(tokens, row_starts, context_lens, page_ids, page_starts, slots);
  const Layer layer = layer_of(num_heads, key_pages, value_pages, scale, window, softcap, sinks);
  const int64_t dim = layer.key_dim, width = (num_heads + 2 * num_kv_heads) * dim;
  TORCH_CHECK(layer.kv_heads == num_kv_heads && layer.value_dim == dim && qkv.size(1) == width,
              "qkv does not fit the pages");
  TORCH_CHECK(cos.size(0) == tokens && sin.sizes() == cos.sizes() && rotary <= dim && rotary % 2 == 0,
              "cos and sin must be [tokens, even number up to the head's dimension]");
  TORCH_CHECK(cos.scalar_type() == at::kFloat || cos.scalar_type() == qkv.scalar_type(),
              "cos and sin must be float32 or of qkv's type");
  const Rope rope{cos.const_data_ptr(), sin.const_data_ptr(), rotary, cos.scalar_type() == at::kFloat};
  for_dtype(qkv, [&](auto element) {
    using T = decltype(element);
    const T* first = data<T>(qkv);
    const Heads<const T> query{first, width, dim}, key{first + num_heads * dim, width, dim};
    const Heads<const T> value{first + (num_heads + num_kv_heads) * dim, width, dim};
    const Pages<T> pages{data<T>(key_pages), data<T>(value_pages)};
    attend<T>(query, key, value, rope, pages, step, layer, data<T>(out));
  });
}

namespace {

Tensor rope_attention_op(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor key_pages, Tensor value_pages,
                         const Tensor& row_starts, const Tensor& context_lens, const Tensor& page_ids,
                         const Tensor& page_starts, const Tensor& slots, int64_t num_heads, int64_t num_kv_heads,
                         double scale, std::optional<int64_t> window, std::optional<double> softcap,
                         OptionalTensor sinks) {
  check_dense(key_pages, 4, "key_pages");
  Tensor result = at::empty({qkv.size(0), num_heads * key_pages.size(3)}, qkv.options());
  rope_attention(qkv, cos, sin, key_pages, value_pages, row_starts, context_lens, page_ids, page_starts, slots,
                 num_heads, num_kv_heads, scale, window, softcap, std::move(sinks), result);
  return result;
}

void norm(const Tensor* residual, const Tensor& x, const Tensor& weight, double eps, double offset, Tensor& out) {
  check_dense(x, 2, "x");
  check_dense(weight, 1, "weight");
  check_alike(weight, x, "weight");
  TORCH_CHECK(weight.size(0) == x.size(1), "weight has ", weight.size(0), " elements, a token ", x.size(1));
  if (residual != nullptr) {
    check_dense(*residual, 2, "residual");
    check_alike(*residual, x, "residual");
    TORCH_CHECK(residual->sizes() == x.sizes(), "residual and x differ in shape");
  }
  for_dtype(x, [&](auto element) {
    using T = decltype(element);
    rms_norm<T>(residual == nullptr ? nullptr : data<T>(*residual), data<T>(x), data<T>(weight),
                static_cast<float>(eps), static_cast<float>(offset), x.size(0), x.size(1), data<T>(out));
  });
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps, double offset) {
  Tensor out = at::empty(x.sizes(), x.options());
  norm(nullptr, x, weight, eps, offset, out);
  return out;
}

Tensor add_rms_norm_op(Tensor residual, const Tensor& x, const Tensor& weight, double eps, double offset) {
  Tensor out = at::empty(x.sizes(), x.options());
  norm(&residual, x, weight, eps, offset, out);
  return out;
}

Activation activation_named(std::string_view name) {
  if (name == "silu") return Activation::silu;
  TORCH_CHECK(name == "gelu_tanh", "act is silu or gelu_tanh, not ", name);
  return Activation::gelu_tanh;
}

}  // namespace

void add_rms_norm(const Tensor& residual, const Tensor& x, const Tensor& weight, double eps, double offset,
                  Tensor& out) {
  norm(&residual, x, weight, eps, offset, out);
}

void act_mul(const Tensor& gate_up, std::string_view act, Tensor& out) {
  check_dense(gate_up, 2, "gate_up");
  const Activation activation = activation_named(act);
  for_dtype(gate_up, [&](auto element) {
    using T = decltype(element);
    act_mul<T>(data<T>(gate_up), activation, gate_up.size(0), gate_up.size(1) / 2, data<T>(out));
  });
}

namespace {

Tensor act_mul_op(const Tensor& gate_up, std::string_view act) {
  check_dense(gate_up, 2, "gate_up");
  Tensor out = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  act_mul(gate_up, act, out);
  return out;
}

Tensor argmax_op(const Tensor& logits) {
  check_dense(logits, 2, "logits");
  TORCH_CHECK(logits.size(1) > 0, "no arg-max of nothing");
  Tensor out = at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
  for_dtype(logits, [&](auto element) {
    using T = decltype(element);
    argmax<T>(data<T>(logits), logits.size(0), logits.size(1), data<int64_t>(out));
  });
  return out;
}

}  // namespace
}  // namespace tokenmill

// Other files of the library add theirs with TORCH_LIBRARY_FRAGMENT(tokenmill_cpu, m).
TORCH_LIBRARY(tokenmill_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, float offset) -> Tensor");
  m.def("add_rms_norm(Tensor(a!) residual, Tensor x, Tensor weight, float eps, float offset) -> Tensor");
  m.def("act_mul(Tensor gate_up, str act) -> Tensor");
  m.def("argmax(Tensor logits) -> Tensor");
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor(a!) key_pages, Tensor(b!) value_pages, Tensor row_starts, "
      "Tensor context_lens, Tensor page_ids, Tensor page_starts, Tensor slots, float scale, int? window, "
      "float? softcap, Tensor? sinks) -> Tensor");
  m.def(
      "rope_attention(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) key_pages, Tensor(b!) value_pages, "
      "Tensor row_starts, Tensor context_lens, Tensor page_ids, Tensor page_starts, Tensor slots, int num_heads, "
      "int num_kv_heads, float scale, int? window, float? softcap, Tensor? sinks) -> Tensor");
}

TORCH_LIBRARY_IMPL(tokenmill_cpu, CPU, m) {
  m.impl("rms_norm", tokenmill::rms_norm_op);
  m.impl("add_rms_norm", tokenmill::add_rms_norm_op);
  m.impl("act_mul", tokenmill::act_mul_op);
  m.impl("argmax", tokenmill::argmax_op);
  m.impl("attention", tokenmill::attention);
  m.impl("rope_attention", tokenmill::rope_attention_op);
}
