// Packed linears: y = x W^T + b with weights in int8, one scale a column of the product, or in bfloat16. x is taken as
// uint8 with a scale and a zero point a row, found on the fly (w8a8), or as bfloat16. A row's result does not depend on
// the rows beside it, to the last bit.
#include "linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "ops.h"
#include "team.h"

namespace tokenmill_linear {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Up to this many rows each thread prepares them for itself: cheaper than waiting for one another.
constexpr int64_t kAlone = 12;
// As many in all threads together where rows only change their order. Each core then finds them in its own caches: steps
// of 32 and 64 rows take 6 % less on two threads.
constexpr int64_t kAloneTogether = 128;

enum class Format { w8a8, w8a16, bf16 };

struct Weight {
  const uint8_t* packed;  // [panels, units, 32 columns of one unit]
  int64_t num_panels, num_units, unit_bytes;
  int64_t num_columns;
  const float* scales;
  const float* sums;
  const float* bias;
  const float* factors;  // of x, one an input

  int64_t panel_bytes() const { return num_units * unit_bytes; }
  Panel panel(int64_t index) const {
    int64_t first = index * kColumns;
    auto from_first = [first](const float* values) { return values ? values + first : nullptr; };
    return {packed + index * panel_bytes(), from_first(scales), from_first(sums),
            from_first(bias), std::min(kColumns, num_columns - first)};
  }
};

struct Workspace {
  std::vector<uint32_t> units, rows;  // `rows`: what becomes of them before they are a block
  std::vector<RowScale> scales;

  void fit(int64_t num_rows, int64_t num_units) {
    if (static_cast<int64_t>(units.size()) < num_rows * num_units) units.resize(num_rows * num_units);
    if (static_cast<int64_t>(scales.size()) < num_rows) scales.resize(num_rows);
  }

  static Workspace& own() {
    thread_local Workspace workspace;
    return workspace;
  }
};

class Product {
 public:
  Product(const Tensor& x, const Weight& weight, Format format, const Kernels& kernels, Tensor& output)
      : weight_(weight),
        is_float_(x.scalar_type() == at::kFloat),
        element_size_(x.element_size()),
        num_rows_(x.size(0)),
        width_(x.size(1)),
        values_(static_cast<const char*>(x.const_data_ptr())),
        output_(static_cast<char*>(output.mutable_data_ptr())) {
    is_ready_ = format != Format::w8a8 && !is_float_ && width_ % 2 == 0 && weight.factors == nullptr;
    prepare_row_ = format == Format::w8a8 ? kernels.quantize : kernels.round;
    interleave_ = kernels.interleave;
    multiply_ = format == Format::w8a8 ? kernels.w8a8 : format == Format::w8a16 ? kernels.w8a16 : kernels.bf16;
    num_units_ = weight.num_units;
    num_blocks_ = (num_rows_ + kernels.max_rows - 1) / kernels.max_rows;
  }

  void run() {
    if (num_rows_ > 0) is_alone() ? run_alone() : run_together();
  }

 private:
  bool is_alone() const {
    return num_rows_ <= kAlone || (is_ready_ && num_rows_ * tokenmill::num_threads() <= kAloneTogether);
  }

  void run_alone() {
    for_each_panel([this](Workspace*& ready) {
      ready = &Workspace::own();
      ready->fit(num_rows_, num_units_);
      prepare(*ready, 0, num_blocks_);
    });
  }

  void run_together() {
    Workspace& shared = Workspace::own();
    shared.fit(num_rows_, num_units_);
    tokenmill::parallel_for(num_blocks_, 1, [&](int64_t begin, int64_t end) { prepare(shared, begin, end); });
    for_each_panel([&shared](Workspace*& ready) { ready = &shared; });
  }

