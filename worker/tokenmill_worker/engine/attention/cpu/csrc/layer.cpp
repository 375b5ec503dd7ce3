// Decoder layers in one call, each from the norm before its attention to the norm before the next one's: the same
// operations as one by one (surgery/layer.py), without the way back to Python between them.
#include <ATen/ops/empty.h>

#include <utility>
#include <vector>

#include "ops.h"
#include "team.h"

namespace tokenmill {
namespace {

using tokenmill_linear::Linear;

struct Norm {
  Tensor weight;
  double eps;
  double offset;
};

// What one operation hands to the next. The next layer takes the same memory: it is in the caches already.
struct Scratch {
  Tensor qkv, attended, added, normed, gate_up, gated;

  static Tensor& fit(Tensor& buffer, const Tensor& x, int64_t width) {
    if (!buffer.defined() || buffer.size(1) != width) buffer = at::empty({x.size(0), width}, x.options());
    return buffer;
  }
};

// One step, as one layer sees it.
struct Context {
  const Tensor &cos, &sin, &key_pages, &value_pages;
  const std::vector<Tensor>& step;
};

struct Layer : torch::CustomClassHolder {
  // `heads`: of queries, of keys. `norm`: of the MLP's input.
  Layer(c10::intrusive_ptr<Linear> project, c10::intrusive_ptr<Linear> output, c10::intrusive_ptr<Linear> gate_up,
        c10::intrusive_ptr<Linear> down, std::string act, Tensor norm, double eps, double offset,
        std::vector<int64_t> heads, double scale, std::optional<int64_t> window, std::optional<double> softcap,
        OptionalTensor sinks)
      : project_(std::move(project)),
        output_(std::move(output)),
        gate_up_(std::move(gate_up)),
        down_(std::move(down)),
        act_(std::move(act)),
        norm_{std::move(norm), eps, offset},
        heads_(std::move(heads)),
        scale_(scale),
        window_(window),
        softcap_(softcap),
        sinks_(std::move(sinks)) {}

  // residual [T, C] changes in place; x [T, C] is its norm. Returns the norm that follows, of the residual as it is then.
  Tensor run(const Tensor& residual, const Tensor& x, const Context& context, const Norm& next,
             Scratch& scratch) const {
    const Tensor& attended = attend(x, context, scratch);
    Tensor& added = product(*output_, attended, scratch.added);
    Tensor& normed = scratch.fit(scratch.normed, residual, residual.size(1));
    add_rms_norm(residual, added, norm_.weight, norm_.eps, norm_.offset, normed);
    const Tensor& gate_up = product(*gate_up_, normed, scratch.gate_up);
    Tensor& gated = scratch.fit(scratch.gated, gate_up, gate_up.size(1) / 2);
    act_mul(gate_up, act_, gated);
    product(*down_, gated, added);
    add_rms_norm(residual, added, next.weight, next.eps, next.offset, normed);
    return normed;
  }

 private:
  const Tensor& attend(const Tensor& x, const Context& in, Scratch& scratch) const {
    const Tensor& qkv = product(*project_, x, scratch.qkv);
    Tensor& attended = scratch.fit(scratch.attended, x, heads_.at(0) * in.key_pages.size(3));
    rope_attention(qkv, in.cos, in.sin, in.key_pages, in.value_pages, in.step.at(0), in.step.at(1), in.step.at(2),
                   in.step.at(3), in.step.at(4), heads_.at(0), heads_.at(1), scale_, window_, softcap_, sinks_,
                   attended);
    return attended;
  }

  static Tensor& product(const Linear& linear, const Tensor& x, Tensor& buffer) {
    linear(x, Scratch::fit(buffer, x, linear.num_columns));
    return buffer;
  }

  const c10::intrusive_ptr<Linear> project_, output_, gate_up_, down_;
  const std::string act_;
  const Norm norm_;
  const std::vector<int64_t> heads_;
  const double scale_;
  const std::optional<int64_t> window_;
  const std::optional<double> softcap_;
  const OptionalTensor sinks_;
};

// Layers that follow one another.
struct Stack : torch::CustomClassHolder {
  // `rotary`: which of a step's rotations are the layer's. The norm is that of its result.
  void add(c10::intrusive_ptr<Layer> layer, int64_t rotary, Tensor norm, double eps, double offset) {
    layers_.push_back({std::move(layer), static_cast<size_t>(rotary), Norm{std::move(norm), eps, offset}});
  }

  // As Layer::run, of the first `count` layers. cos and sin: one a rotary. Pages: one a layer.
  Tensor run(const Tensor& residual, Tensor x, const std::vector<Tensor>& cos, const std::vector<Tensor>& sin,
             const std::vector<Tensor>& key_pages, const std::vector<Tensor>& value_pages,
             const std::vector<Tensor>& step, int64_t count) const {
    Scratch scratch;
    with_team([&] {
      for (size_t index = 0; index < static_cast<size_t>(count); ++index) {
        const Part& part = layers_.at(index);
        const Context context{cos.at(part.rotary), sin.at(part.rotary), key_pages.at(index), value_pages.at(index),
                              step};
        x = part.layer->run(residual, x, context, part.next, scratch);
      }
    });
    return x;
  }

 private:
  struct Part {
    c10::intrusive_ptr<Layer> layer;
    size_t rotary;
    Norm next;
  };

  std::vector<Part> layers_;
};

}  // namespace
}  // namespace tokenmill

TORCH_LIBRARY_FRAGMENT(tokenmill_cpu, m) {
  using tokenmill_linear::Linear;
  using Weight = c10::intrusive_ptr<Linear>;
  m.class_<tokenmill::Layer>("Layer").def(
      torch::init<Weight, Weight, Weight, Weight, std::string, at::Tensor, double, double, std::vector<int64_t>, double,
                  std::optional<int64_t>, std::optional<double>, std::optional<at::Tensor>>());
  m.class_<tokenmill::Stack>("Stack")
      .def(torch::init<>())
      .def("add", &tokenmill::Stack::add)
      .def("run", &tokenmill::Stack::run);
}
