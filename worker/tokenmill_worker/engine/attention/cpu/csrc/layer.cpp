// A decoder layer in one call, from the norm before its attention to the norm before the next one's: the same
// operations as one by one (surgery/layer.py), without the way back to Python between them.
#include <vector>

#include "ops.h"

namespace tokenmill {
namespace {

using tokenmill_linear::Linear;

struct Norm {
  Tensor weight;
  double eps;
  double offset;
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
  Tensor run(Tensor residual, const Tensor& x, const Tensor& cos, const Tensor& sin, Tensor key_pages,
             Tensor value_pages, const std::vector<Tensor>& step, const Tensor& next_norm, double next_eps,
             double next_offset) const {
    const Tensor attended =
        rope_attention((*project_)(x), cos, sin, std::move(key_pages), std::move(value_pages), step.at(0), step.at(1),
                       step.at(2), step.at(3), step.at(4), heads_.at(0), heads_.at(1), scale_, window_, softcap_, sinks_);
    const Tensor y = add_rms_norm_op(residual, (*output_)(attended), norm_.weight, norm_.eps, norm_.offset);
    return add_rms_norm_op(residual, (*down_)(act_mul_op((*gate_up_)(y), act_)), next_norm, next_eps, next_offset);
  }

 private:
  const c10::intrusive_ptr<Linear> project_, output_, gate_up_, down_;
  const std::string act_;
  const Norm norm_;
  const std::vector<int64_t> heads_;
  const double scale_;
  const std::optional<int64_t> window_;
  const std::optional<double> softcap_;
  const OptionalTensor sinks_;
};

}  // namespace
}  // namespace tokenmill

TORCH_LIBRARY_FRAGMENT(tokenmill_cpu, m) {
  using tokenmill_linear::Linear;
  using Weight = c10::intrusive_ptr<Linear>;
  m.class_<tokenmill::Layer>("Layer")
      .def(torch::init<Weight, Weight, Weight, Weight, std::string, at::Tensor, double, double, std::vector<int64_t>,
                       double, std::optional<int64_t>, std::optional<double>, std::optional<at::Tensor>>())
      .def("run", &tokenmill::Layer::run);
}