  // A task is a panel and a part of the rows; there are several parts only where panels are few for the threads.
  template <typename Ready>
  void for_each_panel(Ready make_ready) {
    int64_t panels = weight_.num_panels, wanted = 4 * tokenmill::num_threads();
    int64_t parts = panels >= wanted ? 1 : std::min(num_blocks_, (wanted + panels - 1) / panels);
    tokenmill::share(panels * parts, [&](tokenmill::Tasks& tasks) {
      Workspace* ready = nullptr;
      for (int64_t task; tasks.take(task);) {
        if (ready == nullptr) make_ready(ready);
        int64_t part = task % parts;
        multiply(*ready, task / parts, part * num_blocks_ / parts, (part + 1) * num_blocks_ / parts);
      }
    });
  }

  // Blocks differ by at most one row, the larger ones first.
  int64_t start(int64_t block) const {
    return block * (num_rows_ / num_blocks_) + std::min(block, num_rows_ % num_blocks_);
  }

  void prepare(Workspace& ready, int64_t begin, int64_t end) const {
    for (int64_t block = begin; block < end; ++block) {
      int64_t first = start(block), count = start(block + 1) - first;
      RowScale* scales = ready.scales.data() + first;
      Rows rows = is_ready_ ? as_they_are(first, count, scales) : converted(first, count, scales);
      interleave_(rows, ready.units.data() + first * num_units_);
    }
  }

  // bfloat16 for bfloat16: a row's units are what lies there.
  Rows as_they_are(int64_t first, int64_t count, RowScale* scales) const {
    std::fill_n(scales, count, RowScale{1, 0});
    return {values(first), row_bytes(), count, num_units_};
  }

  Rows converted(int64_t first, int64_t count, RowScale* scales) const {
    std::vector<uint32_t>& rows = Workspace::own().rows;
    if (static_cast<int64_t>(rows.size()) < count * num_units_) rows.resize(count * num_units_);
    for (int64_t row = 0; row < count; ++row) {
      Row own{values(first + row), is_float_, width_, weight_.factors};
      scales[row] = prepare_row_(own, rows.data() + row * num_units_);
    }
    return {reinterpret_cast<const char*>(rows.data()), 4 * num_units_, count, num_units_};
  }

  int64_t row_bytes() const { return width_ * element_size_; }
  const char* values(int64_t row) const { return values_ + row * row_bytes(); }

  void multiply(const Workspace& ready, int64_t index, int64_t begin, int64_t end) {
    Panel panel = weight_.panel(index);
    const Turns turns{num_rows_, end - begin, weight_.panel_bytes(), num_units_};
    for (int64_t number = begin; number < end; ++number) {
      int64_t first = start(number), place = first * weight_.num_columns + index * kColumns;
      Block block{ready.units.data() + first * num_units_,
                  ready.scales.data() + first,
                  start(number + 1) - first,
                  num_units_,
                  output_ + place * element_size_,
                  weight_.num_columns,
                  is_float_};
      multiply_(block, panel, turns.ahead(panel.weights, panel.weights + weight_.panel_bytes(), number - begin));
    }
  }

  const Weight& weight_;
  const bool is_float_;  // x and the output, else bfloat16
  const int64_t element_size_, num_rows_, width_;
  const char* const values_;
  char* const output_;
  bool is_ready_;  // x, but for its order
  Prepare prepare_row_;
  Interleave interleave_;
  Multiply multiply_;
  int64_t num_units_, num_blocks_;
};

const float* floats(const OptionalTensor& values, int64_t count) {
  if (!values) return nullptr;
  TORCH_CHECK(values->is_contiguous() && values->scalar_type() == at::kFloat && values->numel() == count,
              "scales, sums and bias must be float32, one a column, factors one an input");
  return values->const_data_ptr<float>();
}

// Into `output`, [rows of x, num_columns].
void product(const Tensor& x, const Tensor& packed, int64_t num_columns, const OptionalTensor& scales,
             const OptionalTensor& sums, const OptionalTensor& bias, const OptionalTensor& factors, Format format,
             bool portable, Tensor& output) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "x must be a contiguous matrix");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "x must be float32 or bfloat16");
  int64_t per_unit = format == Format::w8a8 ? 4 : 2, unit_bytes = format == Format::w8a16 ? 2 : 4;
  TORCH_CHECK(packed.dim() == 3 && packed.is_contiguous() && packed.scalar_type() == at::kByte &&
                  packed.size(0) == (num_columns + kColumns - 1) / kColumns &&
                  packed.size(1) == (x.size(1) + per_unit - 1) / per_unit && packed.size(2) == kColumns * unit_bytes,
              "the weight was packed for another shape");
  static const Kernels fast = fast_kernels(), plain = portable_kernels();
  Weight weight{packed.const_data_ptr<uint8_t>(), packed.size(0),            packed.size(1),
                packed.size(2),                   num_columns,               floats(scales, num_columns),
                floats(sums, num_columns),        floats(bias, num_columns), floats(factors, x.size(1))};
  Product(x, weight, format, portable ? plain : fast, output).run();
}

Tensor new_product(const Tensor& input, const Tensor& packed, int64_t num_columns, const OptionalTensor& scales,
                   const OptionalTensor& sums, const OptionalTensor& bias, const OptionalTensor& factors,
                   Format format, bool portable) {
  TORCH_CHECK(input.dim() == 2, "x must be a matrix");
  Tensor x = input.contiguous(), output = at::empty({x.size(0), num_columns}, x.options());
  product(x, packed, num_columns, scales, sums, bias, factors, format, portable, output);
  return output;
}

Tensor linear_w8a8(const Tensor& x, const Tensor& packed, const Tensor& scales, const Tensor& sums,
                   const OptionalTensor& bias, const OptionalTensor& factors, bool portable) {
  return new_product(x, packed, scales.numel(), scales, sums, bias, factors, Format::w8a8, portable);
}

Tensor linear_w8a16(const Tensor& x, const Tensor& packed, const Tensor& scales, const OptionalTensor& bias,
                    bool portable) {
  return new_product(x, packed, scales.numel(), scales, {}, bias, {}, Format::w8a16, portable);
}

Tensor linear_bf16(const Tensor& x, const Tensor& packed, int64_t num_columns, const OptionalTensor& bias,
                   bool portable) {
  return new_product(x, packed, num_columns, {}, {}, bias, {}, Format::bf16, portable);
}

Format format_named(const std::string& name) {
  if (name == "w8a8") return Format::w8a8;
  if (name == "w8a16") return Format::w8a16;
  TORCH_CHECK(name == "bf16", "a packed linear is w8a8, w8a16 or bf16, not ", name);
  return Format::bf16;
}

bool has_fast_int8() { return fast_kernels().has_fast_int8; }
bool has_fast_bfloat16() { return fast_kernels().has_fast_bfloat16; }

}  // namespace

void Linear::operator()(const Tensor& x, Tensor& output) const {
  product(x, packed, num_columns, scales, sums, bias, factors, format_named(format), false, output);
}

// `portable`: the kernels in plain C++, which are else taken only where the processor lacks the instructions.
TORCH_LIBRARY_FRAGMENT(tokenmill_cpu, m) {
  m.def(
      "linear_w8a8(Tensor x, Tensor packed, Tensor scales, Tensor sums, Tensor? bias, Tensor? factors, "
      "bool portable=False) -> Tensor");
  m.def("linear_w8a16(Tensor x, Tensor packed, Tensor scales, Tensor? bias, bool portable=False) -> Tensor");
  m.def("linear_bf16(Tensor x, Tensor packed, int num_columns, Tensor? bias, bool portable=False) -> Tensor");
  m.class_<Linear>("Linear").def(torch::init<Tensor, int64_t, OptionalTensor, OptionalTensor, OptionalTensor,
                                             OptionalTensor, std::string>());
  m.def("has_fast_int8() -> bool", has_fast_int8);
  m.def("has_fast_bfloat16() -> bool", has_fast_bfloat16);
}

TORCH_LIBRARY_IMPL(tokenmill_cpu, CPU, m) {
  m.impl("linear_w8a8", linear_w8a8);
  m.impl("linear_w8a16", linear_w8a16);
  m.impl("linear_bf16", linear_bf16);
}

}  // namespace tokenmill_linear
